"""The SQLite store: one file, one writing connection a process, any number of processes on one machine.

Decides what is asked of which connection. WAL mode; every write is BEGIN IMMEDIATE .. COMMIT in one call on
the writer's thread; reads have connections of their own. What a file needs beside that is `place`'s affair.
"""

import json
import logging
import os
import socket
import sqlite3
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import anyio

from lro import lifecycle
from lro.clock import Clock, SystemClock
from lro.errors import FailedPrecondition, InvalidArgument, StoreClosed, Unavailable
from lro.lifecycle import Record, Transition
from lro.store.base import Page, PageQuery, Within
from lro.store.batch import (
    AnyRequest,
    Call,
    Due,
    Insert,
    Overdue,
    Select,
    TransactionEnded,
    Update,
    apply,
)
from lro.store.hints import Hub, Listener, Watch
from lro.store.leases import UNKNOWN_LEASE, Leases
from lro.store.queue import Queue, Request
from lro.store.sqlite import statements as sql
from lro.store.sqlite.listing import read_page
from lro.store.sqlite.place import Place, RunsOnConnection
from lro.store.sqlite.setup import roll_back, set_up_writer
from lro.store.sqlite.transaction import DATA_ERRORS, SQLiteTransaction, to_record, to_records
from lro.store.sqlite.within import LendingConnection
from lro.supervisor import Supervisor

__all__ = ["SQLiteStore"]

log = logging.getLogger(__name__)

T = TypeVar("T")

OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
SWEEP_EVERY = 1.0  # seconds between two looks for what time has decided
SWEEP_LIMIT = 500

READ_FAILED = "the read failed; try again"
FORKED = "this store was opened before the process was forked: open one in the child, after the fork"


