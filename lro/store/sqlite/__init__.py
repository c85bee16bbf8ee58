"""The SQLite store: one file, one writing connection a process, any number of processes on one machine.

Decides what is asked of which connection. WAL mode; every write is BEGIN IMMEDIATE .. COMMIT in one call on
the writer's thread; reads have connections of their own. What a file needs beside that is `place`'s affair.
"""

import json
import logging
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from math import inf
from typing import Any, TypeVar

import anyio

from lro.clock import Clock
from lro.errors import FailedPrecondition, InvalidArgument, LROError, StoreClosed, Unavailable
from lro.lifecycle import Record
from lro.store.base import Page, PageQuery
from lro.store.batch import AnyRequest, Select, TransactionEnded, apply
from lro.store.engine import Engine, Surroundings
from lro.store.leases import UNKNOWN_LEASE, Leases
from lro.store.migrations import too_new
from lro.store.sqlite import statements as sql
from lro.store.sqlite.damage import damage_of
from lro.store.sqlite.listing import read_page
from lro.store.sqlite.place import Place, RunsOnConnection
from lro.store.sqlite.setup import SetUp, roll_back, set_up_writer
from lro.store.sqlite.transaction import DATA_ERRORS, SQLiteTransaction, to_records
from lro.store.sqlite.within import LendingConnection

__all__ = ["SQLiteStore"]

log = logging.getLogger(__name__)

T = TypeVar("T")

OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
LONG_WAIT = 0.5  # seconds for the right to write, or with it, that may have kept others from renewing their leases

READ_FAILED = "the read failed; try again"
OUTDATED = "a newer version of the service has taken over this store, and this one has stopped"


