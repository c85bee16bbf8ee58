"""Limits in process: what is at its bound passes, one more is refused, and nothing of that is stored.

What limits do to an attempt is told in test_attempt, and over HTTP in routes/test_limits.
"""

from collections.abc import Callable, Coroutine
from dataclasses import fields
from datetime import timedelta
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from lro import Context, Operations, Principal, job
from lro.errors import InvalidArgument, PermissionDenied
from lro.limits import Limits
from lro.principal import Scope
from lro.store import PageQuery, Store
from tests.jobs import PATIENCE

NAMES = [field.name for field in fields(Limits)]


class Note(BaseModel):
    text: Any = None  # Any: JSON


@job("tests.note")
async def note(ctx: Context, params: Note) -> None:
    raise NotImplementedError


# The object


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "9", None, timedelta(0), timedelta(seconds=-1)], ids=repr)
def test_a_limit_that_is_none_is_refused_by_its_name(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^Limits\({name}="):
        Limits(**{name: bad})


def test_a_number_is_no_time_and_a_time_no_number() -> None:
    with pytest.raises(ValueError, match="positive timedelta"):
        Limits(wait=8)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="whole number"):
        Limits(waits=timedelta(seconds=8))  # type: ignore[arg-type]  # that is the point


def test_limits_that_contradict_each_other_are_refused() -> None:
    assert Limits(depth=128, page_size=50).depth == 128
    with pytest.raises(ValueError, match="depth=129"):
        Limits(depth=129)
    with pytest.raises(ValueError, match="default_page_size=50"):
        Limits(page_size=49)


def test_the_smallest_limits_are_limits() -> None:
    smallest: dict[str, Any] = {
        field.name: timedelta.resolution if isinstance(field.default, timedelta) else 1 for field in fields(Limits)
    }
    assert Limits(**smallest) == Limits(**smallest)


# What clients send


def deep(levels: int) -> Any:  # Any: JSON
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def loose(**values: Any) -> Any:  # Any: JSON values in place of the model
    return values


Call = Callable[[Operations, int], Coroutine[Any, Any, object]]  # Any: whatever it returns

CALLS: dict[str, tuple[str, str, Call]] = {
    "params": ("params", "INVALID_PARAMS", lambda o, n: o.start(note, Note(text="x" * (n - 11)))),
    "params as JSON": (
        "params",
        "INVALID_PARAMS",
        lambda o, n: o.start(note, loose(text="é" * ((n - 11) // 2) + "x" * ((n - 11) % 2))),
    ),
    "depth": ("depth", "INVALID_PARAMS", lambda o, n: o.start(note, Note(text=deep(n - 1)))),
    "depth as JSON": ("depth", "INVALID_PARAMS", lambda o, n: o.start(note, loose(text=deep(n - 1)))),
    "request id": ("request_id", "INVALID_ARGUMENT", lambda o, n: o.start(note, Note(), request_id="é" * n)),
    "target": ("target", "INVALID_ARGUMENT", lambda o, n: o.start(note, Note(), target="é" * n)),
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("bound", [20, None], ids=["set", "default"])
async def test_a_start_at_its_bound_is_stored_and_one_over_it_is_not(
    store: Store, what: str, bound: int | None
) -> None:
    name, reason, call = CALLS[what]
    given: dict[str, Any] = {} if bound is None else {name: bound}
    limits = Limits(**given)
    operations, at = Operations(store, limits=limits), getattr(limits, name)

    await call(operations, at)
    assert len((await store.list(PageQuery())).records) == 1
    with pytest.raises(InvalidArgument) as caught:
        await call(operations, at + 1)

    assert caught.value.reason == reason
    assert str(at) in caught.value.message.replace(",", "")
    assert len(caught.value.message) < 200
    assert len((await store.list(PageQuery())).records) == 1


async def test_a_cancel_reason_at_its_bound_is_taken_and_one_over_it_is_not(store: Store) -> None:
    operations = Operations(store, limits=Limits(reason=3))
    name = (await operations.start(note, Note())).name

    with pytest.raises(InvalidArgument, match="reason: must be text of at most 3 characters"):
        await operations.cancel(name, reason="four")
    assert (await operations.get(name)).metadata["requestedCancellation"] is False
    assert (await operations.cancel(name, reason="two")).metadata["cancelReason"] == "two"


@pytest.mark.parametrize(
    ("value", "field", "what"),
    [
        ({"text": "a\0"}, "params.text", "U+0000"),
        ({"text": [{"deep": "\0"}]}, "params.text[0].deep", "U+0000"),
        ({"text": {"\0": 1}}, "params.text", "U+0000"),
        ({"text": "\udc00"}, "params.text", "half of a surrogate pair"),
        ({"text": 2**64}, "params.text", "64 bits"),
        ({"text": [-(2**63) - 1]}, "params.text[0]", "64 bits"),
        ({"text": float("nan")}, "params", "no JSON"),
        ({"text": [float("-inf")]}, "params", "no JSON"),
    ],
    ids=repr,
)
async def test_params_that_no_database_would_keep_are_refused_by_their_place(
    store: Store, value: Any, field: str, what: str
) -> None:
    operations = Operations(store)
    model = Note.model_construct(**value)

    for params in (value, model):
        with pytest.raises(InvalidArgument) as caught:
            await operations.start(note, params)
        assert caught.value.reason == "INVALID_PARAMS"
        if params is value:  # what a model makes of it pydantic tells in words of its own
            assert what in caught.value.message
            assert [one["field"] for one in caught.value.details[0]["fieldViolations"]] == [field]
    assert not (await store.list(PageQuery())).records


@pytest.mark.parametrize("text", [2**64 - 1, -(2**63), "\\u0000", "\x01\x7f\u2028", 1e308, deep(63)], ids=repr)
async def test_params_at_the_edge_of_what_can_be_kept_come_back_equal(store: Store, text: Any) -> None:
    operation = await Operations(store).start(note, Note(text=text))

    record = await store.get(operation.name)
    assert record is not None
    assert note.params is not None
    assert note.params.load(record.params or "") == Note(text=text)


class Pages(BaseModel):
    pages: list[str]


@job("tests.pages")
async def pages(ctx: Context, params: Pages) -> None:
    raise NotImplementedError


async def test_a_client_is_told_of_no_more_fields_than_it_can_use(store: Store) -> None:
    wrong: Any = {"pages": list(range(30_000))}

    with pytest.raises(InvalidArgument) as caught:
        await Operations(store).start(pages, wrong)

    assert len(str(caught.value.status)) < 5000
    assert caught.value.details[0]["fieldViolations"][0]["field"] == "params.pages[0]"


# Pages


@pytest.mark.parametrize(("asked", "given"), [(0, 2), (1, 1), (3, 3), (4, 3), (2**31 - 1, 3)])
async def test_a_page_has_the_number_that_is_asked_for_up_to_its_bound(store: Store, asked: int, given: int) -> None:
    operations = Operations(store, limits=Limits(page_size=3, default_page_size=2))
    for _ in range(5):
        await operations.start(note, Note())

    assert len((await operations.list(page_size=asked)).operations) == given


async def test_a_page_token_of_a_megabyte_is_refused_at_once(store: Store) -> None:
    operations = Operations(store)

    for token in ("x" * 1024, "x" * 1025, "x" * 1024 * 1024):
        with pytest.raises(InvalidArgument) as caught:
            await operations.list(page_token=token)
        assert caught.value.reason == "INVALID_PAGE_TOKEN"


# Waits


async def waiting(operations: Operations, name: str, *clients: Principal | None) -> list[bool]:
    """Have these wait, all at once, and return who still does when everything stands still."""
    over = [False] * len(clients)

    async def wait(number: int, client: Principal | None) -> None:
        assert not (await operations.wait(name, principal=client)).done
        over[number] = True

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for number, client in enumerate(clients):
                group.start_soon(wait, number, client)
            while sum(over) + operations.waiting < len(clients):
                await anyio.sleep(0.001)
            found = [not one for one in over]
            group.cancel_scope.cancel()
    assert not operations.waiting
    return found


ANN, BOB, OTHER_ANN = Principal("ann", "books"), Principal("bob", "books"), Principal("ann", "music")


async def test_one_client_too_many_is_answered_at_once(store: Store) -> None:
    operations = Operations(store, limits=Limits(waits=2))
    name = (await operations.start(note, Note())).name

    assert sum(await waiting(operations, name, ANN, BOB, OTHER_ANN, None)) == 2
    assert sum(await waiting(operations, name, ANN, BOB)) == 2  # the places are free again


async def test_one_principal_does_not_take_all_the_places(store: Store) -> None:
    operations = Operations(store, limits=Limits(waits=100, waits_per_principal=2))
    name = (await operations.start(note, Note())).name

    found = await waiting(operations, name, *[ANN] * 5, BOB, OTHER_ANN)
    assert (sum(found[:5]), found[5:]) == (2, [True, True])
    nobody = await waiting(operations, name, *[None] * 3, *[Principal()] * 3)
    assert nobody == [True] * 6  # nobody in particular may be many


async def test_the_services_own_code_waits_for_results_beside_any_number_of_clients(store: Store) -> None:
    operations = Operations(store, limits=Limits(waits=1))
    name = (await operations.start(note, Note())).name
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(operations.result, note, name)
            while operations.waiting < 3:
                await anyio.sleep(0.001)
            assert await waiting_with(operations, name) == 4
            group.cancel_scope.cancel()


async def waiting_with(operations: Operations, name: str) -> int:
    """Return how many wait when one client does too."""
    async with anyio.create_task_group() as group:
        group.start_soon(operations.wait, name)
        before = operations.waiting
        while operations.waiting == before:
            await anyio.sleep(0.001)
        found = operations.waiting
        group.cancel_scope.cancel()
    return found


async def test_a_client_of_a_foreign_operation_takes_no_place(store: Store) -> None:
    operations = Operations(store, limits=Limits(waits=1))
    name = (await operations.start(note, Note(), principal=ANN)).name

    for _ in range(3):
        with pytest.raises(PermissionDenied, match="denied"):
            await operations.wait(name, principal=BOB, scope=Scope("bob"))
    assert operations.waiting == 0
