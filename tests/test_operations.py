"""Operations in process: start, get, list, cancel, delete, wait, result, and what a limited scope may see."""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import anyio
import pytest
from pydantic import BaseModel, Field

from lro import (
    Context,
    LROError,
    Operation,
    OperationError,
    Operations,
    RetryPolicy,
    State,
    Worker,
    job,
)
from lro.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OperationCancelled,
    OperationFailed,
    PermissionDenied,
    Unavailable,
    Unimplemented,
)
from lro.lifecycle import Record
from lro.limits import Limits
from lro.principal import Principal, Scope
from lro.status import BAD_REQUEST, Code
from lro.store import Store
from lro.store.base import OpenTransaction, Within
from lro.testing.contract import ManualClock
from tests.jobs import PATIENCE, Params, Progress, Relay, Rendered, Story, ended, result, stored
from tests.records import HOUR

MISSING = "operations/01kaprb5mg0000000000000000"
SOON = timedelta(milliseconds=20)


class Book(BaseModel):
    book_title: str = Field(alias="bookTitle", max_length=5)
    pages: list[int] = []


@job("tests.render")
async def render(ctx: Context[Progress], params: Params) -> Rendered:
    return Rendered(url=f"/{params.pages}")


@job("tests.bind")
async def bind(ctx: Context, params: Book) -> None:
    raise NotImplementedError


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    toys: list[str]


class House(BaseModel):
    pet: Cat | Dog
    chosen: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    rooms: dict[str, list[int | str]] = {}


@job("tests.house")
async def house(ctx: Context, params: House) -> None:
    raise NotImplementedError


@job("tests.alone", parallel="reject")
async def alone(ctx: Context) -> None:
    return None


@job("tests.bare")
async def bare(ctx: Context) -> None:
    return None


@job("tests.sealed", cancellable=False)
async def sealed(ctx: Context) -> None:
    return None


@job("tests.failing")
async def failing(ctx: Context) -> None:
    raise OperationError(Code.DATA_LOSS, "half a page", reason="PAGE_TORN")


@pytest.fixture
def operations(store: Store) -> Operations:
    return Operations(store)


def violations(error: LROError) -> dict[str, str]:
    (details,) = [detail for detail in error.details if detail["@type"] == BAD_REQUEST]
    return {entry["field"]: entry["description"] for entry in details["fieldViolations"]}


# -- start


async def test_a_started_operation_is_pending_and_stored(operations: Operations, store: Store) -> None:
    operation = await operations.start(render, Params(pages=2), target="books/b", priority=3)

    assert (operation.done, operation.state, operation.error, operation.response) == (False, State.PENDING, None, None)
    assert operation.name.startswith("operations/")
    assert len(operation.name) == len(MISSING)
    assert operation.metadata["verb"] == "tests.render"
    assert operation.metadata["target"] == "books/b"
    record = await stored(store, operation.name)
    assert (record.params, record.priority, record.attempt_limit) == ('{"pages":2}', 3, 1)
    assert await operations.get(operation.name) == operation


async def test_params_may_be_given_as_json_values(operations: Operations, store: Store) -> None:
    given: Any = {"bookTitle": "b", "pages": [1]}  # Any: instead of the model

    operation = await operations.start(bind, given)

    assert (await stored(store, operation.name)).params == '{"bookTitle":"b","pages":[1]}'


