"""Hints, opening and closing, and what time alone decides."""

import anyio
import anyio.lowlevel

from lro import lifecycle
from lro.errors import NotFound, StoreClosed
from lro.lifecycle import Record, State
from lro.store import PageQuery
from lro.testing.contract.tools import (
    BOUND,
    HOUR,
    LEASE,
    START,
    ManualClock,
    OpenStore,
    Promises,
    Raises,
    eventually,
    failing,
    finish,
    note,
    opened,
    outcomes,
    raising,
    sample_record,
    unchanged,
)

__all__ = ["Times"]


class Times(Promises):
    """Hints, opening and closing, and what time alone decides."""

    # Hints

    async def test_a_watch_is_woken_by_the_commit_of_a_change(self, open_store: OpenStore) -> None:
        """With the record as another store then reads it."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            name = (await store.insert(sample_record())).name
            with store.watch(name) as watch, store.watch(name) as second:
                async with anyio.create_task_group() as group:
                    group.start_soon(store.update, name, note("x"))
                    seen = await watch.changed(BOUND)
                    assert seen is not None
                    assert seen == await other.get(name)
                    assert seen.status_message == "x"
                    assert await second.changed(BOUND) == seen

    async def test_a_watch_that_hears_nothing_ends(self, open_store: OpenStore) -> None:
        """After its seconds, with None; changes of other records, and changes before it, do not wake it."""
        async with opened(open_store()) as store:
            record, other = [await store.insert(sample_record()) for _ in range(2)]
            await store.update(record.name, note("before"))
            with store.watch(record.name) as watch:
                await store.update(other.name, note("x"))
                await store.update(record.name, unchanged)
                with Raises(RuntimeError):
                    await store.update(record.name, raising(RuntimeError("mine")))
                assert await watch.changed(0.01) is None
                noted = await store.update(record.name, note("y"))
                assert await watch.changed(BOUND) == noted
                assert await watch.changed(0.01) is None

    async def test_a_listener_hears_of_every_commit(self, open_store: OpenStore) -> None:
        """Of inserts, updates and claims, in their order, until it is ended; and of nothing that was refused."""
        async with opened(open_store()) as store:
            heard: list[Record | None] = []
            end = store.listen(heard.append)
            await store.join("w", LEASE)
            record = await store.insert(sample_record(request_id="1"))
            await store.insert(sample_record(request_id="1"))
            noted = await store.update(record.name, note("x"))
            with Raises(ValueError):
                await store.insert(sample_record(), within=failing)
            with Raises(NotFound):
                await store.update("operations/none", note("x"))
            (claimed,) = await store.claim("w", ["books.render"], 1)
            await store.renew("w")
            assert [item for item in heard if item is not None] == [record, noted, claimed]
            end()
            await store.update(record.name, note("y"))
            assert [item for item in heard if item is not None] == [record, noted, claimed]

    async def test_a_listener_that_raises_harms_no_caller(self, open_store: OpenStore) -> None:
        """What was committed is acknowledged, and other listeners and watches hear of it."""

        def broken(_: Record | None) -> None:
            raise ZeroDivisionError

        async with opened(open_store()) as store:
            record = await store.insert(sample_record())
            store.listen(broken)
            heard: list[Record | None] = []
            store.listen(heard.append)
            with store.watch(record.name) as watch:
                noted = await store.update(record.name, note("x"))
                assert await watch.changed(BOUND) == noted
            assert heard == [noted]

    async def test_a_listener_may_end_itself(self, open_store: OpenStore) -> None:
        """While it is called; the next one is called all the same."""
        async with opened(open_store()) as store:
            heard: list[str] = []

            def once(_: Record | None) -> None:
                heard.append("once")
                end()

            end = store.listen(once)
            store.listen(lambda _: heard.append("always"))
            for _ in range(2):
                await store.insert(sample_record())
            assert heard == ["once", "always", "always"]

    # Opening and closing

    async def test_a_store_that_is_not_open_says_so(self, open_store: OpenStore) -> None:
        """Every call raises StoreClosed, before the store is opened and after it was closed."""
        store = open_store()
        ready = [store.ready]
        before = await outcomes(store)
        async with opened(store):
            ready.append(store.ready)
            await store.join("w", LEASE)
        ready.append(store.ready)
        assert ready == [False, True, False]
        after = await outcomes(store)
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
        async with opened(open_store()) as again:
            for record in records:
                acknowledged = answers[record.name] == record
                assert await again.get(record.name) == (record if acknowledged else None)

    async def test_a_body_that_raises_closes_the_store(self, open_store: OpenStore) -> None:
        """Its own exception comes out, unwrapped."""
        store = open_store()
        with Raises(LookupError):
            async with opened(store):
                raise LookupError
        with Raises(StoreClosed):
            await store.get("operations/x")

    async def test_all_stores_of_a_database_share_its_secret(self, open_store: OpenStore) -> None:
        """32 bytes, the same after a restart."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            secret = await store.secret()
            assert len(secret) == 32
            assert await other.secret() == secret
        async with opened(open_store()) as store:
            assert await store.secret() == secret

    # What time decides

    async def test_an_expired_record_is_removed(self, open_store: OpenStore) -> None:
        """Only once it has ended, and not before its time."""
        clock = ManualClock()
        async with opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            record = await store.insert(sample_record(retention=HOUR))
            pending = await store.insert(sample_record(retention=HOUR, job="other"))
            (claimed,) = await store.claim("w", ["books.render"], 1)
            ended = await finish(store, claimed)
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
        async with opened(open_store(clock)) as store:
            await store.join("w", LEASE)
            record = await store.insert(sample_record(retention=HOUR, request_id="1", parent="p"))
            (claimed,) = await store.claim("w", ["books.render"], 1)
            await finish(store, claimed)
            clock.advance(HOUR)

            async def buried() -> Record | None:
                found = await store.get(record.name)
                return found if found is not None and found.deleted_at is not None else None

            tombstone = await eventually(buried, "an expired record becomes a tombstone")
            assert (tombstone.params, tombstone.response) == (None, None)
            assert list((await store.list(PageQuery("p"))).records) == []
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
        async with opened(open_store(clock)) as store:
            record = await store.insert(sample_record(deadline_at=START + HOUR, due_at=START + 2 * HOUR))
            clock.advance(HOUR)

            async def failed() -> Record | None:
                found = await store.get(record.name)
                return found if found is not None and found.state is State.FAILED else None

            assert "DEADLINE_EXCEEDED" in ((await eventually(failed, "its deadline is kept")).error or "")

    async def test_what_time_decided_while_nobody_looked_is_settled_on_opening(self, open_store: OpenStore) -> None:
        """Before the first call is answered."""
        clock = ManualClock()
        async with opened(open_store(clock)) as store:
            late = await store.insert(sample_record(deadline_at=START + HOUR))
        clock.advance(HOUR)
        async with opened(open_store(clock)) as store:
            found = await store.get(late.name)
            assert found is not None
            assert found.state is State.FAILED
