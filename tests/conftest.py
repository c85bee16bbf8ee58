"""What all tests share: the event loop, a store on a real file, and what a machine may lack."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lro.store import Store, open_store
from tests.disks import can_mount
from tests.postgres import Databases, running_server


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests that do not care run on another store."""
    parser.addoption(
        "--store",
        choices=("sqlite", "postgres", "distributed"),
        default="sqlite",
        help="what the tests run on that do not say so themselves",
    )


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Databases on a real PostgreSQL server, made when they are first needed."""
    with contextlib.ExitStack() as exits:
        server = os.environ.get("LRO_TEST_POSTGRES") or exits.enter_context(running_server()).url()
        made = Databases(server)
        exits.callback(made.close)
        yield made


@pytest.fixture
def postgres_url(databases: Databases) -> Iterator[str]:
    """The URL of a new database on PostgreSQL, migrated."""
    with databases.new() as url:
        yield url


@pytest.fixture
def restless_url(databases: Databases) -> Iterator[str]:
    """The same, on a database that fails a tenth of all writing statements with 40001."""
    with databases.new(restless=True) as url:
        yield url


@pytest.fixture
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The URL of a store that holds nothing yet."""
    match request.config.getoption("--store"):
        case "postgres":
            return str(request.getfixturevalue("postgres_url"))
        case "distributed":
            return str(request.getfixturevalue("restless_url"))
        case _:
            return f"sqlite:///{tmp_path}/lro.db"


@pytest.fixture
async def store(url: str, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An open store on a real database."""
    distributed = request.config.getoption("--store") == "distributed"
    async with open_store(url, profile="distributed" if distributed else "postgres") as opened:
        yield opened


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another store, leave out what does not depend on it; skip, outside CI, what needs what pip can't bring."""
    if config.getoption("--store") != "sqlite":
        depend = [
            isinstance(item, pytest.Function)
            and "url" in item.fixturenames
            and not item.get_closest_marker("own_store")
            for item in items
        ]
        config.hook.pytest_deselected(items=[item for item, does in zip(items, depend, strict=True) if not does])
        items[:] = [item for item, does in zip(items, depend, strict=True) if does]
    for item in items:
        for mark in item.iter_markers("needs"):
            missing = [what for what in mark.args if not _has(what)]
            if missing and os.environ.get("CI") != "true":
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))


def _has_own_store(item: pytest.Item) -> bool:
    return item.get_closest_marker("own_store") is not None


def _has(what: str) -> bool:
    return can_mount() if what == "tmpfs" else shutil.which(what) is not None
