"""Processes that share a file write in turns, and none is kept waiting by one that is gone."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from lro.errors import Unavailable
from lro.store import open_store
from lro.store.sqlite.turn import Turn
from lro.testing.contract import sample_record

pytestmark = pytest.mark.own_store

HOLDER = """
import os, pathlib, sys
from lro.store.sqlite.turn import Turn

turn = Turn(pathlib.Path(sys.argv[1]), 5)
turn.open()
with turn:
    child = os.fork() if sys.argv[2] == "fork" else None
    if child == 0:
        turn.close()  # as the store does in a child
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
print("free", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lro.db.workers" / "write.turn"


@pytest.fixture
def turn(path: Path) -> Iterator[Turn]:
    turn = Turn(path, 5)
    turn.open()
    yield turn
    turn.close()


class Holder:
    """A process that has its turn until it is told to go on."""

    def __init__(self, path: Path, mode: str = "") -> None:
        command = [sys.executable, "-W", "ignore", "-c", HOLDER, str(path), mode]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == "held"

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *error: object) -> None:
        with self.process:
            self.process.kill()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self._line() == "free"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def test_a_turn_is_waited_for(path: Path, turn: Turn) -> None:
    with Holder(path) as holder:
        told = threading.Thread(target=holder.go_on)
        with pytest.raises(BlockingIOError):
            _try(path)
        told.start()
        with turn:
            told.join(5)
            with pytest.raises(BlockingIOError):
                _try(path)
        _try(path)


def test_who_waits_too_long_hears_why(path: Path) -> None:
    hasty = Turn(path, 0.02)
    hasty.open()
    with Holder(path), pytest.raises(sqlite3.OperationalError, match=r"another process has been writing for 0.02 s"):
        hasty.__enter__()
    hasty.close()


@pytest.mark.parametrize("mode", ["", "fork"])
def test_a_killed_process_has_no_turn_and_nor_have_its_children(path: Path, turn: Turn, mode: str) -> None:
    with Holder(path, mode) as holder:
        holder.process.kill()
        holder.process.wait()
        began = time.monotonic()
        with turn:
            assert time.monotonic() - began < 2


def test_an_error_ends_the_turn(path: Path, turn: Turn) -> None:
    with pytest.raises(ZeroDivisionError), turn:
        1 / 0  # noqa: B018 -- that is the error
    _try(path)


async def test_a_write_behind_a_process_that_stands_still_is_refused_and_the_next_one_goes_through(
    tmp_path: Path, path: Path
) -> None:
    from datetime import timedelta

    async with open_store(f"sqlite:///{tmp_path}/lro.db", busy_timeout=timedelta(milliseconds=50)) as store:
        record = sample_record()
        with Holder(path) as holder:
            with pytest.raises(Unavailable, match="nothing was written"):
                await store.insert(record)
            await anyio.to_thread.run_sync(holder.go_on)
            assert await store.insert(record) == record


WRITER = """
import sys, uuid
import anyio
from lro.store import open_store
from lro.testing.contract import sample_record

async def main():
    async with open_store(sys.argv[1]) as store:
        async def write():
            for _ in range(25):
                await store.insert(sample_record(name=f"operations/{uuid.uuid4().hex[:26]}"))
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(write)

anyio.run(main)
"""


async def test_many_processes_write_one_file_and_lose_nothing(tmp_path: Path, url: str) -> None:
    async with open_store(url):
        command = [sys.executable, "-c", WRITER, url]
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(anyio.run_process, command)
    connection = sqlite3.connect(tmp_path / "lro.db")
    assert connection.execute("SELECT count(*) FROM operations").fetchone() == (4 * 8 * 25,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def _try(path: Path) -> None:
    """Take the lock and give it back, or raise BlockingIOError."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