class SQLiteStore(Engine):
    """A Store on SQLite; `open_store` makes one in a file.

    Args:
        place: Where its tables are.
        clock: Where it reads the time.
        sweeps: False to settle nothing by itself.

    Attributes:
        migrated: The names of the migrations that its latest opening has applied.
    """

    def __init__(self, place: Place, *, clock: Clock | None = None, sweeps: bool = True) -> None:
        self._place = place
        self.migrated: list[str] = []
        super().__init__(place.name, place.where, place.patience, clock=clock, sweeps=sweeps)

    async def _open(self, exits: AsyncExitStack) -> bytes:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            found = sqlite3.sqlite_version
            msg = f"this Python uses SQLite {found}; lro needs {'.'.join(map(str, OLDEST_SQLITE))} or newer"
            raise FailedPrecondition(msg, reason="SQLITE_TOO_OLD", found=found)
        self._leases = Leases(self._clock.monotonic, self._place.locks)
        try:
            await self._place.open(exits, self._hub.publish_unknown)
            self._writer, self._stuck = await self._connect(exits), False
            secret, self._newest, self.migrated = await self._writer.run(self._set_up)
            self._place.check()
            self._reader = await self._connect(exits, reads_only=True)
            self._lister = await self._connect(exits, reads_only=True)
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, sqlite3.Error) and (damage := damage_of(error, self._where)) is not None:
                raise damage from error
            inside = f"{self._where}: {error}"
            raise Unavailable("the store can't be opened", reason="STORE_UNAVAILABLE", inside=inside) from error
        return secret

    async def _connect(self, exits: AsyncExitStack, *, reads_only: bool = False) -> RunsOnConnection:
        lane = await self._place.connect(reads_only=reads_only)
        exits.push_async_callback(lane.close)
        return lane

    def _set_up(self, connection: LendingConnection) -> SetUp:
        with self._place.turn:
            return set_up_writer(connection, self._where, self._place.synchronous, self._clock.now())

    def _welcome(self, owner: str) -> None:
        if self._place.locks is not None:
            try:
                self._place.locks.acquire(owner)  # before its row: a row without a held lock is a dead worker's
            except OSError as error:
                inside = f"{self._where}: {error}"
                raise Unavailable("the worker's lock file can't be made; try again", inside=inside) from error

    def _dismiss(self, owner: str) -> None:
        if self._place.locks is not None:
            self._place.locks.release(owner)
        self._leases.forget(owner)

    def _hint(self, written: Sequence[Record]) -> None:
        del written  # a ring says that something changed, never what
        self._place.ring()

    def _let_go(self) -> None:
        self._place.let_go()

    async def _read(self, lane: RunsOnConnection, function: Callable[[LendingConnection], T]) -> T:
        try:
            return await lane.run(function)
        except StoreClosed as error:
            self._stop(error)
            raise
        except sqlite3.Error as error:
            refusal = self._judge(error, READ_FAILED)
            if isinstance(refusal, StoreClosed):
                self._stop(refusal)
            else:
                log.warning("%s", refusal)
            raise refusal from error

    async def _read_records(self, names: Sequence[str]) -> Sequence[Record]:
        text = json.dumps(names)
        return await self._read(self._reader, lambda connection: to_records(connection.execute(sql.READ, (text,))))

    async def _read_page(self, query: PageQuery) -> Page:
        try:
            return await self._read(
                self._lister, lambda connection: read_page(connection, query, self._clock.monotonic)
            )
        except UnicodeEncodeError:
            return Page(())  # half of a surrogate pair is in no stored text

    async def _read_held(self, owner: str) -> Sequence[Record]:
        return await self._read(
            self._lister, lambda connection: to_records(connection.execute(sql.FIND_HELD, (owner,)))
        )

    async def _look_around(self) -> Surroundings:
        return await self._read(self._lister, self._look)

    def _look(self, connection: LendingConnection) -> Surroundings:
        self._check_file(connection)
        (due,) = connection.execute(sql.ANYTHING_DUE, {"now": self._wary.now()}).fetchone()
        owners = {owner for (owner,) in connection.execute(sql.OWNERS)}
        known = {owner: (beat, lease_time) for owner, beat, lease_time in connection.execute(sql.WORKERS)}
        everyone = {**dict.fromkeys(owners, (None, UNKNOWN_LEASE)), **known}
        dead = {
            owner for owner, (beat, lease_time) in everyone.items() if self._leases.is_dead(owner, beat, lease_time)
        }
        return Surroundings(bool(due), bool(dead & owners), dead - owners)

    async def _carry_out(self, batch: Sequence[AnyRequest]) -> Sequence[Record]:
        began = anyio.current_time()
        try:
            if self._stuck:
                await self._replace_writer()
            return await self._writer.run(partial(self._transact, batch))
        except BaseException as error:
            if isinstance(error, StoreClosed):
                self._stop(error)
            elif isinstance(error, Unavailable):
                self._leases.excuse()
                if anyio.current_time() - began >= 0.9 * self._patience:
                    self._writes.refuse_waiting(error)
            with anyio.CancelScope(shield=True):
                if not self._stuck and await self._writer.run(lambda connection: connection.in_transaction):
                    await self._give_up_writer()
            raise

    async def _give_up_writer(self) -> None:
        """Close the connection that writes, for it could not roll back: with its locks it would shut out others."""
        log.error("%s: the writer's connection is stuck in a transaction and is replaced", self._where)
        self._stuck = True
        await self._writer.close()

    async def _replace_writer(self) -> None:
        lane = None
        try:
            lane = await self._connect(self._exits)
            await lane.run(self._set_up)
        except (OSError, sqlite3.Error) as error:
            if lane is not None:
                await lane.close()
            raise Unavailable(
                "the store can't be opened again; try again",
                reason="STORE_UNAVAILABLE",
                inside=f"{self._where}: {error}",
            ) from error
        self._writer, self._stuck = lane, False

    def _transact(self, batch: Sequence[AnyRequest], connection: LendingConnection) -> Sequence[Record]:
        """Carry out a batch in one transaction; after a data error each request in one of its own."""
        try:
            return self._commit(batch, connection)
        except DATA_ERRORS as error:
            if isinstance(error, TransactionEnded) and len(batch) == 1 and error.__cause__ is not None:
                return self._refuse(batch[0], error.__cause__)
            if len(batch) == 1:
                refusal = InvalidArgument(f"This can't be stored: {type(error).__name__}", reason="NOT_STORABLE")
                refusal.__cause__ = error
                return self._refuse(batch[0], refusal)
        written: list[Record] = []
        for number, request in enumerate(batch):
            request.reset()
            try:
                written += self._transact([request], connection)
            except (Unavailable, StoreClosed) as error:  # those before it are committed
                self._refuse(request, error)
                for later in batch[number + 1 :]:
                    self._refuse(later, Unavailable("nothing was written; try again", reason="STORE_UNAVAILABLE"))
                break
        return written

    def _refuse(self, request: AnyRequest, error: BaseException) -> Sequence[Record]:
        request.reset()
        request.refuse(error)
        return []

    def _commit(self, batch: Sequence[AnyRequest], connection: LendingConnection) -> Sequence[Record]:
        what = "nothing was written; try again"
        try:
            if self._finds_nothing(batch, connection):
                return []
            asked = self._clock.monotonic()
            with self._place.turn:
                connection.execute("BEGIN IMMEDIATE")
                began = self._excuse_since(asked)
                self._check_file(connection)
                transaction = self._transaction(connection, began)
                written = _finish(apply(batch, transaction))
                what = "the outcome is unknown, so read again before you repeat it"
                connection.execute("COMMIT")
                self._excuse_since(began)
        except DATA_ERRORS:
            raise
        except sqlite3.Error as error:
            raise self._judge(error, what) from error
        finally:
            roll_back(connection)
        return written

    def _excuse_since(self, then: float) -> float:
        """Hold the time since then against nobody if it was long: others could not write in it, nor beat."""
        now = self._clock.monotonic()
        if now - then > LONG_WAIT:
            self._leases.excuse(now - then)
        return now

    def _check_file(self, connection: LendingConnection) -> None:
        """Make sure that this is the file that was opened, and that no newer library has claimed it meanwhile."""
        self._place.check()
        (needed,) = connection.execute(sql.NEEDED).fetchone()
        if needed > self._newest:
            inside = too_new(needed, self._newest, self._where)
            raise StoreClosed(OUTDATED, reason="SERVICE_OUTDATED", inside=inside)

    def _judge(self, error: sqlite3.Error, what: str) -> LROError:
        """Tell damage from what the next try may find well again."""
        try:
            self._place.check()
        except StoreClosed as damage:  # the cause of an error that tells of a file that can't be read
            return damage
        except sqlite3.Error:
            pass
        return damage_of(error, self._where) or _unavailable(error, self._where, what)

    def _transaction(self, connection: LendingConnection, began: float = inf) -> SQLiteTransaction:
        return SQLiteTransaction(connection, self._clock.now(), self._leases, began=began, doubt=self._wary.doubt())

    def _finds_nothing(self, batch: Sequence[AnyRequest], connection: LendingConnection) -> bool:
        """Answer a batch of searches that find nothing, without taking the write lock to learn it."""
        searches = [request for request in batch if isinstance(request, Select)]
        if len(searches) < len(batch):
            return False
        transaction = self._transaction(connection)
        if any(_finish(transaction.find(search.query)) for search in searches):
            return False
        for search in searches:
            search.answer(())
        return True


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:  # Any: never sends or yields
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the coroutine returns
    coroutine.close()
    msg = "a transaction on SQLite may not suspend"
    raise RuntimeError(msg)


def _unavailable(error: sqlite3.Error, where: str, what: str) -> Unavailable:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return Unavailable(
        f"the store can't be reached: {what}",
        reason="OUTCOME_UNKNOWN" if "unknown" in what else "STORE_UNAVAILABLE",
        inside=f"{where}: {name}: {error}",
    )
