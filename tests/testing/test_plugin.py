"""The fixtures for users' tests, in a test session of a user's."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import pytest

pytest_plugins = ["lro.testing.plugin"]

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

TESTS = """
import anyio
import httpx2
import pytest
from lro import Context, SyncContext, job

@job("books.count")
async def count(ctx: Context) -> int:
    return 7

@job("books.wait")
async def wait(ctx: Context) -> None:
    await ctx.sleep(3600)

@pytest.fixture
def lro_jobs():
    return [count, wait]

async def test_in_process(lro_service):
    operation = await lro_service.start(count)
    assert await lro_service.operations.result(count, operation.name) == 7

async def test_over_http(lro_service):
    transport = httpx2.ASGITransport(lro_service)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        started = (await client.post("/jobs/books.wait:run", json={})).json()
        await client.post(f"/{started['name']}:cancel")
        ended = (await client.post(f"/{started['name']}:wait")).json()
        assert ended["error"]["code"] == 1

async def test_each_has_a_file_of_its_own(lro_service):
    assert not (await lro_service.operations.list()).operations

async def test_a_job_left_behind_does_not_hold_the_end_up(lro_service):
    await lro_service.start(wait)
    while not lro_service.worker.running:
        await anyio.sleep(0.001)
"""

WITHOUT_JOBS = """
async def test_it_needs_jobs(lro_service):
    pass
"""


def session(folder: Path, tests: str) -> "subprocess.CompletedProcess[str]":
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_books.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "anyio_mode=auto", str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_a_started_service_is_given_to_each_test(tmp_path: Path) -> None:
    done = session(tmp_path, TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_without_jobs_it_says_what_to_define(tmp_path: Path) -> None:
    done = session(tmp_path, WITHOUT_JOBS)
    assert done.returncode == 1
    assert "define a fixture  def lro_jobs(): return [your_job]" in done.stdout


def test_it_is_loaded_only_where_it_is_asked_for(pytestconfig: pytest.Config) -> None:
    assert not pytestconfig.pluginmanager.hasplugin("lro.testing.plugin")
