"""Where operations are kept: SQLite for one machine; the same program on another store by its URL."""

from datetime import timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from lro.store.base import Page, PageQuery, Store

__all__ = ["Page", "PageQuery", "Store", "file_of", "open_store"]


def open_store(
    url: str,
    *,
    durability: Literal["power", "process"] = "power",
    busy_timeout: timedelta = timedelta(seconds=5),
) -> Store:
    """Return the store that a URL names; it connects at `async with store:`.

    Args:
        url: `sqlite:///relative.db` or `sqlite:////absolute.db`.
        durability: What an acknowledged write survives: a power loss, or only the end of the process, which
            is faster on disks that are slow to flush.
        busy_timeout: How long a call waits for another process's write before it raises Unavailable.

    Raises:
        ValueError: The URL is not one of those forms, or has a query or fragment.
    """
    path = file_of(url)
    if durability not in ("power", "process"):
        msg = f"durability={durability!r}: use 'power' or 'process'"
        raise ValueError(msg)

    from lro.store.sqlite import SQLiteStore  # noqa: PLC0415 -- only who opens one pays for its driver
    from lro.store.sqlite.place import File  # noqa: PLC0415

    return SQLiteStore(File(path, durability=durability, busy_timeout=busy_timeout))


def file_of(url: str) -> Path:
    """Return the absolute path of the file that a URL names.

    Raises:
        ValueError: As by `open_store`.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        msg = f"{_scheme(url)} is no store URL: use sqlite:///file.db for a file in the working directory"
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
