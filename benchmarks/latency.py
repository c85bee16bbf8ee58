"""Latency in process, one operation at a time: from start to the job's first line, from cancel to CANCELLED."""

import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from benchmarks.figure import Figure, Plan, percentiles
from lro import Context, Operations, State, Worker, job
from lro.store import open_store

__all__ = ["measure"]

SETTLE = 0.005  # seconds: claimer, writer and waiter are parked again
PATIENCE = 10.0


class _Probe:
    """What a job tells its caller, past the library."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.running = anyio.Event()
        self.first_line = 0.0

    def note(self) -> None:
        self.first_line = time.perf_counter()
        self.running.set()


_probe = _Probe()


@job("benchmarks.mark")
async def mark(_ctx: Context) -> None:
    """Note the time of the first line."""
    _probe.note()


@job("benchmarks.sleeper")
async def sleeper(ctx: Context) -> None:
    """Sleep until cancelled."""
    _probe.note()
    await ctx.sleep(PATIENCE)


def measure(plan: Plan, directory: Path) -> Iterator[Figure]:
    """Measure both on one store with an otherwise idle worker."""
    yield from anyio.run(_measure, plan, directory / "latency.db")


async def _measure(plan: Plan, path: Path) -> list[Figure]:
    async with open_store(f"sqlite:///{path}") as store, Worker(store, [mark, sleeper]):
        operations = Operations(store)
        starts, acknowledged = zip(*[await _start(operations) for _ in range(plan.samples)], strict=True)
        cancels = [await _cancel(operations) for _ in range(plan.samples)]
    return [
        *percentiles("start to the job's first line", starts, "idle worker"),
        *percentiles("start acknowledged", acknowledged, "idle worker"),
        *percentiles("cancel to wait's CANCELLED", cancels, "job in ctx.sleep, waiter parked"),
    ]


async def _start(operations: Operations) -> tuple[float, float]:
    _probe.reset()
    began = time.perf_counter()
    operation = await operations.start(mark)
    acknowledged = time.perf_counter() - began
    with anyio.fail_after(PATIENCE):
        await _probe.running.wait()
    assert (await operations.wait(operation.name)).state is State.SUCCEEDED
    await anyio.sleep(SETTLE)
    return _probe.first_line - began, acknowledged


async def _cancel(operations: Operations) -> float:
    _probe.reset()
    name = (await operations.start(sleeper)).name
    woken = 0.0

    async def wait() -> None:
        nonlocal woken
        operation = await operations.wait(name)
        woken = time.perf_counter()
        assert operation.state is State.CANCELLED, operation.state

    with anyio.fail_after(PATIENCE):
        await _probe.running.wait()
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(SETTLE)
            began = time.perf_counter()
            await operations.cancel(name)
    return woken - began