class Get(Request[Record | None]):
    """Read one record."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class SQLiteStore:
    """A Store on SQLite; `open_store` makes one in a file.

    Args:
        place: Where its tables are.
        clock: Where it reads the time.
        sweeps: False to settle nothing by itself.
    """

    def __init__(self, place: Place, *, clock: Clock | None = None, sweeps: bool = True) -> None:
        self._place = place
        self._sweeps = sweeps
        self._clock = clock or SystemClock()
        self._state: Literal["closed", "opening", "open", "forked"] = "closed"
        self._start_over()
        _stores.add(self)

    def _start_over(self) -> None:
        """Make all that lasts from one opening to its end."""
        self._leases = Leases(self._clock.monotonic, self._place.locks)
        self._hub = Hub()
        self._supervisor = Supervisor(log)
        self._writes: Queue[AnyRequest] = Queue(self._serve_writes, "write")
        self._gets: Queue[Get] = Queue(self._serve_gets, "read")
        self._exits = AsyncExitStack()
        self._lease_times: dict[str, int] = {}  # of the workers that joined here
        self._secret = b""

    def __repr__(self) -> str:
        """Name the place."""
        return f"<SQLiteStore {self._place.name!r}, {self._state}>"

    async def __aenter__(self) -> Self:
        """Open the file, made if need be, bring its schema up to date, and settle what dead workers left.

        Raises:
            RuntimeError: Not under asyncio, or it is open, or was when this process was forked.
            FailedPrecondition: The file's schema is newer than this library, or its SQLite too old.
            Unavailable: The file can't be opened.
        """
        if self._state != "closed":
            msg = FORKED if self._state == "forked" else f"{self!r} is open already: share it, or make another"
            raise RuntimeError(msg)
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            found = sqlite3.sqlite_version
            msg = f"this Python uses SQLite {found}; lro needs {'.'.join(map(str, OLDEST_SQLITE))} or newer"
            raise FailedPrecondition(msg, reason="SQLITE_TOO_OLD", found=found)
        self._state = "opening"
        self._start_over()
        try:
            await self._open()
        except BaseException as error:
            await self._exits.aclose()
            self._state = "closed"
            if isinstance(error, (OSError, sqlite3.Error)):
                inside = f"{self._place.where}: {error}"
                raise Unavailable("the store can't be opened", reason="STORE_UNAVAILABLE", inside=inside) from error
            raise
        return self

    async def _open(self) -> None:
        await self._place.open(self._exits, self._hub.publish_unknown)
        self._writer = await self._connect()
        self._secret = await self._writer.run(self._set_up)
        self._reader = await self._connect(reads_only=True)
        self._lister = await self._connect(reads_only=True)
        await self._exits.enter_async_context(self._supervisor)
        self._exits.push_async_callback(self._close_queues)
        self._writes.open()
        self._gets.open()
        self._state = "open"
        self._supervisor.start("writer", self._writes.run)
        self._supervisor.start("reader", self._gets.run)
        await self._sweep_all()
        if self._sweeps:
            self._supervisor.start("sweeper", self._keep_sweeping)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is queued and close the file; it can be opened again."""
        if self._state == "forked":
            return  # the threads and the event loop are the parent's
        await self._exits.aclose()  # each step of it shields itself

    async def _close_queues(self) -> None:
        self._state = "closed"
        with anyio.CancelScope(shield=True):
            await self._writes.close(self._place.patience + 1)
            await self._gets.close(self._place.patience + 1)

    @property
    def ready(self) -> bool:
        """True while it is open and all its background loops run."""
        return self._state == "open" and self._supervisor.healthy

    async def _connect(self, *, reads_only: bool = False) -> RunsOnConnection:
        lane = await self._place.connect(reads_only=reads_only)
        self._exits.push_async_callback(lane.close)
        return lane

    def _set_up(self, connection: LendingConnection) -> bytes:
        with self._place.turn:
            return set_up_writer(connection, self._place.where, self._place.synchronous, self._clock.now())

    async def insert(
        self,
        record: Record,
        within: Within | None = None,
        *,
        pending_limit: int | None = None,
        validate_only: bool = False,
    ) -> Record:
        """See Store.insert."""
        return await self._write(Insert(record, within, pending_limit=pending_limit, validate_only=validate_only))

    async def get(self, name: str) -> Record | None:
        """See Store.get. Concurrent calls share one read."""
        self._check_open()
        return await self._gets.put(Get(name)).wait()

    async def list(self, query: PageQuery) -> Page:
        """See Store.list."""
        return await self._read(lambda connection: read_page(connection, query, self._clock.monotonic), Page(()))

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        """See Store.update."""
        return await self._write(Update(name, transition, within))

    async def claim(self, owner: str, jobs: Iterable[str], limit: int) -> Sequence[Record]:
        """See Store.claim."""
        if limit < 1:
            return ()
        rule = partial(lifecycle.claim, owner=owner, lease_time=self._lease_time(owner))
        changed = await self._write(Select(Due(json.dumps(sorted(jobs)), limit), rule))
        return [record for record in changed if record.lease_owner == owner]

    async def join(self, owner: str, lease_time: int) -> None:
        """See Store.join."""
        self._check_open()
        self._lease_times[owner] = lease_time
        if self._place.locks is not None:
            self._place.locks.acquire(owner)  # before its row: a row without a held lock is a dead worker's
        await self._beat(owner)

    async def renew(self, owner: str) -> Sequence[Record]:
        """See Store.renew."""
        await self._beat(owner)
        return await self.held(owner)

    async def held(self, owner: str) -> Sequence[Record]:
        """See Store.held."""
        return await self._read(lambda connection: to_records(connection.execute(sql.FIND_HELD, (owner,))), ())

    async def leave(self, owner: str) -> None:
        """See Store.leave."""
        if await self._write(Call(partial(SQLiteTransaction.run, statement=sql.LEAVE, values=(owner,)))):
            self._lease_times.pop(owner, None)
            if self._place.locks is not None:
                self._place.locks.release(owner)
            self._leases.forget(owner)

    async def secret(self) -> bytes:
        """See Store.secret."""
        self._check_open()
        return self._secret

    def watch(self, name: str) -> Watch:
        """See Store.watch."""
        return self._hub.watch(name)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """See Store.listen."""
        return self._hub.listen(listener)

    async def _beat(self, owner: str) -> None:
        """Count up a worker's beat; one that was frozen and given up by others is known again."""
        row = (owner, self._lease_time(owner), self._clock.now(), socket.gethostname(), os.getpid())
        await self._write(Call(partial(SQLiteTransaction.run, statement=sql.BEAT, values=row)))

    def _check_open(self) -> None:
        if self._state != "open":
            raise StoreClosed(FORKED) if self._state == "forked" else StoreClosed()

    def _lease_time(self, owner: str) -> int:
        self._check_open()
        try:
            return self._lease_times[owner]
        except KeyError:
            msg = f"worker {owner} has not joined this store"
            raise FailedPrecondition(msg, reason="NOT_JOINED", owner=owner) from None

    async def _write(self, request: Request[T]) -> T:
        self._check_open()
        self._writes.put(request)  # type: ignore[arg-type]  # one of AnyRequest, whose answers are all told apart here
        return await request.wait()

    async def _read(self, function: Callable[[LendingConnection], T], nothing: T) -> T:
        self._check_open()
        try:
            return await self._lister.run(function)
        except UnicodeEncodeError:
            return nothing  # half of a surrogate pair is in no stored text
        except sqlite3.Error as error:
            unavailable = _unavailable(error, self._place.where, READ_FAILED)
            log.warning("%s", unavailable)
            raise unavailable from error

    async def _serve_writes(self, batch: Sequence[AnyRequest]) -> None:
        try:
            written = await self._writer.run(partial(self._transact, batch))
        except BaseException:
            with anyio.CancelScope(shield=True):
                if await self._writer.run(lambda connection: connection.in_transaction):
                    await self._replace_writer()
            raise
        if written:
            self._hub.publish(written)
            self._place.ring()

    def let_go(self) -> None:
        """Be of no use any more, in a child process: the file's locks, threads and loops are the parent's."""
        if self._state in ("opening", "open"):
            self._state = "forked"
            self._place.let_go()
            _inherited.append(self)  # its connections stay as they are: SQLite forbids even to close them here

    async def _replace_writer(self) -> None:
        log.error("%s: the writer's connection is stuck in a transaction and is replaced", self._place.where)
        await self._writer.close()
        self._writer = await self._connect()
        await self._writer.run(self._set_up)

    async def _serve_gets(self, batch: Sequence[Get]) -> None:
        names = json.dumps([request.name for request in batch])
        try:
            rows = await self._reader.run(lambda connection: connection.execute(sql.READ, (names,)).fetchall())
        except sqlite3.Error as error:
            raise _unavailable(error, self._place.where, READ_FAILED) from error
        found = {record.name: record for record in map(to_record, rows)}
        for request in batch:
            request.answer(found.get(request.name))

    async def _keep_sweeping(self) -> None:
        while True:
            await anyio.sleep(SWEEP_EVERY)
            try:
                await self._sweep_all()
            except Unavailable as error:
                log.warning("%s: the sweep is put off: %s", self._place.where, error)

    async def _sweep_all(self) -> None:
        """Settle what time has decided; costs no write where there is nothing."""
        try:
            due, dead, idle = await self._lister.run(self._look_around)
        except sqlite3.Error as error:
            raise _unavailable(error, self._place.where, READ_FAILED) from error
        while due or dead:
            changed = await self._write(Select(Overdue(SWEEP_LIMIT), lifecycle.sweep))
            if len(changed) < SWEEP_LIMIT:
                break
        for owner in idle:
            log.info("%s: worker %s is gone", self._place.where, owner)
            await self.leave(owner)

    def _look_around(self, connection: LendingConnection) -> tuple[bool, bool, set[str]]:
        """Return whether anything is due, whether anyone dead holds a lease, and the dead that hold none."""
        (due,) = connection.execute(sql.ANYTHING_DUE, {"now": self._clock.now()}).fetchone()
        owners = {owner for (owner,) in connection.execute(sql.OWNERS)}
        known = {owner: (beat, lease_time) for owner, beat, lease_time in connection.execute(sql.WORKERS)}
        everyone = {**dict.fromkeys(owners, (None, UNKNOWN_LEASE)), **known}
        dead = {
            owner for owner, (beat, lease_time) in everyone.items() if self._leases.is_dead(owner, beat, lease_time)
        }
        return bool(due), bool(dead & owners), dead - owners

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
            except Unavailable as error:  # those before it are committed
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
            with self._place.turn:
                connection.execute("BEGIN IMMEDIATE")
                transaction = SQLiteTransaction(connection, self._clock.now(), self._leases)
                written = _finish(apply(batch, transaction))
                what = "the outcome is unknown, so read again before you repeat it"
                connection.execute("COMMIT")
        except DATA_ERRORS:
            raise
        except sqlite3.Error as error:
            raise _unavailable(error, self._place.where, what) from error
        finally:
            roll_back(connection)
        return written

    def _finds_nothing(self, batch: Sequence[AnyRequest], connection: LendingConnection) -> bool:
        """Answer a batch of searches that find nothing, without taking the write lock to learn it."""
        searches = [request for request in batch if isinstance(request, Select)]
        if len(searches) < len(batch):
            return False
        transaction = SQLiteTransaction(connection, self._clock.now(), self._leases)
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


_stores: "weakref.WeakSet[SQLiteStore]" = weakref.WeakSet()
_inherited: list[SQLiteStore] = []


def _after_fork() -> None:
    for store in _stores:
        store.let_go()


os.register_at_fork(after_in_child=_after_fork)
