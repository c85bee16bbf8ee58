"""Operations by the thousand in one process, which looks at itself after each round; prints what it saw as JSON.

Run as `python -m tests.apps.soak_operations FOLDER WHAT ROUNDS A_ROUND [traced]`. WHAT is `operations`, a mix of
all ways in which one goes and ends, or `openings`, of stores and workers. A round is over when all of it has
ended and has been pruned: then nothing of it should be left.
"""

import asyncio
import gc
import json
import logging
import os
import sqlite3
import sys
import threading
import time
import tracemalloc
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel

import lro
from lro import Context, Job, Operation, Operations, SyncContext, Worker, job
from lro.errors import NotFound
from lro.store import open_store
from lro.store.sqlite import SQLiteStore

FILE = "soak.db"
AT_ONCE = 64
CONCURRENCY = 16
TTL = timedelta(milliseconds=300)
PATIENCE = 60  # seconds: the bound of every wait
LIBRARY = Path(lro.__file__).parent


class Pages(BaseModel):
    number: int
    text: str = "x" * 500


class Progress(BaseModel):
    done: int = 0


begun: dict[int, anyio.Event] = {}


@job("succeed", retention=TTL, progress=Progress)
async def succeed(ctx: Context[Progress], params: Pages) -> Pages:
    ctx.report(Progress(done=1))
    await ctx.checkpoint()
    return params


@job("save", retention=TTL, progress=Progress)
async def save(ctx: Context[Progress], params: Pages) -> str:
    await ctx.checkpoint(Progress(done=params.number))
    return params.text


@job("count", retention=TTL)
def count(ctx: SyncContext, params: Pages) -> int:
    ctx.checkpoint()
    return params.number


@job("fail", retention=TTL)
async def fail(ctx: Context, params: Pages) -> None:
    del ctx
    raise ArithmeticError(params.text)


@job("linger", retention=TTL)
async def linger(ctx: Context, params: Pages) -> None:
    begun[params.number].set()
    await ctx.sleep(PATIENCE)


JOBS: list[Job[Any, Any, Any]] = [succeed, save, count, fail, linger]