async def test_params_of_a_job_without_any_are_refused(operations: Operations) -> None:
    given: Any = {"a": 1}  # Any: what should not be there
    empty: Any = {}

    with pytest.raises(InvalidArgument, match=r"job tests\.bare takes none") as caught:
        await operations.start(bare, given)
    assert list(violations(caught.value)) == ["params"]
    await operations.start(bare, empty)


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({}, ["params.bookTitle"]),
        (None, ["params.bookTitle"]),
        ({"bookTitle": "too long", "pages": [1, "x"]}, ["params.bookTitle", "params.pages[1]"]),
        ("text", ["params"]),
        ({"bookTitle": "\ud800"}, ["params.bookTitle"]),
    ],
    ids=str,
)
async def test_params_that_do_not_fit_are_refused_field_by_field(
    operations: Operations,
    given: Any,
    fields: list[str],  # Any: instead of the model
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await operations.start(bind, given)

    assert caught.value.reason == "INVALID_PARAMS"
    assert sorted(violations(caught.value)) == fields
    assert (await operations.list()).operations == []


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"pet": {"kind": "dog", "toys": ["ball", 3]}}, {"params.pet.kind", "params.pet.lives", "params.pet.toys[1]"}),
        ({"pet": {"kind": "cat", "lives": 9}, "chosen": {"kind": "cat", "lives": []}}, {"params.chosen.lives"}),
        ({"pet": {"kind": "cat", "lives": 9}, "chosen": {"kind": "cow"}}, {"params.chosen"}),
        ({"pet": {"kind": "cat", "lives": 9}, "rooms": {"a.b": [1, [2]]}}, {"params.rooms.a.b[1]"}),
        ({"pet": [1]}, {"params.pet"}),
        ([], {"params"}),
    ],
)
async def test_a_violation_names_the_place_in_what_was_sent(
    operations: Operations, given: Any, fields: set[str]
) -> None:
    """Not pydantic's own way through the types: branches of unions are no fields."""
    with pytest.raises(InvalidArgument) as refused:
        await operations.start(house, given)
    assert violations(refused.value).keys() == fields


async def test_params_that_are_too_large_or_no_json_are_refused(operations: Operations) -> None:
    class Note(BaseModel):
        text: Any = None  # Any: JSON

    async def note(ctx: Context, params: Note) -> None:
        raise NotImplementedError

    noted = job("tests.note", params=Note)(note)
    for value in ("x" * 300_000, object(), float("inf")):
        with pytest.raises(InvalidArgument) as caught:
            await operations.start(noted, Note(text=value))
        assert (caught.value.reason, list(violations(caught.value))) == ("INVALID_PARAMS", ["params"])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"timeout": timedelta(microseconds=-1)}, "timeout"),
        ({"grace": timedelta(microseconds=-1)}, "grace"),
        ({"ttl": timedelta(microseconds=-1)}, "ttl"),
        ({"request_id": "x" * 129}, "requestId"),
        ({"request_id": "\ud800"}, "requestId"),
        ({"target": "a\0b"}, "target"),
        ({"target": "x" * 1025}, "target"),
        ({"priority": 2**31}, "priority"),
        ({"priority": -(2**31) - 1}, "priority"),
        ({"parent": "projects"}, "parent"),
        ({"parent": "projects/.."}, "parent"),
        ({"parent": "projects/a b"}, "parent"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_arguments_out_of_range_are_refused_by_name(
    operations: Operations,
    arguments: dict[str, Any],
    field: str,  # Any: of start
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await operations.start(bare, **arguments)

    assert list(violations(caught.value)) == [field]


async def test_a_time_without_a_zone_is_refused(operations: Operations) -> None:
    with pytest.raises(ValueError, match="names no time zone"):
        await operations.start(bare, schedule_at=datetime(2030, 1, 1))  # noqa: DTZ001 -- that is the point


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": timedelta(days=4_000_000)},
        {"timeout": timedelta.max},
        {"ttl": timedelta(days=4_000_000)},
        {"ttl": timedelta.max},
        {"grace": timedelta.max},
        {"schedule_at": datetime.max.replace(tzinfo=UTC), "timeout": timedelta(days=1)},
    ],
    ids=lambda value: str(value)[:60],
)
async def test_times_that_no_calendar_has_spoil_nothing(
    store: Store,
    operations: Operations,
    arguments: dict[str, Any],  # Any: of start
) -> None:
    try:
        operation = await operations.start(bare, **arguments)
    except InvalidArgument:
        return
    await operations.cancel(operation.name)

    assert await operations.get(operation.name) == (await operations.list()).operations[0]


