"""Making a SQLite file ready: its mode, the connections' settings, the schema."""

import logging
import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lro.errors import FailedPrecondition
from lro.store.migrations import Migration, missing, shipped
from lro.store.sqlite import statements as sql
from lro.store.sqlite.damage import TABLES, UNREADABLE, damaged

__all__ = ["SetUp", "create_file", "roll_back", "set_up_reader", "set_up_writer"]

log = logging.getLogger(__name__)


def create_file(path: Path) -> None:
    """Make a new file that only its owner may read; a file that is there is left to SQLite."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return


def set_up_reader(connection: sqlite3.Connection) -> None:
    """Make it a connection that reads only, and leaves checkpoints to the writer."""
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA wal_autocheckpoint = 0")


class SetUp(NamedTuple):
    """What setting up a file has found and done.

    Attributes:
        secret: The file's secret.
        newest: The number of the newest migration that this library knows.
        applied: The names of the migrations that were applied.
    """

    secret: bytes
    newest: int
    applied: list[str]


def set_up_writer(connection: sqlite3.Connection, place: str, synchronous: str, now: int) -> SetUp:
    """Make it the connection that writes, and bring the schema up to date, one transaction a migration.

    Args:
        connection: The connection.
        place: What it is called, for messages.
        synchronous: SQLite's `synchronous`.
        now: The time, for the table of migrations.

    Raises:
        FailedPrecondition: The schema is too new for this library, or has another history, or a migration failed.
        StoreDamaged: A table that an applied migration has made is gone.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    known = shipped("sqlite")
    secret: str | None = None
    done: list[str] = []
    while secret is None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(sql.MIGRATIONS)
            applied = dict(connection.execute(sql.APPLIED).fetchall())
            (needed,) = connection.execute(sql.NEEDED).fetchone()
            lacking = missing(known, applied, needed, place)
            if applied:
                _require_tables(connection, place)
            if lacking:
                _migrate(connection, lacking[0], place, now)
            else:
                connection.execute(sql.MAKE_SECRET)
                (secret,) = connection.execute(sql.SECRET).fetchone()
            connection.execute("COMMIT")
        finally:
            roll_back(connection)
        if lacking:
            done.append(lacking[0].title)
            log.info("%s: migration %d (%s) applied", place, lacking[0].number, lacking[0].name)
    return SetUp(bytes.fromhex(secret), known[-1].number, done)


def _require_tables(connection: sqlite3.Connection, place: str) -> None:
    found = {name for (name,) in connection.execute(sql.TABLES)}
    if gone := [table for table in TABLES if table not in found]:
        raise damaged(UNREADABLE.format(where=place, error=f"it has lost its tables {', '.join(gone)}"))


def _migrate(connection: sqlite3.Connection, migration: Migration, place: str, now: int) -> None:
    try:
        for statement in _statements(migration.sql):
            connection.execute(statement)
    except sqlite3.Error as error:
        if not getattr(error, "sqlite_errorname", "").startswith(("SQLITE_ERROR", "SQLITE_CONSTRAINT")):
            raise
        msg = f"{place}: migration {migration.number} ({migration.name}) can't be applied there: {error}"
        raise FailedPrecondition(msg, reason="MIGRATION_FAILED", migration=str(migration.number)) from error
    note = (migration.number, migration.name, migration.checksum, now, migration.compatible)
    connection.execute(sql.NOTE_MIGRATION, note)


def roll_back(connection: sqlite3.Connection) -> None:
    """Roll back what is open; SQLite has done so by itself if the disk was full.

    If that fails it stays open, for the caller to see: the error that led here says more.
    """
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _statements(script: str) -> Iterable[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
