"""A start in the caller's own transaction, on its own connection: its rows and the operation in one commit.

What is started is there for others once the caller commits, and never if it rolls back. The caller's connection is
left as it was found, in its transaction, whatever comes of the start.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import cast

from psycopg import AsyncConnection, AsyncCursor, Error
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from lro.errors import Aborted, FailedPrecondition, Unavailable
from lro.lifecycle import Record
from lro.store.batch import Insert, apply
from lro.store.postgres import statements as sql
from lro.store.postgres.connections import Connection, execute, rows
from lro.store.postgres.transaction import Collision, PostgresTransaction

__all__ = ["insert_in"]

TRIES = 3  # each of which sees what another transaction has committed in the meantime


async def insert_in(
    connection: object,
    record: Record,
    secret: bytes,
    begin: Callable[[Connection], PostgresTransaction],
    heralds: Callable[[Record], str] | None,
    *,
    pending_limit: int | None,
    validate_only: bool,
) -> Record:
    """Carry out an insert on a connection of the caller's; see Store.insert.

    Args:
        connection: A psycopg AsyncConnection, in a transaction, or one that begins it with its next statement.
        record: What to insert.
        secret: The store's, by which its database is known.
        begin: Makes the transaction that the insert sees.
        heralds: Says what others are told with the commit; None where there is no NOTIFY.
        pending_limit: See Store.insert, as for the next.
        validate_only: True to write nothing.

    Raises:
        FailedPrecondition: It is in no transaction, or on another database than the store.
        Unavailable: The connection is lost.
        psycopg.Error: As the database raised it.
    """
    if not isinstance(connection, AsyncConnection):
        msg = (
            f"within={type(connection).__name__}: give a psycopg AsyncConnection, or a function that takes a connection"
        )
        raise TypeError(msg)
    begins = connection.info.transaction_status is TransactionStatus.IDLE and not connection.autocommit
    if not begins and connection.info.transaction_status is not TransactionStatus.INTRANS:
        msg = "the connection is in no transaction that can go on: start within `async with connection.transaction():`"
        raise FailedPrecondition(msg, reason="NO_TRANSACTION")
    theirs = cast(Connection, connection)  # whatever its rows are
    try:
        async with _with_plain_rows(theirs) as plain:
            await _check_database(plain, secret)
            for _ in range(TRIES):
                request = Insert(record, pending_limit=pending_limit, validate_only=validate_only)
                try:
                    async with plain.transaction():
                        await apply([request], begin(plain))
                        request.release()
                        started = await request.wait()
                        if heralds is not None:
                            await execute(plain, sql.NOTIFY, ([heralds(started)],))
                except Collision:
                    continue
                return started
    except Error as error:
        if theirs.closed:
            raise Unavailable(
                "the connection was lost; nothing was written", reason="STORE_UNAVAILABLE", inside=str(error)
            ) from error
        raise
    msg = "another transaction has just started the same: roll back, and try again"
    raise Aborted(msg, reason="TARGET_BUSY")


@asynccontextmanager
async def _with_plain_rows(connection: Connection) -> AsyncGenerator[Connection]:
    """Have a connection return plain rows for a while, whatever its caller has made of it."""
    before = connection.row_factory, connection.cursor_factory
    connection.row_factory, connection.cursor_factory = tuple_row, AsyncCursor
    try:
        yield connection
    finally:
        connection.row_factory, connection.cursor_factory = before


async def _check_database(connection: Connection, secret: bytes) -> None:
    ((is_there,),) = await rows(connection, sql.HAS_SCHEMA)
    found = await rows(connection, sql.SECRET) if is_there else []
    if not found or bytes.fromhex(found[0][0]) != secret:
        msg = f"the connection is to {connection.info.dbname!r}, which is not the store's database: use one to that"
        raise FailedPrecondition(msg, reason="OTHER_DATABASE")
