"""A lane: functions run one after the other on the thread of one aiosqlite connection.

A transaction is one synchronous function, so nothing that happens to its caller can leave it half done.
aiosqlite runs a function of ours on its thread by its public interface: the connection it opens is a
subclass whose `commit()` carries out what is queued.
"""

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import aiosqlite
import anyio

from lro.store.sqlite.within import LendingConnection

__all__ = ["Lane"]

T = TypeVar("T")

_HELP_AFTER = 0.002  # seconds until a call that is not back may need help
_HELP_FOR = 0.010  # seconds that the event loop's thread then yields at most


class _Call(Generic[T]):
    """A function on its way through a lane, and what it returned or raised."""

    __slots__ = ("done", "error", "function", "value")

    def __init__(self, function: Callable[[LendingConnection], T]) -> None:
        self.function = function
        self.done = threading.Event()
        self.value: T | None = None
        self.error: BaseException | None = None

    def run(self, connection: LendingConnection) -> None:
        try:
            self.value = self.function(connection)
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


class _Connection(LendingConnection):
    """A connection whose commit() runs the calls that are queued."""

    def __init__(self, calls: "deque[_Call[Any]]", /, *args: Any, **options: Any) -> None:  # Any: sqlite3's own
        super().__init__(*args, **options)
        self._calls = calls

    def commit(self) -> None:
        """Run the next call, whose transaction is its own affair; in a call, commit as ever."""
        if self._calls:
            self._calls.popleft().run(self)
        else:
            super().commit()


class Lane:
    """One connection to a SQLite file, and the thread that it lives on."""

    def __init__(self, connection: aiosqlite.Connection, calls: "deque[_Call[Any]]") -> None:  # Any: of any answer
        self._connection = connection
        self._calls = calls

    @classmethod
    async def open(cls, path: Path, *, timeout: float) -> "Lane":
        """Connect.

        Args:
            path: The database file.
            timeout: Seconds to wait for another connection's lock.
        """
        sqlite3.connect(path, timeout=timeout).close()  # a file that can't be opened shows here, without a thread
        calls: deque[_Call[Any]] = deque()  # Any: of any answer
        connection = aiosqlite.connect(
            path,
            timeout=timeout,
            isolation_level=None,
            cached_statements=256,
            factory=partial(_Connection, calls),
        )
        with anyio.CancelScope(shield=True):  # cancelled here, aiosqlite would lose the connection unclosed
            await connection
        return cls(connection, calls)

    async def run(self, function: Callable[[LendingConnection], T]) -> T:
        """Run a function on the lane's thread and return what it returns, or raise what it raises.

        If the caller is cancelled the function is run all the same.
        """
        call = _Call(function)
        self._calls.append(call)
        # While the loop is busy without a pause, each of its select(0) drops the GIL and retakes it before our
        # thread wakes: measured, a call took over a second. So the loop's thread steps aside once, for a moment.
        helper = asyncio.get_running_loop().call_later(
            _HELP_AFTER, _step_aside, call, time.monotonic(), time.thread_time()
        )
        try:
            await self._connection.commit()
        finally:
            helper.cancel()
        if call.error is not None:
            raise call.error
        return call.value  # type: ignore[return-value]  # set if no error is: None is a T here

    async def close(self) -> None:
        """Close the connection and end its thread, after what is queued."""
        with anyio.CancelScope(shield=True):
            try:
                await self._connection.close()
            except BaseException:
                self._connection.stop()  # pyright: ignore[reportUnknownMemberType]  # its future says nothing
                raise


def _step_aside(call: _Call[Any], started: float, used: float) -> None:  # Any: of any answer
    waited, worked = time.monotonic() - started, time.thread_time() - used
    if worked > waited / 2:  # the loop has hardly idled: a slow disk alone never blocks it
        call.done.wait(_HELP_FOR)