class Load:
    """Starts operations of all kinds, and sees each one to its end."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self.ends: Counter[str] = Counter()

    async def run(self, first: int, count_of: int) -> None:
        limiter = anyio.CapacityLimiter(AT_ONCE)
        async with anyio.create_task_group() as group:
            for number in range(first, first + count_of):
                await limiter.acquire_on_behalf_of(number)
                group.start_soon(self._one, number, limiter)

    async def _one(self, number: int, limiter: anyio.CapacityLimiter) -> None:
        kinds = (self._plain, self._saved, self._thread, self._failed, self._unstarted, self._stopped, self._left)
        kind = (*kinds, self._deleted, self._with_rows, self._refused)[number % 10]
        try:
            await kind(number)
        finally:
            limiter.release_on_behalf_of(number)

    async def _end(self, operation: Operation) -> None:
        try:
            with anyio.fail_after(PATIENCE):
                while not operation.done:
                    operation = await self._operations.wait(operation.name)
            self.ends[operation.state] += 1
        except NotFound:
            self.ends["pruned"] += 1  # on a busy machine sooner than we looked

    async def _plain(self, number: int) -> None:
        await self._end(await self._operations.start(succeed, Pages(number=number)))

    async def _saved(self, number: int) -> None:
        await self._end(await self._operations.start(save, Pages(number=number)))

    async def _thread(self, number: int) -> None:
        await self._end(await self._operations.start(count, Pages(number=number)))

    async def _failed(self, number: int) -> None:
        await self._end(await self._operations.start(fail, Pages(number=number)))

    async def _unstarted(self, number: int) -> None:
        later = datetime.now(UTC) + timedelta(hours=1)
        operation = await self._operations.start(succeed, Pages(number=number), schedule_at=later)
        await self._end(await self._operations.cancel(operation.name, reason="not wanted"))

    async def _running(self, number: int) -> Operation:
        begun[number] = anyio.Event()
        operation = await self._operations.start(linger, Pages(number=number))
        with anyio.fail_after(PATIENCE):
            await begun[number].wait()
        del begun[number]
        return operation

    async def _stopped(self, number: int) -> None:
        operation = await self._running(number)
        await self._end(await self._operations.cancel(operation.name, reason="not wanted any more"))

    async def _left(self, number: int) -> None:
        """Waits that give up: by their own time, and by being cancelled."""
        operation = await self._running(number)
        await self._operations.wait(operation.name, timedelta(milliseconds=1))
        with anyio.move_on_after(0.001):
            await self._operations.result(linger, operation.name)
        await self._end(await self._operations.cancel(operation.name))

    async def _deleted(self, number: int) -> None:
        operation = await self._operations.start(succeed, Pages(number=number))
        await self._operations.delete(operation.name)
        self.ends["deleted"] += 1

    async def _with_rows(self, number: int) -> None:
        await self._end(
            await self._operations.start(succeed, Pages(number=number), within=partial(replace_row, number))
        )

    async def _refused(self, number: int) -> None:
        def refuse(connection: sqlite3.Connection) -> None:
            replace_row(number, connection)
            raise ArithmeticError

        try:
            await self._operations.start(succeed, Pages(number=number), within=refuse)
        except ArithmeticError:
            self.ends["refused"] += 1


def replace_row(number: int, connection: sqlite3.Connection) -> None:
    connection.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", (number % 100, "x" * 100))


def make_rows(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, text TEXT)")


async def pruned(path: Path) -> None:
    """Wait until nothing is left in the file."""
    with anyio.fail_after(PATIENCE), closing(sqlite3.connect(path)) as connection:
        while connection.execute("SELECT COUNT(*) FROM operations").fetchone() != (0,):
            await anyio.sleep(0.02)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def look(path: Path) -> dict[str, Any]:  # Any: numbers
    gc.collect()
    seen: dict[str, Any] = {
        "objects": len(gc.get_objects()),
        "threads": threading.active_count(),
        "log": size(path.with_name(FILE + "-wal")),
        "file": size(path),
        "seconds": round(time.monotonic() - BEGAN, 2),
    }
    if (fds := Path("/proc/self/fd")).is_dir():
        seen["descriptors"] = sum(1 for _ in fds.iterdir())
        seen["memory"] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if tracemalloc.is_tracing():
        mine = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{LIBRARY}/*")])
        seen["traced"] = tracemalloc.get_traced_memory()[0]
        seen["library"] = sum(entry.size for entry in mine.statistics("filename"))
    return seen


async def soak_operations(path: Path, rounds: int, a_round: int) -> list[dict[str, Any]]:
    seen = []
    async with open_store(f"sqlite:///{path}") as store, Worker(store, JOBS, concurrency=CONCURRENCY) as worker:
        assert isinstance(store, SQLiteStore)
        operations = Operations(store)
        await operations.start(succeed, Pages(number=0), within=make_rows)
        for number in range(rounds):
            load = Load(operations)
            await load.run(number * a_round, a_round)
            await pruned(path)
            left = {
                "waiting": operations.waiting,
                "watches": len(store._hub._watches),
                "listeners": len(store._hub._listeners),
                "running": len(worker.running),
                "tasks": len(asyncio.all_tasks()),
                "failures": store._supervisor.failures + worker._supervisor.failures,
            }
            seen.append({**look(path), "left": left, "ends": load.ends})
    return seen


async def soak_openings(path: Path, rounds: int, a_round: int) -> list[dict[str, Any]]:
    seen = []
    for _ in range(rounds):
        for number in range(a_round):
            async with open_store(f"sqlite:///{path}") as store, Worker(store, JOBS):
                operations = Operations(store)
                await Load(operations)._plain(number)
        seen.append({**look(path), "left": {"tasks": len(asyncio.all_tasks())}, "ends": {}})
    return seen


BEGAN = time.monotonic()


def main(folder: str, what: str, rounds: str, a_round: str, traced: str = "") -> None:
    logging.getLogger().addHandler(logging.NullHandler())  # every failure of a job is logged with its traceback
    soak = {"operations": soak_operations, "openings": soak_openings}[what]
    path = Path(folder) / FILE
    before = look(path)
    if traced:
        tracemalloc.start(1)
    seen = anyio.run(soak, path, int(rounds), int(a_round))
    sys.stdout.write(json.dumps({"before": before, "rounds": seen, "after": look(path)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
