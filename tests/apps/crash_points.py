"""A whole life of a service, killed at each named point of each kind of write, and what its next life makes of it.

Run as `python -m tests.apps.crash_points FOLDER HITS`. One process imports everything and forks. A first fork leaves a
file with operations whose worker was killed, and some that have had their time. Each further one opens a copy of it,
starts, runs, cancels and deletes operations, and kills itself at one point: `KIND MOMENT`, the n-th time that it gets
there. Another then opens what is left and brings everything to its end. All of them write what clients were told, and
which attempts began, to a log, for others to judge; `FOLDER/points` has the points, how often a life passes each, and
which folder has which kill.
"""

import json
import os
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import anyio
from pydantic import BaseModel

from lro import Context, LROError, Operations, RetryPolicy, State, Worker, job
from lro.errors import NotFound
from lro.lifecycle import Record, StopReason
from lro.store import engine
from lro.store.batch import AnyRequest, Beat, Due, Insert, Leave, Select, Update
from lro.store.sqlite import SQLiteStore
from lro.store.sqlite.place import File
from lro.store.sqlite.within import LendingConnection

FILE, LOG, POINTS = "life.db", "log", "points"
PATIENCE = 30  # seconds until a run that hangs is ended by its alarm
MOMENTS = {"BEGIN": "before BEGIN", "INSERT": "before a write", "UPDATE": "before a write", "DELETE": "before a write"}
SOCKETS = shutil.ignore_patterns("*.bell")
COMMIT, COMMITTED = "before COMMIT", "after COMMIT"

_log = -1


def tell(*words: object) -> None:
    os.write(_log, f"{' '.join(map(str, words))}\n".encode())


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("the dead go on")


class Pages(BaseModel):
    done: int = 0


@contextmanager
def noted(ctx: Context[Pages]) -> Iterator[None]:
    """Note that an attempt begins, and if a shutdown takes it back: then the next one has its number."""
    tell("begin", ctx.name, ctx.attempt)
    try:
        yield
    finally:
        if ctx.stop_reason is StopReason.SHUTDOWN:
            tell("back", ctx.name, ctx.attempt)


@job("once")
async def once(ctx: Context[Pages]) -> int:
    with noted(ctx):
        for page in range(3):
            await ctx.checkpoint(Pages(done=page))
    return 3


@job("again", restartable=True, retry=RetryPolicy(attempts=4, initial_delay=timedelta(0)))
async def again(ctx: Context[Pages]) -> int:
    with noted(ctx):
        for page in range(ctx.progress.done, 3):
            await ctx.checkpoint(Pages(done=page))
    if ctx.attempt == 1:
        raise OSError("once more")
    return 3


@job("long", restartable=True)
async def long(ctx: Context[Pages]) -> int:
    with noted(ctx):
        for page in range(1000):
            await ctx.sleep(0.02)
            if SECOND_LIFE and page == 5:
                break
    return 3


SECOND_LIFE: list[bool] = []
JOBS = [once, again, long]


class Marked(SQLiteStore):
    """A store that says at which point of which write it is.

    Args:
        path: Its file.
        point: Called at each.
    """

    def __init__(self, path: Path, point: Callable[[str], None]) -> None:
        super().__init__(File(path, durability="process", busy_timeout=timedelta(seconds=5)))
        self._point = point

    def _transact(self, batch: Sequence[AnyRequest], connection: LendingConnection) -> Sequence[Record]:
        kinds = sorted({kind_of(request) for request in batch})

        def trace(statement: str) -> None:
            moment = COMMIT if statement == "COMMIT" else MOMENTS.get(statement.split(None, 1)[0])
            if moment is not None:
                for kind in kinds:
                    self._point(f"{kind}, {moment}")

        connection.set_trace_callback(trace)
        try:
            written = super()._transact(batch, connection)
        finally:
            connection.set_trace_callback(None)
        for kind in kinds:
            self._point(f"{kind}, {COMMITTED}")
        return written


def kind_of(request: AnyRequest) -> str:
    match request:
        case Insert():
            return "start"
        case Select(query=Due()):
            return "claim"
        case Select():
            return "take-over and expiry"
        case Update(transition=transition):
            return _name_of(transition).replace("request_cancel", "cancel").replace("_", " ")
        case Beat():
            return "renewal"
        case Leave():
            return "leave"


def _name_of(transition: Any) -> str:  # Any: a function in others
    """Return what a transition is called, whatever it is wrapped in."""
    if isinstance(transition, partial):
        return str(transition.func.__name__)
    inner = [cell.cell_contents for cell in transition.__closure__ or () if callable(cell.cell_contents)]
    return _name_of(inner[0]) if inner else str(transition.__name__)


