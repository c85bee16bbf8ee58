"""Starts of operations with rows of the caller's own, killed at each SQL statement in turn.

Run as `python -m tests.apps.atomic FOLDER SCENARIO [unanswered]`. One process imports everything and forks: each
fork opens a fresh copy of the same file, starts the scenario's operations, and kills itself at the n-th statement
on the writing connection; the next fork gets one statement further, until one runs through. A last one is killed
between the commit and the answer; `unanswered` does that alone. Each leaves its file and its log in a folder of
its own, `FOLDER/001/`, for others to judge.
"""

import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import anyio

from lro import Context, LROError, Operations, job
from lro.store import Store, open_store
from lro.store.base import Within
from lro.store.sqlite import SQLiteStore

FILE, LOG = "books.db", "log"
PATIENCE = 30  # seconds until a run that hangs is ended by its alarm
CALLERS = 5
ROWS = 2  # of each caller: a book and its chapter
LARGE = 2_500  # pages of 4 KiB: more than the connection's cache holds, so that they reach the WAL before the commit
LOAD_KILLS = 12

TABLES = (
    "CREATE TABLE books (id INTEGER PRIMARY KEY, caller TEXT NOT NULL, text BLOB)",
    "CREATE TABLE chapters (caller TEXT NOT NULL, book INTEGER REFERENCES books (id) DEFERRABLE INITIALLY DEFERRED)",
)


@job("books.print")
async def print_book(ctx: Context) -> None:
    del ctx


Point = Callable[[str], None]
"""Called with what is about to happen; may never return."""


def executing(*statements: str) -> Within:
    def within(connection: sqlite3.Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    return within


def adding(caller: str, *, error: Exception | None = None, lost: bool = False) -> Within:
    """Return a function that writes the caller's rows; it may fail, or refer to a book that is not there."""

    def within(connection: sqlite3.Connection) -> None:
        book = connection.execute("INSERT INTO books (caller) VALUES (?)", (caller,)).lastrowid
        connection.execute("INSERT INTO chapters VALUES (?, ?)", (caller, -1 if lost else book))
        if error is not None:
            raise error

    return within


def adding_much(caller: str, rows: int) -> Within:
    def within(connection: sqlite3.Connection) -> None:
        connection.execute(
            """WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
            INSERT INTO books (caller, text) SELECT ?, zeroblob(4000) FROM numbers""",
            (rows, caller),
        )
        adding(caller)(connection)

    return within


async def trace(store: Store, point: Point, *, every: int = 0) -> None:
    """Call `point` before each statement on the writing connection, and after each so many steps of one."""
    assert isinstance(store, SQLiteStore)

    def install(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(point)
        if every:
            connection.set_progress_handler(partial(point, "a step"), every)

    await store._writer.run(install)


async def enforce_foreign_keys(store: Store) -> None:
    assert isinstance(store, SQLiteStore)
    await store._writer.run(executing("PRAGMA foreign_keys = ON"))


async def start(operations: Operations, caller: str, within: Within, tell: Callable[[str], None]) -> None:
    """Start an operation, and tell of it once it is acknowledged."""
    with suppress(ArithmeticError, LROError):  # our own, and the refusal of what the commit does not bear
        operation = await operations.start(print_book, request_id=caller, target=caller, within=within)
        tell(f"ack {caller} {operation.name}")


async def start_one(store: Store, point: Point, tell: Callable[[str], None]) -> None:
    await trace(store, point)
    await start(Operations(store), "one", adding("one"), tell)


async def start_batch(store: Store, point: Point, tell: Callable[[str], None]) -> None:
    """Some at once: one whose function fails after it has written, the others are to stay."""
    await trace(store, point)
    async with anyio.create_task_group() as group:
        for number in range(CALLERS):
            error = ArithmeticError() if number == 2 else None
            group.start_soon(start, Operations(store), f"{number}", adding(f"{number}", error=error), tell)


async def start_lost(store: Store, point: Point, tell: Callable[[str], None]) -> None:
    """Some at once: one breaks a constraint that is looked at by the commit, which fails for all."""
    await enforce_foreign_keys(store)
    await trace(store, point)
    async with anyio.create_task_group() as group:
        for number in range(CALLERS):
            group.start_soon(start, Operations(store), f"{number}", adding(f"{number}", lost=number == 2), tell)


async def start_large(store: Store, point: Point, tell: Callable[[str], None]) -> None:
    await trace(store, point, every=10_000)
    await start(Operations(store), "large", adding_much("large", LARGE), tell)


async def start_many(store: Store, point: Point, tell: Callable[[str], None]) -> None:
    """Callers that start one operation after the other, every fifth in vain, until the kill."""
    await trace(store, point)

    async def keep_starting(who: int) -> None:
        for number in count():
            caller = f"{who}.{number}"
            error = ArithmeticError() if (who + number) % 5 == 0 else None
            await start(Operations(store), caller, adding(caller, error=error), tell)

    async with anyio.create_task_group() as group:
        for who in range(8):
            group.start_soon(keep_starting, who)


Scenario = Callable[[Store, Point, Callable[[str], None]], Any]  # Any: a coroutine
SCENARIOS: dict[str, Scenario] = {
    "one": start_one,
    "batch": start_batch,
    "lost": start_lost,
    "large": start_large,
    "many": start_many,
}


async def make(path: Path) -> None:
    async with open_store(f"sqlite:///{path}") as store:
        await Operations(store).start(print_book, within=executing(*TABLES))


async def play(folder: Path, scenario: Scenario, kill_at: int | None) -> None:
    """Carry the scenario out, killed at the n-th point, or, with None, after its first commit."""
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    points = count(1)

    def tell(what: str) -> None:
        os.write(log, f"{' '.join(what.split())}\n".encode())

    def kill() -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("the dead go on")

    def point(what: str) -> None:
        tell(f"at {what}")
        if next(points) == kill_at:
            kill()

    async with open_store(f"sqlite:///{folder / FILE}") as store:
        if kill_at is None:
            store.listen(lambda _: kill())
        await scenario(store, point, tell)
    tell("through")


def in_fork(function: Callable[..., Any], *arguments: object) -> int:  # Any: a coroutine function
    """Run it in a process of its own and return how that ended: 0, 1 or minus the signal's number."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        signal.alarm(PATIENCE)
        anyio.run(function, *arguments)
        status = 0
    finally:
        os._exit(status)


def main(folder: Path, name: str, kill: str = "at each statement") -> None:
    assert in_fork(make, folder / FILE) == 0
    numbers = count(1)

    def run(kill_at: int | None) -> int:
        fresh = folder / f"{next(numbers):03}"
        fresh.mkdir()
        shutil.copy(folder / FILE, fresh)
        return in_fork(play, fresh, SCENARIOS[name], kill_at)

    if name == "many":
        seeded = Random(1)
        assert {run(seeded.randrange(200, 2500)) for _ in range(LOAD_KILLS)} == {-signal.SIGKILL}
        return
    if kill == "at each statement":
        for number in count(1):
            if (status := run(number)) != -signal.SIGKILL:
                break
        assert status == 0, "a run failed"
    assert run(None) == -signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
