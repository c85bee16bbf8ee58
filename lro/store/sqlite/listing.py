"""A page of a listing: along which index it is read, and how far.

A page looks at a bounded number of rows, and not for long, so that it may be short, or empty, before the end. It
walks the index of the narrowest scope there is: others' rows cost it nothing. What it walks over and leaves out,
for the rest of the scope or the filter, counts as looked at.
"""

import sqlite3
from collections.abc import Callable

from lro.filter import EVERYTHING
from lro.lifecycle import Record
from lro.store.base import Page, PageQuery
from lro.store.sqlite import statements as sql
from lro.store.sqlite.filtering import Condition, created_between
from lro.store.sqlite.transaction import to_records

__all__ = ["read_page"]

STEP = 100  # rows from one look at the clock to the next
LOOKS_AT = 5000  # rows; measured: 7 ms by a column, 11 ms by a number in the progress
LOOKS_FOR = 0.1  # seconds: many terms, or large progress, are slower


class Listing:
    """The statements of a listing, for one step of the walk: from `:before`, newest first, down to `:until`.

    Attributes:
        leaves_out: False if all that it walks over is listed.
        edge: Finds the row that a step ends with, and the one behind it, if there are so many.
        page: Finds the records of a step.
    """

    def __init__(self, query: PageQuery) -> None:
        owner, tenant = query.scope.owner, query.scope.tenant
        self._parameters: dict[str, object] = {"parent": query.parent, "owner": owner, "tenant": tenant}
        index, walked = "operations_listed", ["parent = :parent", "deleted_at IS NULL"]
        left: list[str] = []
        if owner:
            index = "operations_owned"
            walked += ["owner = :owner", "owner <> ''"]
        elif owner is not None:
            left.append("owner = :owner")
        if tenant and not owner:
            index = "operations_of_tenant"
            walked += ["tenant = :tenant", "tenant <> ''"]
        elif tenant is not None:
            left.append("tenant = :tenant")
        if query.filter != EVERYTHING:
            condition = Condition(query.filter)
            left.append(condition.text)
            self._parameters |= condition.parameters
        self.leaves_out = bool(left)
        walked += [
            "(created_at, name) < (:before_time, :before_name)",
            "(created_at, name) >= (:until_time, :until_name)",
        ]
        self.edge = f"""SELECT created_at, name FROM operations INDEXED BY {index}
WHERE {" AND ".join(walked)}
ORDER BY created_at DESC, name DESC
LIMIT 2
OFFSET {STEP - 1}"""
        self.page = f"""{sql.SELECT}INDEXED BY {index}
WHERE {" AND ".join([*walked, *left])}
ORDER BY created_at DESC, name DESC
LIMIT :limit"""

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


def read_page(connection: sqlite3.Connection, query: PageQuery, monotonic: Callable[[], float]) -> Page:
    """Return a page; see Store.list.

    Args:
        connection: Where to read.
        query: What to read.
        monotonic: Returns seconds.
    """
    listing = Listing(query)
    earliest, latest = created_between(query.filter)
    end, before = (earliest, ""), query.after or (latest + 1, "")
    records: list[Record] = []
    began, looked_at = monotonic(), 0
    while True:
        edge = list(connection.execute(listing.edge, listing.step(before, end))) if listing.leaves_out else []
        is_last = len(edge) < 2
        until = end if is_last else edge[0]
        wanted = query.limit + 1 - len(records)
        records += to_records(connection.execute(listing.page, listing.step(before, until, wanted)))
        if len(records) > query.limit:
            last = records[query.limit - 1]
            return Page(records[: query.limit], (last.created_at, last.name))
        if is_last:
            return Page(records)
        before = until
        looked_at += STEP
        if looked_at >= LOOKS_AT or monotonic() - began >= LOOKS_FOR:
            return Page(records, before)
