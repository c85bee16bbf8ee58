"""What is in a database: whether it is whole, of which schema, and which operations are stuck.

Reads on a connection that can't write. Where no log is beside the file nobody has it open, and SQLite is told to
look at the file alone: else it would leave an empty log and an index of it behind.
"""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from lro.doctor.finding import Examination
from lro.errors import LROError
from lro.store.leases import LockFiles
from lro.store.migrations import missing, shipped
from lro.store.sqlite import statements as sql
from lro.store.sqlite.damage import MARK, TABLES

__all__ = ["examine_contents"]

SHOWN = 5  # names of operations in one finding
LONG = 60  # seconds after which what should have happened at once is stuck
BACKUP = "keep a copy of what is there, put a backup in its place, and start again"

STUCK = {
    "cancel": """SELECT name FROM operations
WHERE state = 'RUNNING'
AND cancellable = 1
AND committed_at IS NULL
AND cancel_requested_at + coalesce(grace, 0) < :long_ago
ORDER BY cancel_requested_at""",
    "pending": """SELECT name FROM operations
WHERE state = 'PENDING'
AND due_at < :long_ago
ORDER BY due_at""",
    "deadline": """SELECT name FROM operations
WHERE state IN ('PENDING', 'RUNNING')
AND deadline_at < :long_ago
ORDER BY deadline_at""",
}
ADVICE = {
    "cancel": "their jobs reach no checkpoint: give them one, or a grace time",
    "pending": "see that a worker runs which has their jobs, and has slots free: lro worker MODULE:OBJECT",
    "deadline": "their jobs swallow their cancellation, or no process is left that would end them: see the log",
}
SAYS = {
    "cancel": "were asked to cancel over a minute ago and still run",
    "pending": "have been due for over a minute, and nobody has begun with them",
    "deadline": "are a minute past their deadline and have not ended",
}


def examine_contents(path: Path, examination: Examination, *, thorough: bool) -> None:
    """Look at what is in it.

    Args:
        path: The database, which is there and not empty.
        examination: Where what is found is noted.
        thorough: Whether to compare the indexes with their tables.
    """
    log = path.with_name(f"{path.name}-wal")
    alone = not log.exists()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro{'&immutable=1' * alone}", uri=True)) as connection:
            _examine(connection, path, examination, alone=alone, thorough=thorough)
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        damage = name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))
        advice = BACKUP if damage else "see that this user may read it and its log, and that its disk has space"
        examination.fail("read", f"it can't be read: {name}: {error}", advice)
    if alone and log.exists():
        examination.note(
            "opened", "somebody opened it meanwhile: what is said of it may be out of date", "run it again"
        )


def _examine(
    connection: sqlite3.Connection, path: Path, examination: Examination, *, alone: bool, thorough: bool
) -> None:
    connection.execute("PRAGMA query_only = ON")
    tables = {name for (name,) in connection.execute(sql.TABLES)}
    examination.facts["journal_mode"] = _journal_mode(connection, path, alone=alone)
    examination.opened = True
    check = "PRAGMA integrity_check" if thorough else "PRAGMA quick_check"
    if (told := [line for (line,) in connection.execute(check)]) != ["ok"]:
        more = f", and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        examination.fail("integrity", f"it is damaged: {'; '.join(told[:SHOWN])}{more}", BACKUP)
    if not _examine_schema(connection, tables, path, examination):
        return
    if examination.facts["journal_mode"] != "wal":
        what = f"its journal mode is {examination.facts['journal_mode']}"
        examination.warn("journal-mode", what, "find out who changed it; the next start of a store sets it to WAL")
    _examine_owners(connection, path, examination)
    _examine_operations(connection, examination)


def _journal_mode(connection: sqlite3.Connection, path: Path, *, alone: bool) -> str:
    """Return the mode; of a file that is read alone its header tells, and SQLite does not."""
    if not alone:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])
    with path.open("rb") as file:
        return "wal" if file.read(20)[18:] == b"\2\2" else "delete"


def _examine_schema(connection: sqlite3.Connection, tables: set[str], path: Path, examination: Examination) -> bool:
    """Return whether there is a schema that this version can read."""
    gone = [table for table in TABLES if table not in tables]
    if gone:
        known = len(gone) < len(TABLES) or (path.with_name(f"{path.name}.workers") / MARK).exists()
        what = f"it has lost its tables {', '.join(gone)}" if known else "it is a database, and none of lro's"
        examination.fail("schema", what, BACKUP if known else "check the path; a store makes its tables when it opens")
        return False
    applied: dict[int, str] = dict(connection.execute(sql.APPLIED).fetchall())
    (needed,) = connection.execute(sql.NEEDED).fetchone()
    known_here = shipped("sqlite")
    newest = known_here[-1].number
    examination.facts |= {"schema": max(applied, default=0), "schema_known": newest}
    try:
        behind = missing(known_here, applied, needed, "it")
    except LROError as error:
        examination.fail("schema", error.message, "examine and serve it with the version of lro that last opened it")
        return False
    if behind:
        numbers = ", ".join(str(migration.number) for migration in behind)
        examination.note("schema", f"it lacks migrations {numbers}", "the next start of a store applies them")
    if max(applied) > newest:
        what = f"a newer version of lro has opened it (schema {max(applied)}); this one may go on beside it"
        examination.note("schema", what, "upgrade lro here when it suits you")
    return True


def _examine_owners(connection: sqlite3.Connection, path: Path, examination: Examination) -> None:
    directory = path.with_name(f"{path.name}.workers")
    workers = {owner for (owner,) in connection.execute("SELECT id FROM workers")}
    owners = {owner for (owner,) in connection.execute(sql.OWNERS)}
    locks = LockFiles(directory)  # a worker's row comes after its lock, so nobody is kept from taking it
    alive = {owner for owner in owners | workers if locks.is_there(owner) and not locks.is_abandoned(owner)}
    examination.facts["workers"] = {"alive": len(alive), "dead": len(owners | workers) - len(alive)}
    if dead := owners - alive:
        orphans = connection.execute(sql.FIND_ORPHANS, (json.dumps(sorted(dead)), -1)).fetchall()
        names = [row[sql.COLUMNS.split(", ").index("name")] for row in orphans]
        what = f"{_some(names)} run nowhere: their workers are dead"
        advice = "a running service settles them within a second, or the next start does: see that one runs"
        if examination.facts["stores"]:
            examination.warn("orphans", what, "a running service should have settled them within a second: see its log")
        else:
            examination.note("orphans", what, advice)


def _examine_operations(connection: sqlite3.Connection, examination: Examination) -> None:
    states = connection.execute("SELECT state, count(*) FROM operations WHERE deleted_at IS NULL GROUP BY state")
    examination.facts["operations"] = dict(states.fetchall())
    long_ago = time.time_ns() // 1000 - LONG * 1_000_000
    for check, statement in STUCK.items():
        if names := [name for (name,) in connection.execute(statement, {"long_ago": long_ago})]:
            examination.warn(check, f"{_some(names)} {SAYS[check]}", ADVICE[check])


def _some(names: list[Any]) -> str:  # Any: a column of sqlite3
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
