"""Where the tables are: a file that processes share.

Holds what a file needs beside its connections: locks that tell who lives, turns at writing, bells. The file is
never opened except through SQLite: closing any other descriptor of it would drop this process's locks on it.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from lro.store.leases import LockFiles
from lro.store.sqlite.bell import Bell
from lro.store.sqlite.damage import Original
from lro.store.sqlite.lane import Lane
from lro.store.sqlite.setup import create_file, set_up_reader
from lro.store.sqlite.turn import Turn
from lro.store.sqlite.within import LendingConnection

__all__ = ["File", "Place", "RunsOnConnection"]

log = logging.getLogger("lro.store.sqlite")

T = TypeVar("T")

SAFE_TO_SHARE = (3, 51, 3)  # before it, sqlite.org/wal.html#walresetbug
WAL_RESET = (
    "several processes share %s, and SQLite %s has the WAL-reset bug, which can damage a file. The writes of lro "
    "take turns and so avoid it: let nothing else write to the file (rows of your own belong in `within=`), or use a "
    "Python whose sqlite3 has SQLite 3.51.3 or newer"
)


class RunsOnConnection(Protocol):
    """One connection: a Lane, or what stands for one."""

    async def run(self, function: Callable[[LendingConnection], T]) -> T:
        """Run a function on the connection and return what it returns, or raise what it raises."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class Place(Protocol):
    """What a SQLiteStore needs to know of where its tables are; used by one store.

    Attributes:
        name: What it is called in code, as by repr().
        where: What the log says of it.
        synchronous: SQLite's setting of this name.
        patience: Seconds to wait for another's write.
        locks: Tell which workers live; None where there is nothing but their beats.
        turn: To be held while writing.
    """

    name: str
    where: str
    synchronous: str
    patience: float
    locks: LockFiles | None
    turn: AbstractContextManager[Any]  # Any: what it gives is not used

    async def open(self, exits: AsyncExitStack, heard: Callable[[], None]) -> None:
        """Make it ready until the exits are closed; `heard` is called when others have written."""
        ...

    async def connect(self, *, reads_only: bool) -> RunsOnConnection:
        """Return a connection, one that reads or the one that writes."""
        ...

    def check(self) -> None:
        """Make sure, from any thread, that what is there is still what was opened; first called with its tables made.

        Raises:
            StoreDamaged: It is not.
            sqlite3.Error: That can't be seen now.
        """
        ...

    def ring(self) -> None:
        """Tell the others that something was written."""
        ...

    def let_go(self) -> None:
        """Give back, in a forked child, what is the parent's."""
        ...


class File:
    """A Place in the file system.

    Args:
        path: The file, made if need be; beside it a directory `<file>.workers`.
        durability: As for `open_store`.
        busy_timeout: As for `open_store`.
    """

    def __init__(self, path: Path, *, durability: Literal["power", "process"], busy_timeout: timedelta) -> None:
        self.path = path.absolute()
        self.name = self.path.name
        self.where = str(self.path)
        self.synchronous = "FULL" if durability == "power" else "NORMAL"
        self.patience = busy_timeout.total_seconds()
        self._directory = self.path.with_name(self.path.name + ".workers")
        self.locks: LockFiles | None = LockFiles(self._directory)
        self.turn: AbstractContextManager[Any]  # Any: see Place
        self.turn = self._turn = Turn(self._directory / "write.turn", self.patience)
        self._bell: Bell | None = None
        self._original = Original(self.path, self._directory)

    async def open(self, exits: AsyncExitStack, heard: Callable[[], None]) -> None:
        """See Place.open."""
        _require_asyncio()
        self._original.refuse_loss()
        create_file(self.path)
        assert self.locks is not None
        exits.callback(self.locks.close)
        exits.callback(self._turn.close)
        self._turn.open()
        self._warned = False
        self._heard = heard
        self._bell = Bell(self._directory, self._heard_another_process)
        exits.callback(self._bell.close)
        self._bell.open()
        if self._bell.ring():
            self._warn_of_sharing()

    async def connect(self, *, reads_only: bool) -> Lane:
        """See Place.connect."""
        lane = await Lane.open(self.path, timeout=self.patience)
        try:
            await lane.run(set_up_reader if reads_only else self._original.refuse_emptiness)
        except BaseException:
            await lane.close()
            raise
        return lane

    def check(self) -> None:
        """See Place.check."""
        try:
            self._original.check()
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error

    def ring(self) -> None:
        """See Place.ring."""
        if self._bell is not None:
            self._turn.shared = self._bell.ring() > 0

    def let_go(self) -> None:
        """See Place.let_go. A child that kept its locks would hide its parent's death."""
        assert self.locks is not None
        self.locks.close()
        self._turn.close()
        if self._bell is not None:
            self._bell.let_go()

    def _heard_another_process(self) -> None:
        self._warn_of_sharing()
        self._heard()

    def _warn_of_sharing(self) -> None:
        """Say once what this SQLite does not bear."""
        if not self._warned and sqlite3.sqlite_version_info < SAFE_TO_SHARE:
            self._warned = True
            log.warning(WAL_RESET, self.path, sqlite3.sqlite_version)


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        msg = "the SQLite store needs anyio's asyncio backend: aiosqlite does not run on trio"
        raise RuntimeError(msg) from None
