"""Where operations are kept: SQLite for one machine; the same program on another store by its URL."""

from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from lro.store.base import Page, PageQuery, Store

__all__ = ["Page", "PageQuery", "Store", "file_of", "migrate", "open_store"]


def open_store(
    url: str,
    *,
    durability: Literal["power", "process"] = "power",
    busy_timeout: timedelta = timedelta(seconds=5),
    listen: str | Literal[False] | None = None,
    profile: Literal["postgres", "distributed"] = "postgres",
) -> Store:
    """Return the store that a URL names; it connects at `async with store:`.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db`, or `postgresql://user:password@host/database`, whose
            query may say what libpq knows, such as `sslmode`.
        durability: What an acknowledged write survives: a power loss, or only the end of the process, which
            is faster on disks that are slow to flush. On SQLite; for PostgreSQL its server decides.
        busy_timeout: How long a call waits for another process's write, or for the server, before it raises
            Unavailable.
        listen: A URL of the same PostgreSQL server where this process can LISTEN, if `url` is that of a pooler that
            lends connections by the transaction; False for none: then changes of other processes are found by looking.
        profile: "distributed" for what speaks PostgreSQL's language and has no SKIP LOCKED, LISTEN or advisory locks;
            its transactions are SERIALIZABLE, and repeated as often as it demands.

    Raises:
        ValueError: The URL is not one of those forms, or an option is none of these or not for this store.
    """
    if _scheme_of(url) in SCHEMES:
        return _open_postgres(url, durability, busy_timeout, listen, profile)
    path = file_of(url)
    if durability not in ("power", "process"):
        msg = f"durability={durability!r}: use 'power' or 'process'"
        raise ValueError(msg)
    if listen is not None or profile != "postgres":
        msg = "listen= and profile= are for PostgreSQL"
        raise ValueError(msg)

    from lro.store.sqlite import SQLiteStore  # noqa: PLC0415 -- only who opens one pays for its driver
    from lro.store.sqlite.place import File  # noqa: PLC0415

    return SQLiteStore(File(path, durability=durability, busy_timeout=busy_timeout))


def _open_postgres(url: str, durability: str, timeout: timedelta, listen: str | bool | None, profile: str) -> Store:
    _require_driver()
    from lro.store.postgres import DISTRIBUTED, USUAL, PostgresStore  # noqa: PLC0415 -- as above
    from lro.store.postgres.address import address_of  # noqa: PLC0415

    if durability != "power":
        msg = "durability= is for SQLite: on PostgreSQL set synchronous_commit, for the database or the user"
        raise ValueError(msg)
    if profile not in ("postgres", "distributed"):
        msg = f"profile={profile!r}: use 'postgres' or 'distributed'"
        raise ValueError(msg)
    address = address_of(url)
    ear = address if listen is None else address_of(listen) if isinstance(listen, str) else None
    chosen = USUAL if profile == "postgres" else DISTRIBUTED
    return PostgresStore(address, patience=timeout.total_seconds(), listen=ear, profile=chosen)


async def migrate(
    url: str,
    *,
    profile: Literal["postgres", "distributed"] = "postgres",
    timeout: timedelta = timedelta(seconds=5),
) -> list[str]:
    """Bring the schema of a database up to date, and return the names of the migrations that were applied.

    A file of SQLite's is brought up to date by each store that opens it, too.

    Args:
        url: As for `open_store`.
        profile: As for `open_store`.
        timeout: How long the database may take to answer at first.

    Raises:
        ValueError: As by `open_store`.
        FailedPrecondition: The schema is too new for this library, or has another history, or a migration failed.
        Unavailable: The database can't be reached.
    """
    if _scheme_of(url) in SCHEMES:
        _require_driver()
        from lro.store.postgres import DISTRIBUTED, USUAL, migrate_database  # noqa: PLC0415 -- as above
        from lro.store.postgres.address import address_of  # noqa: PLC0415

        chosen = DISTRIBUTED if profile == "distributed" else USUAL
        return await migrate_database(address_of(url), chosen, timeout.total_seconds())
    from lro.store.sqlite import SQLiteStore  # noqa: PLC0415 -- as above

    async with open_store(url) as store:
        assert isinstance(store, SQLiteStore)
        return store.migrated


def _require_driver() -> None:
    if find_spec("psycopg") is None:
        msg = "PostgreSQL needs the extra 'postgres': install it with  pip install 'lro[postgres]'"
        raise ValueError(msg)


SCHEMES = ("postgresql", "postgres")


def _scheme_of(url: str) -> str:
    return url.partition(":")[0].lower()


def file_of(url: str) -> Path:
    """Return the absolute path of the file that a URL names.

    Raises:
        ValueError: As by `open_store`.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        msg = f"{_scheme(url)} is no store URL: use sqlite:///file.db for a file in the working directory, or postgresql://..."
        raise ValueError(msg)
    if parts.query or parts.fragment:
        msg = f"a store URL takes no {'query' if parts.query else 'fragment'}: set options by open_store(...)'s own"
        raise ValueError(msg)
    path = unquote(parts.path).removeprefix("/")
    if (
        not url[len("sqlite") :].startswith(":///")
        or parts.netloc
        or not path
        or path.endswith("/")
        or ":memory:" in path
    ):
        msg = (
            f"{url!r} names no file: use sqlite:///relative.db or sqlite:////absolute.db; "
            "there is no in-memory store, an acknowledged operation outlives its process"
        )
        raise ValueError(msg)
    return Path(path).absolute()


def _scheme(url: str) -> str:
    scheme, colon, _ = url.partition(":")  # the rest may hold a password
    return repr(f"{scheme}:...") if colon else repr(url)