@pytest.mark.parametrize("days", [999_999_999, 106_751_000, 4_000_000])
async def test_a_job_with_an_endless_retention_ends_all_the_same(
    store: Store, operations: Operations, days: int
) -> None:
    async def work(ctx: Context) -> None:
        return None

    try:
        endless = job("tests.endless", retention=timedelta(days=days))(work)
    except ValueError:
        return
    async with Worker(store, [endless]):
        await anyio.sleep(0.001)
        try:
            name = (await operations.start(endless)).name
        except InvalidArgument:
            return
        assert (await ended(operations, name)).state is State.SUCCEEDED


async def test_a_deadline_that_no_calendar_has_does_not_fail_the_job(store: Store, operations: Operations) -> None:
    async with Worker(store, [bare]):
        try:
            name = (await operations.start(bare, timeout=timedelta(days=4_000_000))).name
        except InvalidArgument:
            return
        assert (await ended(operations, name)).state is State.SUCCEEDED


async def test_the_jobs_own_durations_are_the_default_and_the_calls_come_first(
    operations: Operations, store: Store
) -> None:
    async def work(ctx: Context) -> None:
        raise NotImplementedError

    second = timedelta(seconds=1)
    timed = job("tests.timed", timeout=2 * second, grace=3 * second, retention=4 * second, retry=RetryPolicy())(work)

    own = await stored(store, (await operations.start(timed)).name)
    given = await stored(store, (await operations.start(timed, timeout=second, grace=second, ttl=second)).name)
    later = datetime.now(UTC) + timedelta(hours=1)
    delayed = await stored(store, (await operations.start(timed, schedule_at=later)).name)

    assert own.deadline_at is not None
    assert (own.deadline_at - own.created_at, own.grace, own.retention) == (2_000_000, 3_000_000, 4_000_000)
    assert given.deadline_at is not None
    assert (given.deadline_at - given.created_at, given.grace, given.retention) == (1_000_000,) * 3
    assert delayed.deadline_at == delayed.due_at + 2_000_000
    assert (own.restartable, own.attempt_limit) == (True, 3)


async def test_the_same_request_is_the_same_operation(operations: Operations) -> None:
    first = await operations.start(render, Params(pages=1), request_id="r", target="t")
    again = await operations.start(render, Params(pages=1), request_id="r", target="t", priority=5)
    other = await operations.start(render, Params(pages=1), request_id="s", target="t")

    assert again == first
    assert other.name != first.name
    assert (await operations.start(bare, request_id="r")).name != first.name
    unset = [(await operations.start(bare, request_id="")).name for _ in range(2)]
    assert unset[0] != unset[1]


async def test_concurrent_repetitions_of_a_request_are_one_operation(operations: Operations) -> None:
    names: set[str] = set()

    async def start() -> None:
        names.add((await operations.start(render, Params(), request_id="r")).name)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(start)

    assert len(names) == 1
    assert len((await operations.list()).operations) == 1


async def test_a_request_id_is_its_principals_own(operations: Operations) -> None:
    principals = [Principal(who, tenant) for who in ("", "ann", "bob") for tenant in ("", "books")]

    names = [(await operations.start(bare, request_id="r", principal=who)).name for who in principals]
    again = [(await operations.start(bare, request_id="r", principal=who)).name for who in principals]

    assert again == names
    assert len(set(names)) == len(principals)


@pytest.mark.parametrize(
    "arguments",
    [
        {"params": Params(pages=2)},
        {"target": "t"},
        {"parent": "projects/p"},
    ],
    ids=str,
)
async def test_a_request_id_does_not_stand_for_another_request(
    operations: Operations,
    arguments: dict[str, Any],  # Any: of start
) -> None:
    await operations.start(render, Params(), request_id="r", principal=Principal("ann"))

    with pytest.raises(InvalidArgument) as caught:
        await operations.start(
            render, **{"params": Params(), "principal": Principal("ann"), "request_id": "r", **arguments}
        )

    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert caught.value.metadata == {"requestId": "r"}


async def test_tenants_do_not_share_request_ids(operations: Operations) -> None:
    one = await operations.start(bare, request_id="r", principal=Principal("ann", "one"))
    two = await operations.start(bare, request_id="r", principal=Principal("ann", "two"))

    assert one.name != two.name


