"""The contract that every store passes unchanged, as a class of tests to inherit.

An author of a store writes

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path: Path) -> OpenStore:
            return lambda clock=None: MyStore(tmp_path / "x", clock=clock)

in a test module, with `anyio_mode = "auto"` in pytest's options. Nothing here decides how a store works; it
says what callers may rely on. pytest itself is not imported.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel

from lro import lifecycle
from lro.clock import Clock
from lro.errors import FailedPrecondition, InvalidArgument, LeaseLost, NotFound, StoreClosed
from lro.lifecycle import CancelOutcome, Facts, Record, Returned, State, Transition
from lro.principal import Scope
from lro.store import PageQuery, Store
from lro.store.base import Within

__all__ = ["START", "ManualClock", "OpenStore", "StoreContract", "eventually", "sample_record"]

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

_numbers = count(1)


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
        name=f"operations/{next(_numbers):026}",
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


class StoreContract:
    """All that a store must do; each method is one promise.

    A subclass gives the fixture `open_store`. The tests of `within` write into a table `notes` of their own;
    where the database's SQL differs, override `create_notes`.
    """

    create_notes: ClassVar[str] = "CREATE TABLE notes (text TEXT NOT NULL UNIQUE)"

    # Records

    async def test_a_record_comes_back_as_it_was_stored(self, open_store: OpenStore) -> None:
        """Every field of every kind of record, and again from another store on the same database."""
        records = _all_kinds()
        async with _opened(open_store()) as store:
            for record in records:
                assert await store.insert(record) == record
            for record in records:
                _assert_same(await store.get(record.name), record)
            async with _opened(open_store()) as other:
                for record in records:
                    _assert_same(await other.get(record.name), record)

    async def test_a_written_change_comes_back_as_it_was_made(self, open_store: OpenStore) -> None:
        """Every field that may change, and the content that a tombstone drops."""
        async with _opened(open_store()) as store:
            for end in _all_kinds():
                name = (await store.insert(sample_record())).name
                changing = Record._fields[1 : Record._fields.index("name")]
                values: dict[str, Any] = {field: getattr(end, field) for field in changing}  # Any: as in Record
                new = await store.update(name, _becoming(state=end.state, **values))
                _assert_same(await store.get(name), new)
            kept = await store.insert(sample_record(params=TEXT))
            bare = await store.update(kept.name, _becoming(version=2, params=None))
            _assert_same(await store.get(kept.name), bare)
            assert bare.params is None

    async def test_records_last_when_the_store_is_opened_again(self, open_store: OpenStore) -> None:
        """What was acknowledged is there after a restart, changed or not."""
        async with _opened(open_store()) as store:
            records = [await store.insert(sample_record()) for _ in range(3)]
            noted = await store.update(records[0].name, _note("x"))
        async with _opened(open_store()) as store:
            assert [await store.get(record.name) for record in records] == [noted, *records[1:]]

    async def test_a_name_that_is_not_there_is_none(self, open_store: OpenStore) -> None:
        """Among many reads at once, each gets its own answer."""
        async with _opened(open_store()) as store:
            record = await store.insert(sample_record())
            names = [record.name, "operations/none", "", "'; DROP TABLE operations", record.name] * 20
            found = await _at_once(*(partial(store.get, name) for name in names))
            assert found == [record, None, None, None, record] * 20

    async def test_a_name_is_given_once(self, open_store: OpenStore) -> None:
        """A second record of the same name is refused, and the first one stands."""
        async with _opened(open_store()) as store:
            first = await store.insert(sample_record(params="1"))
            with _Raises(InvalidArgument):
                await store.insert(first._replace(params="2"))
            assert await store.get(first.name) == first

    async def test_of_records_with_one_name_inserted_at_once_one_is_acknowledged(self, open_store: OpenStore) -> None:
        """No insert is acknowledged whose record is not there."""
        async with _opened(open_store()) as store:
            records = [sample_record(name="operations/same", params=str(number)) for number in range(5)]
            answers = await _at_once(*(partial(store.insert, record) for record in records))
            stored = [answer for answer in answers if isinstance(answer, Record)]
            assert stored == [await store.get("operations/same")], answers

    # Request ids (AIP-155)

    async def test_a_request_id_returns_the_first_record(self, open_store: OpenStore) -> None:
        """A repeated insert stores nothing; not by this store, and not by another one."""
        async with _opened(open_store()) as store, _opened(open_store()) as other:
            first = await store.insert(sample_record(request_id=TEXT, params="1"))
            again = sample_record(request_id=TEXT, params="2")
            assert await store.insert(again) == first
            assert await other.insert(again) == first
            assert await store.get(again.name) is None
            changed = await store.update(first.name, _note("x"))
            assert await other.insert(again) == changed

    async def test_a_request_id_counts_for_one_tenant_and_one_job(self, open_store: OpenStore) -> None:
        """The same id of another tenant, or for another job, is another request."""
        async with _opened(open_store()) as store:
            for tenant in ("", "t", "T"):
                for job in ("a", "b"):
                    record = sample_record(request_id="1", tenant=tenant, job=job)
                    assert await store.insert(record) == record
            assert len(await store.list(PageQuery())) == 6

    async def test_a_request_id_counts_among_inserts_at_once(self, open_store: OpenStore) -> None:
        """Twenty repetitions at the same time store one record, and all callers get that one."""
        async with _opened(open_store()) as store:
            records = [sample_record(request_id=f"r{number % 3}") for number in range(60)]
            answers = await _at_once(*(partial(store.insert, record) for record in records))
            assert len(await store.list(PageQuery())) == 3
            for number, answer in enumerate(answers):
                assert isinstance(answer, Record), answer
                assert answer == await store.get(answer.name)
                assert answer.request_id == f"r{number % 3}"

    async def test_records_without_a_request_id_are_all_stored(self, open_store: OpenStore) -> None:
        """No id is not an id that could be repeated."""
        async with _opened(open_store()) as store:
            await _at_once(*(partial(store.insert, sample_record()) for _ in range(30)))
            assert len(await store.list(PageQuery())) == 30

    # Lists

    async def test_a_list_is_newest_first(self, open_store: OpenStore) -> None:
        """By the time of creation, then by name; never more than the limit."""
        async with _opened(open_store()) as store:
            times = [3, 1, 2, 2, 1, 3]
            records = [await store.insert(sample_record(created_at=START + time)) for time in times]
            expected = sorted(records, key=lambda record: (record.created_at, record.name), reverse=True)
            assert list(await store.list(PageQuery())) == expected
            assert list(await store.list(PageQuery(limit=2))) == expected[:2]
            after = (expected[3].created_at, expected[3].name)
            assert list(await store.list(PageQuery(after=after))) == expected[4:]

    async def test_a_walk_meets_every_lasting_record_once(self, open_store: OpenStore) -> None:
        """Though others insert and delete meanwhile, at both ends and in the middle."""
        async with _opened(open_store()) as store, _opened(open_store()) as other:
            lasting = [await store.insert(sample_record(created_at=START + number // 4)) for number in range(40)]
            doomed = [await store.insert(sample_record(created_at=START + number // 2)) for number in range(20)]
            met: list[str] = []
            after: tuple[int, str] | None = None
            while page := await store.list(PageQuery(limit=7, after=after)):
                met += [record.name for record in page]
                after = (page[-1].created_at, page[-1].name)
                for time in (0, 5, 1000):
                    await other.insert(sample_record(created_at=START + time))
                await other.update(doomed.pop().name, lifecycle.delete)
            assert len(met) == len(set(met))
            assert {record.name for record in lasting} <= set(met)

    async def test_a_list_has_the_records_of_its_parent_and_scope(self, open_store: OpenStore) -> None:
        """And no others, nor the deleted ones, which a get still finds."""
        async with _opened(open_store()) as store:
            for parent in ("", "projects/p", "projects/q"):
                for owner in ("ann", "bob"):
                    for tenant in ("", "t"):
                        await store.insert(sample_record(parent=parent, owner=owner, tenant=tenant))
            for query, number in (
                (PageQuery(), 4),
                (PageQuery("projects/p"), 4),
                (PageQuery("projects"), 0),
                (PageQuery("", Scope(owner="ann")), 2),
                (PageQuery("", Scope(tenant="")), 2),
                (PageQuery("projects/q", Scope(owner="bob", tenant="t")), 1),
                (PageQuery("", Scope(owner="")), 0),
            ):
                page = await store.list(query)
                assert len(page) == number, query
                assert all(record.parent == query.parent and query.scope.covers(record) for record in page)
            gone = (await store.list(PageQuery()))[0]
            await store.update(gone.name, lifecycle.delete)
            assert gone.name not in {record.name for record in await store.list(PageQuery())}
            assert (await store.get(gone.name)) is not None

    # Updates

    async def test_changes_of_one_record_at_once_compose(self, open_store: OpenStore) -> None:
        """Each starts from what the one before it made; none is lost, from whichever store."""
        async with _opened(open_store()) as store, _opened(open_store()) as other:
            name = (await store.insert(sample_record())).name
            stores = (store, store, other)
            calls = [partial(stores[number % 3].update, name, _note(f"{number};")) for number in range(60)]
            answers = sorted(_records(await _at_once(*calls)), key=lambda record: record.version)
            assert [answer.version for answer in answers] == list(range(2, 62))
            before = ""
            for answer in answers:
                assert (answer.status_message or "").startswith(before)
                before = answer.status_message or ""
            assert sorted(before.split(";")[:-1], key=int) == [str(number) for number in range(60)]
            assert await other.get(name) == answers[-1]

    async def test_changes_apply_in_the_order_of_the_calls(self, open_store: OpenStore) -> None:
        """Calls that follow each other, each begun before the answers of those before it are there."""
        async with _opened(open_store()) as store:
            name = (await store.insert(sample_record())).name
            async with anyio.create_task_group() as group:
                for number in range(9):
                    await group.start(_begin, partial(store.update, name, _note(str(number))))
            record = await store.get(name)
            assert record is not None
            assert record.status_message == "012345678"

    async def test_an_unchanged_record_is_not_written(self, open_store: OpenStore) -> None:
        """The transition's own answer comes back, and nobody is told of a change."""
        async with _opened(open_store()) as store:
            record = await store.insert(sample_record())
            told: list[Record | None] = []
            store.listen(told.append)
            assert await store.update(record.name, _unchanged) == record
            assert await store.get(record.name) == record
            assert told == []

    async def test_a_transition_that_raises_fails_only_its_caller(self, open_store: OpenStore) -> None:
        """Fifty neighbours of its batch succeed, one of them on the same record."""
        async with _opened(open_store()) as store:
            records = [await store.insert(sample_record()) for _ in range(50)]
            calls = [partial(store.update, record.name, _note("x")) for record in records]
            calls.insert(25, partial(store.update, records[25].name, _raising(RuntimeError("mine"))))
            answers = await _at_once(*calls)
            assert repr(answers.pop(25)) == "RuntimeError('mine')"
            assert [record.status_message for record in _records(answers)] == ["x"] * 50
            assert await store.get(records[25].name) == answers[25]

    async def test_an_update_of_what_is_not_there_says_so(self, open_store: OpenStore) -> None:
        """The transition is not called, and its neighbours are not disturbed."""
        async with _opened(open_store()) as store:
            record = await store.insert(sample_record())
            missing, noted = await _at_once(
                partial(store.update, "operations/none", _raising(AssertionError("there is nothing to change"))),
                partial(store.update, record.name, _note("x")),
            )
            assert isinstance(missing, NotFound)
            assert "operations/none" in str(missing)
            assert isinstance(noted, Record)

    async def test_a_transition_gets_the_time_of_the_store(self, open_store: OpenStore) -> None:
        """Read in the transaction, from the store's own clock."""
        clock = ManualClock()
        async with _opened(open_store(clock)) as store:
            record = await store.insert(sample_record())
            for time in (START, START + SECOND):
                deleted = await store.update(record.name, _seeing(lambda facts: _note(str(facts.now))))
                assert (deleted.status_message or "").endswith(str(time))
                clock.advance(SECOND)

    # Claims

    async def test_claims_go_by_priority_and_then_by_age(self, open_store: OpenStore) -> None:
        """The highest first; of equals the longest due; of equals again the first that came."""
        async with _opened(open_store(ManualClock())) as store:
            await store.join("w", LEASE)
            order = [(0, 0), (5, -1), (5, -2), (-5, -3), (0, 0), (5, -1), (0, -1)]
            records = [sample_record(priority=priority, due_at=START + due) for priority, due in order]
            for record in records:
                await store.insert(record)
            claimed = [(await store.claim("w", ["books.render"], 1))[0].name for _ in records]
            assert claimed == [records[number].name for number in (2, 1, 5, 6, 0, 4, 3)]

    async def test_nothing_is_claimed_before_it_is_due(self, open_store: OpenStore) -> None:
        """By the store's own clock, to the microsecond."""
        clock = ManualClock()
        async with _opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            record = await store.insert(sample_record(due_at=START + 2))
            assert list(await store.claim("w", ["books.render"], 9)) == []
            clock.advance(1)
            assert list(await store.claim("w", ["books.render"], 9)) == []
            clock.advance(1)
            (claimed,) = await store.claim("w", ["books.render"], 9)
            assert (claimed.name, claimed.started_at) == (record.name, START + 2)

    async def test_only_the_given_jobs_are_claimed(self, open_store: OpenStore) -> None:
        """And never more than the limit."""
        async with _opened(open_store()) as store:
            await store.join("w", LEASE)
            for job in ("a", "b", "c", "a.b") * 3:
                await store.insert(sample_record(job=job))
            assert list(await store.claim("w", [], 9)) == []
            assert list(await store.claim("w", ["a", "b"], 0)) == []
            assert len(await store.claim("w", ["a", "b"], 4)) == 4
            rest = await store.claim("w", ["b", "a"], 9)
            assert len(rest) == 2
            assert {record.job for record in [*rest, *await store.held("w")]} == {"a", "b"}

    async def test_no_record_is_claimed_twice(self, open_store: OpenStore) -> None:
        """Twenty claimers at once, on two stores, get every due record once."""
        async with _opened(open_store()) as store, _opened(open_store()) as other:
            owners = {f"w{number}": (store, other)[number % 2] for number in range(20)}
            for owner, home in owners.items():
                await home.join(owner, LEASE)
            records = [await store.insert(sample_record()) for _ in range(100)]
            claimed: list[Record] = []

            async def claim_all(owner: str) -> None:
                while batch := await owners[owner].claim(owner, ["books.render"], 3):
                    assert len(batch) <= 3
                    assert {record.lease_owner for record in batch} == {owner}
                    claimed.extend(batch)

            async with anyio.create_task_group() as group:
                for owner in owners:
                    group.start_soon(claim_all, owner)
            assert sorted(record.name for record in claimed) == [record.name for record in records]
            for record in claimed:
                assert await other.get(record.name) == record

    async def test_a_token_grows_with_each_claim(self, open_store: OpenStore) -> None:
        """Though the attempt was given back; a write under the older token is refused."""
        async with _opened(open_store()) as store:
            await store.join("w", LEASE)
            await store.insert(sample_record())
            tokens: list[int] = []
            for _ in range(3):
                (record,) = await store.claim("w", ["books.render"], 1)
                assert record.lease is not None
                tokens.append(record.token)
                await store.update(record.name, partial(lifecycle.give_back, lease=record.lease))
            assert tokens == [1, 2, 3]
            (record,) = await store.claim("w", ["books.render"], 1)
            with _Raises(LeaseLost):
                await _finish(store, record._replace(token=3))
            assert await store.get(record.name) == record

    async def test_a_worker_that_has_not_joined_claims_nothing(self, open_store: OpenStore) -> None:
        """It would be dead to all others; the error names it."""
        async with _opened(open_store()) as store:
            record = await store.insert(sample_record())
            for call in (partial(store.claim, "stranger", ["books.render"], 1), partial(store.renew, "stranger")):
                with _Raises(FailedPrecondition) as raised:
                    await call()
                assert "stranger" in str(raised[0])
            assert await store.get(record.name) == record

    async def test_what_is_too_late_fails_instead_of_being_claimed(self, open_store: OpenStore) -> None:
        """A deadline that has passed while PENDING is settled by the claim or by the sweep."""
        clock = ManualClock()
        async with _opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            late = await store.insert(sample_record(deadline_at=START + SECOND))
            clock.advance(SECOND)
            assert list(await store.claim("w", ["books.render"], 1)) == []
            settled = await store.get(late.name)
            assert settled is not None
            assert settled.state is State.FAILED

    # Leases

    async def test_a_renewal_returns_what_the_worker_holds_and_changes_no_record(self, open_store: OpenStore) -> None:
        """Neither version nor update time; `held` says the same without renewing, from any store."""
        clock = ManualClock()
        async with _opened(open_store(clock)) as store, _opened(open_store()) as other:
            await store.join("w", LEASE)
            await store.join("v", LEASE)
            for _ in range(3):
                await store.insert(sample_record())
            claimed = {record.name: record for record in await store.claim("w", ["books.render"], 2)}
            (foreign,) = await store.claim("v", ["books.render"], 2)
            clock.advance(SECOND)
            assert {record.name: record for record in await store.renew("w")} == claimed
            assert {record.name: record for record in await other.held("w")} == claimed
            assert list(await store.renew("v")) == [foreign]
            for record in claimed.values():
                flagged = await other.update(record.name, lifecycle.request_cancel)
                assert flagged in await store.renew("w")
                await _finish(store, flagged)
            assert list(await store.renew("w")) == []
            assert list(await store.held("nobody")) == []

    async def test_a_worker_leaves_once_it_holds_nothing(self, open_store: OpenStore) -> None:
        """One that still holds something stays known, and alive, until that has ended."""
        async with _opened(open_store()) as store:
            await store.join("w", LEASE)
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            await store.leave("w")
            assert list(await store.renew("w")) == [record]
            flagged = await store.update(record.name, lifecycle.request_cancel)
            assert flagged.state is State.RUNNING
            await _finish(store, flagged)
            await store.leave("w")
            with _Raises(FailedPrecondition):
                await store.claim("w", ["books.render"], 1)
            await store.join("w", LEASE)
            await store.leave("w")

    async def test_a_worker_that_renews_is_alive(self, open_store: OpenStore) -> None:
        """To others too, however much time passes on their clocks, as long as it renews within its lease time."""
        clock = ManualClock(START + HOUR)
        async with _opened(open_store(ManualClock())) as store, _opened(open_store(clock)) as observer:
            await store.join("w", LEASE)
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            for _ in range(5):
                assert await observer.update(record.name, _seeing_alive) == record
                clock.advance(LEASE - SECOND)
                assert await observer.update(record.name, _seeing_alive) == record
                await store.renew("w")
            flagged = await observer.update(record.name, lifecycle.request_cancel)
            assert flagged.state is State.RUNNING

    async def test_a_wall_clock_that_jumps_kills_no_worker(self, open_store: OpenStore) -> None:
        """Leases are judged by the observer's monotonic clock alone."""
        clock = ManualClock(START + HOUR)
        async with _opened(open_store(ManualClock())) as store, _opened(open_store(clock)) as observer:
            await store.join("w", LEASE)
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            for jump in (HOUR, -2 * HOUR, 24 * HOUR):
                clock.jump(jump)
                assert await observer.update(record.name, _seeing_alive) == record

    async def test_the_work_of_a_worker_whose_beat_stands_still_is_recovered(self, open_store: OpenStore) -> None:
        """After its lease time on the observer's clock: run again, cancelled, or failed, by the record's own rules."""
        clock = ManualClock(START + HOUR)
        async with _opened(open_store(ManualClock())) as store, _opened(open_store(clock)) as observer:
            await store.join("w", LEASE)
            plain, again, spent, asked, deleted = [
                await store.insert(sample_record(restartable=restartable, attempt_limit=limit))
                for restartable, limit in ((False, 1), (True, 2), (True, 1), (True, 2), (True, 2))
            ]
            assert len(await store.claim("w", ["books.render"], 9)) == 5
            assert (await observer.update(asked.name, lifecycle.request_cancel)).state is State.RUNNING
            await observer.update(deleted.name, lifecycle.delete)

            clock.advance(LEASE - 1)
            await self._sweep_passes(observer, clock)
            assert len(await store.held("w")) == 5
            clock.advance(1)

            async def recovered() -> bool:
                return not await observer.held("w")

            await eventually(recovered, "a dead worker holds nothing any more")
            ends = [await store.get(record.name) for record in (plain, again, spent, asked, deleted)]
            states = [None if end is None else (end.state, end.cancel_outcome) for end in ends]
            assert states[:4] == [
                (State.FAILED, None),
                (State.PENDING, None),
                (State.FAILED, None),
                (State.CANCELLED, CancelOutcome.WORKER_LOST),
            ]
            assert states[4] in ((State.FAILED, None), None)  # a tombstone without a request id goes at once
            assert ends[0] is not None
            assert "WORKER_LOST" in (ends[0].error or "")

    async def test_a_cancel_of_a_dead_workers_operation_ends_it_at_once(self, open_store: OpenStore) -> None:
        """In the same transaction; nobody waits for a sweep."""
        clock = ManualClock(START + HOUR)
        async with _opened(open_store(ManualClock())) as store, _opened(open_store(clock)) as observer:
            await store.join("w", LEASE)
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            await observer.update(record.name, _seeing_alive)
            await self._sweep_passes(observer, clock)  # the next one is not near
            clock.advance(LEASE)
            ended = await observer.update(record.name, partial(lifecycle.request_cancel, reason="enough"))
            assert (ended.state, ended.cancel_outcome) == (State.CANCELLED, CancelOutcome.WORKER_LOST)
            _assert_same(await store.get(record.name), ended)

    async def test_a_worker_that_was_taken_for_dead_writes_nothing(self, open_store: OpenStore) -> None:
        """Its late result is refused, whether another worker has the operation by then or not."""
        clock = ManualClock(START + HOUR)
        async with _opened(open_store(ManualClock())) as store, _opened(open_store(clock)) as observer:
            await store.join("frozen", LEASE)
            await store.insert(sample_record(restartable=True, attempt_limit=5))
            (record,) = await store.claim("frozen", ["books.render"], 1)
            await observer.update(record.name, _seeing_alive)
            clock.advance(LEASE)

            async def returned() -> Record | None:
                found = await observer.get(record.name)
                return found if found is not None and found.state is State.PENDING else None

            await eventually(returned, "the operation of a frozen worker is due again")
            with _Raises(LeaseLost):
                await _finish(store, record)
            await observer.join("w", LEASE)
            (taken,) = await observer.claim("w", ["books.render"], 1)
            assert taken.token == record.token + 1
            with _Raises(LeaseLost):
                await _finish(store, record)
            assert await store.get(record.name) == taken
            assert (await _finish(observer, taken)).state is State.SUCCEEDED

    async def test_an_idle_worker_that_was_taken_for_dead_is_alive_again_once_it_renews(
        self, open_store: OpenStore
    ) -> None:
        """It was frozen while it held nothing, and was forgotten; what it claims later is its own."""
        clock = ManualClock(START + HOUR)
        async with _opened(open_store(ManualClock())) as store, _opened(open_store(clock)) as observer:
            await store.join("w", LEASE)
            await self._sweep_passes(observer, clock)
            clock.advance(LEASE)  # from now on the observer may forget it
            await self._sweep_passes(observer, clock)
            await self._sweep_passes(observer, clock)
            await store.renew("w")
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            for _ in range(4):
                assert await observer.update(record.name, _seeing_alive) == record
                clock.advance(LEASE - SECOND)
                await store.renew("w")
            assert await observer.update(record.name, _seeing_alive) == record

    # Hints

    async def test_a_watch_is_woken_by_the_commit_of_a_change(self, open_store: OpenStore) -> None:
        """With the record as another store then reads it."""
        async with _opened(open_store()) as store, _opened(open_store()) as other:
            name = (await store.insert(sample_record())).name
            with store.watch(name) as watch, store.watch(name) as second:
                async with anyio.create_task_group() as group:
                    group.start_soon(store.update, name, _note("x"))
                    seen = await watch.changed(BOUND)
                    assert seen is not None
                    assert seen == await other.get(name)
                    assert seen.status_message == "x"
                    assert await second.changed(BOUND) == seen

    async def test_a_watch_that_hears_nothing_ends(self, open_store: OpenStore) -> None:
        """After its seconds, with None; changes of other records, and changes before it, do not wake it."""
        async with _opened(open_store()) as store:
            record, other = [await store.insert(sample_record()) for _ in range(2)]
            await store.update(record.name, _note("before"))
            with store.watch(record.name) as watch:
                await store.update(other.name, _note("x"))
                await store.update(record.name, _unchanged)
                with _Raises(RuntimeError):
                    await store.update(record.name, _raising(RuntimeError("mine")))
                assert await watch.changed(0.01) is None
                noted = await store.update(record.name, _note("y"))
                assert await watch.changed(BOUND) == noted
                assert await watch.changed(0.01) is None

    async def test_a_listener_hears_of_every_commit(self, open_store: OpenStore) -> None:
        """Of inserts, updates and claims, in their order, until it is ended; and of nothing that was refused."""
        async with _opened(open_store()) as store:
            heard: list[Record | None] = []
            end = store.listen(heard.append)
            await store.join("w", LEASE)
            record = await store.insert(sample_record(request_id="1"))
            await store.insert(sample_record(request_id="1"))
            noted = await store.update(record.name, _note("x"))
            with _Raises(ValueError):
                await store.insert(sample_record(), within=_failing)
            with _Raises(NotFound):
                await store.update("operations/none", _note("x"))
            (claimed,) = await store.claim("w", ["books.render"], 1)
            await store.renew("w")
            assert [item for item in heard if item is not None] == [record, noted, claimed]
            end()
            await store.update(record.name, _note("y"))
            assert [item for item in heard if item is not None] == [record, noted, claimed]

    async def test_a_listener_that_raises_harms_no_caller(self, open_store: OpenStore) -> None:
        """What was committed is acknowledged, and other listeners and watches hear of it."""

        def broken(_: Record | None) -> None:
            raise ZeroDivisionError

        async with _opened(open_store()) as store:
            record = await store.insert(sample_record())
            store.listen(broken)
            heard: list[Record | None] = []
            store.listen(heard.append)
            with store.watch(record.name) as watch:
                noted = await store.update(record.name, _note("x"))
                assert await watch.changed(BOUND) == noted
            assert heard == [noted]

    async def test_a_listener_may_end_itself(self, open_store: OpenStore) -> None:
        """While it is called; the next one is called all the same."""
        async with _opened(open_store()) as store:
            heard: list[str] = []

            def once(_: Record | None) -> None:
                heard.append("once")
                end()

            end = store.listen(once)
            store.listen(lambda _: heard.append("always"))
            for _ in range(2):
                await store.insert(sample_record())
            assert heard == ["once", "always", "always"]

    # Callers' own rows

    async def test_rows_and_the_operation_are_one_commit(self, open_store: OpenStore) -> None:
        """With a start and with a change; another store sees both or neither."""
        async with _opened(open_store()) as store, _opened(open_store()) as other:
            keeper = await self._with_notes(store)
            record = await store.insert(sample_record(), within=_writing("start"))
            assert await self._notes(other, keeper) == ["start"]
            noted = await store.update(record.name, _note("x"), within=_writing("change"))
            assert await self._notes(other, keeper) == ["change", "start"]
            _assert_same(await other.get(record.name), noted)

    async def test_an_error_in_within_undoes_only_its_own_caller(self, open_store: OpenStore) -> None:
        """Rows and operation, of an insert and of an update; thirty neighbours keep theirs."""
        async with _opened(open_store()) as store:
            keeper = await self._with_notes(store)
            old = [await store.insert(sample_record()) for _ in range(5)]
            new = [sample_record() for _ in range(35)]
            calls = [
                partial(store.insert, record, within=_writing(f"n{number:02}", fail=number % 7 == 3))
                for number, record in enumerate(new)
            ]
            calls += [
                partial(store.update, record.name, _note("x"), within=_writing(f"o{number}", fail=number == 3))
                for number, record in enumerate(old)
            ]
            answers = await _at_once(*calls)
            failed = [number for number, answer in enumerate(answers) if not isinstance(answer, Record)]
            assert failed == [3, 10, 17, 24, 31, 38]
            assert {type(answers[number]) for number in failed} == {ValueError}
            kept = [f"n{number:02}" for number in range(35) if number % 7 != 3] + ["o0", "o1", "o2", "o4"]
            assert await self._notes(store, keeper) == kept
            for number, record in enumerate(new):
                assert await store.get(record.name) == (None if number % 7 == 3 else record)
            assert await store.get(old[3].name) == old[3]

    async def test_a_transition_that_raises_undoes_its_within(self, open_store: OpenStore) -> None:
        """Whichever of the two is called first."""
        async with _opened(open_store()) as store:
            keeper = await self._with_notes(store)
            with _Raises(RuntimeError):
                await store.update(keeper.name, _raising(RuntimeError("mine")), within=_writing("lost"))
            assert await self._notes(store, keeper) == []

    async def test_an_error_of_the_callers_own_sql_is_the_callers(self, open_store: OpenStore) -> None:
        """It comes out as the database raised it, and the store works on."""
        async with _opened(open_store()) as store:
            keeper = await self._with_notes(store)
            await store.insert(sample_record(), within=_writing("once"))
            record = sample_record()
            for statement in ("INSERT INTO notes VALUES ('once')", "SELECT nonsense", "SYNTAX"):
                raised = (await _at_once(partial(store.insert, record, within=_executing(statement))))[0]
                assert isinstance(raised, Exception)
                assert not isinstance(raised, InvalidArgument)
            assert await store.get(record.name) is None
            assert await self._notes(store, keeper) == ["once"]

    async def test_an_exception_of_any_kind_in_within_fails_only_its_caller(self, open_store: OpenStore) -> None:
        """It is the caller's own function: not even a BaseException of it may stop the store."""
        async with _opened(open_store()) as store:
            keeper = await self._with_notes(store)
            with _Raises(_Odd):
                await store.insert(sample_record(), within=_writing("lost", error=_Odd()))
            assert (await store.insert(sample_record(), within=_writing("kept"))).version == 1
            assert await self._notes(store, keeper) == ["kept"]
            assert store.ready

    async def test_within_can_not_end_the_transaction(self, open_store: OpenStore) -> None:
        """A COMMIT or ROLLBACK would tear apart everybody's batch: refused, with all that its caller asked."""
        async with _opened(open_store()) as store:
            keeper = await self._with_notes(store)
            for statement in ("COMMIT", "END", "ROLLBACK", "BEGIN"):
                refused, neighbour = await _at_once(
                    partial(
                        store.insert, sample_record(), within=_executing("INSERT INTO notes VALUES ('a')", statement)
                    ),
                    partial(store.insert, sample_record(), within=_writing(statement)),
                )
                assert isinstance(refused, Exception), statement
                assert isinstance(neighbour, Record), statement
            assert await self._notes(store, keeper) == ["BEGIN", "COMMIT", "END", "ROLLBACK"]
            assert len(await store.list(PageQuery())) == 5

    async def test_a_repeated_request_does_not_call_within_again(self, open_store: OpenStore) -> None:
        """One after the other, or at once."""
        async with _opened(open_store()) as store:
            keeper = await self._with_notes(store)
            answers = await _at_once(
                *(
                    partial(store.insert, sample_record(request_id="1"), within=_writing(f"call {number}"))
                    for number in range(10)
                )
            )
            assert len({record.name for record in _records(answers)}) == 1
            await store.insert(sample_record(request_id="1"), within=_failing)
            assert len(await self._notes(store, keeper)) == 1

    async def test_a_request_that_within_refused_may_be_repeated(self, open_store: OpenStore) -> None:
        """Nothing of it was stored, its request id included."""
        async with _opened(open_store()) as store:
            keeper = await self._with_notes(store)
            first, second = await _at_once(
                partial(store.insert, sample_record(request_id="1"), within=_failing),
                partial(store.insert, sample_record(request_id="1"), within=_writing("second")),
            )
            assert isinstance(first, ValueError)
            assert isinstance(second, Record)
            assert await self._notes(store, keeper) == ["second"]

    # Cancelled callers

    async def test_a_cancelled_caller_leaves_nothing_half_done(self, open_store: OpenStore) -> None:
        """Cancelled at any of its awaits: no transaction stays open, and this store and others work on."""
        async with _opened(open_store()) as store, _opened(open_store()) as other:
            await store.join("w", LEASE)
            keeper = await self._with_notes(store)
            for number in range(1, 5):
                record = await store.insert(sample_record())
                joiner = f"joins {number}"
                for call in (
                    partial(store.insert, sample_record(), _writing(f"{number}")),
                    partial(store.update, record.name, _note("x")),
                    partial(store.claim, "w", ["books.render"], 1),
                    partial(store.renew, "w"),
                    partial(store.held, "w"),
                    partial(store.join, joiner, LEASE),
                    partial(store.leave, joiner),
                    partial(store.get, record.name),
                    partial(store.list, PageQuery()),
                ):
                    await _cancelled_at(number, call)
                    written = await other.insert(sample_record())
                    assert await store.get(written.name) == written
                    assert (await store.update(written.name, _note("y"))).version == 2
                notes = await self._notes(store, keeper)
                assert len(notes) == len(await self._notes(other, keeper))
            assert store.ready

    # Opening and closing

    async def test_a_store_that_is_not_open_says_so(self, open_store: OpenStore) -> None:
        """Every call raises StoreClosed, before the store is opened and after it was closed."""
        store = open_store()
        ready = [store.ready]
        before = await _outcomes(store)
        async with _opened(store):
            ready.append(store.ready)
            await store.join("w", LEASE)
        ready.append(store.ready)
        assert ready == [False, True, False]
        after = await _outcomes(store)
        assert {call for call, outcome in before.items() if outcome is not StoreClosed} == set(), before
        assert {call for call, outcome in after.items() if outcome is not StoreClosed} == set(), after

    async def test_what_is_acknowledged_while_the_store_closes_is_there(self, open_store: OpenStore) -> None:
        """Each caller gets an answer: its record, or StoreClosed and no record."""
        records = [sample_record() for _ in range(50)]
        store = open_store()
        answers: dict[str, Record | BaseException] = {}

        async def insert(record: Record) -> None:
            try:
                answers[record.name] = await store.insert(record)
            except StoreClosed as error:
                answers[record.name] = error

        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as group, store:
                for record in records:
                    group.start_soon(insert, record)
                await anyio.lowlevel.checkpoint()
                await store.insert(sample_record())
        assert answers.keys() == {record.name for record in records}
        async with _opened(open_store()) as again:
            for record in records:
                acknowledged = answers[record.name] == record
                assert await again.get(record.name) == (record if acknowledged else None)

    async def test_a_body_that_raises_closes_the_store(self, open_store: OpenStore) -> None:
        """Its own exception comes out, unwrapped."""
        store = open_store()
        with _Raises(LookupError):
            async with _opened(store):
                raise LookupError
        with _Raises(StoreClosed):
            await store.get("operations/x")

    async def test_all_stores_of_a_database_share_its_secret(self, open_store: OpenStore) -> None:
        """32 bytes, the same after a restart."""
        async with _opened(open_store()) as store, _opened(open_store()) as other:
            secret = await store.secret()
            assert len(secret) == 32
            assert await other.secret() == secret
        async with _opened(open_store()) as store:
            assert await store.secret() == secret

    # What time decides

    async def test_an_expired_record_is_removed(self, open_store: OpenStore) -> None:
        """Only once it has ended, and not before its time."""
        clock = ManualClock()
        async with _opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            record = await store.insert(sample_record(retention=HOUR))
            pending = await store.insert(sample_record(retention=HOUR, job="other"))
            (claimed,) = await store.claim("w", ["books.render"], 1)
            ended = await _finish(store, claimed)
            assert ended.expire_at == START + HOUR
            clock.advance(HOUR - 1)
            await self._sweep_passes(store, clock)
            assert await store.get(record.name) == ended
            clock.advance(1)
            await self._gone(store, record.name)
            assert await store.get(pending.name) == pending

    async def test_a_tombstone_is_kept_while_its_request_id_counts(self, open_store: OpenStore) -> None:
        """A repeated request finds the expired record, without its content, and is not run again."""
        clock = ManualClock()
        async with _opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            record = await store.insert(sample_record(retention=HOUR, request_id="1", parent="p"))
            (claimed,) = await store.claim("w", ["books.render"], 1)
            await _finish(store, claimed)
            clock.advance(HOUR)

            async def buried() -> Record | None:
                found = await store.get(record.name)
                return found if found is not None and found.deleted_at is not None else None

            tombstone = await eventually(buried, "an expired record becomes a tombstone")
            assert (tombstone.params, tombstone.response) == (None, None)
            assert list(await store.list(PageQuery("p"))) == []
            assert await store.insert(sample_record(request_id="1")) == tombstone
            clock.advance(lifecycle.REQUEST_WINDOW - HOUR - 1)
            await self._sweep_passes(store, clock)
            assert await store.get(record.name) == tombstone
            clock.advance(1)
            await self._gone(store, record.name)
            fresh = sample_record(request_id="1")
            assert await store.insert(fresh) == fresh

    async def test_a_pending_operation_past_its_deadline_fails(self, open_store: OpenStore) -> None:
        """Though no worker looks."""
        clock = ManualClock()
        async with _opened(open_store(clock)) as store:
            record = await store.insert(sample_record(deadline_at=START + HOUR, due_at=START + 2 * HOUR))
            clock.advance(HOUR)

            async def failed() -> Record | None:
                found = await store.get(record.name)
                return found if found is not None and found.state is State.FAILED else None

            assert "DEADLINE_EXCEEDED" in ((await eventually(failed, "its deadline is kept")).error or "")

    async def test_what_time_decided_while_nobody_looked_is_settled_on_opening(self, open_store: OpenStore) -> None:
        """Before the first call is answered."""
        clock = ManualClock()
        async with _opened(open_store(clock)) as store:
            late = await store.insert(sample_record(deadline_at=START + HOUR))
        clock.advance(HOUR)
        async with _opened(open_store(clock)) as store:
            found = await store.get(late.name)
            assert found is not None
            assert found.state is State.FAILED

    # Help for the tests

    async def _with_notes(self, store: Store) -> Record:
        """Make the table, and return a record to read it by."""
        return await store.insert(sample_record(), within=_executing(self.create_notes))

    async def _notes(self, store: Store, keeper: Record) -> list[str]:
        """Return the rows of the table, sorted, as the store's own connection sees them."""
        found: list[str] = []

        def read(connection: Any) -> None:  # Any: the database's connection
            found.extend(text for (text,) in connection.execute("SELECT text FROM notes ORDER BY text").fetchall())

        await store.update(keeper.name, _unchanged, within=read)
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


