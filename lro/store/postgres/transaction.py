"""One open transaction on PostgreSQL, as a batch sees it; and rows as records."""

import json
import os
import socket
from collections.abc import Collection, Iterable, Sequence
from math import inf
from typing import Any, NamedTuple

from psycopg import AsyncCursor, DataError, Error, IntegrityError
from psycopg.errors import StatementTooComplex

from lro.admission import Opening, choose, openings
from lro.lifecycle import CancelOutcome, Record, State
from lro.store.base import Within
from lro.store.batch import HEAD, Changes, Due, Overdue, Query, RequestKey, TransactionEnded, request_key
from lro.store.leases import UNKNOWN_LEASE, Leases
from lro.store.postgres import statements as sql
from lro.store.postgres.connections import Connection, execute, rows
from lro.store.postgres.within import call_within

__all__ = ["DATA_ERRORS", "DISTRIBUTED", "USUAL", "Collision", "PostgresTransaction", "Profile", "to_records"]

_STATES: dict[str, State] = {state.value: state for state in State}
_OUTCOMES: dict[str | None, CancelOutcome | None] = {None: None, **{it.value: it for it in CancelOutcome}}

DATA_ERRORS = (
    DataError,
    IntegrityError,
    StatementTooComplex,
    OverflowError,
    ValueError,  # UnicodeEncodeError among them
    TransactionEnded,
)


class Profile(NamedTuple):
    """What a server can do; see `open_store`.

    Attributes:
        begin: How a transaction begins.
        claiming: How the rows of a search are locked.
        locks: Whether there are advisory locks.
        listens: Whether there are LISTEN and NOTIFY.
        names: Whether the outcome of a transaction whose COMMIT was not answered can be asked for.
    """

    begin: str
    claiming: str
    locks: bool
    listens: bool
    names: bool


USUAL = Profile(sql.BEGIN, " FOR UPDATE SKIP LOCKED", locks=True, listens=True, names=True)
DISTRIBUTED = Profile(sql.BEGIN_SERIALIZABLE, " FOR UPDATE", locks=False, listens=False, names=False)


class Collision(Error):
    """Another transaction has written meanwhile what this one was to write: it is to be done anew."""


