"""Waits that nobody waits for any more: clients that drop their connections, callers that are cancelled."""

import asyncio
import gc
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from lro import Context, Operation, Operations, Worker, job
from lro.errors import NotFound
from lro.limits import Limits
from lro.store.hints import Watch
from lro.store.sqlite import SQLiteStore
from tests.jobs import PATIENCE, until
from tests.servers import Server

CLIENTS = 1_000
RELEASED_WITHIN = 5.0  # seconds from the drop until nothing of the waits is left
ANSWERED_WITHIN = 2.0  # seconds, while and after: generous, for a busy machine

# Clients that go


Held = dict[str, int]


class Clients:
    """Raw connections to one server, that can go as no library would let them."""

    def __init__(self, server: Server) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._address = (host, int(port))
        self.open: list[socket.socket] = []

    async def send(self, request: bytes) -> None:
        connection = socket.socket()
        self.open.append(connection)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, self._address)
        await loop.sock_sendall(connection, request)

    async def send_many(self, request: bytes, count: int) -> None:
        for begin in range(0, count, 100):  # no more than a listener's backlog holds
            async with anyio.create_task_group() as group:
                for _ in range(min(100, count - begin)):
                    group.start_soon(self.send, request)

    def drop(self) -> None:
        """Close all of them, every other one by a reset."""
        for number, connection in enumerate(self.open):
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        self.open.clear()


def post(path: str, body: bytes, *, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}"
    return head.encode() + b"\r\n\r\n" + body


def held(client: httpx2.Client, server: Server) -> Held:
    return dict(client.get(f"{server.url}/waiting").json())


async def until_held(client: httpx2.Client, server: Server, seconds: float, enough: Callable[[Held], bool]) -> Held:
    """Ask, within bounds, until the server holds what it should; return what it holds then, or at the end."""
    deadline = time.monotonic() + seconds
    while True:
        found = await anyio.to_thread.run_sync(held, client, server)
        if enough(found) or time.monotonic() > deadline:
            return found
        await anyio.sleep(0.02)


def slowest(client: httpx2.Client, name: str) -> float:
    """Return how long the slowest of some reads takes."""
    times: list[float] = []
    for _ in range(20):
        began = time.monotonic()
        assert client.get(name).status_code == 200
        times.append(time.monotonic() - began)
    return max(times)


