"""What may happen to a PostgreSQL server: nothing acknowledged is lost, calls end in time, and stores recover."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import psycopg
import pytest

from lro import lifecycle
from lro.errors import LROError, Unavailable
from lro.lifecycle import Record
from lro.store import Store, migrate, open_store
from lro.store.base import PageQuery
from lro.testing.contract import sample_record
from lro.testing.contract.tools import note, unchanged
from tests.postgres import Databases, Server, ask, running_server
from tests.proxies import Accident, Proxy, proxied
from tests.store.test_postgres import make_store

pytestmark = pytest.mark.own_store


LEASE = 30_000_000
PATIENCE = 2.0
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that may be ill-treated."""
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def its_databases(server: Server) -> Iterator[Databases]:
    made = Databases(server.url())
    yield made
    made.close()


@pytest.fixture
def url(its_databases: Databases) -> Iterator[str]:
    with its_databases.new() as made:
        yield made


@asynccontextmanager
async def before(url: str) -> AsyncGenerator[tuple[str, Proxy]]:
    """Put a proxy before a database, and yield the URL through it."""
    port = int(url.split("@127.0.0.1:")[1].split("/", maxsplit=1)[0])
    async with proxied(port) as proxy:
        yield url.replace(f":{port}/", f":{proxy.port}/"), proxy


@dataclass
class Load:
    """Callers that start operations, change and read them for as long as it runs.

    Attributes:
        acknowledged: By name, the version that was acknowledged last.
        refused: What calls raised.
        longest: Seconds that the longest call took.
    """

    acknowledged: dict[str, int] = field(default_factory=dict[str, int])
    refused: list[LROError] = field(default_factory=list[LROError])
    longest: float = 0.0
    since: int = 0

    async def run(self, url: str, callers: int = 6) -> None:
        async with make_store(url, patience=PATIENCE) as store, anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(self._call, store)

    async def _call(self, store: Store) -> None:
        while True:
            record = sample_record(request_id=f"{time.monotonic_ns()}")
            for call in (
                partial(store.insert, record),
                partial(store.update, record.name, note("x")),
                partial(store.get, record.name),
            ):
                began = time.monotonic()
                try:
                    answer = await call()
                except LROError as error:
                    self.refused.append(error)
                    await anyio.sleep(0.02)
                    break
                finally:
                    self.longest = max(self.longest, time.monotonic() - began)
                if answer is not None:
                    self.acknowledged[record.name] = answer.version
                    self.since += 1

    async def progress(self, calls: int = 60) -> None:
        """Wait until so many more calls have been acknowledged."""
        self.since = 0
        with anyio.fail_after(30):
            while self.since < calls:
                await anyio.sleep(0.01)

    def check(self, url: str) -> None:
        """Compare with what the database holds."""
        held = dict(ask(url, "SELECT name, version FROM lro.operations"))
        assert {
            name: held.get(name) for name, version in self.acknowledged.items() if held.get(name, 0) < version
        } == {}
        doubled = ask(url, "SELECT request_id FROM lro.operations GROUP BY request_id HAVING count(*) > 1")
        assert doubled == []
        assert self.longest < PATIENCE + 2
        assert {type(error) for error in self.refused} <= {Unavailable}


@asynccontextmanager
async def load(url: str) -> AsyncGenerator[Load]:
    """Run a load beside the block."""
    running = Load()
    async with anyio.create_task_group() as group:
        group.start_soon(running.run, url)
        await running.progress()
        yield running
        await running.progress()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_loses_nothing_acknowledged(server: Server, url: str, mode: str) -> None:
    async with load(url) as running:
        await anyio.to_thread.run_sync(server.restart, mode)
        await running.progress()
    running.check(url)


async def test_backends_that_are_terminated_are_hardly_noticed(url: str) -> None:
    async with load(url) as running:
        for _ in range(10):
            ask(url, TERMINATE + "datname = current_database()")
            await running.progress(20)
    running.check(url)
    assert running.refused == [], (
        "what was lost before its commit is done again, and of the rest the outcome is asked for"
    )


async def test_calls_end_in_time_while_nothing_comes_through(url: str) -> None:
    async with before(url) as (through, proxy), make_store(through, patience=1.0) as store:
        record = await store.insert(sample_record())
        proxy.flows.clear()
        began = anyio.current_time()
        refusals: list[LROError] = []

        async def call(function: Callable[[], Awaitable[object]]) -> None:
            try:
                await function()
            except LROError as error:
                refusals.append(error)

        async with anyio.create_task_group() as group:
            calls: tuple[Callable[[], Awaitable[object]], ...] = (
                partial(store.insert, sample_record()),
                partial(store.update, record.name, note("x")),
                partial(store.get, record.name),
                partial(store.list, PageQuery()),
                partial(store.held, "w"),
            )
            for function in calls:
                group.start_soon(call, function)
        assert anyio.current_time() - began < 4
        assert [type(error) for error in refusals] == [Unavailable] * 5
        proxy.flows.set()
        with anyio.fail_after(10):
            while True:
                try:
                    assert (await store.insert(sample_record())).version == 1
                    break
                except Unavailable:
                    await anyio.sleep(0.05)
        assert await store.get(record.name) is not None


