"""Group commit, the batch as one list of changes; hints; migrations."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from lro.errors import Aborted, InvalidArgument, NotFound
from lro.lifecycle import Facts, Record, State
from lro.store.batch import AnyRequest, Beat, Changes, Due, Insert, Leave, Select, Update, apply
from lro.store.hints import Hub
from lro.store.leases import UNKNOWN_LEASE, Leases
from lro.store.migrations import Migration, missing, shipped
from lro.store.sqlite import _finish
from lro.store.sqlite.transaction import SQLiteTransaction
from lro.store.sqlite.within import LendingConnection
from lro.testing.contract import START, ManualClock, sample_record
from tests.store.answers import answer_to


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
    assert [(await answer_to(update)).status_message for update in first] == ["a", "ab", "abc"]
    assert await answer_to(insert) == insert.record
    more = [Update(name, _append(text)) for text in "de"]
    assert [record.status_message for record in _apply(connection, *more)] == ["abcde"]


async def test_a_query_sees_what_the_changes_of_its_batch_have_made(connection: LendingConnection) -> None:
    inserts = [Insert(sample_record(job="a")) for _ in range(3)]
    selects: list[Select] = [Select(Due(("a",), 2), _state(State.RUNNING)) for _ in range(3)]
    written = _apply(connection, selects[0], *inserts, *selects[1:])
    answers = [await answer_to(select) for select in selects]
    assert [len(answer) for answer in answers] == [2, 1, 0]
    assert {record.name for record in written} == {insert.record.name for insert in inserts}
    assert {record.state for record in written} == {State.RUNNING}


async def test_a_rule_may_leave_or_remove_what_a_query_finds(connection: LendingConnection) -> None:
    kept, gone = Insert(sample_record(priority=1)), Insert(sample_record())
    select = Select(Due(("books.render",), 9), lambda record, _: record if record.priority else None)
    written = _apply(connection, kept, gone, select)
    assert await answer_to(select) == [gone.record]
    assert len(written) == 2
    late = Update(gone.record.name, _append("x"))
    assert _apply(connection, late) == []
    with pytest.raises(NotFound):
        await answer_to(late)


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


async def test_a_worker_leaves_once_and_only_if_it_is_known(connection: LendingConnection) -> None:
    leaves = [Leave("w"), Leave("w"), Leave("x")]
    assert _apply(connection, Beat("w", 5)) == []
    (first,) = connection.execute("SELECT beat FROM workers").fetchone()
    assert _apply(connection, Beat("w", 5)) == []
    assert connection.execute("SELECT id, beat, lease_time FROM workers").fetchall() == [("w", first + 1, 5)]
    assert _apply(connection, *leaves) == []
    assert [await answer_to(leave) for leave in leaves] == [True, False, False]


async def test_a_claim_is_a_sign_of_life_and_looking_for_one_is_none(connection: LendingConnection) -> None:
    def beats() -> list[int]:
        return [beat for (beat,) in connection.execute("SELECT beat FROM workers")]

    _apply(connection, Beat("w", 5))
    (first,) = beats()
    _apply(connection, Select(Due(("books.render",), 9), _state(State.RUNNING), beats=("w", 5)))
    assert beats() == [first]
    _apply(connection, Insert(sample_record()))
    _apply(connection, Select(Due(("books.render",), 9), _state(State.RUNNING), beats=("w", 5)))
    assert beats() == [first + 1]


async def test_a_worker_that_is_known_again_does_not_beat_as_it_did(connection: LendingConnection) -> None:
    seen: list[int] = []
    for _ in range(3):
        _apply(connection, Beat("w", 5))
        seen += [beat for (beat,) in connection.execute("SELECT beat FROM workers")]
        _apply(connection, Leave("w"))
    assert len(set(seen)) == 3


@pytest.mark.parametrize("statement", ["SAVEPOINT", "RELEASE", "ROLLBACK TO"])
def test_a_savepoint_that_fails_is_the_databases_error_and_not_the_callers(statement: str) -> None:
    class Failing(LendingConnection):
        def execute(self, *arguments: Any) -> Any:  # Any: as sqlite3 declares it
            if str(arguments[0]).startswith(statement):
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(*arguments)

    def within(_: sqlite3.Connection) -> None:
        if statement == "ROLLBACK TO":
            raise ValueError("of the caller")

    with closing(Failing(":memory:", isolation_level=None)) as failing:
        failing.executescript(shipped("sqlite")[0].sql)
        insert = Insert(sample_record(), within)
        with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            _apply(failing, insert)
        assert not insert.answered


async def test_of_exclusive_records_in_one_batch_each_place_has_its_own_rival(connection: LendingConnection) -> None:
    there = sample_record(exclusive=True, target="a")
    _apply(connection, Insert(there))
    inserts = [Insert(sample_record(exclusive=True, target=target), pending_limit=9) for target in "abbc"]
    written = _apply(connection, *inserts)
    assert written == [inserts[1].record, inserts[3].record]
    for refused, rival in ((inserts[0], there), (inserts[2], inserts[1].record)):
        with pytest.raises(Aborted) as raised:
            await answer_to(refused)
        assert raised.value.metadata["rival"] == rival.name


async def test_what_is_not_there_is_refused_by_its_name(connection: LendingConnection) -> None:
    missing_one = Update("operations/none", _append("x"))
    assert _apply(connection, missing_one) == []
    with pytest.raises(NotFound) as raised:
        await answer_to(missing_one)
    assert raised.value.message == "There is no operation operations/none"
    assert raised.value.metadata == {"name": "operations/none"}


async def test_a_name_that_the_batch_has_given_is_refused_and_the_rest_is_served(connection: LendingConnection) -> None:
    first, again, last = (Insert(sample_record(name=name)) for name in ("n", "n", "m"))
    assert _apply(connection, first, again, last) == [first.record, last.record]
    with pytest.raises(InvalidArgument) as raised:
        await answer_to(again)
    assert (raised.value.message, raised.value.reason) == ("n is taken", "NAME_TAKEN")
    assert await answer_to(last) == last.record


async def test_of_two_inserts_of_one_name_at_most_one_is_acknowledged(connection: LendingConnection) -> None:
    first, second = Insert(sample_record(name="n", params="1")), Insert(sample_record(name="n", params="2"))
    try:
        _apply(connection, first, second)
    except sqlite3.IntegrityError:
        return  # the whole batch is redone one by one then
    with pytest.raises(InvalidArgument):
        await answer_to(second)


def test_what_has_not_changed_is_not_noted() -> None:
    record = sample_record()
    changes = Changes()
    changes.put(record, record)
    assert changes.records == []
    second, third = record._replace(version=2), record._replace(version=3)
    changes.put(record, second)
    changes.put(second, third)
    assert changes.updated == {record.name: (record, third)}


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
    assert missing(known, {}, 0, "x") == known
    assert missing(known, {1: known[0].checksum}, 1, "x") == known[1:]
    assert missing(known, {step.number: step.checksum for step in known}, 3, "x") == []


def test_shipped_migrations_are_numbered_without_gaps() -> None:
    numbers = [migration.number for migration in shipped("sqlite")]
    assert numbers == list(range(1, len(numbers) + 1))
