"""What the promises are told with: a clock that stands still, sample records, calls at once."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import anyio

from lro import lifecycle
from lro.clock import Clock
from lro.lifecycle import CancelOutcome, Facts, Record, Returned, State, Transition
from lro.store import PageQuery, Store
from lro.store.base import Within

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

START = 1_735_689_600_000_000
"""When the sample records and the manual clocks begin: 2025-01-01 in microseconds."""

SECOND = 1_000_000
HOUR = 3600 * SECOND
LEASE = 30 * SECOND
BOUND = 30.0  # seconds that a test may take
TEXT = "grüße 漢字 🎈 'x' \"y\" \\ % _ ; -- \t\n\x7f\u2028"
LARGEST = 2**63 - 1

numbers = count(1)


class OpenStore(Protocol):
    """What the fixture `open_store` returns: makes another store, not opened yet, on the test's one database."""

    def __call__(self, clock: Clock | None = None) -> Store:
        """Return a store that reads the time from this clock, or from the machine's."""
        ...


class ManualClock:
    """A clock that stands still until it is moved.

    Args:
        now: Where it stands at first, in microseconds since 1970.
    """

    def __init__(self, now: int = START) -> None:
        self._now = now
        self._passed = 0

    def now(self) -> int:
        """Return the time in microseconds since 1970, UTC."""
        return self._now

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""
        return 1000 + self._passed / SECOND

    def advance(self, micros: int) -> None:
        """Let that many microseconds pass."""
        self._now += micros
        self._passed += micros

    def jump(self, micros: int) -> None:
        """Move the wall-clock time alone, forward or back."""
        self._now += micros


def sample_record(**changes: Any) -> Record:  # Any: one type per field of Record
    """Return a new PENDING record with a name of its own, due since START, with these fields instead."""
    record = lifecycle.start(
        START,
        name=f"operations/{next(numbers):026}",
        job="books.render",
        retention=30 * 24 * HOUR,
        params='{"pages":3}',
    )
    return record._replace(**changes)


