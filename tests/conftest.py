"""What all tests share: the event loop, a store on a real file, and what a machine may lack."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lro.store import Store, open_store
from tests.disks import can_mount


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a store that does not exist yet."""
    return f"sqlite:///{tmp_path}/lro.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An open store on a real file."""
    async with open_store(url) as opened:
        yield opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, outside CI, what needs something that pip can't bring."""
    for item in items:
        for mark in item.iter_markers("needs"):
            missing = [what for what in mark.args if not _has(what)]
            if missing and os.environ.get("CI") != "true":
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))


def _has(what: str) -> bool:
    return can_mount() if what == "tmpfs" else shutil.which(what) is not None
