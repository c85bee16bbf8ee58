"""Who may run what: claims, leases, and what becomes of a dead worker's operations."""

from collections import Counter
from functools import partial

import anyio
import anyio.lowlevel

from lro import lifecycle
from lro.admission import Quota
from lro.errors import FailedPrecondition, LeaseLost
from lro.lifecycle import CancelOutcome, Raised, Record, State
from lro.status import Code, Status
from lro.testing.contract.tools import (
    HOUR,
    LEASE,
    SECOND,
    START,
    ManualClock,
    OpenStore,
    Promises,
    Raises,
    assert_same,
    eventually,
    finish,
    opened,
    sample_record,
    seeing_alive,
)

__all__ = ["Claims"]


class Claims(Promises):
    """Who may run what: claims, leases, and what becomes of a dead worker's operations."""

    # Claims

    async def test_claims_go_by_priority_and_then_by_age(self, open_store: OpenStore) -> None:
        """The highest first; of equals the longest due; of equals again the first that came."""
        async with opened(open_store(ManualClock())) as store:
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
        async with opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            record = await store.insert(sample_record(due_at=START + 2))
            assert list(await store.claim("w", ["books.render"], 9)) == []
            clock.advance(1)
            assert list(await store.claim("w", ["books.render"], 9)) == []
            clock.advance(1)
            (claimed,) = await store.claim("w", ["books.render"], 9)
            assert (claimed.name, claimed.started_at) == (record.name, START + 2)

    async def test_a_clock_that_jumps_back_hides_nothing_that_was_due(self, open_store: OpenStore) -> None:
        """What is due at once, and after its delay a retry; what was scheduled waits for the clock."""
        clock = ManualClock()
        async with opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            retried = await store.insert(sample_record(restartable=True, attempt_limit=2))
            (claimed,) = await store.claim("w", ["books.render"], 9)
            assert claimed.lease is not None
            failed = Raised(Status(Code.UNAVAILABLE, "away"), retry_in=10 * SECOND)
            await store.update(claimed.name, partial(lifecycle.finish, lease=claimed.lease, outcome=failed))
            fresh = await store.insert(sample_record())
            scheduled = await store.insert(sample_record(due_at=START + 1))
            clock.jump(-HOUR)
            found = await store.claim("w", ["books.render"], 9)
            assert {record.name for record in found} == {retried.name, fresh.name}
            assert {record.claimed_at for record in found} <= {START - HOUR, START + 1}
            assert list(await store.claim("w", ["books.render"], 9)) == []
            clock.jump(HOUR)
            assert list(await store.claim("w", ["books.render"], 9)) == []
            clock.advance(1)
            assert [record.name for record in await store.claim("w", ["books.render"], 9)] == [scheduled.name]

    async def test_what_is_given_back_keeps_its_place_in_the_queue(self, open_store: OpenStore) -> None:
        """Ahead of what came later; a worker that is going down makes nobody wait longer."""
        clock = ManualClock()
        async with opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            first = await store.insert(sample_record())
            (claimed,) = await store.claim("w", ["books.render"], 1)
            clock.advance(SECOND)
            second = await store.insert(sample_record(created_at=START + 1, due_at=START + 1))
            assert claimed.lease is not None
            await store.update(first.name, partial(lifecycle.give_back, lease=claimed.lease))
            order = [(await store.claim("w", ["books.render"], 1))[0].name for _ in range(2)]
            assert order == [first.name, second.name]

    async def test_only_the_given_jobs_are_claimed(self, open_store: OpenStore) -> None:
        """And never more than the limit."""
        async with opened(open_store()) as store:
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
        async with opened(open_store()) as store, opened(open_store()) as other:
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

    # Quotas

    async def test_no_more_of_a_job_are_claimed_than_its_quota_lets_run(self, open_store: OpenStore) -> None:
        """By all stores together; whatever ends or is given back makes room for the next."""
        quotas = {"books.render": Quota(total=2)}
        async with opened(open_store(ManualClock())) as store, opened(open_store(ManualClock())) as other:
            await store.join("w", LEASE)
            await other.join("v", LEASE)
            records = [await store.insert(sample_record()) for _ in range(6)]
            first = list(await store.claim("w", ["books.render"], 1, quotas))
            second = list(await other.claim("v", ["books.render"], 9, quotas))
            assert [one.name for one in (*first, *second)] == [one.name for one in records[:2]]
            assert list(await store.claim("w", ["books.render"], 9, quotas)) == []
            await finish(store, first[0])
            assert second[0].lease is not None
            await other.update(second[0].name, partial(lifecycle.give_back, lease=second[0].lease))
            third = await other.claim("v", ["books.render"], 9, quotas)
            assert [one.name for one in third] == [one.name for one in records[1:3]]
            assert len(await store.claim("w", ["books.render"], 9)) == 3, "who has no quota is bound by none"

    async def test_no_more_of_a_target_are_claimed_than_its_quota_lets_run(self, open_store: OpenStore) -> None:
        """One full target keeps no other waiting; without a target there is no such quota."""
        quotas = {"books.render": Quota(per_target=1)}
        targets = ["a", "a", "a", "b", "", "", "b", "ü"]
        async with opened(open_store(ManualClock())) as store:
            await store.join("w", LEASE)
            records = [await store.insert(sample_record(target=target)) for target in targets]
            claimed: list[Record] = []
            while batch := await store.claim("w", ["books.render"], 2, quotas):
                claimed += batch
            assert [one.name for one in claimed] == [records[number].name for number in (0, 3, 4, 5, 7)]
            await finish(store, claimed[0])
            (next_one,) = await store.claim("w", ["books.render"], 9, quotas)
            assert next_one.name == records[1].name

    async def test_a_full_job_keeps_no_other_waiting(self, open_store: OpenStore) -> None:
        """However many of it wait, and however high their priority is."""
        quotas = {"books.render": Quota(total=1)}
        async with opened(open_store(ManualClock())) as store:
            await store.join("w", LEASE)
            for _ in range(50):
                await store.insert(sample_record(priority=9))
            low = await store.insert(sample_record(job="books.print", priority=-9))
            claimed = await store.claim("w", ["books.render", "books.print"], 5, quotas)
            assert [one.job for one in claimed] == ["books.render", "books.print"]
            assert claimed[1].name == low.name

    async def test_what_a_dead_worker_has_left_counts_until_it_is_settled(self, open_store: OpenStore) -> None:
        """Its work may still be going on."""
        clock = ManualClock(START + HOUR)
        quotas = {"books.render": Quota(total=1)}
        async with opened(open_store(ManualClock())) as store, opened(open_store(clock)) as observer:
            await store.join("dead", LEASE)
            await observer.join("w", LEASE)
            await store.insert(sample_record())
            (lost,) = await store.claim("dead", ["books.render"], 1, quotas)
            waiting = await store.insert(sample_record())
            await observer.update(lost.name, seeing_alive)
            assert list(await observer.claim("w", ["books.render"], 9, quotas)) == []
            clock.advance(LEASE)

            async def ended() -> bool:
                found = await observer.get(lost.name)
                return found is None or found.state is State.FAILED

            await eventually(ended, "the operation of a dead worker is settled")
            (claimed,) = await observer.claim("w", ["books.render"], 9, quotas)
            assert claimed.name == waiting.name

    async def test_claimers_at_once_keep_to_a_quota(self, open_store: OpenStore) -> None:
        """Twelve of them on two stores; at no time run more, and all come to run."""
        quotas = {"books.render": Quota(total=3, per_target=2)}
        async with opened(open_store()) as store, opened(open_store()) as other:
            owners = {f"w{number}": (store, other)[number % 2] for number in range(12)}
            for owner, home in owners.items():
                await home.join(owner, LEASE)
            records = [await store.insert(sample_record(target=str(number % 3))) for number in range(40)]
            running: dict[str, str] = {}
            done: list[str] = []

            async def work(owner: str) -> None:
                while len(done) < len(records):
                    for record in await owners[owner].claim(owner, ["books.render"], 2, quotas):
                        running[record.name] = record.target
                        assert len(running) <= 3
                        assert max(Counter(running.values()).values()) <= 2
                        await anyio.lowlevel.checkpoint()
                        del running[record.name]
                        done.append(record.name)
                        await finish(owners[owner], record)

            async with anyio.create_task_group() as group:
                for owner in owners:
                    group.start_soon(work, owner)
            assert sorted(done) == [record.name for record in records]

    async def test_a_token_grows_with_each_claim(self, open_store: OpenStore) -> None:
        """Though the attempt was given back; a write under the older token is refused."""
        async with opened(open_store()) as store:
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
            with Raises(LeaseLost):
                await finish(store, record._replace(token=3))
            assert await store.get(record.name) == record

    async def test_a_worker_that_has_not_joined_claims_nothing(self, open_store: OpenStore) -> None:
        """It would be dead to all others; the error names it."""
        async with opened(open_store()) as store:
            record = await store.insert(sample_record())
            for call in (partial(store.claim, "stranger", ["books.render"], 1), partial(store.renew, "stranger")):
                with Raises(FailedPrecondition) as raised:
                    await call()
                assert "stranger" in str(raised[0])
            assert await store.get(record.name) == record

    async def test_what_is_too_late_fails_instead_of_being_claimed(self, open_store: OpenStore) -> None:
        """A deadline that has passed while PENDING is settled by the claim or by the sweep."""
        clock = ManualClock()
        async with opened(open_store(clock)) as store:
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
        async with opened(open_store(clock)) as store, opened(open_store()) as other:
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
                await finish(store, flagged)
            assert list(await store.renew("w")) == []
            assert list(await store.held("nobody")) == []

    async def test_a_worker_leaves_once_it_holds_nothing(self, open_store: OpenStore) -> None:
        """One that still holds something stays known, and alive, until that has ended."""
        async with opened(open_store()) as store:
            await store.join("w", LEASE)
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            await store.leave("w")
            assert list(await store.renew("w")) == [record]
            flagged = await store.update(record.name, lifecycle.request_cancel)
            assert flagged.state is State.RUNNING
            await finish(store, flagged)
            await store.leave("w")
            with Raises(FailedPrecondition):
                await store.claim("w", ["books.render"], 1)
            await store.join("w", LEASE)
            await store.leave("w")

    async def test_a_worker_that_renews_is_alive(self, open_store: OpenStore) -> None:
        """To others too, however much time passes on their clocks, as long as it renews within its lease time."""
        clock = ManualClock(START + HOUR)
        async with opened(open_store(ManualClock())) as store, opened(open_store(clock)) as observer:
            await store.join("w", LEASE)
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            for _ in range(5):
                assert await observer.update(record.name, seeing_alive) == record
                clock.advance(LEASE - SECOND)
                assert await observer.update(record.name, seeing_alive) == record
                await store.renew("w")
            flagged = await observer.update(record.name, lifecycle.request_cancel)
            assert flagged.state is State.RUNNING

    async def test_a_wall_clock_that_jumps_kills_no_worker(self, open_store: OpenStore) -> None:
        """Leases are judged by the observer's monotonic clock alone."""
        clock = ManualClock(START + HOUR)
        async with opened(open_store(ManualClock())) as store, opened(open_store(clock)) as observer:
            await store.join("w", LEASE)
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            for jump in (HOUR, -2 * HOUR, 24 * HOUR):
                clock.jump(jump)
                assert await observer.update(record.name, seeing_alive) == record

    async def test_the_work_of_a_worker_whose_beat_stands_still_is_recovered(self, open_store: OpenStore) -> None:
        """After its lease time on the observer's clock: run again, cancelled, or failed, by the record's own rules."""
        clock = ManualClock(START + HOUR)
        async with opened(open_store(ManualClock())) as store, opened(open_store(clock)) as observer:
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
        async with opened(open_store(ManualClock())) as store, opened(open_store(clock)) as observer:
            await store.join("w", LEASE)
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            await observer.update(record.name, seeing_alive)
            await self._sweep_passes(observer, clock)  # the next one is not near
            clock.advance(LEASE)
            ended = await observer.update(record.name, partial(lifecycle.request_cancel, reason="enough"))
            assert (ended.state, ended.cancel_outcome) == (State.CANCELLED, CancelOutcome.WORKER_LOST)
            assert_same(await store.get(record.name), ended)

    async def test_a_worker_that_was_taken_for_dead_writes_nothing(self, open_store: OpenStore) -> None:
        """Its late result is refused, whether another worker has the operation by then or not."""
        clock = ManualClock(START + HOUR)
        async with opened(open_store(ManualClock())) as store, opened(open_store(clock)) as observer:
            await store.join("frozen", LEASE)
            await store.insert(sample_record(restartable=True, attempt_limit=5))
            (record,) = await store.claim("frozen", ["books.render"], 1)
            await observer.update(record.name, seeing_alive)
            clock.advance(LEASE)

            async def returned() -> Record | None:
                found = await observer.get(record.name)
                return found if found is not None and found.state is State.PENDING else None

            await eventually(returned, "the operation of a frozen worker is due again")
            with Raises(LeaseLost):
                await finish(store, record)
            await observer.join("w", LEASE)
            (taken,) = await observer.claim("w", ["books.render"], 1)
            assert taken.token == record.token + 1
            with Raises(LeaseLost):
                await finish(store, record)
            assert await store.get(record.name) == taken
            assert (await finish(observer, taken)).state is State.SUCCEEDED

    async def test_an_idle_worker_that_was_taken_for_dead_is_alive_again_once_it_renews(
        self, open_store: OpenStore
    ) -> None:
        """It was frozen while it held nothing, and was forgotten; what it claims later is its own."""
        clock = ManualClock(START + HOUR)
        async with opened(open_store(ManualClock())) as store, opened(open_store(clock)) as observer:
            await store.join("w", LEASE)
            await self._sweep_passes(observer, clock)
            clock.advance(LEASE)  # from now on the observer may forget it
            await self._sweep_passes(observer, clock)
            await self._sweep_passes(observer, clock)
            await store.renew("w")
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            for _ in range(4):
                assert await observer.update(record.name, seeing_alive) == record
                clock.advance(LEASE - SECOND)
                await store.renew("w")
            assert await observer.update(record.name, seeing_alive) == record

    async def test_a_worker_whose_row_was_removed_is_alive_again_for_all(self, open_store: OpenStore) -> None:
        """Also for who had seen it before: its beat does not begin again where it once was."""
        clock = ManualClock(START + HOUR)
        async with (
            opened(open_store(ManualClock())) as store,
            opened(open_store(clock)) as observer,
            opened(open_store(ManualClock())) as other,
        ):
            await store.join("w", LEASE)
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            await observer.update(record.name, seeing_alive)
            await finish(store, record)
            await other.leave("w")  # it was frozen for long
            clock.advance(LEASE)
            await store.renew("w")
            await store.insert(sample_record())
            (record,) = await store.claim("w", ["books.render"], 1)
            assert await observer.update(record.name, seeing_alive) == record

    async def test_what_is_claimed_after_a_standstill_is_the_workers_own(self, open_store: OpenStore) -> None:
        """A claim is a sign of life, though the lease has not been renewed for long: the whole process stood still."""
        clock, others = ManualClock(), ManualClock(START + HOUR)
        async with opened(open_store(clock)) as store, opened(open_store(others)) as observer:
            await store.join("w", LEASE)
            await self._sweep_passes(observer, others)  # it knows the worker's beat
            await store.insert(sample_record())
            clock.advance(LEASE)
            others.advance(LEASE)
            (record,) = await store.claim("w", ["books.render"], 1)
            assert await observer.update(record.name, seeing_alive) == record

    async def test_a_store_does_not_forget_a_worker_of_its_own(self, open_store: OpenStore) -> None:
        """However long it stood still while it held nothing."""
        clock = ManualClock(START + HOUR)
        async with opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            for _ in range(3):
                await self._sweep_passes(store, clock)
                clock.advance(LEASE)
            await store.renew("w")
            await store.insert(sample_record())
            assert len(await store.claim("w", ["books.render"], 1)) == 1
