"""`lro doctor` on real files, whole and damaged, alone and beside real processes: what it finds, and that it looks."""

import fcntl
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner, Result

from lro import Context, Operations, job
from lro.cli import app
from lro.clock import micros
from lro.doctor import contents, examine, file
from lro.store import open_store
from lro.store.sqlite import place
from lro.testing.contract.tools import sample_record
from lro.worker import Worker
from tests.servers import REPOSITORY

MINUTE = 60 * 1_000_000


@job("nothing")
async def nothing(ctx: Context) -> None:
    pass


@pytest.fixture(autouse=True)
def up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this Python's SQLite be one that is safe, whichever it is."""
    monkeypatch.setattr(file, "SAFE_TO_SHARE", (3, 0, 0))
    monkeypatch.setattr(place, "SAFE_TO_SHARE", (3, 0, 0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database that was made, used and closed."""
    made = tmp_path / "lro.db"
    anyio.run(_use, made)
    return made


async def _use(path: Path) -> None:
    async with open_store(url(path)) as store:
        await Operations(store).start(nothing)


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def doctor(*words: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *words])


def found(path: Path, **options: bool) -> dict[str, str]:
    """Return what was found, by check, each with its severity."""
    return {finding.check: f"{finding.severity}: {finding.what}" for finding in examine(url(path), **options).findings}


def change(path: Path, *statements: str, **values: object) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement, values)


def test_a_sound_database_is_0_and_its_facts_are_told(path: Path) -> None:
    result = doctor(url(path))
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{path}\n")
    assert "journal mode: wal" in result.stdout
    assert "operations: 1 PENDING" in result.stdout
    assert result.stdout.endswith("nothing is wrong\n")


async def test_it_changes_nothing(path: Path) -> None:
    before = {file.name: sha256(file.read_bytes()).digest() for file in path.parent.rglob("*") if file.is_file()}
    assert examine(url(path), thorough=True).sound
    after = {file.name: sha256(file.read_bytes()).digest() for file in path.parent.rglob("*") if file.is_file()}
    assert before == after


async def test_it_looks_beside_a_store_that_writes(path: Path) -> None:
    async with open_store(url(path)) as store:
        operations = Operations(store)

        async def look() -> None:
            assert await anyio.to_thread.run_sync(found, path) == {}

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(look)
            for _ in range(30):
                await operations.start(nothing)
        examination = await anyio.to_thread.run_sync(examine, url(path))
        assert examination.sound
        assert examination.facts["operations"] == {"PENDING": 31}
        assert examination.facts["stores"] == 1


def test_as_json_it_is_one_object(path: Path) -> None:
    path.chmod(0o644)
    result = doctor(url(path), "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["where"] == str(path)
    assert told["sound"] is False
    assert [(each["check"], each["severity"]) for each in told["findings"]] == [("file-mode", "warning")]
    assert told["findings"][0]["advice"] == f"chmod 600 {path}"


def test_a_file_that_is_not_there_is_5_and_is_not_made(tmp_path: Path) -> None:
    result = doctor(url(tmp_path / "none.db"))
    assert result.exit_code == 5
    assert "error file: it is not there\n  check the path; a store makes it at its first start" in result.stdout
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_there_is_missed(path: Path) -> None:
    path.unlink()
    assert found(path)["file"] == "error: a database was here, and it is not there"
    path.touch()
    assert found(path)["file"] == "error: a database was here, and it is empty"


@pytest.mark.parametrize("url", ["postgresql://localhost/db", "lro.db", "sqlite://lro.db"])
def test_what_names_no_file_is_2(url: str) -> None:
    result = doctor(url)
    assert result.exit_code == 2
    assert "lro doctor: " in result.stderr


def test_a_file_that_is_no_database_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "lro.db").write_bytes(b"something else" * 1000)
    (tmp_path / "lro.db").chmod(0o600)
    result = doctor(url(tmp_path / "lro.db"))
    assert result.exit_code == 5
    assert "error read: it can't be read: SQLITE_NOTADB" in result.stdout
    assert "put a backup in its place" in result.stdout


def test_damage_is_found(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.seek(4096 * 3)
        opened.write(b"\x5a" * 4096)
    result = doctor(url(path))
    assert result.exit_code == 1
    assert "error integrity: it is damaged: " in result.stdout


def test_an_index_that_lacks_rows_is_found_by_a_thorough_look(path: Path) -> None:
    change(
        path,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = replace(sql, 'WHERE deleted_at IS NULL', 'WHERE deleted_at IS NOT NULL') "
        "WHERE name = 'operations_listed'",
    )
    assert "integrity" not in found(path)
    assert found(path, thorough=True)["integrity"].startswith("error: it is damaged: ")


def test_a_database_of_another_is_told_from_one_that_lost_its_tables(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    change(other, "CREATE TABLE something (id)")
    other.chmod(0o600)
    assert found(other) == {"schema": "error: it is a database, and none of lro's"}
    change(path, "DROP TABLE workers")
    assert found(path)["schema"] == "error: it has lost its tables workers"


def test_a_newer_schema_is_found(path: Path) -> None:
    newer = (
        "INSERT INTO schema_migrations (number, name, checksum, applied_at, compatible) VALUES (99, 'x', 'x', 0, :ok)"
    )
    change(path, newer, ok=1)
    assert found(path)["schema"].startswith("note: a newer version of lro has opened it (schema 99)")
    change(path, "DELETE FROM schema_migrations WHERE number = 99", newer, ok=0)
    assert found(path)["schema"].startswith("error: it has schema 99, this version of lro knows up to 1")


def test_a_schema_with_another_history_is_found(path: Path) -> None:
    change(path, "UPDATE schema_migrations SET checksum = 'x'")
    assert found(path)["schema"] == "error: it: migration 1 (operations) is not the one that was applied there"


def test_another_journal_mode_is_found(path: Path) -> None:
    change(path, "PRAGMA journal_mode = DELETE")
    assert found(path)["journal-mode"] == "warning: its journal mode is delete"


def test_an_old_sqlite_is_noted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "SAFE_TO_SHARE", (99, 0, 0))
    assert found(path)["sqlite"].startswith(f"note: SQLite {sqlite3.sqlite_version} has the WAL-reset bug")
    assert examine(url(path)).sound


def test_a_directory_that_all_may_write_to_is_found(path: Path) -> None:
    path.parent.chmod(0o777)
    assert "everybody may put files into" in found(path)["directory"]


@pytest.mark.parametrize(
    ("check", "statement"),
    [
        ("pending", "UPDATE operations SET due_at = :then"),
        ("deadline", "UPDATE operations SET deadline_at = :then"),
        (
            "cancel",
            "UPDATE operations SET state = 'RUNNING', lease_owner = 'w', due_at = 9e15, cancel_requested_at = :then",
        ),
    ],
)
def test_an_operation_that_is_stuck_is_named(path: Path, check: str, statement: str) -> None:
    change(path, "DELETE FROM operations")
    now = micros(timedelta(seconds=sqlite_now(path)))
    record = sample_record(due_at=now)
    anyio.run(_insert, path, record)
    assert check not in found(path)
    change(path, statement, then=now - 2 * MINUTE)
    assert found(path)[check].startswith(f"warning: {record.name} ")


async def _insert(path: Path, record: Any) -> None:  # Any: through anyio.run
    async with open_store(url(path)) as store:
        await store.insert(record)


def sqlite_now(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT unixepoch()").fetchone()[0])


async def test_what_a_dead_worker_holds_is_told_and_who_will_settle_it(path: Path) -> None:
    change(path, "UPDATE operations SET state = 'RUNNING', lease_owner = 'gone'")
    path.with_name("lro.db.workers").joinpath("gone.lock").touch()
    assert found(path)["orphans"].startswith("note: operations/")
    async with open_store(url(path)) as store, Worker(store, [nothing]):
        assert "orphans" not in found(path)


Held = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def another(path: Path) -> Iterator[Held]:
    """Runs code in another process, which has the database open, until it says so."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"path = {str(path)!r}\n{code}\nprint('ready', flush=True)\nimport time\ntime.sleep(60)",
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


FOREIGN = (
    "import sqlite3; connection = sqlite3.connect(path); connection.execute('SELECT * FROM operations').fetchone()"
)
SERVING = """
import asyncio, threading
from lro.store import open_store
opened = threading.Event()
async def serve():
    async with open_store("sqlite:///" + path):
        opened.set()
        await asyncio.sleep(60)
threading.Thread(target=asyncio.run, args=[serve()], daemon=True).start()
assert opened.wait(20)
"""

linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux tells who has a file open")


@linux
def test_a_process_that_is_none_of_ours_is_found(path: Path, another: Held) -> None:
    process = another(FOREIGN)
    assert f"process {process.pid} (python" in found(path)["foreign"]


@linux
def test_a_process_that_stands_still_is_found_and_one_of_ours_is_no_stranger(path: Path, another: Held) -> None:
    process = another(SERVING)
    assert found(path) == {}
    assert examine(url(path)).facts["processes"] == [process.pid]
    process.send_signal(signal.SIGSTOP)
    assert found(path)["frozen"].endswith("stands still")
    process.send_signal(signal.SIGCONT)


@linux
def test_a_process_that_stands_still_in_a_write_is_found(path: Path, another: Held) -> None:
    process = another(
        SERVING + "import fcntl\nturn = open(path + '.workers/write.turn')\nfcntl.flock(turn, fcntl.LOCK_EX)"
    )
    assert (
        found(path)["writing"] == f"warning: process {process.pid} ({name_of(process.pid)}) has been writing for 0.5 s"
    )
    process.send_signal(signal.SIGSTOP)
    assert found(path)["frozen"].endswith("in the middle of a write: nobody can write until it goes on or ends")


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@linux
def test_a_file_that_was_put_in_the_place_of_one_in_use_is_found(path: Path, another: Held) -> None:
    process = another(SERVING)
    path.rename(path.with_name("away.db"))
    path.write_bytes(path.with_name("away.db").read_bytes())
    path.chmod(0o600)
    assert f"{process.pid} (" in found(path)["replaced"]


@linux
def test_a_file_that_was_removed_while_in_use_is_found(path: Path, another: Held) -> None:
    process = another(SERVING)
    path.unlink()
    assert str(process.pid) in found(path)["replaced"]
    assert found(path)["file"] == "error: a database was here, and it is not there"


def test_a_worker_whose_lock_is_held_is_alive(path: Path) -> None:
    lock = path.with_name("lro.db.workers") / "w.lock"
    change(path, "UPDATE operations SET state = 'RUNNING', lease_owner = 'w'")
    lock.touch()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert examine(url(path)).facts["workers"] == {"alive": 1, "dead": 0}
    assert examine(url(path)).facts["workers"] == {"alive": 0, "dead": 1}


def test_little_space_and_a_long_log_are_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LITTLE_SPACE", 2**62)
    monkeypatch.setattr(file, "LARGE_LOG", -1)
    assert "bytes are left on its disk" in found(path)["space"]
    assert "has grown to" in found(path)["log"]


def test_a_disk_of_the_network_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = file._file_system(path)
    assert kind
    monkeypatch.setattr(file, "NETWORKS", {kind})
    assert found(path)["file-system"] == f"error: it is on a network file system ({kind})"


def test_many_names_are_cut_short(path: Path) -> None:
    names = [f"operations/{number}" for number in range(7)]
    assert contents._some(names) == ", ".join(names[:5]) + " and 2 more"
