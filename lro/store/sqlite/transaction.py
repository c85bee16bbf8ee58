"""One open transaction on SQLite, as a batch sees it; and rows as records.

Its methods never suspend, so that a whole batch runs as one call on the writer's thread.
"""

import json
import os
import socket
import sqlite3
from collections.abc import Iterable, Sequence
from heapq import merge
from math import inf
from typing import Any

from lro.admission import Opening, choose, openings
from lro.lifecycle import CancelOutcome, Record, State
from lro.store.base import Within
from lro.store.batch import HEAD, Changes, Due, Overdue, Query, RequestKey, TransactionEnded, request_key
from lro.store.leases import UNKNOWN_LEASE, Leases
from lro.store.sqlite import statements as sql
from lro.store.sqlite.within import LendingConnection

__all__ = ["DATA_ERRORS", "SQLiteTransaction", "to_record", "to_records"]

_STATES: dict[str, State] = {state.value: state for state in State}
_OUTCOMES: dict[str | None, CancelOutcome | None] = {None: None, **{it.value: it for it in CancelOutcome}}

_RESTARTABLE = Record._fields.index("restartable")
_CANCELLABLE = Record._fields.index("cancellable")
_PRIORITY, _DUE_AT = Record._fields.index("priority"), Record._fields.index("due_at")
assert Record._fields[_CANCELLABLE + 1] == "exclusive"

DATA_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    ValueError,  # UnicodeEncodeError among them
    TransactionEnded,
)


