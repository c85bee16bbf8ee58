"""Limits over HTTP: at its bound a call is taken, one over it is refused with its reason, and nothing is stored."""

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from lro import AllowAnonymous, Context, Operations, job
from lro.limits import Limits
from lro.routes import job_routes, operation_routes
from lro.store import PageQuery, Store
from tests.apps.limited import BODY, SECONDS
from tests.routes.requests import Json, error_of
from tests.servers import Server


class Note(BaseModel):
    text: Any = None  # Any: JSON


@job("note")
async def note(ctx: Context, params: Note) -> None:
    raise NotImplementedError("no worker runs here")


@asynccontextmanager
async def serving(store: Store, limits: Limits) -> AsyncIterator[httpx2.AsyncClient]:
    operations = Operations(store, limits=limits)
    auth = AllowAnonymous()
    routes = [*operation_routes(operations, auth=auth), *job_routes(operations, jobs=[note], auth=auth)]
    transport = httpx2.ASGITransport(app=Starlette(routes=[Mount("/v1", routes=routes)]))
    async with httpx2.AsyncClient(transport=transport, base_url="http://host/v1/") as client:
        yield client


def deep(levels: int) -> Any:  # Any: JSON
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def run(**body: Any) -> tuple[str, str, Json]:  # Any: JSON
    return "POST", "jobs/note:run", {"json": {"params": {}, **body}}


def listing(words: str) -> tuple[str, str, Json]:
    return "GET", "operations", {"params": {"filter": words}}


Make = Callable[[int], tuple[str, str, Json]]


def posted(path: str, **arguments: Any) -> tuple[str, str, Json]:
    return "POST", path, arguments