class PostgresTransaction:
    """The batch's Transaction on PostgreSQL.

    Args:
        connection: In a transaction, or for reading only, without one.
        now: See Facts.
        doubt: See Facts.
        leases: What is known of other workers.
        ours: The workers of this store.
        claiming: How the rows of a search are locked; "" for not at all.
        locks: Whether there are advisory locks; else the isolation of transactions is to do.
        began: On the clock of the leases: no beat that this transaction reads is older than that.
    """

    def __init__(
        self,
        connection: Connection,
        now: int,
        leases: Leases,
        *,
        ours: Collection[str] = (),
        claiming: str = "",
        locks: bool = False,
        began: float = inf,
        doubt: int = 0,
    ) -> None:
        self._connection = connection
        self._leases = leases
        self._ours = ours
        self._claiming = claiming
        self._locks = locks
        self._began = began
        self.now = now
        self.doubt = doubt

    async def _execute(
        self, statement: str, parameters: Any = None
    ) -> AsyncCursor[tuple[Any, ...]]:  # Any: see execute
        return await execute(self._connection, statement, parameters)

    async def _rows(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:  # Any: as above
        return await rows(self._connection, statement, parameters)

    async def _records(self, statement: str, parameters: Any) -> list[Record]:  # Any: as above
        return to_records(await self._rows(statement, parameters))

    async def read(self, names: Iterable[str]) -> dict[str, Record]:
        """Return the records of these names, locked in the order of their names."""
        return {record.name: record for record in await self._records(sql.LOCK, (list(names),))}

    async def read_requested(self, keys: Iterable[RequestKey]) -> dict[RequestKey, Record]:
        """Return the records that these stand for."""
        columns = [list(column) for column in zip(*keys, strict=True)]
        records = await self._records(sql.READ_REQUESTED, columns)
        return {key: record for record in records if (key := request_key(record)) is not None}

    async def find_rival(self, record: Record) -> Record | None:
        """Return an exclusive record of the same job, target, tenant and parent that has not ended, or None."""
        records = await self._records(sql.FIND_RIVAL, (record.job, record.target, record.tenant, record.parent))
        return records[0] if records else None

    async def count_pending(self, tenant: str, limit: int) -> int:
        """Return how many records of a tenant are PENDING, counted up to the limit; nobody else counts meanwhile."""
        if self._locks:
            await self._execute(sql.ALONE_IN_TENANT, (tenant,))
        ((count,),) = await self._rows(sql.COUNT_PENDING, (tenant, limit))
        return int(count)

    async def find(self, query: Query) -> Sequence[Record]:
        """Return the records of a query; what another transaction has locked is that one's affair."""
        match query:
            case Due(jobs, limit, quotas):
                running = await self._count_running(quotas) if quotas else {}
                wanted = openings(jobs, limit, quotas, running)
                return choose(await self._find_due(wanted), quotas, running)[:limit]
            case Overdue(limit):
                owners = {owner for (owner,) in await self._rows(sql.OWNERS)}
                dead = list(await self.dead_owners(owners))
                surely = self.now - self.doubt
                found = {
                    record.name: record
                    for record in [
                        *(await self._records(sql.FIND_ORPHANS + self._claiming, (dead, limit)) if dead else ()),
                        *await self._records(sql.FIND_LATE + self._claiming, (surely, limit)),
                        *await self._records(sql.FIND_EXPIRED + self._claiming, (surely, limit)),
                    ]
                }
                return list(found.values())[:limit]

    async def _count_running(self, jobs: Iterable[str]) -> dict[tuple[str, str], int]:
        """Count what runs now, while nobody else claims any of these jobs."""
        names = list(jobs)
        if self._claiming and self._locks:
            await self._execute(sql.ALONE_IN_JOBS, (names,))
        return {(job, target): count for job, target, count in await self._rows(sql.COUNT_RUNNING, (names,))}

    async def _find_due(self, wanted: Sequence[Opening]) -> list[Record]:
        if not wanted:
            return []
        rows = [{"job": one.job, "room": one.room, "full_targets": one.full} for one in wanted]
        head = HEAD if any(one.full for one in wanted) else 1
        values = {"now": self.now, "head": head, "openings": json.dumps(rows, ensure_ascii=False)}
        found = await self._records(sql.FIND_DUE.format(self._claiming), values)
        for one in wanted:
            if one.full and all(record.job != one.job for record in found):
                values = {"now": self.now, "job": one.job, "full": list(one.full), "head": HEAD, "room": one.room}
                found += await self._records(sql.FIND_DUE_BY_TARGET + self._claiming, values)
        return found

    async def dead_owners(self, owners: Iterable[str]) -> set[str]:
        """Return those of these workers whose leases have expired, and keep them from beating until the commit."""
        others = [owner for owner in owners if owner not in self._ours]
        dead = await self._dead(others, sql.BEATS)
        return await self._dead(list(dead), sql.LOCK_BEATS) if self._claiming else dead

    async def _dead(self, owners: list[str], statement: str) -> set[str]:
        if not owners:
            return set()
        found = await self._rows(statement, (owners,))
        beats = {owner: (beat, lease_time) for owner, beat, lease_time in found}
        return {
            owner
            for owner in owners
            if self._leases.is_dead(owner, *beats.get(owner, (None, UNKNOWN_LEASE)), at=self._began)
        }

    async def write(self, changes: Changes) -> None:
        """Write inserts, updates and removals.

        Raises:
            Collision: Another transaction has inserted the like meanwhile, or changed what was not locked.
        """
        if changes.inserted:
            await self._write_all(sql.INSERT, [record._asdict() for record in changes.inserted.values()])
        if changes.updated:
            await self._write_all(sql.UPDATE, [_changed(old, new) for old, new in changes.updated.values()])
            dropped = [new.name for old, new in changes.updated.values() if new.params is not old.params]
            if dropped:
                await self._execute(sql.DROP_PARAMS, (dropped,))
        if changes.removed:
            await self._execute(sql.DELETE, (list(changes.removed),))

    async def _write_all(self, statement: str, records: list[dict[str, Any]]) -> None:  # Any: values of a Record
        cursor = await self._execute(statement, (json.dumps(records, ensure_ascii=False),))
        if cursor.rowcount != len(records):
            raise Collision("another transaction has written the same meanwhile")

    async def beat(self, owner: str, lease_time: int) -> None:
        """Count up a worker's beat, from a number of chance for one that is not known."""
        await self._execute(sql.BEAT, (owner, lease_time, self.now, socket.gethostname(), os.getpid()))

    async def leave(self, owner: str) -> bool:
        """Forget a worker, unless it holds a lease; return whether it was known and is not any more."""
        return (await self._execute(sql.LEAVE, (owner,))).rowcount > 0

    async def run_within(self, within: Within) -> BaseException | None:
        """Lend the connection to the function, in a savepoint, and return what it raised."""
        return await call_within(within, self._connection)


def _changed(old: Record, new: Record) -> dict[str, Any]:  # Any: values of a Record
    return {**dict(zip(sql.CHANGING, new, strict=False)), "name": new.name, "was": old.version}


def to_records(rows: Iterable[tuple[Any, ...]]) -> list[Record]:  # Any: rows of psycopg
    """Return rows as records."""
    return [Record(_STATES[row[0]], _OUTCOMES[row[1]], *row[2:]) for row in rows]
