"""A worker that was given up and goes on: its event loop was blocked, or its host was out of sight."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread

from lro import Context, Operations, job
from lro.lifecycle import State
from lro.store.sqlite import SQLiteStore
from lro.worker import Worker
from tests.jobs import PATIENCE
from tests.places import Apart

LEASE = timedelta(seconds=0.6)


class Host:
    """One host: an event loop of its own, on a thread, and a worker that others know by its beats alone.

    Args:
        folder: Where the file is that all share.
        name: What it is called.
        holds_up: Called by the first attempt, on the event loop.
    """

    def __init__(self, folder: Path, name: str, holds_up: Callable[[], None]) -> None:
        self._folder = folder
        self.name = name
        self.began: list[int] = []
        self.ended: list[str] = []
        self.over = threading.Event()
        self.works = threading.Event()

        @job("printed", restartable=True)
        async def printed(ctx: Context) -> str:
            self.began.append(ctx.attempt)
            if ctx.attempt == 1:
                holds_up()
            try:
                await ctx.checkpoint()
            except BaseException:
                self.ended.append(f"stopped: {ctx.stop_reason}")
                raise
            self.ended.append("printed")
            return self.name

        self.job = printed

    async def _work(self) -> None:
        store = SQLiteStore(Apart(self._folder, self.name))
        async with store, Worker(store, [self.job], lease=LEASE, blocked_after=None):
            self.works.set()
            await anyio.to_thread.run_sync(self.over.wait)

    def run(self) -> None:
        anyio.run(self._work)


async def test_a_worker_whose_event_loop_is_blocked_is_given_up_and_what_it_makes_then_is_dropped(
    tmp_path: Path,
) -> None:
    """Its operation goes on elsewhere once; the first result stays, and the late attempt is told and stopped."""
    blocked, let_go = threading.Event(), threading.Event()

    def hold_up() -> None:
        blocked.set()
        assert let_go.wait(PATIENCE * 5)

    one, other = Host(tmp_path, "one", hold_up), Host(tmp_path, "other", lambda: None)
    threads = [threading.Thread(target=host.run) for host in (one, other)]
    async with SQLiteStore(Apart(tmp_path, "clients")) as store:
        operations = Operations(store)
        try:
            threads[0].start()
            assert await anyio.to_thread.run_sync(one.works.wait, PATIENCE)
            name = (await operations.start(one.job)).name
            assert await anyio.to_thread.run_sync(blocked.wait, PATIENCE)
            threads[1].start()
            with anyio.fail_after(PATIENCE * 5):
                ended = await operations.result(other.job, name)
            let_go.set()
            with anyio.fail_after(PATIENCE):
                while not one.ended:
                    await anyio.sleep(0.005)
            record = await store.get(name)
        finally:
            let_go.set()
            for host in (one, other):
                host.over.set()
            for thread in threads:
                if thread.is_alive():
                    await anyio.to_thread.run_sync(thread.join)
    assert ended == "other"
    assert record is not None
    assert (record.state, record.response, record.token) == (State.SUCCEEDED, '"other"', 2)
    assert (one.began, other.began) == ([1], [2])
    assert one.ended in (["stopped: LEASE_LOST"], ["printed"]), "told at its checkpoint, or refused at its end"
