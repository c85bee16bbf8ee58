"""How records are kept, found and changed."""

from functools import partial
from itertools import product
from typing import Any

import anyio

from lro.errors import InvalidArgument, NotFound
from lro.lifecycle import Record
from lro.store import PageQuery
from lro.testing.contract.tools import (
    SECOND,
    START,
    TEXT,
    ManualClock,
    OpenStore,
    Promises,
    Raises,
    all_kinds,
    assert_same,
    at_once,
    becoming,
    begin,
    note,
    opened,
    raising,
    sample_record,
    seeing,
    stored_records,
    unchanged,
)

__all__ = ["Records"]


class Records(Promises):
    """How records are kept, found and changed."""

    # Records

    async def test_a_record_comes_back_as_it_was_stored(self, open_store: OpenStore) -> None:
        """Every field of every kind of record, and again from another store on the same database."""
        records = all_kinds()
        async with opened(open_store()) as store:
            for record in records:
                assert await store.insert(record) == record
            for record in records:
                assert_same(await store.get(record.name), record)
            async with opened(open_store()) as other:
                for record in records:
                    assert_same(await other.get(record.name), record)

    async def test_a_written_change_comes_back_as_it_was_made(self, open_store: OpenStore) -> None:
        """Every field that may change, and the content that a tombstone drops."""
        async with opened(open_store()) as store:
            for end in all_kinds():
                name = (await store.insert(sample_record())).name
                changing = Record._fields[1 : Record._fields.index("name")]
                values: dict[str, Any] = {field: getattr(end, field) for field in changing}  # Any: as in Record
                new = await store.update(name, becoming(state=end.state, **values))
                assert_same(await store.get(name), new)
            kept = await store.insert(sample_record(params=TEXT))
            bare = await store.update(kept.name, becoming(version=2, params=None))
            assert_same(await store.get(kept.name), bare)
            assert bare.params is None

    async def test_records_last_when_the_store_is_opened_again(self, open_store: OpenStore) -> None:
        """What was acknowledged is there after a restart, changed or not."""
        async with opened(open_store()) as store:
            records = [await store.insert(sample_record()) for _ in range(3)]
            noted = await store.update(records[0].name, note("x"))
        async with opened(open_store()) as store:
            assert [await store.get(record.name) for record in records] == [noted, *records[1:]]

    async def test_a_name_that_is_not_there_is_none(self, open_store: OpenStore) -> None:
        """Among many reads at once, each gets its own answer."""
        async with opened(open_store()) as store:
            record = await store.insert(sample_record())
            names = [record.name, "operations/none", "", "'; DROP TABLE operations", record.name] * 20
            found = await at_once(*(partial(store.get, name) for name in names))
            assert found == [record, None, None, None, record] * 20

    async def test_a_name_is_given_once(self, open_store: OpenStore) -> None:
        """A second record of the same name is refused, and the first one stands."""
        async with opened(open_store()) as store:
            first = await store.insert(sample_record(params="1"))
            with Raises(InvalidArgument):
                await store.insert(first._replace(params="2"))
            assert await store.get(first.name) == first

    async def test_of_records_with_one_name_inserted_at_once_one_is_acknowledged(self, open_store: OpenStore) -> None:
        """No insert is acknowledged whose record is not there."""
        async with opened(open_store()) as store:
            records = [sample_record(name="operations/same", params=str(number)) for number in range(5)]
            answers = await at_once(*(partial(store.insert, record) for record in records))
            stored = [answer for answer in answers if isinstance(answer, Record)]
            assert stored == [await store.get("operations/same")], answers

    # Request ids (AIP-155)

    async def test_a_request_id_returns_the_first_record(self, open_store: OpenStore) -> None:
        """A repeated insert stores nothing; not by this store, and not by another one."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            first = await store.insert(sample_record(request_id=TEXT, params="1"))
            again = sample_record(request_id=TEXT, params="2")
            assert await store.insert(again) == first
            assert await other.insert(again) == first
            assert await store.get(again.name) is None
            changed = await store.update(first.name, note("x"))
            assert await other.insert(again) == changed

    async def test_a_request_id_counts_for_one_principal_and_one_job(self, open_store: OpenStore) -> None:
        """The same id of another tenant or another owner, or for another job, is another request."""
        async with opened(open_store()) as store:
            keys = list(product(("", "t", "T"), ("", "ann", "bob"), ("a", "b")))
            records = [
                sample_record(request_id="1", tenant=tenant, owner=owner, job=job) for tenant, owner, job in keys
            ]
            assert await at_once(*(partial(store.insert, record) for record in records)) == records
            for record in records:
                assert await store.insert(record._replace(name=sample_record().name)) == record

    async def test_a_request_id_counts_among_inserts_at_once(self, open_store: OpenStore) -> None:
        """Twenty repetitions at the same time store one record, and all callers get that one."""
        async with opened(open_store()) as store:
            records = [sample_record(request_id=f"r{number % 3}") for number in range(60)]
            answers = await at_once(*(partial(store.insert, record) for record in records))
            assert len((await store.list(PageQuery())).records) == 3
            for number, answer in enumerate(answers):
                assert isinstance(answer, Record), answer
                assert answer == await store.get(answer.name)
                assert answer.request_id == f"r{number % 3}"

    async def test_records_without_a_request_id_are_all_stored(self, open_store: OpenStore) -> None:
        """No id is not an id that could be repeated."""
        async with opened(open_store()) as store:
            await at_once(*(partial(store.insert, sample_record()) for _ in range(30)))
            assert len((await store.list(PageQuery())).records) == 30

    # Updates

    async def test_changes_of_one_record_at_once_compose(self, open_store: OpenStore) -> None:
        """Each starts from what the one before it made; none is lost, from whichever store."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            name = (await store.insert(sample_record())).name
            stores = (store, store, other)
            calls = [partial(stores[number % 3].update, name, note(f"{number};")) for number in range(60)]
            answers = sorted(stored_records(await at_once(*calls)), key=lambda record: record.version)
            assert [answer.version for answer in answers] == list(range(2, 62))
            before = ""
            for answer in answers:
                assert (answer.status_message or "").startswith(before)
                before = answer.status_message or ""
            assert sorted(before.split(";")[:-1], key=int) == [str(number) for number in range(60)]
            assert await other.get(name) == answers[-1]

    async def test_changes_apply_in_the_order_of_the_calls(self, open_store: OpenStore) -> None:
        """Calls that follow each other, each begun before the answers of those before it are there."""
        async with opened(open_store()) as store:
            name = (await store.insert(sample_record())).name
            async with anyio.create_task_group() as group:
                for number in range(9):
                    await group.start(begin, partial(store.update, name, note(str(number))))
            record = await store.get(name)
            assert record is not None
            assert record.status_message == "012345678"

    async def test_an_unchanged_record_is_not_written(self, open_store: OpenStore) -> None:
        """The transition's own answer comes back, and nobody is told of a change."""
        async with opened(open_store()) as store:
            record = await store.insert(sample_record())
            told: list[Record | None] = []
            store.listen(told.append)
            assert await store.update(record.name, unchanged) == record
            assert await store.get(record.name) == record
            assert told == []

    async def test_a_transition_that_raises_fails_only_its_caller(self, open_store: OpenStore) -> None:
        """Fifty neighbours of its batch succeed, one of them on the same record."""
        async with opened(open_store()) as store:
            records = [await store.insert(sample_record()) for _ in range(50)]
            calls = [partial(store.update, record.name, note("x")) for record in records]
            calls.insert(25, partial(store.update, records[25].name, raising(RuntimeError("mine"))))
            answers = await at_once(*calls)
            assert repr(answers.pop(25)) == "RuntimeError('mine')"
            assert [record.status_message for record in stored_records(answers)] == ["x"] * 50
            assert await store.get(records[25].name) == answers[25]

    async def test_an_update_of_what_is_not_there_says_so(self, open_store: OpenStore) -> None:
        """The transition is not called, and its neighbours are not disturbed."""
        async with opened(open_store()) as store:
            record = await store.insert(sample_record())
            missing, noted = await at_once(
                partial(store.update, "operations/none", raising(AssertionError("there is nothing to change"))),
                partial(store.update, record.name, note("x")),
            )
            assert isinstance(missing, NotFound)
            assert "operations/none" in str(missing)
            assert isinstance(noted, Record)

    async def test_a_transition_gets_the_time_of_the_store(self, open_store: OpenStore) -> None:
        """Read in the transaction, from the store's own clock."""
        clock = ManualClock()
        async with opened(open_store(clock)) as store:
            record = await store.insert(sample_record())
            for time in (START, START + SECOND):
                deleted = await store.update(record.name, seeing(lambda facts: note(str(facts.now))))
                assert (deleted.status_message or "").endswith(str(time))
                clock.advance(SECOND)
