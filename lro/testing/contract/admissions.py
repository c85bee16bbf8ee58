"""What may be started beside what has not ended."""

from functools import partial

from lro import lifecycle
from lro.errors import Aborted, ResourceExhausted
from lro.lifecycle import Record
from lro.store import PageQuery
from lro.testing.contract.tools import (
    LEASE,
    OpenStore,
    Promises,
    Raises,
    at_once,
    failing,
    finish,
    opened,
    sample_record,
    stored_records,
    writing,
)

__all__ = ["Admissions"]


class Admissions(Promises):
    """What may be started beside what has not ended."""

    async def test_an_exclusive_record_is_the_only_one_on_its_target_until_it_ends(self, open_store: OpenStore) -> None:
        """PENDING, RUNNING, with a cancel requested or hidden by a delete; the refused one is not stored."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            await store.join("w", LEASE)
            first = await store.insert(_exclusive())
            with Raises(Aborted) as raised:
                await other.insert(_exclusive())
            assert raised[0].metadata["rival"] == first.name, "who waits for it is told which one"
            (running,) = await store.claim("w", [first.job], 1)
            await store.update(first.name, partial(lifecycle.request_cancel, reason="no", requester="me"))
            await store.update(first.name, lifecycle.delete)
            with Raises(Aborted) as raised:
                await other.insert(_exclusive())
            assert first.name not in raised[0].message, "a deleted one has no name any more"
            await finish(store, running)
            second = await other.insert(_exclusive())
            assert list((await store.list(PageQuery())).records) == [second]

    async def test_an_exclusive_record_minds_no_others(self, open_store: OpenStore) -> None:
        """Another target, job, parent or tenant, and those of its job that are not exclusive."""
        async with opened(open_store()) as store:
            for record in (
                sample_record(target="t"),
                _exclusive(),
                _exclusive(target="u"),
                _exclusive(target=""),
                _exclusive(job="books.print"),
                _exclusive(parent="projects/p"),
                _exclusive(tenant="acme"),
                sample_record(target="t"),
            ):
                assert await store.insert(record) == record
            with Raises(Aborted) as raised:
                await store.insert(_exclusive(owner="bob"))
            assert "operations/" not in raised[0].message, "it is another owner's"

    async def test_of_exclusive_records_inserted_at_once_one_is_stored(self, open_store: OpenStore) -> None:
        """By two stores, too, and each target has its own."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            calls = [
                partial(one.insert, _exclusive(target=f"t{number % 3}"))
                for number in range(15)
                for one in (store, other)
            ]
            answers = await at_once(*calls)
            stored = [answer for answer in answers if isinstance(answer, Record)]
            assert {record.target for record in stored} == {"t0", "t1", "t2"}
            assert len(stored) == len((await store.list(PageQuery())).records) == 3
            assert sum(isinstance(answer, Aborted) for answer in answers) == 27, answers

    async def test_a_repeated_request_is_not_its_own_rival(self, open_store: OpenStore) -> None:
        """Nor one too many."""
        async with opened(open_store()) as store:
            first = await store.insert(_exclusive(request_id="1"), pending_limit=1)
            assert await store.insert(_exclusive(request_id="1"), pending_limit=1) == first
            answers = await at_once(
                *(partial(store.insert, _exclusive(request_id="2", target="u"), pending_limit=2) for _ in range(5))
            )
            assert len(set(stored_records(answers))) == 1

    async def test_a_tenant_has_only_so_many_pending(self, open_store: OpenStore) -> None:
        """Inserted one by one, at once or by two stores; others are not counted, and those that run neither."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            await store.join("w", LEASE)
            calls = [
                partial(one.insert, sample_record(tenant="acme"), pending_limit=5)
                for _ in range(10)
                for one in (store, other)
            ]
            answers = await at_once(*calls)
            assert sum(isinstance(answer, Record) for answer in answers) == 5
            assert sum(isinstance(answer, ResourceExhausted) for answer in answers) == 15, answers
            await store.insert(sample_record(tenant="other"), pending_limit=5)
            with Raises(ResourceExhausted):
                await store.insert(sample_record(tenant="acme"), pending_limit=5)
            await store.insert(sample_record(tenant="acme"))
            await store.claim("w", ["books.render"], 2)
            await store.insert(sample_record(tenant="acme"), pending_limit=5)
            with Raises(ResourceExhausted):
                await store.insert(sample_record(tenant="acme"), pending_limit=5)

    async def test_who_is_refused_leaves_nothing(self, open_store: OpenStore) -> None:
        """Its function is not called; one whose function failed holds no place."""
        async with opened(open_store()) as store:
            keeper = await self._with_notes(store)
            with Raises(ValueError):
                await store.insert(_exclusive(), within=failing)
            words = ["a", "b", "c", "d"]
            answers = await at_once(
                *(partial(store.insert, _exclusive(), writing(word, fail=word == "a")) for word in words)
            )
            (stored,) = [number for number, answer in enumerate(answers) if isinstance(answer, Record)]
            assert all(isinstance(answer, (Record, Aborted, ValueError)) for answer in answers), answers
            assert await self._notes(store, keeper) == [words[stored]]

    async def test_what_is_only_validated_is_not_stored(self, open_store: OpenStore) -> None:
        """It is refused as the real one would be, repeats what was there, and holds no place (AIP-163)."""
        async with opened(open_store()) as store:
            keeper = await self._with_notes(store)
            record = _exclusive(request_id="1")
            answers = await at_once(
                *(partial(store.insert, record, writing("x"), pending_limit=2, validate_only=True) for _ in range(3))
            )
            assert answers == [record] * 3
            assert await store.get(record.name) is None
            first = await store.insert(record, pending_limit=2)
            assert await store.insert(_exclusive(request_id="1"), validate_only=True) == first
            with Raises(Aborted):
                await store.insert(_exclusive(), validate_only=True)
            with Raises(ResourceExhausted):
                await store.insert(sample_record(), pending_limit=2, validate_only=True)
            assert await self._notes(store, keeper) == []


def _exclusive(**changes: object) -> Record:
    return sample_record(**{"exclusive": True, "target": "t", "owner": "ann", **changes})
