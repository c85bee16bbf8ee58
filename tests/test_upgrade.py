"""A newer version of the library on the same file: its migrations, what kills them, and who may go on beside them."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from typer.testing import CliRunner

from lro import AllowAnonymous, Context, Service, State, StopReason, job
from lro.cli import app
from lro.errors import FailedPrecondition, StoreClosed, StoreDamaged, Unavailable
from lro.lifecycle import Record
from lro.store import PageQuery, Store, open_store
from lro.testing.contract import eventually, sample_record
from tests.apps.upgrades import KINDS, STEPS, next_version
from tests.servers import REPOSITORY

pytestmark = pytest.mark.own_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lro.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


class Newer:
    """A process of the next version, which opens the file when it is told to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def open(self) -> str:
        """Let it open the file, and return what it says then: how many operations it sees, or why it can't."""
        self.go_on()
        return self._line()


@contextmanager
def newer(path: Path, kind: str) -> Iterator[Newer]:
    command = [sys.executable, "-m", "tests.apps.upgrades", "open", str(path), kind]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Newer(process)
        finally:
            process.kill()


async def fill(url: str) -> list[Record]:
    async with open_store(url) as store:
        return [await store.insert(sample_record(due_at=2**62)) for _ in range(7)]


async def names(store: Store) -> set[str]:
    return {record.name for record in (await store.list(PageQuery(limit=1000))).records}


# What a migration leaves


async def test_a_migration_that_is_killed_at_any_statement_is_there_whole_or_not_at_all_and_the_next_start_ends_it(
    url: str, path: Path
) -> None:
    await fill(url)
    command = [sys.executable, "-W", "ignore", "-m", "tests.apps.upgrades", "kill", str(path)]
    with anyio.fail_after(60):
        done = await anyio.run_process(command, cwd=REPOSITORY)
    seen = json.loads(done.stdout)
    assert all(one["after"]["whole"] and one["after"]["verdict"] == "ok" for one in seen), seen
    assert all(one["at_last"] == {"applied": [1, 2, 3], "whole": True, "verdict": "ok"} for one in seen), seen
    assert [one["killed"] for one in seen] == [True] * (len(seen) - 1) + [False]
    assert {tuple(one["after"]["applied"]) for one in seen} == {(1,), (1, 2), (1, 2, 3)}, "one transaction a migration"
    assert len(seen) > 20


@pytest.mark.parametrize(
    "broken",
    ["ALTER TABLE nowhere ADD COLUMN colour TEXT;\n", "INSERT INTO colours SELECT name, 1 FROM colours;\n"],
)
async def test_a_migration_that_can_not_be_applied_is_refused_by_name_and_leaves_nothing(
    url: str, path: Path, broken: str
) -> None:
    records = await fill(url)
    with (
        next_version(STEPS + broken),
        pytest.raises(FailedPrecondition, match=r"migration 2 \(next_1\) can't be applied there") as raised,
    ):
        await open_store(url).__aenter__()
    assert raised.value.reason == "MIGRATION_FAILED"
    assert str(path) in str(raised.value)
    async with open_store(url) as store:
        assert await names(store) == {record.name for record in records}


async def test_many_that_open_a_file_at_once_migrate_it_once(url: str, path: Path) -> None:
    await fill(url)
    with ExitStack() as processes:
        starting = [processes.enter_context(newer(path, "incompatible")) for _ in range(3)]
        for one in starting:
            one.go_on()
        said = [int(one._line()) for one in starting]
        for one in starting:
            one.go_on()
    assert max(said) == 7 + 3
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT number FROM schema_migrations").fetchall() == [(1,), (2,)]
        assert connection.execute("SELECT * FROM colours").fetchall() == [("red", 7)]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# Who may open it, and who may go on


async def test_a_file_that_is_too_new_is_refused_by_the_commands_and_says_what_to_do(
    url: str, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(url)
    with next_version(KINDS["incompatible"]):
        async with open_store(url):
            pass
    before = path.read_bytes()
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "older", raising=False)
    Path("older.py").write_text(
        f"from lro import AllowAnonymous, Service\nservice = Service({url!r}, jobs=[], auth=AllowAnonymous())\n"
    )
    for command in ("worker", "serve"):
        result = await _run(command, "older:service")
        assert result[0] == 5
        said = result[1] + caplog.text
        assert "has schema 2, this version of lro knows up to 1: upgrade lro in this process" in said
        caplog.clear()
    assert path.read_bytes() == before


async def _run(*words: str) -> tuple[int, str]:
    result = await anyio.to_thread.run_sync(CliRunner().invoke, app, words)
    return result.exit_code, result.output + result.stderr


async def test_an_older_process_goes_on_beside_a_compatible_migration_and_starts_again_after_it(
    url: str, path: Path
) -> None:
    await fill(url)
    async with open_store(url) as old:
        with newer(path, "compatible") as new:
            assert new.open() == "8"
            record = await old.insert(sample_record())
            assert len(await names(old)) == 9
            assert old.ready
            new.go_on()
    async with open_store(url) as old:
        assert await old.get(record.name) == record
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT number, compatible FROM schema_migrations").fetchall() == [(1, 0), (2, 1)]


told: list[StopReason | None] = []


@job("wait", restartable=True)
async def wait(ctx: Context) -> None:
    try:
        await ctx.sleep(60)
    finally:
        told.append(ctx.stop_reason)


async def test_an_older_process_stops_where_a_newer_one_has_taken_over(
    url: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told.clear()
    records = await fill(url)
    async with Service(url, jobs=[wait], auth=AllowAnonymous()) as service:
        store = service.worker.store
        running = (await service.start(wait)).name

        async def runs() -> bool:
            return bool(service.worker.running)

        await eventually(runs, "it is claimed")
        with newer(path, "incompatible") as new:
            assert new.open() == "9"
            for _ in range(3):
                with pytest.raises(StoreClosed, match="a newer version of the service has taken over") as raised:
                    await store.insert(sample_record())
            assert raised.value.reason == "SERVICE_OUTDATED"
            assert not isinstance(raised.value, (StoreDamaged, Unavailable))
            assert "upgrade lro in this process" in str(raised.value)

            async def stopped() -> bool:
                return not service.worker.running

            await eventually(stopped, "its jobs are stopped")
            assert told == [StopReason.LEASE_LOST]
            transport = httpx2.ASGITransport(app=service)
            async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
                assert (await client.get("/healthz")).status_code == 200
                assert (await client.get("/readyz")).status_code == 503
                answer = await client.post("/jobs/wait:run")
                assert (answer.status_code, answer.json()["error"]["status"]) == (503, "UNAVAILABLE")
                assert str(path) not in answer.text
            new.go_on()
    assert sum(record.levelname == "CRITICAL" for record in caplog.records) == 1
    with next_version(KINDS["incompatible"]):
        async with open_store(url) as store:
            assert await names(store) >= {running, *(record.name for record in records)}
            found = await store.get(running)
            assert found is not None
            assert found.state is State.PENDING, "it was left as it is, and goes on in the newer one"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_an_idle_older_process_notices_too(url: str, path: Path) -> None:
    async with open_store(url) as old:
        with newer(path, "incompatible") as new:
            assert new.open() == "1"

            async def unready() -> bool:
                return not old.ready

            await eventually(unready, "its sweep looks")
            new.go_on()