@pytest.mark.parametrize("accident", ["before", "after"])
async def test_a_commit_without_an_answer_is_asked_for(url: str, accident: Accident) -> None:
    async with before(url) as (through, proxy), make_store(through) as store:
        for _ in range(5):
            proxy.accident = accident
            record = await store.insert(sample_record(request_id="once"))
            assert (await store.update(record.name, note("x"))).status_message is not None
        assert proxy.accidents == 5
        assert ask(url, "SELECT count(*), max(length(status_message)) FROM lro.operations") == [(1, 5)]


async def test_an_outcome_that_can_not_be_known_is_said_to_be_unknown(url: str) -> None:
    async with before(url) as (through, proxy), make_store(through, patience=1.0) as store:
        proxy.accident = "after"
        async with anyio.create_task_group() as group:

            async def freeze() -> None:
                while not proxy.accidents:
                    await anyio.lowlevel.checkpoint()
                proxy.flows.clear()

            group.start_soon(freeze)
            with pytest.raises(Unavailable) as raised:
                await store.insert(sample_record())
        assert raised.value.reason in ("OUTCOME_UNKNOWN", "STORE_UNAVAILABLE")
        proxy.flows.set()


async def test_a_promoted_standby_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    (tmp_path / "standby").mkdir()
    with running_server() as first:
        first.ask("CREATE DATABASE it")
        await migrate(first.url("it"))
        second = Server(tmp_path / "standby")
        second.copy_from(first)
        second.start()
        try:
            first.ask("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            first.ask("ALTER SYSTEM SET synchronous_commit = 'remote_apply'")
            first.ask("SELECT pg_reload_conf()")
            either = f"postgresql://postgres@127.0.0.1:{first.port},127.0.0.1:{second.port}/it"
            async with load(either) as running:
                await anyio.to_thread.run_sync(first.stop, "immediate")
                await anyio.to_thread.run_sync(second.promote)
                await running.progress()
            running.check(second.url("it"))
        finally:
            second.close()


# Hints


async def test_a_change_elsewhere_is_heard_of_at_once(url: str) -> None:
    async with make_store(url) as store, make_store(url) as other:
        record = await store.insert(sample_record())
        with other.watch(record.name) as watch:
            with anyio.fail_after(5):
                while await watch.changed(0.2) is None:  # until it listens
                    await store.update(record.name, note("x"))
            waits: list[float] = []
            for _ in range(20):
                began = anyio.current_time()
                changed = await store.update(record.name, note("x"))
                while (heard := await watch.changed(5)) is None or heard.version < changed.version:
                    assert anyio.current_time() - began < 5
                waits.append(anyio.current_time() - began)
        assert sorted(waits)[10] < 0.25


async def test_who_listens_listens_again_after_a_lost_connection(url: str) -> None:
    async with make_store(url) as store, make_store(url) as other:
        record = await store.insert(sample_record())
        with other.watch(record.name) as watch:
            for _ in range(3):
                with anyio.fail_after(10):
                    while await watch.changed(0.2) is None:
                        await store.update(record.name, note("x"))
                ask(url, TERMINATE + "query LIKE 'LISTEN%'")


async def test_without_notices_nothing_is_told_and_all_is_found_by_looking(url: str) -> None:
    async with open_store(url, listen=False) as store, open_store(url, listen=False) as other:
        await other.join("w", LEASE)
        record = await store.insert(sample_record())
        with other.watch(record.name) as watch:
            assert await watch.changed(0.3) is None
        assert [found.name for found in await other.claim("w", ["books.render"], 1)] == [record.name]
        assert (await store.update(record.name, lifecycle.request_cancel)).cancel_due
        assert [found.cancel_due for found in await other.renew("w")] == [True]
        assert ask(url, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'") == [(0,)]


# Locks


async def test_a_row_that_somebody_has_locked_holds_up_nobody_else_for_long(url: str) -> None:
    async with make_store(url) as store, await psycopg.AsyncConnection.connect(url) as holder:
        locked = await store.insert(sample_record())
        free = [await store.insert(sample_record()) for _ in range(10)]
        await holder.execute("SELECT 1 FROM lro.operations WHERE name = %s FOR UPDATE", (locked.name,))
        answers: dict[str, Record | LROError] = {}

        async def change(name: str) -> None:
            try:
                answers[name] = await store.update(name, note("x"))
            except LROError as error:
                answers[name] = error

        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for record in (locked, *free):
                group.start_soon(change, record.name)
        assert anyio.current_time() - began < 4
        assert isinstance(answers.pop(locked.name), Unavailable)
        assert all(isinstance(answer, Record) for answer in answers.values())
        await holder.rollback()
        assert (await store.update(locked.name, note("x"))).version == 2


async def test_a_request_id_in_somebodys_open_transaction_is_waited_for_and_then_repeated(url: str) -> None:
    async with make_store(url) as store, await psycopg.AsyncConnection.connect(url) as mine:
        first = await store.insert(sample_record(request_id="1"), mine)
        answers: list[Record] = []

        async def repeat() -> None:
            answers.append(await store.insert(sample_record(request_id="1")))

        async with anyio.create_task_group() as group:
            group.start_soon(repeat)
            while not ask(url, "SELECT 1 FROM pg_locks WHERE NOT granted"):
                await anyio.sleep(0.01)
            await mine.commit()
        assert [record.name for record in answers] == [first.name]
        assert await store.update(first.name, unchanged) == first
