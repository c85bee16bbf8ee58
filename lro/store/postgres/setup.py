"""The schema of a PostgreSQL database: applied by `lro migrate` alone, and looked at by each store that opens.

A service never changes the schema of a database that others use too: it refuses one that is behind, and says what to
run.
"""

import logging
import secrets
from typing import NamedTuple

from psycopg import Error
from psycopg.errors import OperationalError

from lro.errors import FailedPrecondition
from lro.store.migrations import Migration, missing, shipped
from lro.store.postgres import statements as sql
from lro.store.postgres.connections import Connection, execute, rows

__all__ = ["Schema", "look_at_schema", "migrate"]

log = logging.getLogger(__name__)

OLDEST = 130000  # PostgreSQL 13: pg_current_xact_id
BEHIND = "{where} lacks migration {lacking}: run  lro migrate {where}  (with the user and password that may do so)"


class Schema(NamedTuple):
    """What a store needs to know of the schema.

    Attributes:
        secret: What all processes of the database share.
        newest: The number of the newest migration that this library knows.
    """

    secret: bytes
    newest: int


async def look_at_schema(connection: Connection, where: str) -> Schema:
    """Make sure that the schema is one for this library.

    Raises:
        FailedPrecondition: It is behind, too new, or has another history, or the server is too old.
    """
    if connection.info.server_version < OLDEST:
        found = str(connection.info.server_version // 10000)
        msg = f"{where} is PostgreSQL {found}; lro needs {OLDEST // 10000} or newer"
        raise FailedPrecondition(msg, reason="POSTGRESQL_TOO_OLD", found=found)
    known = shipped("postgres")
    lacking = await _lacking(connection, known, where)
    if lacking:
        what = f"{lacking[0].number} ({lacking[0].name})"
        raise FailedPrecondition(
            BEHIND.format(where=where, lacking=what), reason="SCHEMA_BEHIND", migration=str(lacking[0].number)
        )
    secrets_found = await rows(connection, sql.SECRET)
    if not secrets_found:
        msg = f"{where} has lost what lro keeps in lro.settings: restore it from a backup"
        raise FailedPrecondition(msg, reason="SCHEMA_DIFFERS")
    return Schema(bytes.fromhex(secrets_found[0][0]), known[-1].number)


async def _lacking(connection: Connection, known: list[Migration], where: str) -> list[Migration]:
    ((is_there,),) = await rows(connection, sql.HAS_SCHEMA)
    noted = await rows(connection, sql.APPLIED) if is_there else []
    applied = {number: checksum for number, checksum, _ in noted}
    needed = max((number for number, _, compatible in noted if not compatible), default=0)
    return missing(known, applied, needed, where)


async def migrate(connection: Connection, where: str, now: int, *, locks: bool = True) -> list[Migration]:
    """Bring the schema up to date, one transaction a migration, and return what was applied.

    Args:
        connection: The connection.
        where: What the database is called, for messages.
        now: The time, for the table of migrations.
        locks: Whether the server has advisory locks: who comes at the same time then waits, and else may fail.

    Raises:
        FailedPrecondition: The schema is too new for this library, or has another history, or a migration failed.
    """
    known = shipped("postgres")
    done: list[Migration] = []
    while True:
        async with connection.transaction():
            if locks:
                await execute(connection, sql.ONE_AT_A_TIME)
            await execute(connection, sql.SCHEMA)
            await execute(connection, sql.MIGRATIONS)
            lacking = await _lacking(connection, known, where)
            if not lacking:
                await execute(connection, sql.MAKE_SECRET, (secrets.token_hex(32),))
                return done
            await _apply(connection, lacking[0], where, now)
        done.append(lacking[0])
        log.info("%s: migration %d (%s) applied", where, lacking[0].number, lacking[0].name)


async def _apply(connection: Connection, migration: Migration, where: str, now: int) -> None:
    try:
        await execute(connection, migration.sql)
    except OperationalError:
        raise
    except Error as error:
        msg = f"{where}: migration {migration.number} ({migration.name}) can't be applied there: {error}"
        raise FailedPrecondition(msg, reason="MIGRATION_FAILED", migration=str(migration.number)) from error
    note = (migration.number, migration.name, migration.checksum, now, migration.compatible)
    await execute(connection, sql.NOTE_MIGRATION, note)
