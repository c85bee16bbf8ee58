"""What clients never read, whatever fails; and what no log has at INFO, whatever clients send."""

import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import psycopg
import psycopg.errors
import pytest
from pydantic import BaseModel, field_serializer, field_validator
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from lro import AllowAnonymous, Context, Principal, Service, job
from lro.errors import Unauthenticated, Unavailable
from lro.principal import Scope
from lro.routes import exception_handlers
from lro.store import Store
from lro.store.sqlite.within import LendingConnection
from tests.routes.requests import Json, error_of

CANARY = "canary-5f3a"
FORGED = "\r\n2026-11-25 CRITICAL forged\x1b[2J\x1b]0;owned\x07\x85\u2028"


class Params(BaseModel):
    """Params that fail in every way, each telling what it was given."""

    checked: str = ""
    bounded: int = 0
    broken: str = ""
    written: str = ""

    @field_validator("broken")
    @classmethod
    def fail(cls, value: str) -> str:
        if value == "key":
            raise KeyError(CANARY)
        if value == "type":
            raise TypeError(CANARY)
        return value

    @field_serializer("written")
    def write(self, value: str) -> str:
        if value == "value":
            raise ValueError(CANARY)
        if value == "type":
            raise TypeError(CANARY)
        return value


class Progress(BaseModel):
    note: str = ""


@job("fails")
async def fails(ctx: Context[Progress], params: Params) -> Any:  # Any: what has no JSON form
    match params.checked:
        case "raises":
            raise RuntimeError(CANARY)
        case "group":
            raise ExceptionGroup(CANARY, [ValueError(CANARY), OSError(2, CANARY, f"/{CANARY}")])
        case "result":
            return {CANARY}
        case "text":
            return f"{CANARY}\0"
        case "progress":
            await ctx.checkpoint(Progress(note=f"{CANARY}\0"))
        case "large":
            await ctx.checkpoint(Progress(note=CANARY * 10_000))
    return None


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    app = Starlette(routes=[Mount("/v1", app=service)])
    async with (
        service,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://host/v1/") as client,
    ):
        yield client


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(Service(url, jobs=[fails], auth=AllowAnonymous(), handle_signals=False)) as opened:
        yield opened


async def ended(client: httpx2.AsyncClient, name: str) -> Json:
    with anyio.fail_after(10):
        while True:
            response = await client.post(f"{name}:wait")
            if response.json()["done"]:
                return dict(response.json())


# What clients never read


@pytest.mark.parametrize("how", ["raises", "group", "result", "text", "progress", "large"])
async def test_a_client_reads_nothing_of_how_a_job_failed(
    client: httpx2.AsyncClient, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = (await client.post("jobs/fails:run", json={"params": {"checked": how}})).json()["name"]

    operation = await ended(client, name)

    assert operation["error"]["code"] in (8, 13)
    assert CANARY not in str(operation)
    assert "Traceback" not in str(operation)
    if "errorId" in str(operation):
        (info,) = operation["error"]["details"]
        assert info["metadata"]["errorId"] in caplog.text


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"bounded": CANARY}, 400),
        ({"checked": [CANARY]}, 400),
        ({"broken": "key"}, 500),
        ({"broken": "type"}, 400),
        ({"written": "value"}, 400),
        ({"written": "type"}, 400),
    ],
    ids=str,
)
async def test_a_client_reads_nothing_of_what_a_model_raised_or_was_given(
    client: httpx2.AsyncClient, params: Json, status: int
) -> None:
    response = await client.post("jobs/fails:run", json={"params": params})

    assert error_of(response)["code"] == status
    assert CANARY not in response.text
    assert (await client.get("operations")).json() == {"operations": []}


ERRORS: dict[str, tuple[Exception, Exception]] = {
    "no table": (sqlite3.OperationalError(f"no such table: {CANARY}"), psycopg.errors.UndefinedTable(CANARY)),
    "disk": (sqlite3.OperationalError(f"disk I/O error in /{CANARY}"), psycopg.errors.DiskFull(CANARY)),
    "corrupt": (sqlite3.DatabaseError(CANARY), psycopg.errors.DataCorrupted(CANARY)),
    "odd": (sqlite3.Error(CANARY), psycopg.OperationalError(CANARY)),
}
"""What SQLite and PostgreSQL say."""

CALLS: list[tuple[str, str, Json]] = [
    ("GET", "{name}", {}),
    ("POST", "{name}:wait", {}),
    ("POST", "{name}:cancel", {}),
    ("DELETE", "{name}", {}),
    ("GET", "operations", {}),
    ("GET", "operations?filter=done%3Dtrue", {}),
    ("POST", "jobs/fails:run", {"json": {"params": {}}}),
    ("POST", "jobs/fails:run", {"json": {"params": {}, "requestId": "r"}}),
]