CALLS: dict[str, tuple[str, str, Make]] = {
    "body": ("body", "BODY_TOO_LARGE", lambda n: posted("jobs/note:run", content=b'{"params": {}}'.ljust(n))),
    "body of nothing": ("body", "BODY_TOO_LARGE", lambda n: posted("{name}:cancel", content=b" " * n)),
    "params": ("params", "INVALID_PARAMS", lambda n: run(params={"text": "x" * (n - 11)})),
    "params in bytes": ("params", "INVALID_PARAMS", lambda n: run(params={"text": "é" + "x" * (n - 13)})),
    "depth": ("depth", "INVALID_BODY", lambda n: run(params={"text": deep(n - 2)})),
    "request id": ("request_id", "INVALID_ARGUMENT", lambda n: run(requestId="é" * n)),
    "target": ("target", "INVALID_ARGUMENT", lambda n: run(target="é" * n)),
    "reason": ("reason", "INVALID_ARGUMENT", lambda n: posted("{name}:cancel", json={"reason": "é" * n})),
    "filter": ("filter", "INVALID_FILTER", lambda n: listing("done = true".ljust(n))),
    "terms": ("filter_terms", "INVALID_FILTER", lambda n: listing(" AND ".join(["done=true"] * n))),
    "levels": ("filter_depth", "INVALID_FILTER", lambda n: listing("(" * n + "done=true" + ")" * n)),
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("bound", [14, None], ids=["set", "default"])
async def test_a_call_at_its_bound_is_taken_and_one_over_it_is_refused(
    store: Store, what: str, bound: int | None
) -> None:
    field, reason, make = CALLS[what]
    given: dict[str, Any] = {} if bound is None else {field: bound}
    limits = Limits(**given)
    at: int = getattr(limits, field)
    async with serving(store, limits) as client:
        name = (await Operations(store).start(note, Note())).name
        before = await store.list(PageQuery())

        method, path, arguments = make(at + 1)
        response = await client.request(method, path.format(name=name), **arguments)
        error = error_of(response)
        assert (error["code"], error["reason"]) == (413 if field == "body" else 400, reason), response.text
        assert len(response.content) < 1000
        assert await store.list(PageQuery()) == before
        method, path, arguments = make(at)
        assert (await client.request(method, path.format(name=name), **arguments)).status_code == 200, at


async def test_one_operation_too_many_that_waits_is_429_and_the_client_is_told_when_to_try_again(store: Store) -> None:
    async with serving(store, Limits(pending_per_tenant=2)) as client:
        for _ in range(2):
            assert (await client.post("jobs/note:run")).status_code == 200
        response = await client.post("jobs/note:run")

    assert error_of(response)["reason"] == "TOO_MANY_PENDING"
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert len((await store.list(PageQuery())).records) == 2


@pytest.mark.parametrize(("asked", "given"), [("0", 2), ("", 2), ("1", 1), ("3", 3), ("4", 3), ("2147483647", 3)])
async def test_a_page_is_never_larger_than_its_bound(store: Store, asked: str, given: int) -> None:
    async with serving(store, Limits(page_size=3, default_page_size=2)) as client:
        for _ in range(5):
            await client.post("jobs/note:run")
        page = (await client.get("operations", params={"pageSize": asked})).json()

    assert len(page["operations"]) == given
    assert page["nextPageToken"]


async def test_a_wait_is_never_longer_than_its_bound(store: Store) -> None:
    async with serving(store, Limits(wait=timedelta(milliseconds=20))) as client:
        name = (await client.post("jobs/note:run")).json()["name"]
        for body in ({}, {"timeout": "3000s"}):
            began = time.monotonic()
            assert (await client.post(f"{name}:wait", json=body)).json()["done"] is False
            assert 0.015 < time.monotonic() - began < 5


# On real connections


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("tests.apps.limited:app", tmp_path_factory.mktemp("limited")) as started:
        with started.client() as client:
            assert client.get("healthz").status_code == 200
        yield started


HEAD = "POST /v1/jobs/idle:run HTTP/1.1\r\nHost: host\r\nConnection: close\r\n"


def answered(server: Server, pieces: list[bytes], *, every: float = 0.0) -> tuple[int, bytes, float]:
    """Send pieces one after the other until there is an answer; return its status, its body and when it came."""
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        began = time.monotonic()
        over = threading.Event()

        def send() -> None:
            for piece in pieces:
                try:
                    connection.sendall(piece)
                except OSError:
                    return  # it was answered, and closed
                if over.wait(every):
                    return

        sender = threading.Thread(target=send)
        sender.start()
        received = b""
        while b"\r\n\r\n" not in received or not received.endswith(b"}"):
            part = connection.recv(65536)
            if not part:
                break
            received += part
        seconds = time.monotonic() - began
        over.set()
        sender.join(20)
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body, seconds


def test_a_body_that_trickles_is_refused_when_its_time_is_up(server: Server) -> None:
    pieces = [f"{HEAD}Content-Length: 900\r\n\r\n".encode(), *[b" "] * 900]

    status, body, seconds = answered(server, pieces, every=0.02)

    assert (status, b"BODY_TIMEOUT" in body) == (400, True)
    assert SECONDS * 0.9 < seconds < SECONDS + 4


LARGE = {
    "an honest length": f"{HEAD}Content-Length: {BODY + 1}\r\n\r\n".encode() + b" " * (BODY + 1),
    "a length of a terabyte": f"{HEAD}Content-Length: {10**12}\r\n\r\n".encode() + b" " * (BODY + 1),
    "chunks without end": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\n \r\n" * (BODY + 1),
    "one large chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\nffffff\r\n".encode() + b" " * (BODY + 1),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_body_over_the_bound_is_refused_as_soon_as_it_is(server: Server, what: str) -> None:
    status, body, seconds = answered(server, [LARGE[what]])

    assert (status, b"BODY_TOO_LARGE" in body) == (413, True)
    assert seconds < SECONDS


def test_a_length_that_is_too_short_makes_no_second_request_of_the_rest(server: Server) -> None:
    smuggled = b'{"params": {}}POST /v1/jobs/idle:run HTTP/1.1\r\nHost: host\r\nContent-Length: 0\r\n\r\n'
    with server.client() as client:
        before = len(client.get("operations").json().get("operations", []))

        status, _, _ = answered(server, [f"{HEAD}Content-Length: 2\r\n\r\n".encode() + b"{}" + smuggled])

        assert status == 200
        assert len(client.get("operations").json()["operations"]) == before + 1


def test_a_length_that_is_too_long_is_waited_for_no_longer_than_a_slow_body(server: Server) -> None:
    status, body, seconds = answered(server, [f"{HEAD}Content-Length: 100\r\n\r\n".encode() + b"{}"])

    assert (status, b"BODY_TIMEOUT" in body) == (400, True)
    assert seconds < SECONDS + 4


def test_clients_that_are_refused_leave_the_service_at_work(server: Server) -> None:
    for _ in range(20):
        answered(server, [LARGE["chunks without end"]])
    with server.client() as client:
        assert client.post("jobs/idle:run").status_code == 200
