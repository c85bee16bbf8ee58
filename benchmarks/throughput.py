"""Throughput: operations per second from the acknowledged create to the durable end, and what SQLite itself does.

The library, sqlite3 at its best (batches of 100 on one thread) and the naive way (one awaited commit a row)
take turns on fresh files of the same schema and durability.
"""

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import aiosqlite
import anyio

from benchmarks.figure import Figure, Plan, median
from lro import Context, Operations, State, Worker, job, lifecycle
from lro.lifecycle import Facts, Record, Returned
from lro.resource import new_name
from lro.store import open_store
from lro.store.migrations import shipped
from lro.store.sqlite import statements

__all__ = ["library", "measure", "nothing"]

CALLERS = 64
CONCURRENCY = 100
WARM_UP = 200  # operations before the clock starts
BATCH = 100  # rows a transaction of the raw yardstick
PATIENCE = 120.0  # seconds until a round counts as stuck

Row = tuple[object, ...]


@job("benchmarks.nothing")
async def nothing(_ctx: Context) -> None:
    """Do nothing."""


def measure(plan: Plan, directory: Path) -> Iterator[Figure]:
    """Measure all four in turn; a ratio is the median of the rounds' own."""
    many: list[float] = []
    acknowledged: list[float] = []
    one: list[float] = []
    best: list[float] = []
    naive: list[float] = []
    sample = anyio.run(_sample, directory / "sample.db")
    for turn in range(plan.rounds):
        both = anyio.run(library, directory / f"many{turn}.db", CALLERS, plan.operations)
        acknowledged.append(both[0])
        many.append(both[1])
        best.append(_raw(directory / f"raw{turn}.db", sample, plan.operations // BATCH * BATCH))
        one.append(anyio.run(library, directory / f"one{turn}.db", 1, plan.sequential)[1])
        naive.append(anyio.run(_naive, directory / f"naive{turn}.db", sample, plan.sequential))
    yield median(f"lro, {CALLERS} callers", many, "ops/s", f"{plan.operations} operations a round")
    yield median(f"lro, {CALLERS} callers, acknowledged", acknowledged, "ops/s", "the creates alone, worker busy")
    yield median("lro, 1 caller", one, "ops/s", f"{plan.sequential} operations a round, each start awaited")
    yield median("raw sqlite3", best, "ops/s", f"1 insert + 2 updates each, {BATCH} a transaction, one thread")
    yield median("naive aiosqlite", naive, "ops/s", "the same rows, await execute + commit one at a time")
    yield _ratio(f"lro, {CALLERS} callers / raw", many, best)
    yield _ratio("lro, 1 caller / naive", one, naive)
    yield _ratio(f"lro, {CALLERS} callers / naive", many, naive)


def _ratio(name: str, ours: list[float], theirs: list[float]) -> Figure:
    return median(name, [mine / other for mine, other in zip(ours, theirs, strict=True)], "x")


async def library(path: Path, callers: int, count: int) -> tuple[float, float]:
    """Run `count` operations, and return those acknowledged and those ended a second."""
    async with open_store(f"sqlite:///{path}") as store, Worker(store, [nothing], concurrency=CONCURRENCY):
        operations = Operations(store)
        await _run(operations, callers, WARM_UP)
        rates = await _run(operations, callers, count)
    with sqlite3.connect(path) as connection:
        (ended,) = connection.execute("SELECT count(*) FROM operations WHERE state = 'SUCCEEDED'").fetchone()
    connection.close()
    assert ended == count + WARM_UP, f"{ended} of {count + WARM_UP} operations are in the file as SUCCEEDED"
    return rates


async def _run(operations: Operations, callers: int, count: int) -> tuple[float, float]:
    left = count
    over = anyio.Event()

    def notice(record: Record | None) -> None:
        nonlocal left
        if record is not None and record.state is State.SUCCEEDED:
            left -= 1
            if not left:
                over.set()

    async def call(turns: Iterator[int]) -> None:
        for _ in turns:
            await operations.start(nothing)

    stop = operations.store.listen(notice)
    began = time.perf_counter()
    turns = iter(range(count))
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(call, turns)
        acknowledged = time.perf_counter()
        await over.wait()
    ended = time.perf_counter()
    stop()
    return count / (acknowledged - began), count / (ended - began)


@dataclass(frozen=True, slots=True)
class _Sample:
    """A real operation of the library's as statements: its three writes, the updates cut down to what changes."""

    record: Record
    claim: str
    claimed: Row
    finish: str
    finished: Row

    def inserts(self, names: list[str]) -> list[Row]:
        return [_plain(self.record._replace(name=name)) for name in names]

    def claims(self, names: list[str]) -> list[Row]:
        return [(*self.claimed, name, 1) for name in names]

    def finishes(self, names: list[str]) -> list[Row]:
        return [(*self.finished, name, 2) for name in names]


async def _sample(path: Path) -> _Sample:
    async with open_store(f"sqlite:///{path}") as store:
        operations = Operations(store)
        record = await operations.get_record((await operations.start(nothing)).name)
    facts = Facts(record.created_at + 1)
    running = lifecycle.claim(record, facts, owner="0" * 32, lease_time=30_000_000)
    assert running.lease is not None
    done = lifecycle.finish(running, facts, lease=running.lease, outcome=Returned("null"))
    return _Sample(record, *_update(record, running), *_update(running, done))


def _update(old: Record, new: Record) -> tuple[str, Row]:
    changed = [field for field in statements.CHANGING if getattr(old, field) != getattr(new, field)]
    text = f"UPDATE operations SET {', '.join(f'{field} = ?' for field in changed)} WHERE name = ? AND version = ?"
    return text, _plain([getattr(new, field) for field in changed])


def _plain(values: Record | list[object]) -> Row:
    return tuple(value.value if isinstance(value, Enum) else value for value in values)


def _create(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    for migration in shipped("sqlite"):
        connection.executescript(migration.sql)
    connection.close()


def _raw(path: Path, sample: _Sample, count: int) -> float:
    """Return operations a second of one thread that has all rows ready."""
    _create(path)
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    connection.execute("PRAGMA synchronous = FULL")
    work: list[tuple[str, list[Row]]] = []
    for _ in range(count // BATCH):
        names = [new_name("", sample.record.created_at) for _ in range(BATCH)]
        work.append((statements.INSERT, sample.inserts(names)))
        work.append((sample.claim, sample.claims(names)))
        work.append((sample.finish, sample.finishes(names)))
    began = time.perf_counter()
    for statement, rows in work:
        connection.execute("BEGIN IMMEDIATE")
        assert connection.executemany(statement, rows).rowcount == BATCH
        connection.execute("COMMIT")
    taken = time.perf_counter() - began
    connection.close()
    return count / taken


async def _naive(path: Path, sample: _Sample, count: int) -> float:
    """Return operations a second of a caller that awaits execute and commit of every row."""
    _create(path)
    names = [new_name("", sample.record.created_at) for _ in range(count)]
    rows = zip(sample.inserts(names), sample.claims(names), sample.finishes(names), strict=True)
    async with aiosqlite.connect(path) as connection:
        await connection.execute("PRAGMA synchronous = FULL")
        began = time.perf_counter()
        for insert, claim, finish in rows:
            for statement, row in ((statements.INSERT, insert), (sample.claim, claim), (sample.finish, finish)):
                await connection.execute(statement, row)
                await connection.commit()
        taken = time.perf_counter() - began
    return count / taken
