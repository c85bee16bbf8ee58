"""What all stores on a database share: queues in front of it, hints behind it, sweeps, supervision.

Decides what callers are told and when time's decisions are settled. How a batch, a read or a page is carried out,
and who is told of a commit beyond this process, is a store's own affair: the methods at the end of the class.
"""

import logging
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeVar

import anyio

from lro import lifecycle
from lro.admission import NO_QUOTAS, Quotas
from lro.clock import BELIEVED_AFTER, Clock, SystemClock, WaryClock
from lro.errors import FailedPrecondition, StoreClosed, Unavailable
from lro.lifecycle import Record, Transition
from lro.store.base import OpenTransaction, Page, PageQuery, Within
from lro.store.batch import AnyRequest, Beat, Due, Insert, Leave, Overdue, Select, Update
from lro.store.hints import Hub, Listener, Watch
from lro.store.queue import Queue, Request
from lro.supervisor import Supervisor

__all__ = ["Engine", "Surroundings"]

log = logging.getLogger(__name__)

T = TypeVar("T")

SWEEP_EVERY = 1.0  # seconds between two looks for what time has decided
SWEEP_LIMIT = 500

JUMPED = (
    "%s: the wall clock has jumped ahead by %.0f s, or the machine was asleep: deadlines and expiry go on from the "
    "time before, until that has lasted %.0f minutes"
)
FORKED = "this store was opened before the process was forked: open one in the child, after the fork"


