"""A page of a listing, read on SQLite; see `walk`."""

import sqlite3
from collections.abc import Callable

from lro.store.base import Page, PageQuery
from lro.store.sqlite.filtering import SQLiteCondition
from lro.store.sqlite.transaction import to_records
from lro.store.walk import Listing, walk

__all__ = ["SQLiteListing", "read_page"]


class SQLiteListing(Listing):
    """The statements of a listing on SQLite."""

    CONDITION = SQLiteCondition

    def _mark(self, name: str) -> str:
        return f":{name}"

    def _source(self, index: str) -> str:
        return f"operations INDEXED BY {index}"


def read_page(connection: sqlite3.Connection, query: PageQuery, monotonic: Callable[[], float]) -> Page:
    """Return a page; see Store.list.

    Args:
        connection: Where to read.
        query: What to read.
        monotonic: Returns seconds.
    """
    steps = walk(SQLiteListing(query), query, to_records, monotonic)
    statement, parameters = next(steps)
    while True:
        try:
            statement, parameters = steps.send(connection.execute(statement, parameters).fetchall())
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # what the generator returns
