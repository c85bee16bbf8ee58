"""A page of a listing: along which index it is read, and how far; in the SQL of any database.

A page looks at a bounded number of rows, and not for long, so that it may be short, or empty, before the end. It
walks the index of the narrowest scope there is: others' rows cost it nothing. What it walks over and leaves out,
for the rest of the scope or the filter, counts as looked at.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar

from lro.filter import EVERYTHING
from lro.lifecycle import Record
from lro.store.base import Page, PageQuery
from lro.store.conditions import Condition, created_between

__all__ = ["Listing", "Rows", "walk"]

STEP = 100  # rows from one look at the clock to the next
LOOKS_AT = 5000  # rows; measured on SQLite: 7 ms by a column, 11 ms by a number in the progress
LOOKS_FOR = 0.1  # seconds: many terms, or large progress, are slower

COLUMNS = ", ".join(Record._fields)

Rows = Sequence[tuple[Any, ...]]  # Any: rows of a driver


class Listing(ABC):
    """The statements of a listing, for one step of the walk: from `before`, newest first, down to `until`.

    Attributes:
        CONDITION: How a filter is put in this database's SQL.
        leaves_out: False if all that it walks over is listed.
        edge: Finds the row that a step ends with, and the one behind it, if there are so many.
        page: Finds the records of a step.
    """

    CONDITION: ClassVar[type[Condition]]

    def __init__(self, query: PageQuery) -> None:
        owner, tenant = query.scope.owner, query.scope.tenant
        self._parameters: dict[str, object] = {"parent": query.parent, "owner": owner, "tenant": tenant}
        index, walked = "operations_listed", [f"parent = {self._mark('parent')}", "deleted_at IS NULL"]
        left: list[str] = []
        if owner:
            index = "operations_owned"
            walked += [f"owner = {self._mark('owner')}", "owner <> ''"]
        elif owner is not None:
            left.append(f"owner = {self._mark('owner')}")
        if tenant and not owner:
            index = "operations_of_tenant"
            walked += [f"tenant = {self._mark('tenant')}", "tenant <> ''"]
        elif tenant is not None:
            left.append(f"tenant = {self._mark('tenant')}")
        if query.filter != EVERYTHING:
            condition = self.CONDITION(query.filter)
            left.append(condition.text)
            self._parameters |= condition.parameters
        self.leaves_out = bool(left)
        walked += [
            f"(created_at, name) < ({self._mark('before_time')}, {self._mark('before_name')})",
            f"(created_at, name) >= ({self._mark('until_time')}, {self._mark('until_name')})",
        ]
        source, passed = self._source(index), " AND ".join(walked)
        self.edge = f"""SELECT created_at, name FROM {source}
WHERE {passed}
ORDER BY created_at DESC, name DESC
LIMIT 2
OFFSET {STEP - 1}"""
        self.page = f"""SELECT {COLUMNS} FROM {source}
WHERE {" AND ".join([*walked, *left])}
ORDER BY created_at DESC, name DESC
LIMIT {self._mark("limit")}"""

    def step(self, before: tuple[int, str], until: tuple[int, str], limit: int = 0) -> dict[str, object]:
        """Return the parameters of one step; the limit is the page's."""
        (before_time, before_name), (until_time, until_name) = before, until
        return {
            **self._parameters,
            "before_time": before_time,
            "before_name": before_name,
            "until_time": until_time,
            "until_name": until_name,
            "limit": limit,
        }

    @abstractmethod
    def _mark(self, name: str) -> str:
        """Return the place of a parameter."""

    @abstractmethod
    def _source(self, index: str) -> str:
        """Return what stands behind FROM, along this index where the database can be told."""


def walk(
    listing: Listing,
    query: PageQuery,
    to_records: Callable[[Rows], list[Record]],
    monotonic: Callable[[], float],
) -> Generator[tuple[str, dict[str, object]], Rows, Page]:
    """Yield each statement to execute with its parameters, take its rows, and return the page; see Store.list.

    Args:
        listing: The statements.
        query: What to read.
        to_records: Makes records of rows.
        monotonic: Returns seconds.
    """
    earliest, latest = created_between(query.filter)
    end, before = (earliest, ""), query.after or (latest + 1, "")
    records: list[Record] = []
    began, looked_at = monotonic(), 0
    while True:
        edges: Rows = (yield listing.edge, listing.step(before, end)) if listing.leaves_out else []
        is_last = len(edges) < 2
        until = end if is_last else (int(edges[0][0]), str(edges[0][1]))
        wanted = query.limit + 1 - len(records)
        records += to_records((yield listing.page, listing.step(before, until, wanted)))
        if len(records) > query.limit:
            last = records[query.limit - 1]
            return Page(records[: query.limit], (last.created_at, last.name))
        if is_last:
            return Page(records)
        before = until
        looked_at += STEP
        if looked_at >= LOOKS_AT or monotonic() - began >= LOOKS_FOR:
            return Page(records, before)
