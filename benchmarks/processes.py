"""Two processes on one file: how soon one notices what the other commits, what that costs while nothing happens, and
how they share the right to write.

Times are compared across processes: perf_counter() is the machine's monotonic clock on Linux and macOS.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import anyio

from benchmarks.figure import Figure, Plan, percentiles
from lro import Context, Operations, State, Worker, job
from lro.store import open_store

__all__ = ["measure"]

SETTLE = 0.005  # seconds: everyone is parked again
PATIENCE = 10.0
IDLE = 3.0  # seconds
CALLERS = 16


@job("benchmarks.mark")
async def mark(_ctx: Context) -> None:
    """Tell the time of the first line."""
    _tell("first", time.perf_counter())


@job("benchmarks.sleeper")
async def sleeper(ctx: Context) -> None:
    """Sleep until cancelled, and tell when that was."""
    _tell("first", time.perf_counter())
    try:
        await ctx.sleep(PATIENCE)
    finally:
        _tell("stopped", time.perf_counter())


def measure(plan: Plan, directory: Path) -> Iterator[Figure]:
    """Measure an API process and a worker process, then two that write as fast as they can."""
    yield from anyio.run(_hint, plan, f"sqlite:///{directory}/hints.db")
    yield from anyio.run(_notice, plan, f"sqlite:///{directory}/processes.db")
    yield from _contend(plan, f"sqlite:///{directory}/contended.db")


async def _hint(plan: Plan, url: str) -> list[Figure]:
    taken: list[float] = []
    async with open_store(url) as store:
        operations = Operations(store)
        with _Other("listen", url) as other:
            other.read("ready")
            for _ in range(plan.samples):
                await operations.start(mark)
                acknowledged = time.perf_counter()
                taken.append(await anyio.to_thread.run_sync(other.read, "heard") - acknowledged)
                await anyio.sleep(SETTLE)
    return percentiles("start acknowledged to noticed in another process", taken, "both idle")


async def _notice(plan: Plan, url: str) -> list[Figure]:
    starts: list[float] = []
    stops: list[float] = []
    ends: list[float] = []
    async with open_store(url) as store:
        operations = Operations(store)
        with _Other("work", url) as other:
            other.read("ready")
            for _ in range(plan.samples):
                began = time.perf_counter()
                name = (await operations.start(mark)).name
                starts.append(await anyio.to_thread.run_sync(other.read, "first") - began)
                assert (await operations.wait(name)).state is State.SUCCEEDED
                await anyio.sleep(SETTLE)
            for _ in range(plan.samples // 2):
                stopped, ended = await _cancel(operations, other)
                stops.append(stopped)
                ends.append(ended)
            used = other.processor_time()
            own, began = time.process_time(), time.monotonic()
            await anyio.sleep(IDLE)
            share, passed = time.process_time() - own, time.monotonic() - began
            idle = other.processor_time() - used
    return [
        *percentiles("start to the first line in another process", starts, "idle worker there"),
        *percentiles("cancel to the job stopped in another process", stops, "job in ctx.sleep there"),
        *percentiles("cancel to wait's CANCELLED, job in another process", ends, "waiter parked here"),
        Figure("idle worker process", 100 * idle / passed, "% of a core", f"over {IDLE:.0f} s"),
        Figure("idle API process beside it", 100 * share / passed, "% of a core", f"over {IDLE:.0f} s"),
    ]


async def _cancel(operations: Operations, other: "_Other") -> tuple[float, float]:
    name = (await operations.start(sleeper)).name
    await anyio.to_thread.run_sync(other.read, "first")
    woken = 0.0

    async def wait() -> None:
        nonlocal woken
        assert (await operations.wait(name)).state is State.CANCELLED
        woken = time.perf_counter()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(SETTLE)
        began = time.perf_counter()
        await operations.cancel(name)
        stopped = await anyio.to_thread.run_sync(other.read, "stopped")
    return stopped - began, woken - began


def _contend(plan: Plan, url: str) -> Iterator[Figure]:
    """Let two processes start operations at once."""
    with _Other("start", url, str(plan.seconds)) as one, _Other("start", url, str(plan.seconds)) as two:
        rates, slow, slowest = zip(
            *[[other.read(what) for what in ("rate", "p99", "max")] for other in (one, two)], strict=True
        )
    note = f"2 processes, {CALLERS} callers each"
    yield Figure("starts acknowledged", sum(rates), "/s", note)
    yield Figure("start acknowledged, p99", max(slow) * 1000, "ms", note)
    yield Figure("start acknowledged, longest", max(slowest) * 1000, "ms", note)


class _Other:
    """This module in a process of its own, and what it tells."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.processes", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()  # it ends with its input

    def read(self, what: str) -> float:
        """Wait for the next thing that it tells, which must be this."""
        assert self._process.stdout is not None
        found, value = self._process.stdout.readline().split()
        assert found == what, found
        return float(value)

    def processor_time(self) -> float:
        """Ask for the processor time that it has used, in seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return self.read("used")


def _tell(what: str, value: float) -> None:
    sys.stdout.write(f"{what} {value!r}\n")
    sys.stdout.flush()


async def _listen(url: str) -> None:
    async with open_store(url) as store:
        store.listen(lambda record: _tell("heard", time.perf_counter()))
        _tell("ready", 0)
        await anyio.to_thread.run_sync(sys.stdin.readline)


async def _work(url: str) -> None:
    async with open_store(url) as store, Worker(store, [mark, sleeper]):
        _tell("ready", 0)
        while await anyio.to_thread.run_sync(sys.stdin.readline):
            _tell("used", time.process_time())


async def _start(url: str, seconds: str) -> None:
    taken: list[float] = []
    async with open_store(url) as store:
        operations = Operations(store)
        end = time.monotonic() + float(seconds)

        async def call() -> None:
            while time.monotonic() < end:
                began = time.perf_counter()
                await operations.start(mark)
                taken.append(time.perf_counter() - began)

        async with anyio.create_task_group() as group:
            for _ in range(CALLERS):
                group.start_soon(call)
    taken.sort()
    for what, value in (
        ("rate", len(taken) / float(seconds)),
        ("p99", taken[len(taken) * 99 // 100]),
        ("max", taken[-1]),
    ):
        _tell(what, value)


if __name__ == "__main__":
    _, what, url, *more = sys.argv
    if what == "start":
        anyio.run(_start, url, more[0])
    else:
        anyio.run({"listen": _listen, "work": _work}[what], url)
