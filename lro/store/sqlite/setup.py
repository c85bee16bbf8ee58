"""Making a SQLite file ready: its mode, the connections' settings, the schema."""

import logging
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from lro.store.migrations import missing, shipped
from lro.store.sqlite import statements as sql

__all__ = ["create_file", "roll_back", "set_up_reader", "set_up_writer"]

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


def set_up_writer(connection: sqlite3.Connection, place: str, synchronous: str, now: int) -> bytes:
    """Make it the connection that writes, bring the schema up to date, and return the file's secret.

    Args:
        connection: The connection.
        place: What it is called, for messages.
        synchronous: SQLite's `synchronous`.
        now: The time, for the table of migrations.

    Raises:
        FailedPrecondition: The schema is newer than this library, or has another history.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(sql.MIGRATIONS)
        applied = dict(connection.execute(sql.APPLIED).fetchall())
        for migration in missing(shipped("sqlite"), applied, place):
            for statement in _statements(migration.sql):
                connection.execute(statement)
            note = (migration.number, migration.name, migration.checksum, now)
            connection.execute(sql.NOTE_MIGRATION, note)
            log.info("%s: migration %d (%s) applied", place, migration.number, migration.name)
        connection.execute(sql.MAKE_SECRET)
        (secret,) = connection.execute(sql.SECRET).fetchone()
        connection.execute("COMMIT")
    finally:
        roll_back(connection)
    return bytes.fromhex(secret)


def roll_back(connection: sqlite3.Connection) -> None:
    """Roll back what is open; SQLite has done so by itself if the disk was full."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _statements(script: str) -> Iterable[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
