"""The PostgreSQL store: the same promises, for as many machines as there are.

Decides what is asked of which connection, and what is tried again. A batch is one transaction of set-based statements;
rows are locked in the order of their names, and what deadlocks or collides is done anew. Time is the server's. Whether
a COMMIT that was not answered has come about is asked for afterwards.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import chain, count
from typing import Any, TypeVar, cast

import anyio
from psycopg import Error, OperationalError
from psycopg.errors import (
    AdminShutdown,
    CannotConnectNow,
    CrashShutdown,
    DeadlockDetected,
    LockNotAvailable,
    ReadOnlySqlTransaction,
    SerializationFailure,
)
from psycopg.pq import TransactionStatus

from lro.clock import Clock, WaryClock
from lro.errors import InvalidArgument, StoreClosed, Unavailable
from lro.lifecycle import Record
from lro.store.base import OpenTransaction, Page, PageQuery
from lro.store.batch import AnyRequest, Select, TransactionEnded, apply
from lro.store.engine import Engine, Surroundings
from lro.store.leases import UNKNOWN_LEASE, Leases
from lro.store.migrations import too_new
from lro.store.postgres import statements as sql
from lro.store.postgres.address import Address
from lro.store.postgres.connections import Connection, Connections, bounded, connect, execute, rows
from lro.store.postgres.filtering import PostgresListing
from lro.store.postgres.joining import insert_in
from lro.store.postgres.notices import Notices
from lro.store.postgres.setup import look_at_schema, migrate
from lro.store.postgres.transaction import (
    DATA_ERRORS,
    DISTRIBUTED,
    USUAL,
    Collision,
    PostgresTransaction,
    Profile,
    to_records,
)
from lro.store.walk import walk

__all__ = ["DISTRIBUTED", "USUAL", "PostgresStore", "ServersClock", "migrate_database"]

log = logging.getLogger(__name__)

T = TypeVar("T")

READERS = 4
LONG_WAIT = 0.5  # seconds for an answer, in which others may have been kept from renewing their leases too
LOCK_WAIT = 1.0  # seconds that a batch waits for a row which somebody else has locked
LOCK_WAIT_ALONE = 0.05  # seconds that each of its requests waits for it afterwards, one by one
TRIES_WHOLE = 2  # of a batch that others are in the way of; then it is parted
REDO_WAIT = (0.005, 0.5)  # seconds from one try to the next, at first and at most

NOTHING = "nothing was written; try again"
UNKNOWN = "the outcome is unknown, so read again before you repeat it"
OUTDATED = "a newer version of the service has taken over this store, and this one has stopped"
OPEN = (TransactionStatus.INTRANS, TransactionStatus.INERROR)
ENDED = (AdminShutdown, CrashShutdown, CannotConnectNow, ReadOnlySqlTransaction)
REDONE = (SerializationFailure, DeadlockDetected, Collision)


class ServersClock:
    """The server's clock, as this process knows it from the answers that it gets: the machine's until the first."""

    def __init__(self) -> None:
        self._ahead = time.time_ns() // 1000 - round(time.monotonic() * 1_000_000)

    def now(self) -> int:
        """Return the time in microseconds since 1970, UTC."""
        return round(time.monotonic() * 1_000_000) + self._ahead

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""
        return time.monotonic()

    def hear(self, now: int, asked: float) -> None:
        """Take the server's time, which it told at some moment since it was asked."""
        self._ahead = now - round((asked + time.monotonic()) / 2 * 1_000_000)


class Lost(Exception):
    """The connection was lost before anything was committed."""


