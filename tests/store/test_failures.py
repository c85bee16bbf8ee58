"""The n-th statement fails, for n = 1, 2, ... until none does; the caller is cancelled at the n-th step, likewise.

SQLite's own method (sqlite.org/testing.html): once, and from then on. Whatever fails, no transaction stays open,
nothing that was acknowledged is lost, and the store works as soon as the database does.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import anyio.lowlevel
import pytest

from lro import lifecycle
from lro.errors import LROError, Unavailable
from lro.lifecycle import Record, Returned, State
from lro.store import PageQuery, Store
from lro.store.sqlite import SQLiteStore
from lro.store.sqlite.place import File, RunsOnConnection
from lro.store.sqlite.within import LendingConnection
from lro.testing.contract.tools import LEASE, sample_record

T = TypeVar("T")
PATIENCE = 20.0  # seconds: the bound of every wait

ERRORS = {
    "FULL": (sqlite3.SQLITE_FULL, "database or disk is full"),
    "BUSY": (sqlite3.SQLITE_BUSY, "database is locked"),
    "IOERR": (sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error"),
    "CANTOPEN": (sqlite3.SQLITE_CANTOPEN, "unable to open database file"),
}


class Fate:
    """Which statement fails, counted from the moment at which it is armed."""

    def __init__(self, kind: str, *, lasting: bool) -> None:
        self._code, self._message = ERRORS[kind]
        self._name = (
            next(name for name in dir(sqlite3) if getattr(sqlite3, name) is self._code) if 0 else f"SQLITE_{kind}"
        )
        self._lasting = lasting
        self._left: int | None = None
        self.struck = 0

    def arm(self, number: int) -> None:
        self._left = number

    def disarm(self) -> None:
        self._left = None

    def __call__(self) -> None:
        if self._left is None:
            return
        self._left -= 1
        if self._left == 0 or (self._left < 0 and self._lasting):
            self.struck += 1
            error = sqlite3.OperationalError(self._message)
            error.sqlite_errorcode, error.sqlite_errorname = self._code, self._name
            raise error


class Fated:
    """A connection whose statements meet their fate first."""

    def __init__(self, connection: LendingConnection, fate: Fate) -> None:
        self._connection = connection
        self._fate = fate

    def execute(self, *arguments: Any) -> Any:  # Any: as sqlite3 declares it
        self._fate()
        return self._connection.execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:  # Any: as above
        self._fate()
        return self._connection.executemany(*arguments)

    def __getattr__(self, name: str) -> Any:  # Any: whatever it is
        return getattr(self._connection, name)


class FatedLane:
    def __init__(self, lane: RunsOnConnection, fate: Fate) -> None:
        self._lane = lane
        self._fate = fate

    async def run(self, function: Callable[[LendingConnection], T]) -> T:
        return await self._lane.run(
            lambda connection: function(cast("LendingConnection", Fated(connection, self._fate)))
        )

    async def close(self) -> None:
        await self._lane.close()


class FatedFile(File):
    def __init__(self, path: Path, fate: Fate) -> None:
        super().__init__(path, durability="process", busy_timeout=timedelta(seconds=5))
        self._fate = fate

    async def connect(self, *, reads_only: bool) -> FatedLane:  # type: ignore[override]  # it runs as a Lane does
        return FatedLane(await super().connect(reads_only=reads_only), self._fate)


class Life:
    """What is done to a store, and what of it was acknowledged."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.acknowledged: dict[str, Record] = {}
        self.refused: list[LROError] = []
        self._run: Record | None = None

    async def live(self) -> None:
        """One whole life of operations, step by step; a step that is refused is left out."""
        first = sample_record(request_id="1")
        for step in (
            partial(self.store.join, "w", LEASE),
            partial(self._write, self.store.insert, first),
            partial(self._write, self.store.insert, sample_record(request_id="1")),
            partial(self._together, 3),
            self._claim,
            partial(self._as_worker, partial(lifecycle.save_progress, progress="{}")),
            partial(self.store.renew, "w"),
            partial(self.store.list, PageQuery()),
            partial(self.store.get, first.name),
            partial(self._update, first.name, partial(lifecycle.request_cancel, reason=None, requester="ann")),
            partial(self._as_worker, partial(lifecycle.finish, outcome=Returned("1"))),
            partial(self._sweep),
            partial(self.store.leave, "w"),
        ):
            try:
                await step()
            except LROError as error:
                self.refused.append(error)

    async def _write(self, call: Callable[..., Awaitable[Record]], *arguments: object) -> None:
        record = await call(*arguments)
        self.acknowledged[record.name] = record

    async def _together(self, number: int) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(number):
                group.start_soon(self._one_of_many)

    async def _one_of_many(self) -> None:
        try:
            await self._write(self.store.insert, sample_record())
        except LROError as error:
            self.refused.append(error)

    async def _claim(self) -> None:
        for record in await self.store.claim("w", ["books.render"], 2):
            self.acknowledged[record.name] = self._run = record

    async def _as_worker(self, write: Callable[..., Record]) -> None:
        if self._run is not None and self._run.lease is not None:
            await self._update(self._run.name, partial(write, lease=self._run.lease))

    async def _update(self, name: str, transition: lifecycle.Transition) -> None:
        await self._write(self.store.update, name, transition)

    async def _sweep(self) -> None:
        assert isinstance(self.store, SQLiteStore)
        await self.store._sweep_all()