async def test_the_request_id_of_a_deleted_operation_starts_nothing(operations: Operations) -> None:
    name = (await operations.start(bare, request_id="r")).name
    await operations.cancel(name)
    await operations.delete(name)

    with pytest.raises(InvalidArgument) as caught:
        await operations.start(bare, request_id="r")

    assert caught.value.reason == "REQUEST_ID_DELETED"


async def test_what_within_raises_undoes_the_start(operations: Operations) -> None:
    def write(connection: Any) -> None:  # Any: the database's connection
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await operations.start(bare, within=write)

    assert (await operations.list()).operations == []


class Forgetting(Relay):
    """Stores a record, or doesn't, and then says that the outcome is unknown."""

    def __init__(self, store: Store, *, commits: bool) -> None:
        super().__init__(store)
        self.commits = commits

    async def insert(self, record: Record, within: Within | OpenTransaction | None = None, **options: Any) -> Record:
        if self.commits:
            await super().insert(record, within, **options)
        raise Unavailable


async def test_a_start_whose_outcome_is_unknown_is_looked_up(store: Store) -> None:
    operation = await Operations(Forgetting(store, commits=True)).start(bare)
    assert await Operations(store).get(operation.name) == operation

    with pytest.raises(Unavailable):
        await Operations(Forgetting(store, commits=False)).start(bare)
    with pytest.raises(Unavailable):
        await Operations(Forgetting(store, commits=True)).start(bare, request_id="r")


# -- start beside others, and only validated


async def test_a_job_that_rejects_parallel_operations_has_one_on_a_target(operations: Operations, store: Store) -> None:
    first = await operations.start(alone, target="books/b")
    with pytest.raises(Aborted, match="one operation at a time") as refused:
        await operations.start(alone, target="books/b")
    assert refused.value.status.reason == "TARGET_BUSY"
    assert refused.value.metadata == {"job": "tests.alone", "target": "books/b", "rival": first.name}
    await operations.start(alone, target="books/c")
    await operations.start(bare, target="books/b")

    await operations.cancel(first.name)
    second = await operations.start(alone, target="books/b")
    async with Worker(store, [alone, bare]):
        assert (await ended(operations, second.name)).state is State.SUCCEEDED


async def test_without_a_target_a_job_that_rejects_parallel_operations_has_one(operations: Operations) -> None:
    await operations.start(alone)
    with pytest.raises(Aborted, match="without a target"):
        await operations.start(alone)


async def test_a_start_that_is_only_validated_starts_nothing(operations: Operations) -> None:
    called: list[object] = []

    checked = await operations.start(render, Params(pages=2), request_id="1", validate_only=True, within=called.append)

    assert (checked.name, checked.done, checked.error, checked.response) == ("", True, None, None)
    assert checked.state is State.SUCCEEDED
    assert not called
    assert not (await operations.list()).operations
    started = await operations.start(render, Params(pages=2), request_id="1")
    assert (await operations.start(render, Params(pages=2), request_id="1", validate_only=True)).name == ""
    assert (await operations.list()).operations == [started]


async def test_what_would_refuse_a_start_refuses_its_validation(operations: Operations) -> None:
    given: Any = {"pages": []}  # Any: what does not fit
    with pytest.raises(InvalidArgument):
        await operations.start(bind, given, validate_only=True)
    await operations.start(alone, request_id="1", target="t")
    with pytest.raises(Aborted):
        await operations.start(alone, target="t", validate_only=True)
    with pytest.raises(InvalidArgument, match="was used for another request"):
        await operations.start(alone, request_id="1", target="u", validate_only=True)


# -- get and list


@pytest.mark.parametrize(
    "name",
    ["", "x", "operations/", MISSING[:-1], MISSING + "\n", MISSING.upper(), f"../{MISSING}", "operations/\ud800", "\0"],
)
async def test_what_is_no_operations_name_is_not_found(operations: Operations, name: str) -> None:
    calls: list[Callable[[str], Coroutine[Any, Any, object]]] = [
        operations.get,
        operations.cancel,
        operations.delete,
        operations.wait,
    ]
    for call in calls:
        with pytest.raises(NotFound):
            await call(name)


