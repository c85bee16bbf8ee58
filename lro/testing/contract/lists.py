"""How records are listed: in pages, newest first, by parent, scope and filter."""

from dataclasses import replace
from functools import partial
from typing import Any

from lro import lifecycle
from lro.filter import parse
from lro.lifecycle import CancelOutcome, Record, State
from lro.principal import Scope
from lro.status import Code, Status, error_info
from lro.store import PageQuery
from lro.testing.contract.tools import SECOND, START, OpenStore, Promises, at_once, opened, sample_record, walk

__all__ = ["Lists"]


class Lists(Promises):
    """How records are listed: in pages, newest first, by parent, scope and filter."""

    async def test_a_list_is_newest_first(self, open_store: OpenStore) -> None:
        """By the time of creation, then by name; never more than the limit."""
        async with opened(open_store()) as store:
            times = [3, 1, 2, 2, 1, 3]
            records = [await store.insert(sample_record(created_at=START + time)) for time in times]
            expected = sorted(records, key=lambda record: (record.created_at, record.name), reverse=True)
            assert list((await store.list(PageQuery())).records) == expected
            page = await store.list(PageQuery(limit=2))
            assert list(page.records) == expected[:2]
            assert list((await store.list(PageQuery(after=page.after))).records) == expected[2:]

    async def test_a_page_says_where_the_next_one_begins_but_at_the_end(self, open_store: OpenStore) -> None:
        """A last page that is full says that it is the last; so does an empty list."""
        async with opened(open_store()) as store:
            assert (await store.list(PageQuery())).after is None
            for _ in range(4):
                await store.insert(sample_record())
            first = await store.list(PageQuery(limit=2))
            second = await store.list(PageQuery(limit=2, after=first.after))
            assert (len(first.records), len(second.records)) == (2, 2)
            assert first.after is not None
            assert second.after is None

    async def test_a_walk_meets_every_lasting_record_once(self, open_store: OpenStore) -> None:
        """Though others insert and delete meanwhile, at both ends and in the middle, with a filter and without."""
        async with opened(open_store()) as store, opened(open_store()) as other:
            lasting = [await store.insert(sample_record(created_at=START + number // 4)) for number in range(40)]
            doomed = [await store.insert(sample_record(created_at=START + number // 2)) for number in range(20)]
            for text in ("", "metadata.verb = books.*"):
                met: list[str] = []
                query = PageQuery(limit=7, filter=parse(text))
                while True:
                    page = await store.list(query)
                    met += [record.name for record in page.records]
                    for time in (0, 5, 1000):
                        await other.insert(sample_record(created_at=START + time))
                    if doomed:
                        await other.update(doomed.pop().name, lifecycle.delete)
                    if page.after is None:
                        break
                    query = replace(query, after=page.after)
                assert len(met) == len(set(met))
                assert {record.name for record in lasting} <= set(met)

    async def test_a_list_has_the_records_of_its_parent_and_scope(self, open_store: OpenStore) -> None:
        """And no others, nor the deleted ones, which a get still finds."""
        async with opened(open_store()) as store:
            for parent in ("", "projects/p", "projects/q"):
                for owner in ("", "ann", "bob"):
                    for tenant in ("", "t", "u"):
                        await store.insert(sample_record(parent=parent, owner=owner, tenant=tenant))
            for query, number in (
                (PageQuery(), 9),
                (PageQuery("projects/p"), 9),
                (PageQuery("projects"), 0),
                (PageQuery("", Scope(owner="ann")), 3),
                (PageQuery("", Scope(tenant="t")), 3),
                (PageQuery("", Scope(tenant="")), 3),
                (PageQuery("", Scope(owner="")), 3),
                (PageQuery("", Scope(owner="", tenant="u")), 1),
                (PageQuery("", Scope(owner="ann", tenant="")), 1),
                (PageQuery("projects/q", Scope(owner="bob", tenant="t")), 1),
                (PageQuery("", Scope(owner="eve")), 0),
                (PageQuery("", Scope(owner="ann", tenant="v")), 0),
            ):
                for limit in (1, 2, 50):
                    found = await walk(store, replace(query, limit=limit))
                    assert len(found) == number, query
                    assert all(record.parent == query.parent and query.scope.covers(record) for record in found)
            gone = (await store.list(PageQuery())).records[0]
            await store.update(gone.name, lifecycle.delete)
            for scope in (Scope(), Scope(owner=gone.owner), Scope(tenant=gone.tenant)):
                assert gone.name not in {record.name for record in await walk(store, PageQuery(scope=scope))}
            assert (await store.get(gone.name)) is not None

    async def test_a_walk_finds_what_a_filter_is_looking_for(self, open_store: OpenStore) -> None:
        """Among many that it leaves out, in front of it and behind; pages may be empty before the end."""
        async with opened(open_store()) as store:
            records = [sample_record(created_at=START + number) for number in range(2500)]
            wanted = {0, 1, 700, 1200, 2499}
            records = [
                record._replace(target="x") if number in wanted else record for number, record in enumerate(records)
            ]
            await at_once(*(partial(store.insert, record) for record in records))
            expected = [record for record in reversed(records) if record.target]
            for limit in (1, 2, 5, 50):
                assert await walk(store, PageQuery(limit=limit, filter=parse("metadata.target = x"))) == expected
            assert await walk(store, PageQuery(filter=parse("metadata.target = y"))) == []
            assert len(await walk(store, PageQuery(limit=100, filter=parse("metadata.target = ''")))) == 2495

    async def test_a_filter_lists_what_it_is_true_of(self, open_store: OpenStore) -> None:
        """Each operator, kind of field and way of combining them, on one record of each state."""
        records = _one_of_each()
        async with opened(open_store()) as store:
            for record in records.values():
                await store.insert(record)
            names = {record.name: key for key, record in records.items()}
            for text, keys in FILTERS.items():
                found = await walk(store, PageQuery(filter=parse(text)))
                assert "".join(sorted(names[record.name] for record in found)) == keys, text


def _one_of_each() -> dict[str, Record]:
    """Return records by the first letter of their states."""
    progress = (
        '{"pages":3,"ratio":0.5,"title":"Moby-Dick","ready":true,"none":null,"9":"nine",'
        '"chapter":{"name":"x y","a\\"b":{"":7}},"tags":["sea","whale",8],"notes":[{"by":"ann"},{"by":"bob","on":[1]}]}'
    )
    failed = Status(Code.INTERNAL, "torn", ({"@type": "x"}, error_info("PAGE_TORN"))).to_json()
    cancelled = Status(Code.CANCELLED, "", (error_info("OPERATION_CANCELLED"),)).to_json()
    ran: dict[str, Any] = {"attempt": 1, "started_at": START + SECOND}  # Any: one type per field of Record
    ended = {**ran, "ended_at": START + 2 * SECOND, "expire_at": 2**62}
    asked = {"cancel_requested_at": START + SECOND, "cancel_reason": "no need", "cancel_requester": "ann"}
    return {
        "P": sample_record(target="books/a", due_at=START + SECOND, cancellable=False),
        "R": sample_record(**ran, state=State.RUNNING, lease_owner="w", progress=progress, last_error=failed),
        "S": sample_record(**ended, state=State.SUCCEEDED, response="null", job="books.print", status_message="ok"),
        "F": sample_record(**ended, state=State.FAILED, error=failed, target="books/*"),
        "C": sample_record(
            **{**ended, **asked, "attempt": 2},
            state=State.CANCELLED,
            error=cancelled,
            cancel_outcome=CancelOutcome.FORCED,
            progress="{}",
        ),
    }


FILTERS = {
    "": "CFPRS",
    "done = true": "CFS",
    "done:false": "PR",
    "done != true": "PR",
    "done:*": "CFS",
    "metadata.state = RUNNING": "R",
    "metadata.state != RUNNING": "CFPS",
    "-metadata.state:RUNNING": "CFPS",
    "metadata.state = (FAILED OR CANCELLED)": "CF",
    "metadata.state:*": "CFPRS",
    "done = true metadata.attempt = 1 OR metadata.attempt = 2": "CFS",
    "metadata.attempt = 1 OR metadata.attempt = 2 AND done = false": "R",
    "(metadata.attempt = 1 AND done = true) OR metadata.target = 'books/a'": "FPS",
    "NOT (done = true OR metadata.attempt = 1)": "P",
    "metadata.attempt > 0.5 AND metadata.attempt <= 1e0": "FRS",
    "metadata.attempt:*": "CFRS",
    "name = 'operations/*'": "CFPRS",
    "name = '*/x'": "",
    "metadata.verb = '*.render'": "CFPR",
    "metadata.verb = *print*": "S",
    "metadata.verb < books.q": "S",
    "metadata.target = ''": "CRS",
    "metadata.target != 'books/a'": "CFRS",
    "metadata.target = 'books/*'": "FP",
    r"metadata.target = 'books/\*'": "F",
    "metadata.target:*": "FP",
    "metadata:target": "FP",
    "metadata.create_time = 2025-01-01T00:00:00Z": "CFPRS",
    "metadata.createTime < '2025-01-01T01:00:00+01:00'": "",
    "metadata.createTime <= 2025-01-01T01:00:00.0000009+01:00": "CFPRS",
    "metadata.startTime > 2025-01-01T00:00:00.999999Z": "CFRS",
    "metadata.startTime != 2020-01-01T00:00:00Z": "CFRS",
    "NOT metadata.startTime > 2025-01-01T00:00:00Z": "P",
    "metadata.endTime:*": "CFS",
    "metadata.scheduleTime:*": "P",
    "metadata.expireTime = 9999-12-31T23:59:59.999999Z": "CFS",
    "metadata.requestedCancellation = true": "C",
    "metadata.cancellable = false": "P",
    "metadata.cancelTime:*": "C",
    "metadata.cancelReason = 'no need'": "C",
    "metadata.cancelRequester:ann": "C",
    "metadata.cancelOutcome = FORCED": "C",
    "metadata.cancelOutcome != FORCED": "FPRS",
    "metadata.statusMessage = ok": "S",
    "error:*": "CF",
    "NOT error:*": "PRS",
    "response:*": "S",
    "error.code = CANCELLED": "C",
    "error.code != 1": "F",
    "error.code >= 13": "F",
    "error.message = torn": "F",
    "error.message != torn": "C",
    "error.message:*": "F",
    "error.details.reason:PAGE_*": "F",
    "error.details.reason:*": "CF",
    "metadata.lastError.code = INTERNAL": "R",
    "metadata.last_error.details.reason:PAGE_TORN": "R",
    "metadata.lastError:message": "R",
    "metadata.progress:*": "CR",
    "metadata.progress:pages": "R",
    "metadata.progress.none:*": "",
    "metadata.progress.pages = 3": "R",
    "metadata.progress.pages = '3'": "",
    "metadata.progress.pages != 3": "",
    "metadata.progress.pages != '3'": "R",
    "metadata.progress.pages > 2.9": "R",
    "metadata.progress.ratio <= 0.5": "R",
    "metadata.progress.title = Moby*": "R",
    "metadata.progress.title > Moby": "R",
    "metadata.progress.ready = true": "R",
    "metadata.progress.ready != false": "R",
    "metadata.progress.ready = 1": "",
    "metadata.progress.9 = nine": "R",
    "metadata.progress.missing != x": "",
    "metadata.progress.none != x": "",
    "metadata.progress.chapter = x": "",
    "metadata.progress.chapter:name": "R",
    "metadata.progress.chapter.name = 'x y'": "R",
    r"""metadata.progress.chapter."a\"b".'' = 7""": "R",
    "metadata.progress.tags:whale": "R",
    "metadata.progress.tags:(sea AND 8)": "R",
    "metadata.progress.tags:'8'": "",
    "metadata.progress.tags = whale": "",
    "metadata.progress.notes.by:bob": "R",
    "metadata.progress.notes.on:1": "R",
    "metadata.progress.notes.on:*": "R",
    "metadata.progress.notes.by = bob": "",
}
"""Filters, and the first letters of the states of the records that they are true of, sorted."""