async def check(life: Life) -> None:
    """What must hold once the database works again."""
    store = life.store
    assert isinstance(store, SQLiteStore)
    with anyio.fail_after(PATIENCE):
        assert store.ready, "R25: a loop has ended"
        for name, record in life.acknowledged.items():
            found = await store.get(name)
            assert found is not None, "R17: an acknowledged write is lost"
            assert found.version >= record.version, "R17: an acknowledged write is lost"
        new = await store.insert(sample_record())
        assert (await store.get(new.name)) == new
        assert not await store._writer.run(lambda connection: connection.in_transaction), "R25: it is still open"
        page = await store.list(PageQuery())
        assert new in page.records


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", list(ERRORS))
async def test_whichever_statement_fails_nothing_is_lost_or_left_open(tmp_path: Path, kind: str, lasting: bool) -> None:
    refusals: set[str] = set()
    for number in count(1):
        fate = Fate(kind, lasting=lasting)
        async with SQLiteStore(FatedFile(tmp_path / f"{number}.db", fate), sweeps=False) as store:
            life = Life(store)
            fate.arm(number)
            with anyio.fail_after(PATIENCE):
                await life.live()
            fate.disarm()
            await check(life)
        refusals |= {error.reason for error in life.refused}
        if not fate.struck:
            break
        assert life.refused or not lasting, "what failed was not told"
    assert number > 30, "hardly any statement was failed"
    assert not life.refused, "the last life met no failure"
    assert refusals <= {"STORE_UNAVAILABLE", "OUTCOME_UNKNOWN", "NOT_JOINED", "OPERATION_NOT_FOUND"}


@pytest.mark.parametrize("kind", list(ERRORS))
async def test_whichever_statement_of_an_opening_fails_the_next_opens(tmp_path: Path, kind: str) -> None:
    for number in count(1):
        fate = Fate(kind, lasting=False)
        store = SQLiteStore(FatedFile(tmp_path / f"{number}.db", fate), sweeps=False)
        fate.arm(number)
        with suppress(Unavailable):
            async with store:
                pass
        fate.disarm()
        async with store:
            await store.insert(sample_record())
        if not fate.struck:
            break
    assert number > 20, "hardly any statement was failed"


Cancel = Callable[[Callable[[], Awaitable[object]], int], Awaitable[bool]]


async def cancel_by_scope(call: Callable[[], Awaitable[object]], steps: int) -> bool:
    """Cancel the call after so many steps of the event loop, as anyio does; False if it was over before."""
    over = False

    async def run() -> None:
        nonlocal over
        await call()
        over = True

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        was_over = over
        group.cancel_scope.cancel()
    return not was_over


async def cancel_natively(call: Callable[[], Awaitable[object]], steps: int) -> bool:
    """Cancel the call after so many steps of the event loop, as asyncio does; False if it was over before."""
    task = asyncio.ensure_future(call())
    for _ in range(steps):
        await asyncio.sleep(0)
    was_over = task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return not was_over


def calls(life: Life, record: Record) -> Sequence[Callable[[], Awaitable[object]]]:
    store = life.store
    return (
        partial(life._write, store.insert, sample_record()),
        partial(life._update, record.name, partial(lifecycle.request_cancel, reason=None, requester="ann")),
        partial(store.claim, "w", ["books.render"], 2),
        partial(store.renew, "w"),
        partial(store.get, record.name),
        partial(store.list, PageQuery()),
        life._sweep,
    )


@pytest.mark.parametrize("cancel", [cancel_by_scope, cancel_natively])
async def test_a_caller_that_is_cancelled_at_any_step_leaves_nothing_open(tmp_path: Path, cancel: Cancel) -> None:
    fate = Fate("FULL", lasting=False)  # it is never armed
    async with SQLiteStore(FatedFile(tmp_path / "lro.db", fate), sweeps=False) as store:
        life = Life(store)
        await store.join("w", LEASE)
        record = await store.insert(sample_record())
        for number in range(len(calls(life, record))):
            for steps in count():
                if steps > 2000 or not await cancel(calls(life, record)[number], steps):
                    break
                if steps % 20 == 0:
                    await check(life)
            assert steps > 1, "it was over before it could be cancelled"
            await check(life)
        assert all(record.state is not State.SUCCEEDED for record in life.acknowledged.values())