async def test_a_listing_shows_the_operations_of_one_parent_newest_first(operations: Operations) -> None:
    mine = [(await operations.start(bare, parent="projects/p")).name for _ in range(3)]
    own = (await operations.start(bare)).name
    await operations.delete(mine[1])

    page = await operations.list("projects/p")

    assert [operation.name for operation in page.operations] == [mine[2], mine[0]]
    assert page.next_page_token == ""
    assert all(name.startswith("projects/p/operations/") for name in mine)
    assert [operation.name for operation in (await operations.list()).operations] == [own]
    assert (await operations.list("projects/q")).operations == []


async def test_pages_hold_every_operation_once(operations: Operations) -> None:
    names = [(await operations.start(bare)).name for _ in range(7)]

    walked: list[str] = []
    token, sizes = "", iter([2, 1, 3, 1000])
    while True:
        page = await operations.list(page_size=next(sizes), page_token=token)
        walked += [operation.name for operation in page.operations]
        await operations.start(bare)  # newer ones do not disturb the walk
        token = page.next_page_token
        if not token:
            break

    assert sorted(walked, reverse=True) == walked or len(set(walked)) == 7
    assert sorted(walked) == sorted(names)


async def test_page_sizes(operations: Operations) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(55):
            group.start_soon(operations.start, bare)

    assert len((await operations.list()).operations) == 50
    assert len((await operations.list(page_size=1)).operations) == 1
    assert len((await operations.list(page_size=55)).operations) == 55
    assert (await operations.list(page_size=55)).next_page_token == ""
    assert len((await operations.list(page_size=2**31 - 1)).operations) == 55
    for size in (-1, -(2**31), 2**31):
        with pytest.raises(InvalidArgument) as caught:
            await operations.list(page_size=size)
        assert list(violations(caught.value)) == ["pageSize"]


async def test_a_page_token_is_good_for_its_own_listing_only(store: Store) -> None:
    clock = ManualClock()
    operations = Operations(store, clock=clock)
    ann = Principal("ann", "books")
    for parent in ("", "projects/p"):
        for _ in range(3):
            await operations.start(bare, parent=parent, principal=ann)
    everything = await operations.list(page_size=1, principal=ann)
    token = everything.next_page_token
    again = await operations.list(page_size=2, page_token=token, principal=ann)  # another size is fine
    assert len(again.operations) == 2
    others = [
        await operations.list("projects/p", page_size=1, principal=ann),
        await operations.list(filter="done = false", page_size=1, principal=ann),
        await operations.list(page_size=1, scope=Scope(owner="ann"), principal=ann),
        await operations.list(page_size=1, scope=Scope(tenant="books"), principal=ann),
        await operations.list(page_size=1, principal=Principal("ann", "films")),
        await operations.list(page_size=1, principal=Principal("bob", "books")),
        await operations.list(page_size=1),
    ]
    for other in others:
        assert other.operations
        with pytest.raises(InvalidArgument) as caught:
            await operations.list(page_token=other.next_page_token, principal=ann)
        assert (caught.value.reason, list(violations(caught.value))) == ("INVALID_PAGE_TOKEN", ["pageToken"])

    clock.advance(3 * 24 * HOUR)
    assert (await operations.list(page_token=token, principal=ann)).operations == again.operations
    clock.advance(1_000_000)
    with pytest.raises(InvalidArgument, match="has expired") as expired:
        await operations.list(page_token=token, principal=ann)
    assert (expired.value.reason, list(violations(expired.value))) == ("INVALID_PAGE_TOKEN", ["pageToken"])


