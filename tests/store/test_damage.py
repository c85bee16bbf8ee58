"""A database that is lost, emptied, replaced or unreadable: the store stops, says so, and puts nothing in its place."""

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import httpx2
import pytest

from lro import AllowAnonymous, Context, Service, StopReason, job
from lro.errors import FailedPrecondition, StoreClosed, StoreDamaged, Unavailable
from lro.status import Code
from lro.store import PageQuery, open_store
from lro.store.sqlite import SQLiteStore
from lro.testing.contract import eventually, sample_record

PAGE = 4096
OVERWRITE = """
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    file.write(b"\\xa5" * int(sys.argv[3]))
"""
EXECUTE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
connection.close()
"""
Fault = Callable[[Path], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lro.db"


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def elsewhere(script: str, *arguments: object) -> None:
    """Do it in another process: whoever closes the file in this one drops the locks that its store has on it."""
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True)


def overwrite(path: Path, at: int, length: int) -> None:
    elsewhere(OVERWRITE, path, at, length)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    other = path.with_name("other.db")
    elsewhere(EXECUTE, other, "CREATE TABLE books (title TEXT)")
    other.replace(path)


def open_and_close(path: Path) -> None:
    """Drop this process's locks, as a backup by `read_bytes` does; the next to close the file removes its log."""
    path.read_bytes()
    elsewhere(EXECUTE, path, "SELECT count(*) FROM operations")


