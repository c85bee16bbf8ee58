"""A store in memory, for virtual time alone: nothing in it survives, and nobody else can reach it.

It is the SQLite store on a private connection that is used on the event loop's own thread. So it runs where
no thread may, under a clock that does not tick by itself, and behaves as the one in a file does.
"""

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from lro.clock import Clock
from lro.store.leases import LockFiles
from lro.store.sqlite import SQLiteStore
from lro.store.sqlite.within import LendingConnection

__all__ = ["Database", "MemoryStore", "VirtualClock"]

T = TypeVar("T")

START = 1_735_689_600_000_000  # 2025-01-01, in microseconds


class VirtualClock:
    """A clock that follows `anyio.current_time()`, and so a mock clock of trio's; only under an event loop."""

    def now(self) -> int:
        """Return the time in microseconds since 1970, UTC."""
        return START + int(anyio.current_time() * 1_000_000)

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""
        return anyio.current_time()


class Database:
    """What the stores on it share, as they would share a file; closed with its last reference."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None, factory=LendingConnection)
        self.ears: list[Callable[[], None]] = []


class MemoryStore(SQLiteStore):
    """A Store in memory, on asyncio and on trio; see the module.

    Args:
        database: Share one with other stores; None for one of its own.
        clock: Where it reads the time; the event loop's by default.
        sweeps: False to settle nothing by itself, such as what is past its deadline or its time to live.
    """

    def __init__(self, database: Database | None = None, *, clock: Clock | None = None, sweeps: bool = True) -> None:
        super().__init__(_Memory(database or Database()), clock=clock or VirtualClock(), sweeps=sweeps)


class _Memory:
    """A Place in memory."""

    name = where = "memory"
    synchronous = "OFF"
    patience = 5.0
    locks: LockFiles | None = None
    turn: AbstractContextManager[Any] = nullcontext()

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, exits: AsyncExitStack, heard: Callable[[], None]) -> None:
        self._ear = heard
        self._database.ears.append(heard)
        exits.callback(self._database.ears.remove, heard)

    async def connect(self, *, reads_only: bool) -> "_Connection":
        del reads_only  # there is one connection
        return _Connection(self._database.connection)

    def check(self) -> None:
        return

    def ring(self) -> None:
        for ear in self._database.ears:
            if ear != self._ear:
                ear()

    def let_go(self) -> None:
        return


class _Connection:
    """The one connection, used in place of a lane: a function of it never meets another."""

    def __init__(self, connection: LendingConnection) -> None:
        self._connection = connection

    async def run(self, function: Callable[[LendingConnection], T]) -> T:
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return function(self._connection)

    async def close(self) -> None:
        return