async def test_a_filter_says_which_operations_are_listed(operations: Operations) -> None:
    kept = (await operations.start(bare, target="books/a")).name
    gone = (await operations.start(bare, target="books/b")).name
    await operations.cancel(gone)

    for text, names in (
        ("", [gone, kept]),
        (" ", [gone, kept]),
        ("done = true", [gone]),
        ('metadata.target = "books/*" AND NOT error.code = CANCELLED', [kept]),
        ("metadata.state = RUNNING", []),
    ):
        page = await operations.list(filter=text)
        assert [operation.name for operation in page.operations] == names
        assert page.next_page_token == ""


async def test_a_filter_that_is_none_is_refused(operations: Operations) -> None:
    with pytest.raises(InvalidArgument, match=r"write metadata\.state") as caught:
        await operations.list(filter="state = RUNNING")

    assert caught.value.reason == "INVALID_FILTER"
    assert caught.value.metadata == {"field": "filter", "position": "1"}
    assert list(violations(caught.value)) == ["filter"]


async def test_a_parent_that_is_none_is_refused(operations: Operations) -> None:
    for parent in ("projects", "projects/p/books", "/projects/p", "projects/..", "a b/c", "x/" + "y" * 600):
        with pytest.raises(InvalidArgument):
            await operations.list(parent)


# -- cancel and delete


async def test_a_pending_operation_is_cancelled_at_once(operations: Operations, store: Store) -> None:
    name = (await operations.start(bare)).name

    operation = await operations.cancel(name, reason="wrong book", requester="ann")

    assert (operation.done, operation.state) == (True, State.CANCELLED)
    assert operation.metadata["cancelOutcome"] == "BEFORE_START"
    assert operation.metadata["cancelReason"] == "wrong book"
    assert operation.metadata["cancelRequester"] == "ann"
    assert operation.metadata["requestedCancellation"] is True
    async with Worker(store, [bare]):
        await anyio.sleep(0.01)
    assert await operations.get(name) == operation


async def test_a_cancel_of_what_runs_is_a_request_and_the_first_one_stands(
    operations: Operations, store: Store
) -> None:
    story = Story()

    @job("tests.sleep")
    async def sleep(ctx: Context) -> None:
        story.tell("runs")
        await story.heard("twice cancelled")
        await ctx.checkpoint()

    async with Worker(store, [sleep]):
        name = (await operations.start(sleep)).name
        await story.heard("runs")
        first = await operations.cancel(name, reason="one")
        again = await operations.cancel(name, reason="two")
        assert (first.done, first.metadata["requestedCancellation"]) == (False, True)
        assert (again, again.etag) == (first, first.etag)
        story.tell("twice cancelled")
        done = await ended(operations, name)

    assert (done.state, done.metadata["cancelReason"]) == (State.CANCELLED, "one")


async def test_a_cancel_of_what_has_ended_changes_nothing(operations: Operations, store: Store) -> None:
    async with Worker(store, [bare]):
        done = await ended(operations, (await operations.start(bare)).name)

    again = await operations.cancel(done.name)

    assert (again, again.etag) == (done, done.etag)
    assert done.metadata["requestedCancellation"] is False


async def test_a_cancel_is_refused_where_there_is_nothing_to_cancel(operations: Operations) -> None:
    with pytest.raises(NotFound, match=f"There is no operation {MISSING}"):
        await operations.cancel(MISSING)
    name = (await operations.start(sealed)).name
    with pytest.raises(Unimplemented, match=f"{name} can't be cancelled") as caught:
        await operations.cancel(name)
    assert caught.value.reason == "CANCEL_UNSUPPORTED"
    assert (await operations.get(name)).metadata["requestedCancellation"] is False


@pytest.mark.parametrize("reason", ["x" * 1025, "\ud800", "a\0b"])
async def test_a_reason_is_text_of_bounded_length(operations: Operations, reason: str) -> None:
    name = (await operations.start(bare)).name

    with pytest.raises(InvalidArgument):
        await operations.cancel(name, reason=reason)
    assert (await operations.get(name)).state is State.PENDING