async def leave_orphans(path: Path) -> None:
    """Leave what a killed process leaves."""
    async with Marked(path, lambda _: None) as store:
        operations = Operations(store)
        done = await operations.start(once, ttl=timedelta(0))
        worker = Worker(store, JOBS, concurrency=9)
        async with worker:
            await operations.wait(done.name)
            names = [(await operations.start(long)).name for _ in range(3)]
            while len(worker.running) < len(names):
                await anyio.sleep(0.005)
            for name in names:
                tell("ack", "start", name)
            await operations.cancel(names[0])
            tell("ack", "cancel", names[0])
            for _ in range(3):
                tell("expired", (await operations.start(once, ttl=timedelta(0))).name)
            die()


async def live(path: Path, point: Callable[[str], None]) -> None:
    """Start, run, cancel, delete and await operations, of each job and in each way."""
    async with Marked(path, point) as store:
        operations = Operations(store)

        async def client(number: int) -> None:
            which = JOBS[number % 3]
            brief = number > 8
            started = await operations.start(which, request_id=f"{number}", ttl=timedelta(0) if brief else None)
            tell("ack", "brief" if brief else "start", started.name)
            with suppress(NotFound):  # it has had its time
                if which is long or number % 4 == 0:
                    await anyio.sleep(0.01 * number)
                    await operations.cancel(started.name)
                    tell("ack", "cancel", started.name)
                ended = await operations.wait(started.name, timeout=timedelta(seconds=8))
                if ended.done:
                    tell("ended", ended.name, ended.state)
                if number % 5 == 0:
                    await operations.delete(started.name)
                    tell("ack", "delete", started.name)

        # one worker of few slots: claims of several, and what it holds at its end is given back
        async with Worker(store, JOBS, concurrency=3, lease=timedelta(seconds=0.3), drain=timedelta(seconds=1)):
            async with anyio.create_task_group() as group:
                for number in range(12):
                    group.start_soon(client, number)
            left = await operations.start(long)
            tell("ack", "start", left.name)
            with suppress(TimeoutError), anyio.fail_after(2):
                while (await operations.get(left.name)).state is State.PENDING:
                    await anyio.sleep(0.01)


async def go_on(path: Path, names: Sequence[str]) -> None:
    """Open what is left, and bring everything to its end."""
    async with Marked(path, lambda _: None) as store, Worker(store, JOBS, concurrency=9):
        operations = Operations(store)
        for name in names:
            with suppress(NotFound):
                ended = await operations.wait(name, timeout=timedelta(seconds=8))
                tell("ended", name, ended.state) if ended.done else tell("stuck", name)


def names_in(path: Path) -> list[str]:
    """Return the operations that a file holds; by SQL alone."""
    with closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM operations WHERE deleted_at IS NULL")]


def in_fork(log: Path, function: Callable[..., Any], *arguments: object) -> int:  # Any: a coroutine function
    """Run it in a process of its own and return how that ended: 0, 1 or minus the signal's number."""
    global _log  # noqa: PLW0603 -- one a process
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        signal.alarm(PATIENCE)
        _log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with suppress(LROError):
            anyio.run(function, *arguments)
        status = 0
    finally:
        os._exit(status)


def main(folder: Path, hits: int) -> None:
    engine.SWEEP_EVERY = 0.05
    base = folder / "base"
    base.mkdir()
    assert in_fork(base / LOG, leave_orphans, base / FILE) == -signal.SIGKILL

    def copy(name: str) -> Path:
        return Path(shutil.copytree(base, folder / name, ignore=SOCKETS))

    def note(passed: Counter[str], where: Path, point: str) -> None:
        passed[point] += 1
        where.write_text(json.dumps(passed))

    whole = copy("whole")
    assert in_fork(whole / LOG, live, whole / FILE, partial(note, Counter(), whole / POINTS)) == 0
    passed: dict[str, int] = json.loads((whole / POINTS).read_text())
    kills: dict[str, str] = {}

    def kill(counted: Counter[str], wanted: tuple[str, int], point: str) -> None:
        counted[point] += 1
        if (point, counted[point]) == wanted:
            die()

    for point, times in sorted(passed.items()):
        for hit in range(1, min(times, hits) + 1):
            run = copy(f"{len(kills) + 1:03}")
            if in_fork(run / LOG, live, run / FILE, partial(kill, Counter(), (point, hit))) == -signal.SIGKILL:
                kills[run.name] = f"{point}, {hit}"
                shutil.copytree(run, run / "left", ignore=SOCKETS)
                SECOND_LIFE.append(True)
                assert in_fork(run / LOG, go_on, run / FILE, names_in(run / FILE)) == 0
                SECOND_LIFE.clear()
            else:
                shutil.rmtree(run)  # this life took another turn, and did not get there so often
    (folder / POINTS).write_text(json.dumps({"passed": passed, "kills": kills}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
