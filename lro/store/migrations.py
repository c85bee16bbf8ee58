"""Schema migrations: where they lie, and which of them a database still lacks.

Files are `NNNN_name.sql`, forward only, one transaction each, never edited after release. A table records
number, name, checksum and time. How the statements are run is left to each store.

Programs of the version before may go on beside a migration that begins with the line `-- compatible`: it only adds
what they need not know of, such as a column that may be NULL, a table or an index. Any other shuts them out.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from lro.errors import FailedPrecondition

__all__ = ["Migration", "missing", "shipped", "too_new"]


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema.

    Attributes:
        number: From 1, without gaps.
        name: What it does.
        sql: Its statements.
    """

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """The SHA-256 of the statements, in hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def title(self) -> str:
        """Its number and name, as its file has them: `0001_operations`."""
        return f"{self.number:04}_{self.name}"

    @property
    def compatible(self) -> bool:
        """True if programs that do not know it may use what it has made."""
        return self.sql.startswith("-- compatible\n")


def shipped(dialect: str) -> list[Migration]:
    """Return the migrations of this library for `sqlite` or `postgres`, in order."""
    folder: Traversable = files("lro") / "migrations" / dialect  # in a wheel they lie in the package
    if not folder.is_dir():
        folder = Path(__file__).parents[2] / "migrations" / dialect  # in a checkout, beside it
    found: list[Migration] = []
    for path in folder.iterdir():
        number, _, name = path.name.removesuffix(".sql").partition("_")
        if path.name.endswith(".sql"):
            found.append(Migration(int(number), name, path.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.number)


def missing(known: list[Migration], applied: dict[int, str], needed: int, where: str) -> list[Migration]:
    """Return the migrations that a database lacks.

    Args:
        known: What this version of the library ships.
        applied: Number -> checksum of what the database has.
        needed: The newest of them that is not compatible.
        where: The database, for messages.

    Raises:
        FailedPrecondition: The database is too new for this library, or has another history.
    """
    newest = max((migration.number for migration in known), default=0)
    if needed > newest:
        raise FailedPrecondition(
            too_new(needed, newest, where), reason="SCHEMA_TOO_NEW", found=str(needed), known=str(newest)
        )
    for migration in known:
        if applied.get(migration.number, migration.checksum) != migration.checksum:
            msg = f"{where}: migration {migration.number} ({migration.name}) is not the one that was applied there"
            raise FailedPrecondition(msg, reason="SCHEMA_DIFFERS", migration=str(migration.number))
    return [migration for migration in known if migration.number not in applied]


def too_new(needed: int, newest: int, where: str) -> str:
    """Say what is wrong with a database that needs a newer library than this one, and what to do."""
    return (
        f"{where} has schema {needed}, this version of lro knows up to {newest}: "
        "upgrade lro in this process, or use another database"
    )
