"""The place of a simulated store: lanes to the database, lock files that a death drops, bells that may not be heard.

A process's connection is a lane here too: its calls are carried out one after the other, each after a while, outside
of the event loop, as on a thread. What the library does on it is the library's own code.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio

from lro.store.leases import LockFiles
from lro.store.sqlite.within import LendingConnection
from tests.simulation.database import Database, Killed
from tests.simulation.machine import Process

__all__ = ["Lane", "SimulatedPlace"]

T = TypeVar("T")

WAIT_FOR_LOCK = 5.0  # seconds
HICCUP = 0.05  # seconds that a call takes longer, once in a while


class Lane:
    """One connection of a process: its calls wait here until their time comes."""

    def __init__(self, process: Process, database: Database, die: Callable[[], None], *, reads_only: bool) -> None:
        self.process = process
        self.reads_only = reads_only
        self._database = database
        self._die = die
        self._calls: deque[tuple[Callable[[LendingConnection], Any], asyncio.Future[Any]]] = deque()  # Any: its answer
        self._turn = 0  # which call is awaited: an event that came for another one is void
        self._waits = False
        self._idle = anyio.Event()
        self._idle.set()
        database.lanes.append(self)

    async def run(self, function: Callable[[LendingConnection], T]) -> T:
        """Carry a function out, whatever becomes of the caller."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.append((function, future))
        if len(self._calls) == 1:
            self._idle = anyio.Event()
            self._await_next()
        return await future

    async def close(self) -> None:
        """Close the connection after what is queued."""
        with anyio.CancelScope(shield=True):
            await self._idle.wait()
        if self in self._database.lanes:
            self._database.lanes.remove(self)

    @property
    def can_write_now(self) -> bool:
        """Whether a call waits that may be carried out at any moment."""
        runs = self.process.is_alive and self.process.stopped_until <= self._database.machine.now
        return self._waits and runs and not self.reads_only

    def carry_out_now(self) -> None:
        """Carry out the next call, in the middle of another process's."""
        self._carry_out(self._turn)

    def _await_next(self) -> None:
        machine = self._database.machine
        self._turn += 1
        self._waits = True
        machine.after(self._while(), partial(self._carry_out, self._turn))

    def _while(self) -> float:
        random = self._database.machine.random
        hiccup = random.random() * HICCUP if random.random() < 0.02 else 0.0
        return self._database.latency * random.random() + hiccup

    def _put_off(self, function: Callable[[], None]) -> bool:
        """Return whether the process is in no state for it; a frozen one takes it up when it goes on."""
        machine = self._database.machine
        if self.process.is_alive and self.process.stopped_until > machine.now:
            machine.after(self.process.stopped_until - machine.now, function)
            return True
        return not self.process.is_alive

    def _carry_out(self, turn: int) -> None:
        machine, database = self._database.machine, self._database
        if turn != self._turn or not self._waits or self._put_off(partial(self._carry_out, turn)):
            return
        if database.locked_until > machine.now and not self.reads_only and database.lane is None:
            self._turn += 1
            patience = min(database.locked_until - machine.now, WAIT_FOR_LOCK)
            machine.after(patience, partial(self._carry_out_at_last, self._turn))
            return
        self._carry_out_at_last(turn)

    def _carry_out_at_last(self, turn: int) -> None:
        if turn != self._turn or not self._waits or self._put_off(partial(self._carry_out_at_last, turn)):
            return
        self._waits = False
        function, future = self._calls[0]
        value, error = None, None
        try:
            value = self._database.carry_out(self, function)
        except Killed:
            self._die()
            return
        except Exception as failure:
            error = failure
        self._database.machine.counts["calls of the database"] += 1
        self._database.machine.after(self._while(), partial(self._answer, future, value, error))

    def _answer(self, future: "asyncio.Future[Any]", value: Any, error: Exception | None) -> None:  # Any: its answer
        if self._put_off(partial(self._answer, future, value, error)):
            return
        self._calls.popleft()
        if not future.done():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        if self._calls:
            self._await_next()
        else:
            self._idle.set()


class _Locks(LockFiles):
    """Lock files that the kernel drops with their process."""

    def __init__(self, database: Database, process: Process) -> None:
        super().__init__(Path("simulated"))
        self._files = database.lock_files
        self._process = process

    def holds(self, owner: str) -> bool:
        return self._files.get(owner) is self._process

    def acquire(self, owner: str) -> None:
        self._files[owner] = self._process

    def is_abandoned(self, owner: str) -> bool:
        holder = self._files.get(owner)
        return owner in self._files and (holder is None or not holder.is_alive)

    def release(self, owner: str) -> None:
        if self.holds(owner) or self.is_abandoned(owner):
            del self._files[owner]

    def close(self) -> None:
        for owner, holder in self._files.items():
            if holder is self._process:
                self._files[owner] = None


class SimulatedPlace:
    """A Place for one process.

    Args:
        database: What it shares with the others.
        process: Whose it is.
        die: Kills that process.
        has_locks: Whether the workers have lock files, so that a death shows at once.
        hears: The probability that a bell is heard.
    """

    name = where = "simulation"
    synchronous = "OFF"
    patience = WAIT_FOR_LOCK
    turn: AbstractContextManager[Any] = nullcontext()  # Any: see Place

    def __init__(
        self, database: Database, process: Process, die: Callable[[], None], *, has_locks: bool, hears: float
    ) -> None:
        self._database = database
        self._process = process
        self._die = die
        self._hears = hears
        self.locks: LockFiles | None = _Locks(database, process) if has_locks else None

    async def open(self, exits: AsyncExitStack, heard: Callable[[], None]) -> None:
        """See Place.open."""
        ear = (self._process, heard)
        self._database.ears.append(ear)
        exits.callback(self._database.ears.remove, ear)
        if self.locks is not None:
            exits.callback(self.locks.close)

    async def connect(self, *, reads_only: bool) -> Lane:
        """See Place.connect."""
        return Lane(self._process, self._database, self._die, reads_only=reads_only)

    def check(self) -> None:
        """Find what was opened still there: it always is."""

    def ring(self) -> None:
        """See Place.ring."""
        machine = self._database.machine
        for process, heard in self._database.ears:
            if process is not self._process and process.is_alive and machine.chance(self._hears):
                machine.after(machine.random.random() * 0.002, partial(_hear, process, heard))

    def let_go(self) -> None:
        """See Place.let_go."""


def _hear(process: Process, heard: Callable[[], None]) -> None:
    if process.is_alive:
        process.loop.call_soon(heard)