@pytest.fixture
def descriptors() -> Iterator[int]:
    """How many connections this process, and one that it starts, may have at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 2 * CLIENTS if hard == resource.RLIM_INFINITY else min(hard, 2 * CLIENTS)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    yield enough
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def server(descriptors: int, tmp_path: Path) -> Iterator[Server]:
    del descriptors  # the process inherits the limit
    with Server("tests.apps.atomic_waits:app", tmp_path) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as opened:
        yield opened


@pytest.fixture
def running(client: httpx2.Client) -> str:
    """The name of an operation that runs until the file `go` is there."""
    name = str(client.post("jobs/park:run", json={}).json()["name"])
    for _ in range(500):
        if client.get(name).json()["metadata"]["value"]["state"] == "RUNNING":
            return name
        time.sleep(0.01)  # another process runs it
    raise AssertionError("it never runs")


async def test_a_thousand_clients_that_drop_their_waits_leave_nothing_behind(
    server: Server, client: httpx2.Client, running: str, descriptors: int, tmp_path: Path
) -> None:
    before = held(client, server)
    assert before["waiting"] == before["watches"] == 0
    wave = min(CLIENTS, descriptors - 300)
    waves = -(-CLIENTS // wave)
    for _ in range(waves):
        clients = Clients(server)
        await clients.send_many(post(f"{running}:wait", b'{"timeout": "3000s"}'), wave)
        parked = await until_held(client, server, 20, lambda now: now["waiting"] == wave)
        assert parked["waiting"] == parked["watches"] == wave
        assert parked["descriptors"] >= before["descriptors"] + wave
        assert await anyio.to_thread.run_sync(slowest, client, running) < ANSWERED_WITHIN

        clients.drop()
        after = await until_held(
            client, server, RELEASED_WITHIN, lambda now: all(now[what] <= before[what] for what in before)
        )
        assert {what: after[what] for what in before if after[what] > before[what]} == {}, "something is left"
        assert await anyio.to_thread.run_sync(slowest, client, running) < ANSWERED_WITHIN

    (tmp_path / "go").touch()
    ended = await anyio.to_thread.run_sync(partial(client.post, f"{running}:wait", json={"timeout": "8s"}))
    assert ended.json()["response"]["value"] == "done"


async def test_clients_that_go_before_their_request_is_complete_leave_nothing_behind(
    server: Server, client: httpx2.Client, running: str
) -> None:
    before = held(client, server)
    body = b'{"timeout": "3000s"}'
    for request in (
        post(f"{running}:wait", body)[:40],  # in its head
        post(f"{running}:wait", body[:5], length=len(body)),  # in its body
    ):
        clients = Clients(server)
        await clients.send_many(request, 100)
        await until_held(client, server, 5, lambda now: now["descriptors"] >= before["descriptors"] + 100)
        clients.drop()
        after = await until_held(
            client, server, RELEASED_WITHIN, lambda now: all(now[what] <= before[what] for what in before)
        )
        assert {what: after[what] for what in before if after[what] > before[what]} == {}, request


async def test_an_end_that_meets_the_drop_of_its_waits_answers_the_others(
    server: Server, client: httpx2.Client, running: str, tmp_path: Path
) -> None:
    """Half of the clients go in the moment in which the operation ends; the other half hears of it."""
    before = held(client, server)
    request = post(f"{running}:wait", b'{"timeout": "3000s"}')
    going, staying = Clients(server), Clients(server)
    await going.send_many(request, 100)
    await staying.send_many(request, 100)
    assert (await until_held(client, server, 10, lambda now: now["waiting"] == 200))["waiting"] == 200
    (tmp_path / "go").touch()
    going.drop()
    loop = asyncio.get_running_loop()
    with anyio.fail_after(10):
        for connection in staying.open:
            answer = b""
            while b'"value":"done"' not in answer.replace(b": ", b":"):
                chunk = await loop.sock_recv(connection, 65536)
                assert chunk, f"no answer but {answer!r}"
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 200")
    staying.drop()
    after = await until_held(
        client, server, RELEASED_WITHIN, lambda now: all(now[what] <= before[what] for what in before)
    )
    assert {what: after[what] for what in before if after[what] > before[what]} == {}


# Callers that are cancelled


@job("park")
async def park(ctx: Context) -> str:
    with anyio.move_on_after(PATIENCE * 3):
        while True:
            await ctx.sleep(0.01)
    return "done"


class House:
    """A running operation to wait for, and what the waits hold."""

    def __init__(self, store: SQLiteStore, operation: Operation) -> None:
        self.store = store
        self.operations = Operations(store, limits=Limits(wait=timedelta(hours=1), waits=CLIENTS))
        self.name = operation.name

    def is_empty(self) -> bool:
        return not self.operations.waiting and not self.store._hub._watches

    def watches(self) -> int:
        gc.collect()
        return sum(isinstance(one, Watch) for one in gc.get_objects())

    async def is_left_in_order(self) -> None:
        assert self.is_empty()
        await until(lambda: not self.store._gets._waiting)  # reads that they had asked for
        await anyio.lowlevel.checkpoint()  # a turn of the loop holds what woke it, such as a gather with its waits
        assert not self.watches()
        with anyio.fail_after(PATIENCE):
            assert not (await self.operations.wait(self.name, timedelta(0))).done
            await self.operations.cancel(self.name)
            assert (await self.operations.wait(self.name)).done
        assert self.is_empty()


@pytest.fixture
async def house(store: SQLiteStore) -> AsyncIterator[House]:
    async with Worker(store, [park], drain=timedelta(0)):
        yield House(store, await Operations(store).start(park))


Wait = Callable[[House], Coroutine[Any, Any, Any]]  # Any: an operation, or a job's result
WAITS: dict[str, Wait] = {
    "wait": lambda house: house.operations.wait(house.name),
    "result": lambda house: house.operations.result(park, house.name),
}


@pytest.mark.parametrize("wait", WAITS)
async def test_a_thousand_waits_that_are_cancelled_leave_no_watch_behind(house: House, wait: str) -> None:
    tasks = len(asyncio.all_tasks())
    with anyio.fail_after(PATIENCE * 2):
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(WAITS[wait], house)
            await until(lambda: house.operations.waiting == CLIENTS)
            assert len(house.store._hub._watches[house.name]) == CLIENTS
            group.cancel_scope.cancel()
    assert house.is_empty()
    assert len(asyncio.all_tasks()) == tasks
    await house.is_left_in_order()


async def test_waits_cancelled_by_hand_at_any_of_their_awaits_leave_no_watch_behind(house: House) -> None:
    """With Task.cancel(), which knows no shield: before they look, while they look, and while they wait."""

    async def cancel_after(turns: int) -> None:
        waits = [asyncio.create_task(house.operations.wait(house.name)) for _ in range(CLIENTS // 50)]
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        for number, one in enumerate(waits):
            one.cancel()
            if number % 3 == 0:
                await anyio.lowlevel.checkpoint()
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)

    for turns in range(50):
        await cancel_after(turns)
    await house.is_left_in_order()


async def test_waits_that_meet_the_end_of_their_time_and_of_the_operation_leave_no_watch_behind(house: House) -> None:
    async with anyio.create_task_group() as group:
        for number in range(CLIENTS):
            group.start_soon(house.operations.wait, house.name, timedelta(milliseconds=number % 100))
    await house.is_left_in_order()


async def test_waits_for_what_is_deleted_meanwhile_end_and_leave_no_watch_behind(house: House) -> None:
    gone: list[NotFound] = []

    async def wait() -> None:
        try:
            await house.operations.wait(house.name)
        except NotFound as error:
            gone.append(error)

    with anyio.fail_after(PATIENCE * 2):
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(wait)
            await until(lambda: house.operations.waiting == CLIENTS)
            await house.operations.delete(house.name)
    assert len(gone) == CLIENTS
    gone.clear()
    assert house.is_empty()
    assert not house.watches()


async def test_a_wait_beyond_the_limit_answers_at_once_and_holds_nothing(house: House) -> None:
    with anyio.fail_after(PATIENCE * 2):
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(house.operations.wait, house.name)
            await until(lambda: house.operations.waiting == CLIENTS)
            assert not (await house.operations.wait(house.name)).done
            assert house.operations.waiting == CLIENTS
            house.operations.begin_shutdown()
    house.operations.resume()
    await house.is_left_in_order()