async def test_a_deleted_operation_is_gone(operations: Operations) -> None:
    name = (await operations.start(bare)).name
    await operations.cancel(name)

    await operations.delete(name)

    assert (await operations.list()).operations == []
    with pytest.raises(NotFound):
        await operations.delete(name)
    with pytest.raises(NotFound):
        await operations.get(name)
    with pytest.raises(NotFound):
        await operations.cancel(name)
    with pytest.raises(NotFound):
        await operations.wait(name)


async def test_deleting_what_runs_hides_it_and_it_goes_on(operations: Operations, store: Store) -> None:
    story = Story()

    @job("tests.work")
    async def work(ctx: Context) -> None:
        story.tell("runs")
        await story.heard("deleted")
        await ctx.checkpoint()
        story.tell("went on")

    async with Worker(store, [work]):
        name = (await operations.start(work)).name
        await story.heard("runs")
        await operations.delete(name)
        with pytest.raises(NotFound):
            await operations.get(name)
        assert (await operations.list()).operations == []
        story.tell("deleted")
        await story.heard("went on")


async def test_deleting_what_runs_may_be_refused(store: Store) -> None:
    operations = Operations(store, delete_running="reject")
    name = (await operations.start(bare)).name

    with pytest.raises(FailedPrecondition) as caught:
        await operations.delete(name)
    assert caught.value.reason == "OPERATION_RUNNING"

    await operations.cancel(name)
    await operations.delete(name)
    with pytest.raises(ValueError, match="use 'hide' or 'reject'"):
        Operations(store, delete_running="cancel")


# -- wait and result


async def test_a_wait_for_what_is_done_returns_at_once(operations: Operations) -> None:
    done = await operations.cancel((await operations.start(bare)).name)

    with anyio.fail_after(PATIENCE):
        assert await operations.wait(done.name) == done
        assert await operations.wait(done.name, timedelta(0)) == done


async def test_a_wait_ends_with_the_operation(operations: Operations) -> None:
    name = (await operations.start(bare)).name
    seen: list[Operation] = []

    async def wait() -> None:
        seen.append(await operations.wait(name))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await operations.cancel(name)

    assert [operation.state for operation in seen] == [State.CANCELLED] * 3


async def test_a_wait_whose_time_is_up_returns_the_state_so_far(store: Store) -> None:
    operations = Operations(store, limits=Limits(wait=SOON))
    name = (await operations.start(bare)).name

    with anyio.fail_after(PATIENCE):
        for timeout in (SOON, timedelta(0), None, timedelta(hours=1)):
            assert (await operations.wait(name, timeout)).done is False
    with pytest.raises(InvalidArgument) as caught:
        await operations.wait(name, timedelta(microseconds=-1))
    assert list(violations(caught.value)) == ["timeout"]


async def test_a_wait_ends_when_its_operation_is_deleted(operations: Operations) -> None:
    name = (await operations.start(bare)).name

    async def wait() -> None:
        with pytest.raises(NotFound):
            await operations.wait(name)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await operations.delete(name)


async def test_a_shutdown_ends_all_waits_with_the_state_so_far(operations: Operations) -> None:
    name = (await operations.start(bare)).name
    seen: list[Operation] = []

    async def wait() -> None:
        seen.append(await operations.wait(name))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            operations.begin_shutdown()
        await wait()
        with pytest.raises(Unavailable) as caught:
            await operations.result(bare, name)

    assert [operation.done for operation in seen] == [False] * 3
    assert caught.value.reason == "SHUTTING_DOWN"


async def test_one_wait_too_many_returns_at_once(store: Store) -> None:
    operations = Operations(store, limits=Limits(waits=1))
    name = (await operations.start(bare)).name

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(operations.wait, name)
            await anyio.wait_all_tasks_blocked()
            assert (await operations.wait(name)).done is False
            await operations.cancel(name)


async def test_a_result_comes_back_typed(operations: Operations, store: Store) -> None:
    async with Worker(store, [render, bare]):
        name = (await operations.start(render, Params(pages=4))).name
        assert await result(operations, render, name) == Rendered(url="/4")
        await result(operations, bare, (await operations.start(bare)).name)


