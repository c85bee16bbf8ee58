"""Damage: what no waiting mends, told apart from what the next try may find well again.

Decides when a file is not, or no longer, the database that was there: lost, emptied, replaced, unreadable. Then the
store stops, and nothing is ever made anew over what is left. It looks at names and sizes only, and opens nothing:
closing any other descriptor of the file would drop this process's locks on it.
"""

import sqlite3
from pathlib import Path

from lro.errors import StoreDamaged

__all__ = ["Original", "damage_of", "damaged"]

MARK = "made"
MARKED = """\
A database of lro's was made beside this directory. While this file is here, one that is missing, empty or without
tables is taken for lost, never for new. To begin with an empty one all the same, end all processes that use it and
remove this directory, and what is left of the database.
"""
STOPPED = "the store's database is damaged or gone, and the store has stopped: trying again does not help"
LOST = (
    "{path}: a database was here and is {how}. Nothing was made in its place: put a backup there, or, to begin with "
    "an empty one, remove {directory} and what is left of {name} and {name}-wal"
)
GONE = (
    "{path}: {what} while it was in use. Nothing more is written. End all processes that use it, put back what "
    "belongs there (what they have open can be read in /proc/PID/fd until they end), and start again"
)
TABLES = ("operations", "workers", "settings", "schema_migrations")  # since the first migration
NO_TABLE = {f"no such table: {table}" for table in TABLES}
UNREADABLE = (
    "{where}: {error}. Nothing more is written. See what is wrong with  lro doctor, put a backup in its place, and "
    "start again"
)


class Original:
    """The file that was opened, known again by its inode.

    Args:
        path: The database.
        directory: Beside it, where a mark is left once there is a database.
    """

    def __init__(self, path: Path, directory: Path) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._directory = directory
        self._opened: tuple[tuple[int, int] | None, ...] | None = None

    @property
    def expected(self) -> bool:
        """True if there was a database before."""
        return (self._directory / MARK).exists()

    def refuse_loss(self) -> None:
        """Refuse to go on where a database was, and is no more; SQLite would begin anew, and drop its log.

        Raises:
            StoreDamaged: The file is missing or empty, and there is a mark or a log of the one before.
        """
        self._opened = None
        before = self.expected or _size(self._wal) > 0  # looked at first: another process may be making it
        if before and not _size(self._path):
            raise self._lost("empty" if self._path.exists() else "missing")

    def refuse_emptiness(self, connection: sqlite3.Connection) -> None:
        """Refuse a database without tables where one with tables was.

        Raises:
            StoreDamaged: There is a mark, and the tables are gone.
        """
        tables = "SELECT count(*) FROM sqlite_master WHERE name = 'schema_migrations'"
        if self.expected and connection.execute(tables).fetchone() == (0,):
            raise self._lost("without its tables")

    def check(self) -> None:
        """Note what is there, the first time; then refuse anything else.

        Raises:
            StoreDamaged: The file, or its log, was removed, replaced or emptied.
        """
        path, wal = _inode(self._path, empty=False), _inode(self._wal, empty=True)
        if self._opened is None:
            self._opened = path, wal
            if not self.expected:
                (self._directory / MARK).write_text(MARKED)
        elif path is None:
            raise self._gone("it was removed or emptied")
        elif path != self._opened[0]:
            raise self._gone("another file was put in its place")
        elif wal != self._opened[1]:
            raise self._gone(f"{self._wal.name} was removed or replaced")

    def _lost(self, how: str) -> StoreDamaged:
        return damaged(LOST.format(path=self._path, how=how, directory=self._directory, name=self._path.name))

    def _gone(self, what: str) -> StoreDamaged:
        return damaged(GONE.format(path=self._path, what=what))


def damaged(inside: str) -> StoreDamaged:
    """Return the error that stops a store; what the operator is to know of it goes to the log alone."""
    return StoreDamaged(STOPPED, inside=inside)


def damage_of(error: sqlite3.Error, where: str) -> StoreDamaged | None:
    """Return the error that stops the store if this one says that the file is damaged, else None."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or str(error) in NO_TABLE:
        return damaged(UNREADABLE.format(where=where, error=f"{name}: {error}"))
    return None


def _inode(path: Path, *, empty: bool) -> tuple[int, int] | None:
    """Return which file this is, or None if there is none, or an empty one where that is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if empty or found.st_size else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