class PostgresStore(Engine):
    """A Store on PostgreSQL; `open_store` makes one.

    Args:
        address: Where the database is.
        patience: Seconds that it may take for a call.
        listen: Where to listen for notices; None for no notices.
        profile: What the server can do.
        clock: Where the time is read, instead of the server's.
        sweeps: False to settle nothing by itself.
    """

    def __init__(
        self,
        address: Address,
        *,
        patience: float = 5.0,
        listen: Address | None = None,
        profile: Profile = USUAL,
        clock: Clock | None = None,
        sweeps: bool = True,
    ) -> None:
        self._address = address
        self._profile = profile
        self._listen = listen if profile.listens else None
        super().__init__(address.name, address.where, patience, clock=clock or ServersClock(), sweeps=sweeps)

    async def _open(self, exits: AsyncExitStack) -> bytes:
        _require_asyncio()
        self._leases = Leases(self._clock.monotonic)
        self._writing = Connections(self._address.conninfo, 1)
        self._reading = Connections(self._address.conninfo, READERS)
        exits.push_async_callback(self._reading.close)
        exits.push_async_callback(self._writing.close)
        until = anyio.current_time() + self._patience
        try:
            async with self._writing.lend(until) as connection:
                secret, self._newest = await look_at_schema(connection, self._where)
                await self._look_up(connection, sql.LOOK)
        except (Error, OSError) as error:
            inside = f"{self._where}: {error}"
            raise Unavailable("the store can't be opened", reason="STORE_UNAVAILABLE", inside=inside) from error
        self._wary = WaryClock(self._clock)  # the server's time is known from here on
        self._notices: Notices | None = None
        if self._listen is not None:
            self._notices = Notices(
                self._listen.conninfo, self._patience, self._reading, self._heard, self._hub.publish_unknown
            )
        return secret

    def _loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        if self._notices is None:
            return {}
        return {"notices out": self._notices.keep_telling, "notices in": self._notices.keep_listening}

    def _welcome(self, owner: str) -> None:
        del owner  # its row says that it lives

    def _dismiss(self, owner: str) -> None:
        self._leases.forget(owner)

    def _hint(self, written: Sequence[Record]) -> None:
        if self._notices is not None:
            self._notices.tell(written)

    def _let_go(self) -> None:
        return  # psycopg leaves connections alone in a process that has not made them

    async def _heard(self, urgent: Sequence[str], others: Sequence[str]) -> None:
        """Read what others have changed, if anybody here wants to know."""
        names = self._hub.concerned(urgent, others)
        try:
            if names:
                self._hub.publish(await self._read_records(names))
        except (Unavailable, StoreClosed):
            self._hub.publish_unknown()

    # Reading

    async def _read(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Read on a connection of the reader's, and again on another if one is lost."""
        until = anyio.current_time() + self._patience
        asked = self._clock.monotonic()
        wait = REDO_WAIT[0]
        while True:
            connection: Connection | None = None
            try:
                async with self._reading.lend(until) as connection:
                    found = await function(connection)
            except Error as error:
                again = isinstance(error, REDONE) or _is_lost(error, connection)
                if not again or anyio.current_time() + wait >= until:
                    refusal = self._unavailable(error, "the read failed; try again")
                    log.warning("%s", refusal)
                    raise refusal from error
            else:
                self._excuse_since(asked)
                return found
            await anyio.sleep(_jitter(wait))
            wait = min(wait * 2, REDO_WAIT[1])

    async def _read_records(self, names: Sequence[str]) -> Sequence[Record]:
        storable = [name for name in names if _is_storable(name)]

        async def read(connection: Connection) -> Sequence[Record]:
            return to_records(await rows(connection, sql.READ, (storable,)))

        return await self._read(read) if storable else ()

    async def _read_page(self, query: PageQuery) -> Page:
        async def read(connection: Connection) -> Page:
            steps = walk(PostgresListing(query), query, to_records, self._clock.monotonic)
            statement, parameters = next(steps)
            while True:
                found = await rows(connection, statement, parameters)
                try:
                    statement, parameters = steps.send(found)
                except StopIteration as stop:
                    return cast(Page, stop.value)

        texts = (query.parent, query.scope.owner or "", query.scope.tenant or "", query.after[1] if query.after else "")
        if not all(map(_is_storable, texts)):
            return Page(())
        return await self._read(read)

    async def _read_held(self, owner: str) -> Sequence[Record]:
        async def read(connection: Connection) -> Sequence[Record]:
            return to_records(await rows(connection, sql.FIND_HELD, (owner,)))

        return await self._read(read)

    async def _look_around(self) -> Surroundings:
        try:
            return await self._read(self._look)
        except Unavailable:
            self._leases.excuse()
            raise

    async def _look(self, connection: Connection) -> Surroundings:
        asked = self._clock.monotonic()
        await self._look_up(connection, sql.LOOK)
        ((due,),) = await rows(connection, sql.ANYTHING_DUE, {"now": self._wary.now()})
        owners = {owner for (owner,) in await rows(connection, sql.OWNERS)}
        workers = await rows(connection, sql.WORKERS)
        self._excuse_since(asked)
        known = {owner: (beat, lease_time) for owner, beat, lease_time in workers if owner not in self._lease_times}
        unknown = dict.fromkeys(owners - known.keys() - self._lease_times.keys(), (None, UNKNOWN_LEASE))
        dead = {
            owner
            for owner, (beat, lease_time) in {**unknown, **known}.items()
            if self._leases.is_dead(owner, beat, lease_time)
        }
        return Surroundings(bool(due), bool(dead & owners), dead - owners)

    async def _look_up(self, connection: Connection, statement: str) -> str:
        """Hear what a transaction needs to know of the server, and return the name of its outcome, if asked for."""
        asked = self._clock.monotonic()
        cursor = await execute(connection, statement)
        while cursor.nextset():
            pass
        row: Any = await cursor.fetchone()  # Any: a row
        if isinstance(self._clock, ServersClock):
            self._clock.hear(row[0], asked)
        if row[1] > self._newest:
            inside = too_new(row[1], self._newest, self._where)
            raise StoreClosed(OUTDATED, reason="SERVICE_OUTDATED", inside=inside)
        return row[2] if len(row) > 2 else ""

    def _excuse_since(self, then: float) -> None:
        """Hold the time since then against nobody if it was long: others may not have been answered either."""
        passed = self._clock.monotonic() - then
        if passed > LONG_WAIT:
            self._leases.excuse(passed)

    # Writing

    async def _insert_in(
        self, transaction: OpenTransaction, record: Record, *, pending_limit: int | None, validate_only: bool
    ) -> Record:
        return await insert_in(
            transaction,
            record,
            self._secret,
            self._transaction,
            self._notices.herald if self._notices else None,
            pending_limit=pending_limit,
            validate_only=validate_only,
        )

    def _transaction(
        self, connection: Connection, claiming: str = "", began: float | None = None
    ) -> PostgresTransaction:
        return PostgresTransaction(
            connection,
            self._clock.now(),
            self._leases,
            ours=self._lease_times.keys(),
            claiming=claiming,
            locks=self._profile.locks,
            began=self._clock.monotonic() if began is None else began,
            doubt=self._wary.doubt(),
        )

    async def _carry_out(self, batch: Sequence[AnyRequest]) -> Sequence[Record]:
        began = anyio.current_time()
        try:
            if await self._finds_nothing(batch):
                return []
            return await self._transact(batch, LOCK_WAIT, anyio.current_time() + self._patience)
        except StoreClosed as error:
            self._stop(error)
            raise
        except Unavailable as error:
            self._leases.excuse()
            if anyio.current_time() - began >= 0.9 * self._patience:
                self._writes.refuse_waiting(error)
            raise

    async def _finds_nothing(self, batch: Sequence[AnyRequest]) -> bool:
        """Answer a batch of searches that find nothing, without a transaction to learn it."""
        searches = [request for request in batch if isinstance(request, Select)]
        if len(searches) < len(batch):
            return False

        async def look(connection: Connection) -> bool:
            transaction = self._transaction(connection)
            return any([await transaction.find(search.query) for search in searches])

        if await self._read(look):
            return False
        for search in searches:
            search.answer(())
        return True

    async def _transact(self, batch: Sequence[AnyRequest], lock_wait: float, until: float) -> Sequence[Record]:
        """Carry out a batch in one transaction, anew as long as that may help, and in parts where it may not."""
        wait = REDO_WAIT[0]
        for tries in count(1):
            for request in batch:
                request.reset()
            try:
                return await self._commit(batch, lock_wait, until)
            except (*REDONE, Lost) as error:
                if tries > TRIES_WHOLE and isinstance(error, Collision) and len(batch) == 1:
                    return self._refuse_as_data(batch[0], error)
                if anyio.current_time() + wait >= until:
                    raise self._unavailable(error.__cause__ or error, NOTHING) from error
                if tries > TRIES_WHOLE and not isinstance(error, Lost) and len(batch) > 1:
                    middle = len(batch) // 2
                    return await self._part([batch[:middle], batch[middle:]], lock_wait)
            except LockNotAvailable as error:
                if len(batch) == 1:
                    return self._refuse(batch[0], self._unavailable(error, NOTHING))
                return await self._part([[request] for request in batch], LOCK_WAIT_ALONE)
            except DATA_ERRORS as error:
                if len(batch) == 1:
                    return self._refuse_as_data(batch[0], error)
                return await self._part([[request] for request in batch], lock_wait)
            except Error as error:
                raise self._unavailable(error, NOTHING) from error
            await anyio.sleep(_jitter(wait))
            wait = min(wait * 2, REDO_WAIT[1])
        raise AssertionError

    async def _part(self, parts: Sequence[Sequence[AnyRequest]], lock_wait: float) -> Sequence[Record]:
        """Carry out each part of a batch in a transaction of its own."""
        written: list[Record] = []
        for number, part in enumerate(parts):
            try:
                written += await self._transact(part, lock_wait, anyio.current_time() + self._patience)
            except (Unavailable, StoreClosed) as error:  # those before it are committed
                for request in part:
                    self._refuse(request, error)
                for request in chain(*parts[number + 1 :]):
                    self._refuse(request, Unavailable(NOTHING, reason="STORE_UNAVAILABLE"))
                break
        return written

    def _refuse(self, request: AnyRequest, error: BaseException) -> Sequence[Record]:
        request.reset()
        request.refuse(error)
        return []

    def _refuse_as_data(self, request: AnyRequest, error: BaseException) -> Sequence[Record]:
        if isinstance(error, TransactionEnded) and error.__cause__ is not None:
            return self._refuse(request, error.__cause__)
        refusal = InvalidArgument(f"This can't be stored: {type(error).__name__}", reason="NOT_STORABLE")
        refusal.__cause__ = error
        return self._refuse(request, refusal)

    async def _commit(self, batch: Sequence[AnyRequest], lock_wait: float, until: float) -> Sequence[Record]:
        """Carry out a batch in one transaction.

        Raises:
            Lost: Nothing was written, for the connection was lost.
            Unavailable: It is not known whether it was written.
            psycopg.Error: Nothing was written.
        """
        connection: Connection | None = None
        name = ""
        committing = False
        written: Sequence[Record] = ()
        try:
            async with self._writing.lend(until) as connection:
                try:
                    asked = self._clock.monotonic()
                    name = await self._begin(connection, lock_wait)
                    self._excuse_since(asked)
                    transaction = self._transaction(connection, self._profile.claiming, asked)
                    written = await apply(batch, transaction)
                    committing = True
                    await execute(connection, sql.COMMIT)
                finally:
                    await self._roll_back(connection)
        except Error as error:
            if not _is_lost(error, connection):
                raise
            if not committing or not await self._has_come_about(name, until):
                raise Lost from error
        return written

    async def _begin(self, connection: Connection, lock_wait: float) -> str:
        wait = f"SELECT set_config('lock_timeout', '{lock_wait * 1000:.0f}', TRUE)"
        look = sql.LOOK_AND_NAME if self._profile.names else sql.LOOK
        return await self._look_up(connection, f"{self._profile.begin}; {wait}; {look}")

    async def _roll_back(self, connection: Connection) -> None:
        """Roll back what is open; where that fails, the connection is closed, and the server rolls back."""
        if not connection.closed and connection.info.transaction_status in (
            TransactionStatus.INTRANS,
            TransactionStatus.INERROR,
        ):
            try:
                await execute(connection, sql.ROLLBACK)
            except Error:
                await connection.close()

    async def _has_come_about(self, name: str, until: float) -> bool:
        """Return whether a transaction was committed whose COMMIT was not answered.

        Raises:
            Unavailable: It can't be known, or not in time.
        """
        wait = REDO_WAIT[0]
        error: Error | None = None
        while name and anyio.current_time() < until:
            try:
                async with self._reading.lend(until) as connection:
                    ((outcome,),) = await rows(connection, sql.OUTCOME, (name,))
                    if outcome in ("committed", "aborted"):
                        return bool(outcome == "committed")
            except Error as failure:
                error = failure
            await anyio.sleep(_jitter(wait))
            wait = min(wait * 2, REDO_WAIT[1])
        raise self._unavailable(error or OperationalError("the connection was lost"), UNKNOWN)

    def _unavailable(self, error: BaseException, what: str) -> Unavailable:
        return Unavailable(
            f"the store can't be reached: {what}",
            reason="OUTCOME_UNKNOWN" if what is UNKNOWN else "STORE_UNAVAILABLE",
            inside=f"{self._where}: {type(error).__name__}: {error}",
        )


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        msg = "the PostgreSQL store needs anyio's asyncio backend: psycopg does not run on trio"
        raise RuntimeError(msg) from None


def _jitter(seconds: float) -> float:
    return random.uniform(0, seconds)  # noqa: S311 -- so that not all come again at once


def _is_storable(text: str) -> bool:
    """Return whether it may be in the database: no U+0000 is, and no half of a surrogate pair."""
    return not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text)


def _is_lost(error: BaseException, connection: Connection | None) -> bool:
    """Return whether another connection may find it well again: this one was not to be had, or has ended."""
    return connection is None or connection.closed or isinstance(error, ENDED)


async def migrate_database(address: Address, profile: Profile, patience: float) -> list[str]:
    """Bring the schema of a database up to date; return the names of the migrations that were applied.

    Raises:
        FailedPrecondition: As by `setup.migrate`.
        Unavailable: The database can't be reached.
    """
    try:
        with anyio.fail_after(patience):
            connection = await connect(address.conninfo)
        async with connection:
            with bounded(connection, anyio.current_time() + 3600):
                done = await migrate(connection, address.where, time.time_ns() // 1000, locks=profile.locks)
    except (Error, OSError) as error:
        inside = f"{address.where}: {error}"
        raise Unavailable("the database can't be reached", reason="STORE_UNAVAILABLE", inside=inside) from error
    return [migration.title for migration in done]
