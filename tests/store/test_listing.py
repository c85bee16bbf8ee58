"""Pages on SQLite: the index they walk, how far they look, and walks of many clients beside writers and a pruner."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from lro import lifecycle
from lro.filter import parse
from lro.lifecycle import Record, State
from lro.principal import Scope
from lro.store import Page, PageQuery, open_store
from lro.store.sqlite import statements
from lro.store.sqlite.listing import SQLiteListing, read_page
from lro.store.sqlite.transaction import _to_row
from lro.store.walk import LOOKS_AT, LOOKS_FOR, STEP
from lro.testing.contract import START, sample_record
from lro.testing.contract.tools import at_once, walk
from tests.records import HOUR

SCHEMA = Path(__file__).parents[2] / "migrations" / "sqlite" / "0001_operations.sql"

WALKED = {
    Scope(): "operations_listed (parent=? AND {})",
    Scope(owner=""): "operations_listed (parent=? AND {})",
    Scope(tenant=""): "operations_listed (parent=? AND {})",
    Scope(owner="ann"): "operations_owned (parent=? AND owner=? AND {})",
    Scope(owner="ann", tenant="t"): "operations_owned (parent=? AND owner=? AND {})",
    Scope(tenant="t"): "operations_of_tenant (parent=? AND tenant=? AND {})",
    Scope(owner="", tenant="t"): "operations_of_tenant (parent=? AND tenant=? AND {})",
}
RANGE = "(created_at,name)>(?,?) AND (created_at,name)<(?,?)"

TEMPTING = [
    "",
    "name = operations/x",
    "metadata.state = PENDING",
    "metadata.state = RUNNING",
    "metadata.verb = a AND metadata.target = b AND done = false",
    "metadata.expireTime < 2026-01-01T00:00:00Z",
    "metadata.createTime > 2026-01-01T00:00:00Z",
    "metadata.progress.a:1",
]
"""Filters to which another index would be of use."""


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA.read_text())
    yield connection
    connection.close()


def stored(connection: sqlite3.Connection, number: int, **changes: Any) -> list[Record]:
    """Store so many records, and return them newest first."""
    records = [sample_record(created_at=START + at, **changes) for at in range(number)]
    connection.executemany(statements.INSERT, map(_to_row, records))
    return records[::-1]


def still() -> float:
    """Be a clock that stands still."""
    return 0.0


@pytest.mark.parametrize("scope", WALKED, ids=str)
@pytest.mark.parametrize("text", TEMPTING)
def test_a_page_walks_the_index_of_its_scope_and_sorts_nothing(
    connection: sqlite3.Connection, scope: Scope, text: str
) -> None:
    connection.execute("ANALYZE")
    listing = SQLiteListing(PageQuery(scope=scope, filter=parse(text)))
    values = listing.step((1, ""), (0, ""), 1)
    for statement in (listing.edge, listing.page):
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        assert plan[0] == f"SEARCH operations USING INDEX {WALKED[scope].format(RANGE)}"
        assert not any("operations" in step or "B-TREE" in step for step in plan[1:]), plan


def test_a_deleted_record_costs_a_page_nothing(connection: sqlite3.Connection) -> None:
    (kept,) = stored(connection, 1)
    stored(connection, LOOKS_AT + 1, deleted_at=1)

    page = read_page(connection, PageQuery(filter=parse("done = false")), still)

    assert page == Page([kept])


@pytest.mark.parametrize("scope", [Scope(owner="ann"), Scope(tenant="t"), Scope(owner="ann", tenant="t")], ids=str)
def test_a_record_of_others_costs_a_page_nothing(connection: sqlite3.Connection, scope: Scope) -> None:
    (mine,) = stored(connection, 1, owner="ann", tenant="t")
    stored(connection, LOOKS_AT + 1, owner="bob", tenant="u")

    assert read_page(connection, PageQuery(scope=scope), still) == Page([mine])
    assert read_page(connection, PageQuery(scope=scope, filter=parse("done = false")), still) == Page([mine])


@pytest.mark.parametrize("query", [PageQuery(filter=parse("metadata.target = x")), PageQuery(scope=Scope(owner=""))])
def test_a_page_that_leaves_all_out_ends_after_so_many_rows(connection: sqlite3.Connection, query: PageQuery) -> None:
    records = stored(connection, 2 * LOOKS_AT + 1, owner="ann")

    pages = [read_page(connection, query, still)]
    while pages[-1].after is not None:
        pages.append(read_page(connection, replace(query, after=pages[-1].after), still))

    assert [len(page.records) for page in pages] == [0, 0, 0]
    assert [page.after for page in pages] == [
        (records[at - 1].created_at, records[at - 1].name) for at in (LOOKS_AT, 2 * LOOKS_AT)
    ] + [None]


def test_the_last_row_that_is_looked_at_may_be_the_last_there_is(connection: sqlite3.Connection) -> None:
    stored(connection, LOOKS_AT)

    assert read_page(connection, PageQuery(filter=parse("metadata.target = x")), still) == Page([])


def test_a_page_that_is_full_ends_with_its_last_record(connection: sqlite3.Connection) -> None:
    records = stored(connection, 350)
    query = PageQuery(limit=STEP + 50, filter=parse("metadata.target = ''"))

    first = read_page(connection, query, still)
    second = read_page(connection, replace(query, after=first.after), still)
    third = read_page(connection, replace(query, after=second.after), still)

    assert [*first.records, *second.records, *third.records] == records
    assert [len(page.records) for page in (first, second, third)] == [150, 150, 50]
    assert (first.after, third.after) == ((records[149].created_at, records[149].name), None)


def test_a_slow_page_ends_after_the_step_that_took_too_long(connection: sqlite3.Connection) -> None:
    records = stored(connection, 5 * STEP)
    ticks = count()

    page = read_page(connection, PageQuery(filter=parse("metadata.target = x")), lambda: next(ticks) * 0.6 * LOOKS_FOR)

    assert page == Page([], (records[2 * STEP - 1].created_at, records[2 * STEP - 1].name))


def test_a_walk_goes_to_where_the_times_of_creation_begin_and_no_further(connection: sqlite3.Connection) -> None:
    records = stored(connection, LOOKS_AT + 10)
    wanted = records[-5:]
    until, since = (f"2025-01-01T00:00:00.{time:06}Z" for time in (4, LOOKS_AT))

    old = parse(f"metadata.createTime <= {until} AND done = false")
    new = parse(f"metadata.createTime >= {since} AND metadata.target = x")

    assert read_page(connection, PageQuery(filter=old), still) == Page(wanted)
    assert read_page(connection, PageQuery(filter=new), still) == Page([])


# -- walks beside writers

INSERTERS, WALKERS, WALKS = 3, 3, 4
REMOVED = 100  # operations at least, while the walks go on


async def test_walks_beside_writers_meet_every_lasting_operation_once(url: str) -> None:
    """Nothing that is there throughout is missed or met twice: by two stores on one file, with a filter and without."""
    walking, written, removed = 2 * WALKERS, count(), 0
    doomed: list[Record] = []
    async with open_store(url) as store, open_store(url) as other:
        stores = (store, other)
        lasting = [sample_record(created_at=START + at // 3, owner="ann", target="x" * (at % 4)) for at in range(600)]
        await at_once(*(partial(store.insert, record) for record in lasting))

        async def insert(number: int) -> None:
            """Insert what will be pruned, older and newer than the lasting, and between them."""
            while walking:
                at = START + (next(written) * 37 + number) % 260 - 30
                doomed.append(await stores[number % 2].insert(sample_record(created_at=at, owner="ann", target="x")))

        async def prune() -> None:
            """Delete every other one; let the rest be past its time, which the next sweep removes."""
            nonlocal removed
            while walking:
                await anyio.lowlevel.checkpoint()
                while doomed:
                    await other.update(doomed.pop().name, lifecycle.delete if removed % 2 else _expired)
                    removed += 1

        async def walk_often(number: int, query: PageQuery, expected: set[str]) -> None:
            nonlocal walking
            walks = 0
            while walks < WALKS or removed < REMOVED:  # on a busy machine the writers need longer
                walks += 1
                met = [record.name for record in await walk(stores[number % 2], query)]
                assert len(met) == len(set(met)), "an operation was met twice"
                assert expected <= set(met), "an operation was missed"
            walking -= 1

        everything = {record.name for record in lasting}
        filtered = {record.name for record in lasting if record.target == "x"}
        with anyio.fail_after(120):
            async with anyio.create_task_group() as group:
                for number in range(INSERTERS):
                    group.start_soon(insert, number)
                group.start_soon(prune)
                for number in range(WALKERS):
                    group.start_soon(walk_often, number, PageQuery(limit=5 + number), everything)
                    query = PageQuery("", Scope(owner="ann"), 3 + number, None, parse("metadata.target = x"))
                    group.start_soon(walk_often, number, query, filtered)
    assert removed >= REMOVED, "the walks were alone"


def _expired(record: Record, facts: lifecycle.Facts) -> Record:
    """End an operation as if long ago: the next sweep removes it."""
    return record._replace(
        version=record.version + 1,
        state=State.SUCCEEDED,
        response="null",
        ended_at=facts.now,
        expire_at=facts.now - HOUR,
    )