@pytest.mark.parametrize("what", ERRORS)
async def test_a_client_reads_nothing_of_what_the_database_said(
    store: Store, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Service(store_open(store), jobs=[fails], auth=AllowAnonymous(), worker=False)) as client:
        name = (await client.post("jobs/fails:run", json={"params": {}})).json()["name"]

        def failing(*_: object) -> Any:
            raise ERRORS[what][0]

        async def failing_on_postgres(*_: object) -> Any:
            raise ERRORS[what][1]

        monkeypatch.setattr(LendingConnection, "execute", failing)
        monkeypatch.setattr(psycopg.AsyncConnection, "execute", failing_on_postgres)
        for method, path, arguments in CALLS:
            caplog.clear()
            response = await client.request(method, path.format(name=name), **arguments)
            error = error_of(response)
            assert (error["code"], error["reason"]) in ((503, "STORE_UNAVAILABLE"), (503, "OUTCOME_UNKNOWN")), path
            for secret in (CANARY, "lro.db", "SQLITE", "sqlite", "postgres", "SELECT", "Traceback"):
                assert secret not in response.text, path
            assert CANARY in caplog.text, f"{method} {path}: the log must have it"
        monkeypatch.undo()


def store_open(store: Store) -> Any:  # Any: a Store, open already
    """Return a store that is open as one that a Service may open."""

    class Open:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def __aenter__(self) -> Store:
            return store

        async def __aexit__(self, *_: object) -> None:
            return None

    return Open()


async def test_what_the_database_said_is_for_the_services_own_code_and_log() -> None:
    error = Unavailable("the read failed", inside=CANARY)

    assert str(error) == f"the read failed ({CANARY})"
    assert CANARY not in error.status.to_json()

    async def endpoint(request: object) -> None:
        raise error

    app = Starlette(routes=[Route("/", endpoint)], exception_handlers=exception_handlers)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://host") as client:
        assert CANARY not in (await client.get("/")).text


class Hooks:
    """Hooks that fail, or ask for another scheme, as the caller says."""

    def authenticate(self, request: Any) -> Principal | None:  # Any: Starlette's
        who = request.headers.get("x-user", "")
        if who == "digest":
            raise Digest
        if who == "fails":
            raise RuntimeError(CANARY)
        return Principal(who, "t") if who else None

    async def authorize(self, principal: Principal, permission: str, resource: str) -> Scope | None:
        if principal.id == "unlucky":
            raise ConnectionError(f"ldap://{CANARY}")
        return Scope(principal.id, principal.tenant)


class Digest(Unauthenticated):
    """Send a digest."""

    challenge = 'Digest realm="books"'


async def test_a_hook_that_fails_is_named_in_the_log_and_nowhere_else(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Service(url, jobs=[fails], auth=Hooks(), worker=False)) as client:
        for who, hook in (("fails", "Hooks.authenticate"), ("unlucky", "Hooks.authorize")):
            for method, path in (
                ("GET", "operations"),
                ("GET", "jobs"),
                ("GET", "openapi.json"),
                ("POST", "jobs/fails:run"),
            ):
                caplog.clear()
                response = await client.request(method, path, headers={"x-user": who})
                assert error_of(response)["reason"] == "AUTHORIZATION_UNAVAILABLE"
                assert CANARY not in response.text
                assert f"{hook} failed" in caplog.text
                assert CANARY in caplog.text
        for path in ("healthz", "readyz"):
            assert (await client.get(path, headers={"x-user": "fails"})).status_code == 200


async def test_who_is_unknown_is_told_how_to_say_who_it_is(url: str) -> None:
    async with serving(Service(url, jobs=[fails], auth=Hooks(), worker=False)) as client:
        for who, challenge in (("", "Bearer"), ("digest", 'Digest realm="books"')):
            response = await client.get("operations", headers={"x-user": who})
            assert error_of(response)["reason"] == "UNAUTHENTICATED"
            assert response.headers["www-authenticate"] == challenge


# What no log has


class Note(BaseModel):
    text: str = ""


@job("echoes")
async def echoes(ctx: Context[Note], params: Note) -> Note:
    await ctx.checkpoint(Note(text=params.text))
    await ctx.sleep(0.02)
    return Note(text=params.text)


async def test_nothing_that_clients_send_forges_a_line_of_the_log_or_is_kept_in_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At any level: library lines are one line each, and hold no params, no progress and no result."""

    class Anyone:
        def authenticate(self, request: object) -> Principal:
            return Principal(f"ann{FORGED}", f"books{FORGED}")

        async def authorize(self, principal: Principal, permission: str, resource: str) -> Scope:
            return Scope(tenant=principal.tenant)

    with caplog.at_level(logging.DEBUG, "lro"):
        async with serving(Service(url, jobs=[echoes], auth=Anyone(), handle_signals=False)) as client:
            body = {"params": {"text": CANARY}, "target": f"t{FORGED}", "requestId": f"r{FORGED}"}
            names = [
                (await client.post("jobs/echoes:run", json={**body, "requestId": f"r{number}{FORGED}"})).json()["name"]
                for number in range(2)
            ]
            await client.post(f"{names[0]}:cancel", json={"reason": f"because{FORGED}"})
            for name in names:
                await ended(client, name)
            odd = FORGED.encode("utf-8", "surrogatepass").hex("%")
            await client.get(f"operations/%{odd}")
            await client.get(f"operations?filter=%{odd}&pageToken=%{odd}")
            await client.post(f"jobs/%{odd}:run", json={FORGED: FORGED})

    lines = [record.getMessage() for record in caplog.records if record.name.startswith("lro")]
    assert any("attempt ended" in line for line in lines)
    for line in lines:
        assert line.isprintable(), line
        assert CANARY not in line
        assert "forged" not in line
