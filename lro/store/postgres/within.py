"""A caller's function in the transaction of a batch: it is lent the connection, as psycopg's own, in a thread.

Its rows stand in a savepoint, so that what it raises undoes them alone. It can't end the transaction: all who are in
the same batch would suffer.
"""

import re
from functools import partial
from inspect import isasyncgen, isawaitable, iscoroutine, isgenerator
from typing import Any, NoReturn

import anyio.to_thread
from anyio import CapacityLimiter
from psycopg import Connection as SyncConnection
from psycopg import Cursor, Error, ProgrammingError
from psycopg.errors import InvalidSavepointSpecification, NoActiveSqlTransaction
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from lro.store.base import Within
from lro.store.batch import TransactionEnded
from lro.store.postgres import statements as sql
from lro.store.postgres.connections import Connection, execute

__all__ = ["call_within"]

ENDS = re.compile(
    rb"(?i)(?:^|;)(?:\s|--[^\n]*\n|/\*.*?\*/)*(BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK(?!\s+(WORK\s+|TRANSACTION\s+)?TO)"
    rb"|ABORT|PREPARE\s+TRANSACTION|DISCARD)\b",
    re.DOTALL,
)
"""Statements that a lent connection refuses; what is hidden from it in a DO block, the server refuses by itself."""

LENT = "this connection is lent by lro for one transaction, and is not yours to change"


class LentConnection(SyncConnection[tuple[Any, ...]]):  # Any: a row
    """psycopg's connection, but for what would outlast its lending.

    Attributes:
        over: True once it has been taken back.
    """

    over = False

    def __del__(self, *_: object) -> None:
        """Leave the connection to its owner."""

    def commit(self) -> NoReturn:
        """Refuse."""
        raise ProgrammingError(f"commit(): {LENT}")

    def rollback(self) -> NoReturn:
        """Refuse."""
        raise ProgrammingError(f"rollback(): {LENT}")

    def close(self) -> NoReturn:
        """Refuse."""
        raise ProgrammingError(f"close(): {LENT}")

    def set_autocommit(self, value: bool) -> NoReturn:
        """Refuse."""
        raise ProgrammingError(f"set_autocommit({value}): {LENT}")


class _LentCursor(Cursor[Any]):  # Any: a row
    """A cursor that refuses to end the transaction."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:  # Any: as psycopg declares it
        self._check(query)
        return super().execute(query, params, **options)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> Any:  # Any: as psycopg declares it
        self._check(query)
        return super().executemany(query, params_seq, **options)

    def _check(self, query: Any) -> None:  # Any: as psycopg declares it
        if getattr(self.connection, "over", False):
            raise ProgrammingError("this connection was lent by lro for one transaction, which is over")
        text = query if isinstance(query, bytes | str) else query.as_bytes(self.connection)
        if found := ENDS.search(text.encode() if isinstance(text, str) else text):
            raise ProgrammingError(f"{found[1].decode()}: {LENT}")


async def call_within(within: Within, connection: Connection) -> BaseException | None:
    """Call the function with this connection, in a savepoint of the open transaction.

    Returns what the function raised, its rows undone, or None.

    Raises:
        TransactionEnded: The transaction is over; the cause is what the function raised.
        psycopg.Error: The savepoint could not be made or left: that is none of the function's errors.
    """
    await execute(connection, sql.SAVEPOINT)
    raised = await anyio.to_thread.run_sync(partial(_call, within, connection), limiter=CapacityLimiter(1))
    if connection.info.transaction_status not in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
        raise TransactionEnded from raised
    try:
        if raised is not None:
            await execute(connection, sql.ROLLBACK_TO)
        await execute(connection, sql.RELEASE)
    except (InvalidSavepointSpecification, NoActiveSqlTransaction) as error:
        raise TransactionEnded from raised or error
    return raised


def _call(within: Within, connection: Connection) -> BaseException | None:
    lent = LentConnection(connection.pgconn, tuple_row)
    lent.cursor_factory = _LentCursor
    try:
        _expect_done(within(lent), within)  # type: ignore[func-returns-value]  # that is the question
        if lent.info.transaction_status is TransactionStatus.INERROR:
            raise Error(
                "a statement failed, and its error was not let through"
            )  # the server would refuse all that follows
    except BaseException as error:
        return error
    finally:
        lent.over = True
    return None


def _expect_done(answer: object, within: Within) -> None:
    """Refuse a function that has not run when it returns: its rows would be missing, with the operation there."""
    if isawaitable(answer) or isgenerator(answer) or isasyncgen(answer):
        if iscoroutine(answer):
            answer.close()  # nobody awaits it
        msg = f"within={within!r} is an async function or a generator; use a plain function, or your own connection"
        raise TypeError(msg)