async def eventually(look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Call `look` until it returns something true, for 10 seconds at most, and return that.

    Raises:
        AssertionError: It did not come about.
    """
    with anyio.move_on_after(10):
        while True:
            found = await look()
            if found:
                return found
            await anyio.sleep(0.005)
    msg = f"this did not come about in 10 s: {what}"
    raise AssertionError(msg)


class Promises:
    """What the tests of every group use.

    Attributes:
        create_notes: Makes the table that the tests of `within` write into; override it where SQL differs.
    """

    create_notes: ClassVar[str] = "CREATE TABLE notes (text TEXT NOT NULL UNIQUE)"

    async def _with_notes(self, store: Store) -> Record:
        """Make the table, and return a record to read it by."""
        return await store.insert(sample_record(), within=executing(self.create_notes))

    async def _notes(self, store: Store, keeper: Record) -> list[str]:
        """Return the rows of the table, sorted, as the store's own connection sees them."""
        found: list[str] = []

        def read(connection: Any) -> None:  # Any: the database's connection
            found.extend(text for (text,) in connection.execute("SELECT text FROM notes ORDER BY text").fetchall())

        await store.update(keeper.name, unchanged, within=read)
        return found

    async def _sweep_passes(self, store: Store, clock: ManualClock) -> None:
        """Wait until this store, whose clock is ahead of all others, has looked for what time has decided."""
        over = {"state": State.FAILED, "error": "{}", "ended_at": START, "created_at": START - 30 * 24 * HOUR}
        expired = sample_record(job="swept", parent="swept", expire_at=clock.now(), **over)
        await store.insert(expired)
        await self._gone(store, expired.name)

    async def _gone(self, store: Store, name: str) -> None:
        async def look() -> bool:
            return await store.get(name) is None

        await eventually(look, f"{name} is removed")


class Odd(BaseException):
    """An exception of the kind that `except Exception` lets pass."""


@asynccontextmanager
async def opened(store: Store) -> AsyncGenerator[Store]:
    """Open a store, for as long as a test may take."""
    with anyio.fail_after(BOUND):
        async with store:
            yield store


class Raises(Generic[E]):
    """Expects an exception, which is then the only item of the list."""

    def __init__(self, kind: type[E]) -> None:
        self._kind = kind
        self._raised: list[E] = []

    def __enter__(self) -> list[E]:
        return self._raised

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if exc is None:
            msg = f"{self._kind.__name__} was not raised"
            raise AssertionError(msg)
        if isinstance(exc, self._kind):
            self._raised.append(exc)
            return True
        return False


async def at_once(*calls: Callable[[], Awaitable[T]]) -> list[T | BaseException]:
    """Begin all calls before the first is answered; return their answers, or what they raised."""
    answers: dict[int, T | BaseException] = {}

    async def run(number: int, call: Callable[[], Awaitable[T]]) -> None:
        try:
            answers[number] = await call()
        except Exception as error:
            answers[number] = error

    async with anyio.create_task_group() as group:
        for number, call in enumerate(calls):
            group.start_soon(run, number, call)
    return [answers[number] for number in range(len(calls))]


async def begin(call: Callable[[], Coroutine[Any, Any, object]], *, task_status: Any) -> None:  # Any: of any backend
    """Make a call, and report as started when it waits for the first time."""
    coroutine = call()
    await Steps(coroutine, lambda step: task_status.started() if step == 1 else None)


async def cancelled_at(number: int, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Make a call and cancel it when it waits for the n-th time; one that waits less often is just made."""
    with anyio.CancelScope() as scope:
        await Steps(call(), lambda step: scope.cancel() if step == number else None)


class Steps(Generic[T]):
    """A coroutine to await, which tells the number of each of its suspensions."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], tell: Callable[[int], object]) -> None:  # Any: the backend's
        self._coroutine = coroutine
        self._tell = tell

    def __await__(self) -> Generator[Any, Any, T]:  # Any: what the backend yields and sends
        step = partial(self._coroutine.send, None)
        for number in count(1):
            try:
                yielded = step()
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]  # what the coroutine returns
            self._tell(number)
            try:
                step = partial(self._coroutine.send, (yield yielded))
            except BaseException as error:
                step = partial(self._coroutine.throw, error)
        raise AssertionError


async def outcomes(store: Store) -> dict[str, type[BaseException] | None]:
    """Make each call once, and return what kind of exception it raised."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "insert": partial(store.insert, sample_record()),
        "get": partial(store.get, "operations/x"),
        "list": partial(store.list, PageQuery()),
        "update": partial(store.update, "operations/x", unchanged),
        "claim": partial(store.claim, "w", ["books.render"], 1),
        "join": partial(store.join, "someone else", LEASE),
        "renew": partial(store.renew, "w"),
        "held": partial(store.held, "w"),
        "leave": partial(store.leave, "w"),
        "secret": store.secret,
    }
    outcomes: dict[str, type[BaseException] | None] = {}
    for name, call in calls.items():
        outcomes[name] = None
        try:
            with anyio.fail_after(5):
                await call()
        except Exception as error:
            outcomes[name] = type(error)
    return outcomes


async def walk(store: Store, query: PageQuery, pages: int = 1000) -> list[Record]:
    """Return the records of a listing, page by page, of which there may be so many."""
    found: list[Record] = []
    for _ in range(pages):
        page = await store.list(query)
        assert len(page.records) <= query.limit, "a page is not larger than asked for"
        found += page.records
        if page.after is None:
            return found
        assert query.after is None or page.after < query.after, "the walk gets on"
        query = replace(query, after=page.after)
    msg = f"the listing does not end in {pages} pages"
    raise AssertionError(msg)


async def finish(store: Store, record: Record) -> Record:
    """End a claimed operation with a result."""
    assert record.lease is not None
    return await store.update(record.name, partial(lifecycle.finish, lease=record.lease, outcome=Returned("1")))


def stored_records(answers: Sequence[Record | BaseException]) -> list[Record]:
    """Return the answers, none of which may be an exception."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, Record)]


def assert_same(found: Record | None, expected: Record) -> None:
    """Compare records, and name the fields that differ."""
    assert found is not None, f"{expected.name} is not there"
    differing = {
        field: (was, now)
        for field, was, now in zip(Record._fields, expected, found, strict=True)
        if (was, type(was)) != (now, type(now))
    }
    assert not differing, f"{expected.name}: {differing}"


def note(text: str) -> Transition:
    """Return a transition that appends to the record's message."""

    def transition(record: Record, _: Facts) -> Record:
        return record._replace(version=record.version + 1, status_message=(record.status_message or "") + text)

    return transition


def becoming(**changes: Any) -> Transition:  # Any: one type per field of Record
    """Return a transition that sets these fields."""
    return lambda record, _: record._replace(**changes)


def unchanged(record: Record, _: Facts) -> Record:
    """Be a transition that changes nothing."""
    return record


def seeing(choose: Callable[[Facts], Transition]) -> Transition:
    """Return a transition that depends on the facts."""
    return lambda record, facts: choose(facts)(record, facts)


def seeing_alive(record: Record, facts: Facts) -> Record:
    """Be a transition that changes nothing, for a record whose worker lives."""
    assert not facts.lease_expired, f"{record.lease_owner} lives"
    return record


def raising(error: Exception) -> Transition:
    """Return a transition that raises."""

    def transition(_: Record, __: Facts) -> Record:
        raise error

    return transition


def failing(_: Any) -> None:  # Any: the database's connection
    """Be a `within` that fails."""
    raise ValueError


def writing(text: str, *, fail: bool = False, error: BaseException | None = None) -> Within:
    """Return a function that writes a row, and then perhaps fails."""

    def within(connection: Any) -> None:  # Any: the database's connection
        connection.execute(f"INSERT INTO notes VALUES ('{text}')")  # noqa: S608 -- the test's own word
        if fail:
            raise ValueError(text)
        if error is not None:
            raise error

    return within


def executing(*statements: str) -> Within:
    """Return a `within` that executes these."""

    def within(connection: Any) -> None:  # Any: the database's connection
        for statement in statements:
            connection.execute(statement)

    return within


def all_kinds() -> list[Record]:
    """Return a record of each state, between them with every field empty, filled, and at its limits."""
    full: dict[str, Any] = {  # Any: one type per field of Record
        "attempt": LARGEST,
        "token": LARGEST,
        "version": LARGEST,
        "updated_at": LARGEST,
        "due_at": LARGEST,
        "started_at": 0,
        "claimed_at": -LARGEST - 1,
        "cancel_requested_at": LARGEST,
        "cancel_reason": TEXT,
        "cancel_requester": TEXT,
        "committed_at": 1,
        "progress": '{"b":1.0,"a":1e2,"a":3}',
        "last_error": TEXT,
        "status_message": TEXT,
        "parent": "projects/ü",
        "job": TEXT,
        "owner": TEXT,
        "tenant": TEXT,
        "request_digest": TEXT,
        "target": TEXT,
        "priority": -LARGEST - 1,
        "created_at": LARGEST,
        "deadline_at": LARGEST,
        "grace": LARGEST,
        "retention": LARGEST,
        "restartable": True,
        "attempt_limit": LARGEST,
        "cancellable": False,
        "exclusive": False,
        "response_type": TEXT,
        "metadata_type": TEXT,
        "params": TEXT * 1000,
    }
    ended = {"ended_at": LARGEST, "expire_at": LARGEST}
    running = {"state": State.RUNNING, "lease_owner": TEXT, "lease_time": LARGEST}
    return [
        sample_record(params=None),
        sample_record(**full, request_id="1"),
        sample_record(**full, **running, request_id="2", deleted_at=LARGEST),
        sample_record(exclusive=True),
        sample_record(**full, **ended, state=State.SUCCEEDED, response=TEXT),
        sample_record(**full, **ended, state=State.FAILED, error=TEXT),
        *(
            sample_record(**full, **ended, state=State.CANCELLED, cancel_outcome=outcome, error="{}")
            for outcome in CancelOutcome
        ),
    ]
