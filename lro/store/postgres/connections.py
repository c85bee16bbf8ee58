"""Connections to a server that may be slow, frozen, restarted or gone: each use of one has its deadline.

A connection is opened when one is needed and none is free, and thrown away when it is lost. (psycopg's own pool was
tried for this: after an outage it connects again by its own schedule of 1, 2, 4 seconds, which no caller's deadline
can hasten.) What psycopg waits for can't be cancelled while a server is frozen; so at the deadline the socket is shut
down under it, and it sees the connection end.
"""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
from psycopg import AsyncConnection, AsyncCursor, Error, OperationalError
from psycopg.pq import TransactionStatus

__all__ = ["Connection", "Connections", "bounded", "connect", "execute", "rows"]

Connection = AsyncConnection[tuple[Any, ...]]  # Any: a row


async def connect(conninfo: str) -> Connection:
    """Open a connection that commits each statement by itself, and that a pooler may take from session to session."""
    return await AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)


async def execute(connection: Connection, statement: str, parameters: Any = None) -> AsyncCursor[tuple[Any, ...]]:
    """Execute a statement of the library's; its parameters are what psycopg adapts (hence Any), its rows tuples."""
    return await connection.execute(statement.encode(), parameters)


async def rows(connection: Connection, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Execute a statement of the library's, and return its rows."""
    return await (await execute(connection, statement, parameters)).fetchall()


@contextmanager
def bounded(connection: Connection, until: float) -> Generator[None]:
    """End the connection if this has not come to its end by then; time as by `anyio.current_time()`."""
    timer = asyncio.get_running_loop().call_at(until, _cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def _cut(connection: Connection) -> None:
    with suppress(OSError, Error):  # it has ended by itself
        descriptor = os.dup(connection.fileno())
        with socket.socket(fileno=descriptor) as ended:
            ended.shutdown(socket.SHUT_RDWR)


class Connections:
    """Connections to one server, lent one by one, each to one user at a time.

    Args:
        conninfo: What libpq is told.
        most: How many there may be.
    """

    def __init__(self, conninfo: str, most: int) -> None:
        self._conninfo = conninfo
        self._turns = anyio.Semaphore(most)
        self._free: list[Connection] = []

    @asynccontextmanager
    async def lend(self, until: float) -> AsyncGenerator[Connection]:
        """Lend a connection that is cut at that time; who is cancelled meanwhile hears of it afterwards.

        Raises:
            OperationalError: None is free or can be opened by then.
        """
        with anyio.CancelScope(shield=True):
            connection = await self._take(until)
            try:
                with bounded(connection, until):
                    yield connection
            finally:
                await self._give_back(connection)

    async def _take(self, until: float) -> Connection:
        with anyio.CancelScope(deadline=until):
            await self._turns.acquire()
            if self._free:
                return self._free.pop()
            try:
                return await connect(self._conninfo)
            except BaseException:
                self._turns.release()
                raise
        raise OperationalError("no connection was to be had in time")

    async def _give_back(self, connection: Connection) -> None:
        if connection.closed:
            await self.close()  # the others were lost with it, or are soon replaced
        elif connection.info.transaction_status is not TransactionStatus.IDLE:
            await connection.close()
        else:
            self._free.append(connection)
        self._turns.release()

    async def close(self) -> None:
        """Close those that nobody uses."""
        while self._free:
            await self._free.pop().close()
