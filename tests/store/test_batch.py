"""Group commit: the queue, the batch as one list of changes, and hints."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import anyio
import anyio.lowlevel
import pytest

from lro.errors import InvalidArgument, NotFound, StoreClosed, Unavailable
from lro.lifecycle import Facts, Record, State
from lro.store import batch as room
from lro.store.batch import AnyRequest, Call, Changes, Due, Insert, Queue, Request, Select, Update, apply
from lro.store.hints import Hub
from lro.store.leases import UNKNOWN_LEASE, Leases
from lro.store.migrations import Migration, missing, shipped
from lro.store.sqlite import _finish
from lro.store.sqlite.transaction import SQLiteTransaction
from lro.store.sqlite.within import LendingConnection
from lro.testing.contract import START, ManualClock, sample_record


class Ask(Request[str]):
    """A request for the queue."""

    __slots__ = ("word",)

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word


@pytest.fixture
def connection() -> Iterator[LendingConnection]:
    with closing(LendingConnection(":memory:", isolation_level=None)) as opened:
        for migration in shipped("sqlite"):
            opened.executescript(migration.sql)
        yield opened


def _apply(connection: LendingConnection, *requests: AnyRequest, leases: Leases | None = None) -> list[Record]:
    leases = leases or Leases(ManualClock().monotonic)
    connection.execute("BEGIN")
    try:
        return _finish(apply(requests, SQLiteTransaction(connection, START, leases)))
    finally:
        connection.execute("COMMIT")


def _append(text: str) -> Callable[[Record, Facts], Record]:
    return lambda record, _: record._replace(
        version=record.version + 1, status_message=(record.status_message or "") + text
    )


def _state(state: State) -> Callable[[Record, Facts], Record]:
    owner = "w" if state is State.RUNNING else None
    return lambda record, _: record._replace(version=record.version + 1, state=state, lease_owner=owner)


# What a batch does


async def test_changes_of_one_record_compose_in_the_order_of_the_requests(connection: LendingConnection) -> None:
    insert = Insert(sample_record())
    name = insert.record.name
    first = [Update(name, _append(text)) for text in "abc"]
    written = _apply(connection, first[0], insert, *first[1:])
    assert [record.status_message for record in written] == ["abc"]
    assert [(await _answer(update)).status_message for update in first] == ["a", "ab", "abc"]
    assert await _answer(insert) == insert.record
    more = [Update(name, _append(text)) for text in "de"]
    assert [record.status_message for record in _apply(connection, *more)] == ["abcde"]


async def test_a_query_sees_what_the_changes_of_its_batch_have_made(connection: LendingConnection) -> None:
    inserts = [Insert(sample_record(job="a")) for _ in range(3)]
    selects: list[Select] = [Select(Due('["a"]', 2), _state(State.RUNNING)) for _ in range(3)]
    written = _apply(connection, selects[0], *inserts, *selects[1:])
    answers = [await _answer(select) for select in selects]
    assert [len(answer) for answer in answers] == [2, 1, 0]
    assert {record.name for record in written} == {insert.record.name for insert in inserts}
    assert {record.state for record in written} == {State.RUNNING}


async def test_a_rule_may_leave_or_remove_what_a_query_finds(connection: LendingConnection) -> None:
    kept, gone = Insert(sample_record(priority=1)), Insert(sample_record())
    select = Select(Due('["books.render"]', 9), lambda record, _: record if record.priority else None)
    written = _apply(connection, kept, gone, select)
    assert await _answer(select) == [gone.record]
    assert len(written) == 2
    late = Update(gone.record.name, _append("x"))
    assert _apply(connection, late) == []
    with pytest.raises(NotFound):
        await _answer(late)


async def test_a_rule_is_told_whether_the_worker_is_dead(connection: LendingConnection) -> None:
    clock = ManualClock()
    leases = Leases(clock.monotonic)
    insert = Insert(sample_record(state=State.RUNNING, lease_owner="w", lease_time=1))
    seen: list[bool] = []

    def look(record: Record, facts: Facts) -> Record:
        seen.append(facts.lease_expired)
        return record

    _apply(connection, insert, Update(insert.record.name, look), leases=leases)
    clock.advance(UNKNOWN_LEASE)
    _apply(connection, Update(insert.record.name, look), leases=leases)
    assert seen == [False, True]


async def test_a_call_is_answered_with_whether_it_changed_a_row(connection: LendingConnection) -> None:
    async def run(transaction: SQLiteTransaction) -> bool:
        return await transaction.run("DELETE FROM workers", ())

    call = Call(run)
    assert _apply(connection, call) == []
    assert await _answer(call) is False


async def test_of_two_inserts_of_one_name_at_most_one_is_acknowledged(connection: LendingConnection) -> None:
    first, second = Insert(sample_record(name="n", params="1")), Insert(sample_record(name="n", params="2"))
    try:
        _apply(connection, first, second)
    except sqlite3.IntegrityError:
        return  # the whole batch is redone one by one then
    with pytest.raises(InvalidArgument):
        await _answer(second)


def test_what_has_not_changed_is_not_noted() -> None:
    record = sample_record()
    changes = Changes()
    changes.put(record, record)
    assert changes.records == []
    second, third = record._replace(version=2), record._replace(version=3)
    changes.put(record, second)
    changes.put(second, third)
    assert changes.updated == {record.name: (record, third)}


# The queue


async def _serve(queue: "Queue[Ask]", *words: str) -> list[str | BaseException]:
    """Put words into the queue at once, and return each answer."""
    answers: dict[int, str | BaseException] = {}

    async def ask(number: int, word: str) -> None:
        try:
            answers[number] = await queue.put(Ask(word)).wait()
        except Exception as error:
            answers[number] = error

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for number, word in enumerate(words):
                group.start_soon(ask, number, word)
    return [answers[number] for number in range(len(words))]


async def test_a_queue_serves_in_order_and_in_batches_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BATCH_LIMIT", 3)
    batches: list[str] = []

    async def serve(batch: Sequence[Ask]) -> None:
        await anyio.lowlevel.checkpoint()
        batches.append("".join(request.word for request in batch))
        for request in batch:
            request.answer(request.word.upper())

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        await anyio.lowlevel.checkpoint()
        assert await _serve(queue, *"abcdefgh") == list("ABCDEFGH")
        assert await _serve(queue, "i") == ["I"]
        await queue.close(5)
    assert batches == ["abc", "def", "gh", "i"]


async def test_a_queue_that_is_not_open_takes_nothing() -> None:
    async def serve(_: Sequence[Ask]) -> None:
        pytest.fail("there is nothing to serve")

    queue: Queue[Ask] = Queue(serve, "word")
    with pytest.raises(StoreClosed):
        queue.put(Ask("a"))
    queue.open()
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        await queue.close(5)
    with pytest.raises(StoreClosed):
        queue.put(Ask("a"))


async def test_what_was_queued_before_the_close_is_served() -> None:
    async def serve(batch: Sequence[Ask]) -> None:
        for request in batch:
            request.answer("served")

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    request = queue.put(Ask("a"))
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        await queue.close(5)
    assert await _answer(request) == "served"


async def test_what_nobody_serves_is_refused_by_the_close() -> None:
    async def serve(_: Sequence[Ask]) -> None:
        pytest.fail("nothing runs the queue")

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    request = queue.put(Ask("a"))
    with anyio.fail_after(5):
        await queue.close(0.01)
        with pytest.raises(StoreClosed):
            await request.wait()


async def test_a_failure_refuses_the_batch_and_comes_out() -> None:
    async def serve(_: Sequence[Ask]) -> None:
        raise ZeroDivisionError

    queue: Queue[Ask] = Queue(serve, "write to x.db")
    queue.open()
    requests = [queue.put(Ask(word)) for word in "ab"]
    with anyio.fail_after(5), pytest.raises(ZeroDivisionError):
        await queue.run()
    errors: list[BaseException] = []
    for request in requests:
        with pytest.raises(Unavailable, match=r"The write to x\.db failed: its outcome is unknown") as raised:
            await _answer(request)
        assert raised.value.reason == "OUTCOME_UNKNOWN"
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        errors.append(raised.value)
    assert errors[0] is not errors[1]


async def test_an_error_of_the_library_refuses_the_batch_and_the_queue_goes_on() -> None:
    async def serve(batch: Sequence[Ask]) -> None:
        if batch[0].word == "bad":
            raise Unavailable("the disk is full", reason="FULL")
        for request in batch:
            request.answer(request.word)

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        refused = await _serve(queue, "bad", "b")
        assert [(type(error), str(error)) for error in refused] == [(Unavailable, "the disk is full")] * 2
        assert {error.reason for error in refused if isinstance(error, Unavailable)} == {"FULL"}
        assert await _serve(queue, "good") == ["good"]
        await queue.close(5)


async def test_a_request_that_was_forgotten_is_refused() -> None:
    async def serve(batch: Sequence[Ask]) -> None:
        batch[0].answer("served")

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    requests = [queue.put(Ask(word)) for word in "ab"]
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        await queue.close(5)
    assert await _answer(requests[0]) == "served"
    with pytest.raises(Unavailable, match="unknown"):
        await _answer(requests[1])


async def test_an_answer_that_was_taken_back_is_given_anew() -> None:
    request = Ask("a")
    request.answer("first")
    request.reset()
    assert not request.answered
    request.refuse(ValueError("x"))
    request.answer("second")
    request.release()
    assert await _answer(request) == "second"


# Hints


async def test_nobody_knows_what_changed_is_a_hint_too() -> None:
    hub = Hub()
    heard: list[Record | None] = []
    end = hub.listen(heard.append)
    with hub.watch("a") as first, hub.watch("a") as second, hub.watch("b") as third:
        hub.publish_unknown()
        for watch in (first, second, third):
            with anyio.fail_after(5):
                assert await watch.changed(60) is None
    end()
    hub.publish_unknown()
    assert heard == [None]
    assert hub._watches == {}


# Migrations


def test_migrations_that_are_missing_are_named_in_order() -> None:
    known = [Migration(number, f"m{number}", f"SELECT {number};") for number in (1, 2, 3)]
    assert missing(known, {}, "x") == known
    assert missing(known, {1: known[0].checksum}, "x") == known[1:]
    assert missing(known, {step.number: step.checksum for step in known}, "x") == []


def test_shipped_migrations_are_numbered_without_gaps() -> None:
    numbers = [migration.number for migration in shipped("sqlite")]
    assert numbers == list(range(1, len(numbers) + 1))


async def _answer(request: Request[room.T]) -> room.T:
    request.release()
    with anyio.fail_after(5):
        return await request.wait()
