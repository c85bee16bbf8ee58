"""Processes that share a file hear of each other's commits, and not of their own."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from lro.lifecycle import Record
from lro.store import open_store
from lro.store.sqlite.bell import Bell
from lro.testing.contract import sample_record

pytestmark = pytest.mark.own_store

LEASE = 30_000_000

_OTHER = """
import anyio, sys
from lro.store import open_store
from lro.testing.contract import sample_record

async def main():
    async with open_store(sys.argv[1]) as store:
        print("open", flush=True)
        for line in sys.stdin:
            await store.insert(sample_record(name=line.strip()))
            print("written", flush=True)

anyio.run(main)
"""


class Ear:
    """Counts hints, those that say what changed and those that do not."""

    def __init__(self) -> None:
        self.known: list[Record] = []
        self.unknown = 0
        self._heard = anyio.Event()

    def __call__(self, record: Record | None) -> None:
        if record is None:
            self.unknown += 1
        else:
            self.known.append(record)
        self._heard.set()

    async def heard(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(5):
            while not condition():
                self._heard = anyio.Event()
                await self._heard.wait()


async def test_a_commit_of_another_process_is_noticed(url: str) -> None:
    async with open_store(url) as store:
        ear = Ear()
        store.listen(ear)
        with subprocess.Popen(  # noqa: ASYNC220 -- its pipes are read in a thread
            [sys.executable, "-c", _OTHER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            assert await anyio.to_thread.run_sync(other.stdout.readline) == "open\n"
            before = ear.unknown
            with store.watch("operations/theirs") as watch:
                other.stdin.write("operations/theirs\n")
                assert await anyio.to_thread.run_sync(other.stdout.readline) == "written\n"
                await ear.heard(lambda: ear.unknown > before)
                assert await watch.changed(5) is None
            assert await store.get("operations/theirs") is not None
            other.stdin.close()


async def test_own_commits_are_told_once_and_as_what_they_are(url: str) -> None:
    async with open_store(url) as store:
        ear = Ear()
        store.listen(ear)
        for _ in range(30):
            await store.insert(sample_record())
        assert len(ear.known) == 30
        assert ear.unknown == 0


async def test_a_foreign_commit_among_own_ones_is_noticed(url: str) -> None:
    async with open_store(url) as store, open_store(url) as other:
        ear = Ear()
        store.listen(ear)
        with anyio.fail_after(5):
            while ear.unknown < 5:
                await store.insert(sample_record())
                await other.insert(sample_record())
                await store.insert(sample_record())


async def test_a_search_that_finds_nothing_takes_no_write_lock(url: str, tmp_path: Path) -> None:
    import sqlite3

    async with open_store(url) as store:
        await store.join("w", LEASE)
        blocker = sqlite3.connect(tmp_path / "lro.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        try:
            with anyio.fail_after(2):
                assert not await store.claim("w", ["sample"], 10)
        finally:
            blocker.execute("ROLLBACK")
            blocker.close()


async def test_an_idle_store_costs_next_to_nothing(url: str) -> None:
    async with open_store(url):
        await anyio.sleep(0.2)
        began, used = time.monotonic(), time.process_time()
        await anyio.sleep(1.5)
        share = (time.process_time() - used) / (time.monotonic() - began)
    assert share < 0.05, f"an idle store took {share:.1%} of a core"  # measured 0.1 %


async def test_the_bell_of_a_dead_process_is_taken_down(url: str, tmp_path: Path) -> None:
    with subprocess.Popen(  # noqa: ASYNC220 -- its pipes are read in a thread
        [sys.executable, "-c", _OTHER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert await anyio.to_thread.run_sync(other.stdout.readline) == "open\n"
        other.kill()
    bells = tmp_path / "lro.db.workers"
    assert len(list(bells.glob("*.bell"))) == 1
    async with open_store(url) as store:
        await store.insert(sample_record())
        assert len(list(bells.glob("*.bell"))) == 1, "its own, and no other"
    assert not list(bells.glob("*.bell"))


async def test_many_rings_are_few_tellings_and_the_last_one_is_told(tmp_path: Path) -> None:
    told: list[float] = []
    heard = anyio.Event()

    def tell() -> None:
        told.append(time.monotonic())
        if len(told) >= 2:
            heard.set()

    one, other = Bell(tmp_path / "bells", tell), Bell(tmp_path / "bells", lambda: None)
    one.open()
    other.open()
    try:
        for _ in range(200):
            other.ring()
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        other.ring()
        with anyio.fail_after(5):
            await heard.wait()
        assert len(told) < 20
    finally:
        one.close()
        other.close()
        other.close()  # once is enough
    other.ring()


async def test_where_no_bell_can_hang_the_store_works_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    caplog.set_level("INFO")
    async with open_store(f"sqlite:///{deep}/lro.db") as store:
        await store.insert(sample_record())
        assert store.ready
    assert "no hints from other processes" in caplog.text
