"""Callers' own rows in the same transaction, and callers that go away."""

from functools import partial

from lro.errors import InvalidArgument
from lro.lifecycle import Record
from lro.store import PageQuery
from lro.testing.contract.tools import (
    LEASE,
    Odd,
    OpenStore,
    Promises,
    Raises,
    assert_same,
    at_once,
    cancelled_at,
    executing,
    failing,
    note,
    opened,
    raising,
    sample_record,
    stored_records,
    writing,
)

__all__ = ["Rows"]


class Rows(Promises):
    """Callers' own rows in the same transaction, and callers that go away."""

    # Callers' own rows

    async def test_rows_and_the_operation_are_one_commit(self, open_store: OpenStore) -> None:
        """With a start and with a change; another store sees both or neither."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            keeper = await self._with_notes(store)
            record = await store.insert(sample_record(), within=writing("start"))
            assert await self._notes(other, keeper) == ["start"]
            noted = await store.update(record.name, note("x"), within=writing("change"))
            assert await self._notes(other, keeper) == ["change", "start"]
            assert_same(await other.get(record.name), noted)

    async def test_an_error_in_within_undoes_only_its_own_caller(self, open_store: OpenStore) -> None:
        """Rows and operation, of an insert and of an update; thirty neighbours keep theirs."""
        async with opened(open_store()) as store:
            keeper = await self._with_notes(store)
            old = [await store.insert(sample_record()) for _ in range(5)]
            new = [sample_record() for _ in range(35)]
            calls = [
                partial(store.insert, record, within=writing(f"n{number:02}", fail=number % 7 == 3))
                for number, record in enumerate(new)
            ]
            calls += [
                partial(store.update, record.name, note("x"), within=writing(f"o{number}", fail=number == 3))
                for number, record in enumerate(old)
            ]
            answers = await at_once(*calls)
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
        async with opened(open_store()) as store:
            keeper = await self._with_notes(store)
            with Raises(RuntimeError):
                await store.update(keeper.name, raising(RuntimeError("mine")), within=writing("lost"))
            assert await self._notes(store, keeper) == []

    async def test_an_error_of_the_callers_own_sql_is_the_callers(self, open_store: OpenStore) -> None:
        """It comes out as the database raised it, and the store works on."""
        async with opened(open_store()) as store:
            keeper = await self._with_notes(store)
            await store.insert(sample_record(), within=writing("once"))
            record = sample_record()
            for statement in ("INSERT INTO notes VALUES ('once')", "SELECT nonsense", "SYNTAX"):
                raised = (await at_once(partial(store.insert, record, within=executing(statement))))[0]
                assert isinstance(raised, Exception)
                assert not isinstance(raised, InvalidArgument)
            assert await store.get(record.name) is None
            assert await self._notes(store, keeper) == ["once"]

    async def test_an_exception_of_any_kind_in_within_fails_only_its_caller(self, open_store: OpenStore) -> None:
        """It is the caller's own function: not even a BaseException of it may stop the store."""
        async with opened(open_store()) as store:
            keeper = await self._with_notes(store)
            with Raises(Odd):
                await store.insert(sample_record(), within=writing("lost", error=Odd()))
            assert (await store.insert(sample_record(), within=writing("kept"))).version == 1
            assert await self._notes(store, keeper) == ["kept"]
            assert store.ready

    async def test_within_can_not_end_the_transaction(self, open_store: OpenStore) -> None:
        """A COMMIT or ROLLBACK would tear apart everybody's batch: refused, with all that its caller asked."""
        async with opened(open_store()) as store:
            keeper = await self._with_notes(store)
            for statement in ("COMMIT", "END", "ROLLBACK", "BEGIN"):
                refused, neighbour = await at_once(
                    partial(
                        store.insert, sample_record(), within=executing("INSERT INTO notes VALUES ('a')", statement)
                    ),
                    partial(store.insert, sample_record(), within=writing(statement)),
                )
                assert isinstance(refused, Exception), statement
                assert isinstance(neighbour, Record), statement
            assert await self._notes(store, keeper) == ["BEGIN", "COMMIT", "END", "ROLLBACK"]
            assert len((await store.list(PageQuery())).records) == 5

    async def test_a_repeated_request_does_not_call_within_again(self, open_store: OpenStore) -> None:
        """One after the other, or at once."""
        async with opened(open_store()) as store:
            keeper = await self._with_notes(store)
            answers = await at_once(
                *(
                    partial(store.insert, sample_record(request_id="1"), within=writing(f"call {number}"))
                    for number in range(10)
                )
            )
            assert len({record.name for record in stored_records(answers)}) == 1
            await store.insert(sample_record(request_id="1"), within=failing)
            assert len(await self._notes(store, keeper)) == 1

    async def test_a_request_that_within_refused_may_be_repeated(self, open_store: OpenStore) -> None:
        """Nothing of it was stored, its request id included."""
        async with opened(open_store()) as store:
            keeper = await self._with_notes(store)
            first, second = await at_once(
                partial(store.insert, sample_record(request_id="1"), within=failing),
                partial(store.insert, sample_record(request_id="1"), within=writing("second")),
            )
            assert isinstance(second, Record)
            assert isinstance(first, ValueError) or first == second, "who comes second is a repeated request"
            assert await self._notes(store, keeper) == ["second"]

    # Cancelled callers

    async def test_a_cancelled_caller_leaves_nothing_half_done(self, open_store: OpenStore) -> None:
        """Cancelled at any of its awaits: no transaction stays open, and this store and others work on."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            await store.join("w", LEASE)
            keeper = await self._with_notes(store)
            for number in range(1, 5):
                record = await store.insert(sample_record())
                joiner = f"joins {number}"
                for call in (
                    partial(store.insert, sample_record(), writing(f"{number}")),
                    partial(store.update, record.name, note("x")),
                    partial(store.claim, "w", ["books.render"], 1),
                    partial(store.renew, "w"),
                    partial(store.held, "w"),
                    partial(store.join, joiner, LEASE),
                    partial(store.leave, joiner),
                    partial(store.get, record.name),
                    partial(store.list, PageQuery()),
                ):
                    await cancelled_at(number, call)
                    written = await other.insert(sample_record())
                    assert await store.get(written.name) == written
                    assert (await store.update(written.name, note("y"))).version == 2
                notes = await self._notes(store, keeper)
                assert len(notes) == len(await self._notes(other, keeper))
            assert store.ready