GONE: dict[str, tuple[Fault, str]] = {
    "emptied": (empty, "it was removed or emptied while it was in use"),
    "removed": (Path.unlink, "it was removed or emptied while it was in use"),
    "replaced": (replace, "another file was put in its place while it was in use"),
    "its log removed": (lambda path: log_of(path).unlink(), "lro.db-wal was removed or replaced while it was in use"),
    "opened and closed": (open_and_close, "lro.db-wal was removed or replaced while it was in use"),
}
UNREADABLE: dict[str, tuple[Fault, str]] = {
    "garbage pages": (lambda path: overwrite(path, PAGE, path.stat().st_size - PAGE), "SQLITE_CORRUPT"),
    "a garbage header": (lambda path: overwrite(path, 0, PAGE), "SQLITE_NOTADB"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // (2 * PAGE) * PAGE), "SQLITE_CORRUPT"),
    "its tables dropped": (lambda path: elsewhere(EXECUTE, path, "DROP TABLE operations"), "no such table: operations"),
}


async def refusal(store: SQLiteStore) -> StoreDamaged:
    """Ask for this and that until the store says that it has stopped."""
    for _ in range(3):
        try:
            await store.get("operations/x")
            await store.list(PageQuery())
            await store.insert(sample_record())
        except StoreDamaged as error:
            return error
    raise AssertionError("all of it was answered")


# While it is in use


@pytest.mark.parametrize("fault", [*GONE, *UNREADABLE])
async def test_a_store_whose_file_is_damaged_stops_for_good_and_says_why(
    path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage, says = {**GONE, **UNREADABLE}[fault]
    async with open_store(f"sqlite:///{path}") as store:
        assert isinstance(store, SQLiteStore)
        for _ in range(60):
            await store.insert(sample_record())
        elsewhere(EXECUTE, path, "PRAGMA wal_checkpoint(TRUNCATE)")
        await anyio.to_thread.run_sync(damage, path)

        error = await refusal(store)

        assert error.code is Code.DATA_LOSS
        assert says in str(error)
        assert str(path) in str(error)
        assert str(path) not in error.status.message, "clients see no paths"
        assert not store.ready
        for call in (store.insert(sample_record()), store.get("x"), store.list(PageQuery()), store.held("w")):
            with pytest.raises(StoreDamaged, match="trying again does not help"):
                await call
    told = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert len(told) == 1, "it says so once"
    assert says in told[0].getMessage()


@pytest.mark.parametrize("fault", GONE)
async def test_an_idle_store_notices_that_its_file_is_gone(path: Path, fault: str) -> None:
    async with open_store(f"sqlite:///{path}") as store:
        await store.insert(sample_record())
        GONE[fault][0](path)

        async def unready() -> bool:
            return not store.ready

        with anyio.fail_after(3):
            await eventually(unready, "the sweep looks")


async def test_no_write_is_acknowledged_that_nobody_would_find_again(path: Path) -> None:
    """The file is opened and closed in this process, and what another one then does removes the log."""
    async with open_store(f"sqlite:///{path}") as store:
        acknowledged = {(await store.insert(sample_record())).name for _ in range(20)}
        open_and_close(path)

        async def write_on() -> None:
            for _ in range(20):
                acknowledged.add((await store.insert(sample_record())).name)

        with pytest.raises(StoreDamaged):
            await write_on()
    async with open_store(f"sqlite:///{path}") as store:
        found = {record.name for record in (await store.list(PageQuery(limit=1000))).records}
    assert acknowledged <= found


@job("wait")
async def wait(ctx: Context) -> None:
    try:
        await ctx.sleep(60)
    finally:
        stopped.append(ctx.stop_reason)


stopped: list[StopReason | None] = []


async def test_a_service_on_a_damaged_database_lives_is_not_ready_and_stops_its_jobs(path: Path) -> None:
    stopped.clear()
    async with Service(f"sqlite:///{path}", jobs=[wait], auth=AllowAnonymous()) as service:
        transport = httpx2.ASGITransport(app=service)
        async with httpx2.AsyncClient(transport=transport, base_url="http://host", timeout=20) as client:
            name = (await client.post("/jobs/wait:run")).json()["name"]

            async def runs() -> bool:
                return bool(service.worker.running)

            await eventually(runs, "it is claimed")
            async with anyio.create_task_group() as group:
                answers: list[httpx2.Response] = []

                async def park() -> None:
                    answers.append(await client.post(f"/{name}:wait", json={"timeout": "8s"}))

                group.start_soon(park)
                await eventually(lambda: _waits(service), "a client waits")
                path.unlink()
                with anyio.fail_after(4):
                    while not answers:
                        await anyio.sleep(0.01)
            calls = [client.post("/jobs/wait:run"), client.post(f"/{name}:cancel"), client.get(f"/{name}")]
            for answer in [*answers, *[await call for call in calls]]:
                error = answer.json()["error"]
                assert (answer.status_code, error["status"]) == (500, "DATA_LOSS")
                assert error["details"][0]["reason"] == "STORE_DAMAGED"
                assert str(path) not in answer.text
                assert "retry-after" not in answer.headers
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503

            async def idle() -> bool:
                return not service.worker.running

            await eventually(idle, "what ran is stopped")
            assert stopped == [StopReason.LEASE_LOST]
            assert not service.worker.ready
    assert not path.exists(), "it is not made anew"


async def _waits(service: Service) -> bool:
    return bool(service.operations.waiting)


# At the next start


def lose(path: Path, how: str) -> None:
    """Close with a log beside it that holds something, as a killed process leaves it, and damage the file."""
    if how == "missing":
        path.unlink()
    elif how == "empty":
        os.truncate(path, 0)
    else:
        path.unlink()
        elsewhere(EXECUTE, path, "PRAGMA journal_mode = WAL", "CREATE TABLE books (title TEXT)")


@pytest.mark.parametrize(
    ("how", "beside"),
    [
        *itertools.product(["missing", "empty"], ["the directory of locks", "a log", "both"]),
        ("without its tables", "the directory of locks"),  # a log would be read as this file's
    ],
)
async def test_what_was_lost_is_not_made_anew(path: Path, how: str, beside: str) -> None:
    directory = path.with_name("lro.db.workers")
    async with open_store(f"sqlite:///{path}") as store:
        record = await store.insert(sample_record())
        shutil.copy(log_of(path), path.with_name("kept"))
    lose(path, how)
    if beside != "the directory of locks":
        shutil.copy(path.with_name("kept"), log_of(path))
    if beside == "a log":
        shutil.rmtree(directory)
    before = {file: file.read_bytes() for file in (path, log_of(path)) if file.exists()}
    with pytest.raises(StoreDamaged, match=f"was here and is {how}. Nothing was made in its place") as raised:
        async with open_store(f"sqlite:///{path}"):
            pytest.fail("it opened")

    assert "put a backup there" in str(raised.value)
    assert {file: file.read_bytes() for file in (path, log_of(path)) if file.exists()} == before
    for file in (path, log_of(path)):
        file.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    async with open_store(f"sqlite:///{path}") as store:  # as the message says
        assert await store.get(record.name) is None


async def test_a_backup_is_taken_without_further_ado(path: Path) -> None:
    async with open_store(f"sqlite:///{path}") as store:
        record = await store.insert(sample_record())
        elsewhere(EXECUTE, path, f"VACUUM INTO '{path.with_name('backup.db')}'")
        await store.insert(sample_record())
    path.unlink()
    with pytest.raises(StoreDamaged):
        await open_store(f"sqlite:///{path}").__aenter__()
    path.with_name("backup.db").rename(path)
    async with open_store(f"sqlite:///{path}") as store:
        assert [found.name for found in (await store.list(PageQuery())).records] == [record.name]


@pytest.mark.parametrize("fault", UNREADABLE)
async def test_a_damaged_file_is_refused_at_the_start_and_left_as_it_is(path: Path, fault: str) -> None:
    async with open_store(f"sqlite:///{path}") as store:
        for _ in range(60):
            await store.insert(sample_record())
    damage, says = UNREADABLE[fault]
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StoreDamaged) as raised:
        async with open_store(f"sqlite:///{path}") as store:
            await store.list(PageQuery())
    assert "lost its tables operations" in str(raised.value) if "dropped" in fault else says in str(raised.value)
    assert "lro doctor" in str(raised.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("made", ["by touch", "by SQLite", "with tables of the user's own"])
async def test_an_empty_file_that_was_no_database_before_is_taken(path: Path, made: str) -> None:
    """Deploy scripts `touch` a file for its mode; applications keep tables of their own in it."""
    path.touch()
    if made != "by touch":
        own = ("CREATE TABLE books (title TEXT)",) if "own" in made else ()
        elsewhere(EXECUTE, path, "PRAGMA journal_mode = WAL", *own)
    async with open_store(f"sqlite:///{path}") as store:
        record = await store.insert(sample_record())
    async with open_store(f"sqlite:///{path}") as store:
        assert await store.get(record.name) == record


async def test_a_first_start_that_was_killed_is_no_loss(path: Path) -> None:
    """The file is there, empty or not, and the directory beside it, but nothing was ever acknowledged."""
    path.touch()
    path.with_name("lro.db.workers").mkdir()
    (path.with_name("lro.db.workers") / "write.turn").touch()
    async with open_store(f"sqlite:///{path}") as store:
        await store.insert(sample_record())


async def test_a_file_with_a_table_of_that_name_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE operations (surgeon TEXT)")
    with pytest.raises(FailedPrecondition, match=r"migration 1 \(operations\) can't be applied there: table"):
        async with open_store(f"sqlite:///{path}"):
            pytest.fail("it opened")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("operations",)]


async def test_many_that_start_at_once_on_a_new_file_all_start(path: Path) -> None:
    async def start() -> None:
        async with open_store(f"sqlite:///{path}") as store:
            await store.insert(sample_record())

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(start)


async def test_damage_is_no_matter_of_trying_again() -> None:
    assert issubclass(StoreDamaged, StoreClosed)
    assert not issubclass(StoreDamaged, Unavailable)