class _Odd(BaseException):
    """An exception of the kind that `except Exception` lets pass."""


@asynccontextmanager
async def _opened(store: Store) -> AsyncGenerator[Store]:
    with anyio.fail_after(BOUND):
        async with store:
            yield store


class _Raises(Generic[E]):
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


async def _at_once(*calls: Callable[[], Awaitable[T]]) -> list[T | BaseException]:
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


async def _begin(call: Callable[[], Coroutine[Any, Any, object]], *, task_status: Any) -> None:  # Any: of any backend
    """Make a call, and report as started when it waits for the first time."""
    coroutine = call()
    await _Steps(coroutine, lambda step: task_status.started() if step == 1 else None)


async def _cancelled_at(number: int, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Make a call and cancel it when it waits for the n-th time; one that waits less often is just made."""
    with anyio.CancelScope() as scope:
        await _Steps(call(), lambda step: scope.cancel() if step == number else None)


class _Steps(Generic[T]):
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


async def _outcomes(store: Store) -> dict[str, type[BaseException] | None]:
    """Make each call once, and return what kind of exception it raised."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "insert": partial(store.insert, sample_record()),
        "get": partial(store.get, "operations/x"),
        "list": partial(store.list, PageQuery()),
        "update": partial(store.update, "operations/x", _unchanged),
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


async def _finish(store: Store, record: Record) -> Record:
    assert record.lease is not None
    return await store.update(record.name, partial(lifecycle.finish, lease=record.lease, outcome=Returned("1")))


def _records(answers: Sequence[Record | BaseException]) -> list[Record]:
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, Record)]