async def test_a_result_of_what_failed_or_was_cancelled_is_an_exception(operations: Operations, store: Store) -> None:
    async with Worker(store, [failing]):
        failed = (await operations.start(failing)).name
        with pytest.raises(OperationFailed) as caught:
            await result(operations, failing, failed)
    assert not isinstance(caught.value, OperationCancelled)
    assert (caught.value.name, caught.value.reason) == (failed, "PAGE_TORN")
    assert (caught.value.status.code, caught.value.status.message) == (Code.DATA_LOSS, "half a page")

    name = (await operations.start(bare)).name
    await operations.cancel(name)
    with pytest.raises(OperationCancelled) as stopped:
        await result(operations, bare, name)
    assert stopped.value.status.code is Code.CANCELLED


async def test_a_result_is_waited_for_no_longer_than_asked(operations: Operations) -> None:
    name = (await operations.start(bare)).name

    with pytest.raises(TimeoutError):
        await operations.result(bare, name, timeout=SOON)


async def test_a_result_of_another_job_or_of_nothing_is_refused(operations: Operations) -> None:
    name = (await operations.start(bare)).name
    await operations.cancel(name)

    with pytest.raises(InvalidArgument) as caught:
        await result(operations, render, name)
    assert caught.value.reason == "WRONG_JOB"
    with pytest.raises(NotFound):
        await result(operations, render, MISSING)


async def test_a_result_of_another_job_is_refused_before_it_has_ended(operations: Operations) -> None:
    name = (await operations.start(bare)).name

    with pytest.raises(InvalidArgument) as caught:
        await operations.result(render, name, timeout=SOON)

    assert caught.value.reason == "WRONG_JOB"


# -- scopes


async def test_what_a_scope_covers_may_be_touched(operations: Operations) -> None:
    name = (await operations.start(bare, principal=Principal("ann", "books"))).name
    await operations.start(bare, principal=Principal("bob", "books"))

    for scope in (Scope("ann", "books"), Scope(owner="ann")):
        assert (await operations.get(name, scope=scope)).name == name
        assert [operation.name for operation in (await operations.list(scope=scope)).operations] == [name]
        assert (await operations.wait(name, timedelta(0), scope=scope)).name == name
    assert len((await operations.list(scope=Scope(tenant="books"))).operations) == 2
    assert (await operations.cancel(name, scope=Scope("ann", "books"))).done
    await operations.delete(name, scope=Scope("ann", "books"))


@pytest.mark.parametrize("scope", [Scope("bob", "books"), Scope("ann", "music"), Scope(tenant="music")], ids=str)
@pytest.mark.parametrize("verb", ["get", "cancel", "delete", "wait"])
async def test_a_limited_scope_cannot_tell_foreign_missing_and_deleted_apart(
    operations: Operations, scope: Scope, verb: str
) -> None:
    ann = Principal("ann", "books")
    foreign = (await operations.start(bare, principal=ann)).name
    uncancellable = (await operations.start(sealed, principal=ann)).name
    deleted = (await operations.start(bare, principal=ann)).name
    await operations.delete(deleted)
    call: Callable[..., Coroutine[Any, Any, object]] = getattr(operations, verb)  # Any: arguments and results differ

    for name in (foreign, uncancellable, deleted, MISSING, "no name"):
        with pytest.raises(PermissionDenied) as caught:
            await call(name, scope=scope)
        assert caught.value.message == (
            f"Permission 'operations.{verb}' denied on resource '{name}' (or it might not exist)."
        )
        assert (caught.value.reason, caught.value.details) == ("PERMISSION_DENIED", ())
        assert caught.value.metadata == {"permission": f"operations.{verb}", "name": name}

    assert (await operations.get(foreign)).metadata["requestedCancellation"] is False
    assert (await operations.list(scope=scope)).operations == []


async def test_an_owner_keeps_out_of_what_was_deleted(operations: Operations) -> None:
    name = (await operations.start(bare, principal=Principal("ann"))).name
    await operations.delete(name, scope=Scope("ann"))

    with pytest.raises(PermissionDenied):
        await operations.get(name, scope=Scope("ann"))
