"""Fixtures for pytest, with anyio's plugin: `pytest_plugins = ["lro.testing.plugin"]` in a conftest.py.

`lro_service` is a started Service on a file of its own with the jobs that `lro_jobs` returns:

    @pytest.fixture
    def lro_jobs():
        return [render_book]

    async def test_it_renders(lro_service):
        operation = await lro_service.start(render_book, RenderParams(book="b", pages=9))
        rendered = await lro_service.operations.result(render_book, operation.name)
"""

from collections.abc import AsyncGenerator, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lro.jobs import Job
from lro.principal import AllowAnonymous, Authorization
from lro.service import Service

__all__ = ["lro_auth", "lro_jobs", "lro_service"]

DRAIN = timedelta(seconds=1)  # a test that ends does not wait long for jobs that it left behind


@pytest.fixture
def lro_jobs() -> Iterable[Job[Any, Any, Any]]:  # Any: jobs of any types
    """Return the jobs that `lro_service` runs; define a fixture of this name."""
    msg = "lro_service needs jobs: define a fixture  def lro_jobs(): return [your_job]"
    raise pytest.UsageError(msg)


@pytest.fixture
def lro_auth() -> Authorization:
    """Return who may do what; everybody everything, unless you define a fixture of this name."""
    return AllowAnonymous()


@pytest.fixture
async def lro_service(
    tmp_path: Path, lro_jobs: Iterable[Job[Any, Any, Any]], lro_auth: Authorization
) -> AsyncGenerator[Service]:
    """Give a started Service on a SQLite file of the test's own; it is shut down after the test.

    It is an ASGI app, too: `httpx2.AsyncClient(transport=httpx2.ASGITransport(lro_service), base_url="http://test")`.
    """
    url = f"sqlite:////{tmp_path / 'lro.db'}"
    async with Service(url, jobs=lro_jobs, auth=lro_auth, handle_signals=False, drain=DRAIN) as service:
        yield service
