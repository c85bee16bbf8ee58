"""What the SQL finds to be claimed is what the lifecycle lets be claimed."""

import sqlite3
from contextlib import closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lro.lifecycle import Record, is_due
from lro.store.sqlite import statements
from lro.store.sqlite.transaction import to_records
from tests.records import NOW, record

MIGRATION = Path(__file__).parents[2] / "migrations" / "sqlite" / "0001_operations.sql"
TIMES = st.integers(NOW - 2, NOW + 2)
RECORDS = st.builds(record, created_at=TIMES, due_at=TIMES, updated_at=TIMES, started_at=st.none() | TIMES)


def insert(connection: sqlite3.Connection, records: list[Record]) -> None:
    rows = [(one.state.value, *one[1:]) for one in records]
    connection.executemany(statements.INSERT, rows)


@given(records=st.lists(RECORDS, min_size=1, max_size=30))
def test_the_search_for_what_is_due_and_the_rule_agree(records: list[Record]) -> None:
    named = [one._replace(name=f"operations/{number:026}") for number, one in enumerate(records)]
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(MIGRATION.read_text())
        insert(connection, named)
        values = {"now": NOW, "job": "books.render", "room": 99}
        found = to_records(row[:-1] for row in connection.execute(statements.FIND_DUE, values))
    due = [one for one in named if is_due(one, NOW)]
    assert found == sorted(due, key=lambda one: (one.due_at, one.name))


def test_what_is_not_due_is_passed_over_by_the_index_alone() -> None:
    """So many scheduled operations cost a claim little."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(MIGRATION.read_text())
        values = {"now": NOW, "job": "x", "room": 9}
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statements.FIND_DUE}", values))
        held = {name for _, _, name in connection.execute("PRAGMA index_info(operations_due)")}
    assert "USING INDEX operations_due" in plan
    assert "TEMP B-TREE" not in plan
    assert held >= {"priority", "due_at", "target", "created_at", "started_at", "updated_at"}