def _assert_same(found: Record | None, expected: Record) -> None:
    assert found is not None, f"{expected.name} is not there"
    differing = {
        field: (was, now)
        for field, was, now in zip(Record._fields, expected, found, strict=True)
        if (was, type(was)) != (now, type(now))
    }
    assert not differing, f"{expected.name}: {differing}"


def _note(text: str) -> Transition:
    """Return a transition that appends to the record's message."""

    def transition(record: Record, _: Facts) -> Record:
        return record._replace(version=record.version + 1, status_message=(record.status_message or "") + text)

    return transition


def _becoming(**changes: Any) -> Transition:  # Any: one type per field of Record
    return lambda record, _: record._replace(**changes)


def _unchanged(record: Record, _: Facts) -> Record:
    return record


def _seeing(choose: Callable[[Facts], Transition]) -> Transition:
    return lambda record, facts: choose(facts)(record, facts)


def _seeing_alive(record: Record, facts: Facts) -> Record:
    assert not facts.lease_expired, f"{record.lease_owner} lives"
    return record


def _raising(error: Exception) -> Transition:
    def transition(_: Record, __: Facts) -> Record:
        raise error

    return transition


def _failing(_: Any) -> None:  # Any: the database's connection
    raise ValueError


def _writing(text: str, *, fail: bool = False, error: BaseException | None = None) -> Within:
    """Return a function that writes a row, and then perhaps fails."""

    def within(connection: Any) -> None:  # Any: the database's connection
        connection.execute(f"INSERT INTO notes VALUES ('{text}')")  # noqa: S608 -- the test's own word
        if fail:
            raise ValueError(text)
        if error is not None:
            raise error

    return within


def _executing(*statements: str) -> Within:
    def within(connection: Any) -> None:  # Any: the database's connection
        for statement in statements:
            connection.execute(statement)

    return within


def _all_kinds() -> list[Record]:
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
        sample_record(**full, **ended, state=State.SUCCEEDED, response=TEXT),
        sample_record(**full, **ended, state=State.FAILED, error=TEXT),
        *(
            sample_record(**full, **ended, state=State.CANCELLED, cancel_outcome=outcome, error="{}")
            for outcome in CancelOutcome
        ),
    ]