class Get(Request[Record | None]):
    """Read one record."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class Surroundings(NamedTuple):
    """What a look at the whole database finds.

    Attributes:
        due: Whether time has decided something.
        orphaned: Whether a dead worker holds a lease.
        idle: The dead workers that hold none.
    """

    due: bool
    orphaned: bool
    idle: Iterable[str]


class Engine(ABC):
    """A Store on a database, but for the database.

    Args:
        name: What it is called in code, as by repr().
        where: What the log says of it.
        patience: Seconds that the database may take for a call.
        clock: Where it reads the time.
        sweeps: False to settle nothing by itself.
    """

    def __init__(
        self, name: str, where: str, patience: float, *, clock: Clock | None = None, sweeps: bool = True
    ) -> None:
        self._name = name
        self._where = where
        self._patience = patience
        self._sweeps = sweeps
        self._clock = clock or SystemClock()
        self._state: Literal["closed", "opening", "open", "forked"] = "closed"
        self._start_over()
        _stores.add(self)

    def _start_over(self) -> None:
        """Make all that lasts from one opening to its end."""
        self._wary = WaryClock(self._clock)
        self._doubts = False
        self._hub = Hub()
        self._supervisor = Supervisor(log)
        self._writes: Queue[AnyRequest] = Queue(self._serve_writes, "write")
        self._gets: Queue[Get] = Queue(self._serve_gets, "read")
        self._exits = AsyncExitStack()
        self._lease_times: dict[str, int] = {}  # of the workers that joined here
        self._secret = b""
        self._failure: StoreClosed | None = None  # why it has stopped by itself

    def __repr__(self) -> str:
        """Name the place."""
        return f"<{type(self).__name__} {self._name!r}, {self._state}>"

    async def __aenter__(self) -> Self:
        """Connect, bring the schema up to date or refuse it, and settle what dead workers left.

        Raises:
            RuntimeError: Not under asyncio, or it is open, or was when this process was forked.
            FailedPrecondition: The schema is not this library's, or the database too old.
            StoreDamaged: What is there is damaged, or what was there is gone.
            Unavailable: The database can't be reached.
        """
        if self._state != "closed":
            msg = FORKED if self._state == "forked" else f"{self!r} is open already: share it, or make another"
            raise RuntimeError(msg)
        self._state = "opening"
        self._start_over()
        try:
            self._secret = await self._open(self._exits)
            await self._exits.enter_async_context(self._supervisor)
            self._exits.push_async_callback(self._close_queues)
            self._writes.open()
            self._gets.open()
            self._state = "open"
            self._supervisor.start("writer", self._writes.run)
            self._supervisor.start("reader", self._gets.run)
            for name, loop in self._loops().items():
                self._supervisor.start(name, loop)
            await self._sweep_all()
            if self._sweeps:
                self._supervisor.start("sweeper", self._keep_sweeping)
        except BaseException:
            await self._exits.aclose()
            self._state = "closed"
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is queued and disconnect; it can be opened again."""
        if self._state == "forked":
            return  # the threads and the event loop are the parent's
        await self._exits.aclose()  # each step of it shields itself

    async def _close_queues(self) -> None:
        self._state = "closed"
        with anyio.CancelScope(shield=True):
            await self._writes.close(self._patience + 1)
            await self._gets.close(self._patience + 1)

    @property
    def ready(self) -> bool:
        """True while it is open, has not stopped by itself, and all its background loops run."""
        return self._state == "open" and self._failure is None and self._supervisor.healthy

    async def insert(
        self,
        record: Record,
        within: Within | OpenTransaction | None = None,
        *,
        pending_limit: int | None = None,
        validate_only: bool = False,
    ) -> Record:
        """See Store.insert."""
        if within is not None and not callable(within):
            self._check_open()
            return await self._insert_in(within, record, pending_limit=pending_limit, validate_only=validate_only)
        return await self._write(Insert(record, within, pending_limit=pending_limit, validate_only=validate_only))

    async def get(self, name: str) -> Record | None:
        """See Store.get. Concurrent calls share one read."""
        self._check_open()
        return await self._gets.put(Get(name)).wait()

    async def list(self, query: PageQuery) -> Page:
        """See Store.list."""
        self._check_open()
        return await self._read_page(query)

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        """See Store.update."""
        return await self._write(Update(name, transition, within))

    async def claim(self, owner: str, jobs: Iterable[str], limit: int, quotas: Quotas = NO_QUOTAS) -> Sequence[Record]:
        """See Store.claim."""
        if limit < 1:
            return ()
        lease_time = self._lease_time(owner)
        rule = partial(lifecycle.claim, owner=owner, lease_time=lease_time)
        due = Due(tuple(sorted(jobs)), limit, quotas)
        changed = await self._write(Select(due, rule, beats=(owner, lease_time)))
        return [record for record in changed if record.lease_owner == owner]

    async def join(self, owner: str, lease_time: int) -> None:
        """See Store.join."""
        self._check_open()
        self._lease_times[owner] = lease_time
        self._welcome(owner)
        await self._beat(owner)

    async def renew(self, owner: str) -> Sequence[Record]:
        """See Store.renew."""
        await self._beat(owner)
        return await self.held(owner)

    async def held(self, owner: str) -> Sequence[Record]:
        """See Store.held."""
        self._check_open()
        return await self._read_held(owner)

    async def leave(self, owner: str) -> None:
        """See Store.leave."""
        if await self._write(Leave(owner)):
            self._lease_times.pop(owner, None)
            self._dismiss(owner)

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
        await self._write(Beat(owner, self._lease_time(owner)))

    def _check_open(self) -> None:
        if self._state != "open":
            raise StoreClosed(FORKED) if self._state == "forked" else StoreClosed()
        self._refuse_if_stopped()

    def _refuse_if_stopped(self) -> None:
        if (cause := self._failure) is not None:
            raise type(cause)(cause.message, reason=cause.reason, inside=cause.inside) from cause

    def _stop(self, cause: StoreClosed) -> None:
        """Stop for good: what is wrong does not mend by itself, and each further write might make it worse."""
        if self._failure is None:
            self._failure = cause
            log.critical("%s", cause)
            self._hub.publish_unknown()  # who waits looks again, and hears of it

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

    async def _serve_writes(self, batch: Sequence[AnyRequest]) -> None:
        self._refuse_if_stopped()
        written = await self._carry_out(batch)
        if written:
            self._hub.publish(written)
            self._hint(written)

    async def _serve_gets(self, batch: Sequence[Get]) -> None:
        self._refuse_if_stopped()
        records = await self._read_records([request.name for request in batch])
        found = {record.name: record for record in records}
        for request in batch:
            request.answer(found.get(request.name))

    async def _keep_sweeping(self) -> None:
        while True:
            await anyio.sleep(SWEEP_EVERY)
            try:
                await self._sweep_all()
            except Unavailable as error:
                log.warning("%s: the sweep is put off: %s", self._where, error)
            except StoreClosed:
                return  # it has stopped, and the log says why

    def _tell_of_jumps(self) -> None:
        """Say once of each jump of the clock that nothing is ended or removed by it yet."""
        doubt = self._wary.doubt()
        if doubt and not self._doubts:
            log.warning(JUMPED, self._where, doubt / 1_000_000, BELIEVED_AFTER / 60)
        self._doubts = bool(doubt)

    async def _sweep_all(self) -> None:
        """Settle what time has decided; costs no write where there is nothing."""
        self._tell_of_jumps()
        around = await self._look_around()
        while around.due or around.orphaned:
            changed = await self._write(Select(Overdue(SWEEP_LIMIT), lifecycle.sweep))
            if len(changed) < SWEEP_LIMIT:
                break
        for owner in set(around.idle) - self._lease_times.keys():  # one of ours was frozen, and is no more
            log.info("%s: worker %s is gone", self._where, owner)
            await self.leave(owner)

    def let_go(self) -> None:
        """Be of no use any more, in a child process: locks, threads, connections and loops are the parent's."""
        if self._state in ("opening", "open"):
            self._state = "forked"
            self._let_go()
            _inherited.append(self)  # its connections stay as they are: even to close them would harm the parent

    # What a database gives

    @abstractmethod
    async def _open(self, exits: AsyncExitStack) -> bytes:
        """Connect until the exits are closed, see to the schema, and return the secret."""

    def _loops(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return loops of its own that are to run while it is open, by name."""
        return {}

    async def _insert_in(
        self, transaction: OpenTransaction, record: Record, *, pending_limit: int | None, validate_only: bool
    ) -> Record:
        """Store a new record in a transaction of the caller's; see Store.insert."""
        del record, pending_limit, validate_only
        msg = f"within={type(transaction).__name__}: this store takes a function, which it calls with its connection"
        raise TypeError(msg)

    @abstractmethod
    async def _carry_out(self, batch: Sequence[AnyRequest]) -> Sequence[Record]:
        """Answer or refuse every request, and return what was written."""

    @abstractmethod
    async def _read_records(self, names: Sequence[str]) -> Iterable[Record]:
        """Return the records of these names."""

    @abstractmethod
    async def _read_page(self, query: PageQuery) -> Page:
        """See Store.list."""

    @abstractmethod
    async def _read_held(self, owner: str) -> Sequence[Record]:
        """See Store.held."""

    @abstractmethod
    async def _look_around(self) -> Surroundings:
        """Look, without writing, whether there is something to settle."""

    @abstractmethod
    def _hint(self, written: Sequence[Record]) -> None:
        """Tell other processes of what was committed; must be quick and not raise."""

    @abstractmethod
    def _welcome(self, owner: str) -> None:
        """Note that a worker is about to join here."""

    @abstractmethod
    def _dismiss(self, owner: str) -> None:
        """Note that a worker is gone."""

    @abstractmethod
    def _let_go(self) -> None:
        """Give back, in a forked child, what is the parent's."""


_stores: "weakref.WeakSet[Engine]" = weakref.WeakSet()
_inherited: list[Engine] = []


def _after_fork() -> None:
    for store in _stores:
        store.let_go()


os.register_at_fork(after_in_child=_after_fork)