class SQLiteTransaction:
    """The batch's Transaction on SQLite: its methods never suspend, so that `apply` runs as one call."""

    def __init__(
        self,
        connection: LendingConnection,
        now: int,
        leases: Leases,
        *,
        began: float = inf,
        doubt: int = 0,
    ) -> None:
        self._connection = connection
        self._leases = leases
        self._began = began  # on the clock of the leases: nobody else can beat from then on
        self.now = now
        self.doubt = doubt

    async def read(self, names: Iterable[str]) -> dict[str, Record]:
        """Return the records of these names."""
        rows = self._connection.execute(sql.READ, (json.dumps(list(names)),))
        return {record.name: record for record in to_records(rows)}

    async def read_requested(self, keys: Iterable[RequestKey]) -> dict[RequestKey, Record]:
        """Return the records that these stand for."""
        rows = [row for key in keys for row in self._connection.execute(sql.READ_REQUESTED, key)]
        return {key: record for record in to_records(rows) if (key := request_key(record)) is not None}

    async def find_rival(self, record: Record) -> Record | None:
        """Return an exclusive record of the same job, target, tenant and parent that has not ended, or None."""
        place = (record.job, record.target, record.tenant, record.parent)
        row = self._connection.execute(sql.FIND_RIVAL, place).fetchone()
        return None if row is None else to_record(row)

    async def count_pending(self, tenant: str, limit: int) -> int:
        """Return how many records of a tenant are PENDING, counted up to the limit."""
        return int(self._connection.execute(sql.COUNT_PENDING, (tenant, limit)).fetchone()[0])

    async def find(self, query: Query) -> Sequence[Record]:
        """Return the records of a query."""
        execute = self._connection.execute
        match query:
            case Due(jobs, limit, quotas):
                running = self._count_running(quotas) if quotas else {}
                due = [self._find_due(opening) for opening in openings(jobs, limit, quotas, running)]
                rows = merge(*due, key=_place_in_queue)
                return choose((to_record(row[:-1]) for row in rows), quotas, running)[:limit]
            case Overdue(limit):
                dead = await self.dead_owners({owner for (owner,) in execute(sql.OWNERS)})
                return [
                    *(to_records(execute(sql.FIND_ORPHANS, (json.dumps(list(dead)), limit))) if dead else ()),
                    *to_records(execute(sql.FIND_LATE, (self.now - self.doubt, limit))),
                    *to_records(execute(sql.FIND_EXPIRED, (self.now - self.doubt, limit))),
                ][:limit]

    def _count_running(self, jobs: Iterable[str]) -> dict[tuple[str, str], int]:
        rows = self._connection.execute(sql.COUNT_RUNNING, (json.dumps(list(jobs)),))
        return {(job, target): count for job, target, count in rows}

    def _find_due(self, opening: Opening) -> list[tuple[Any, ...]]:  # Any: rows of sqlite3, and `seq`
        values = {"now": self.now, "job": opening.job, "room": opening.room}
        if not opening.full:
            return list(self._connection.execute(sql.FIND_DUE, values))
        values |= {"full": json.dumps(opening.full), "head": HEAD}
        found = list(self._connection.execute(sql.FIND_DUE_BESIDE, values))
        return found or list(self._connection.execute(sql.FIND_DUE_BY_TARGET, values))

    async def dead_owners(self, owners: Iterable[str]) -> set[str]:
        """Return those of these workers whose leases have expired."""
        others = [owner for owner in owners if not self._leases.is_ours(owner)]
        if not others:
            return set()
        rows = self._connection.execute(sql.BEATS, (json.dumps(others),))
        beats = {owner: (beat, lease_time) for owner, beat, lease_time in rows}
        return {
            owner
            for owner in others
            if self._leases.is_dead(owner, *beats.get(owner, (None, UNKNOWN_LEASE)), at=self._began)
        }

    async def write(self, changes: Changes) -> None:
        """Write inserts, updates and removals."""
        if changes.inserted:
            self._connection.executemany(sql.INSERT, map(_to_row, changes.inserted.values()))
        if changes.updated:
            guarded = [
                (*_to_row(new)[: len(sql.CHANGING)], new.name, old.version) for old, new in changes.updated.values()
            ]
            if self._connection.executemany(sql.UPDATE, guarded).rowcount != len(guarded):
                msg = "a record changed between its read and its write in one transaction"
                raise RuntimeError(msg)
            dropped = [(new.name,) for old, new in changes.updated.values() if new.params is not old.params]
            if dropped:
                self._connection.executemany(sql.DROP_PARAMS, dropped)
        if changes.removed:
            self._connection.execute(sql.DELETE, (json.dumps(list(changes.removed)),))

    async def beat(self, owner: str, lease_time: int) -> None:
        """Count up a worker's beat, from 1 for one that is not known."""
        self._connection.execute(sql.BEAT, (owner, lease_time, self.now, socket.gethostname(), os.getpid()))

    async def leave(self, owner: str) -> bool:
        """Forget a worker, unless it holds a lease; return whether it was known and is not any more."""
        return bool(self._connection.execute(sql.LEAVE, (owner,)).rowcount > 0)

    async def run_within(self, within: Within) -> BaseException | None:
        """Lend the connection to the function, in a savepoint, and return what it raised."""
        return self._connection.lend(within)


def _place_in_queue(row: tuple[Any, ...]) -> tuple[int, int, int]:  # Any: a row of sqlite3
    return -row[_PRIORITY], row[_DUE_AT], row[-1]


def _to_row(record: Record) -> tuple[object, ...]:
    """Return the record with plain values: sqlite3 looks for an adapter for every subclass of str and int."""
    outcome = record.cancel_outcome
    return (record.state.value, None if outcome is None else outcome.value, *record[2:])


def to_record(row: tuple[Any, ...]) -> Record:  # Any: a row of sqlite3
    """Return a row as the record that it is."""
    values = (
        _STATES[row[0]],
        _OUTCOMES[row[1]],
        *row[2:_RESTARTABLE],
        row[_RESTARTABLE] == 1,  # STRICT tables have no booleans
        row[_RESTARTABLE + 1],
        row[_CANCELLABLE] == 1,
        row[_CANCELLABLE + 1] == 1,
        *row[_CANCELLABLE + 2 :],
    )
    return Record._make(values)


def to_records(rows: Iterable[tuple[Any, ...]]) -> list[Record]:  # Any: rows of sqlite3
    """Return rows as records."""
    return [to_record(row) for row in rows]
