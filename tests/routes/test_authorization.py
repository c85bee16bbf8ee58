"""Who may do what: every method, by every kind of caller, on operations of every kind."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from itertools import product
from typing import Any, NamedTuple
from urllib.parse import unquote

import anyio
import anyio.lowlevel
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from lro import AllowAnonymous, Context, Operations, Principal, job
from lro.errors import ResourceExhausted
from lro.limits import Limits
from lro.lookup import Conceal
from lro.principal import ANYTHING, Scope
from lro.routes import job_routes, operation_routes
from lro.routes.rules import rules_of
from lro.store import Store
from tests.routes.requests import UNKNOWN, Json, error_of

CALLERS = {
    "ann": Principal("ann", "acme"),
    "amy": Principal("amy", "acme"),
    "admin": Principal("admin", "acme"),
    "eve": Principal("eve", "evil"),
    "eva": Principal("eva", "evil"),
    "root": Principal("root"),
    "barred": Principal("barred", "acme"),
}
METHODS = {
    "get": ("GET", ""),
    "wait": ("POST", ":wait"),
    "cancel": ("POST", ":cancel"),
    "delete": ("DELETE", ""),
}


@job("idle")
async def idle(ctx: Context) -> None:
    raise NotImplementedError("no worker runs here")


class Hooks:
    """A header names the caller: most see their own, admin and eva their tenant's, root all, barred none."""

    async def authenticate(self, request: Any) -> Principal | None:  # Any: Starlette's
        return CALLERS.get(request.headers.get("x-user", ""))

    async def authorize(self, principal: Principal, permission: str, resource: str) -> Scope | None:
        match principal.id:
            case "root":
                return ANYTHING
            case "admin" | "eva":
                return Scope(tenant=principal.tenant)
            case "barred":
                return None
        return Scope(owner=principal.id, tenant=principal.tenant)


class Answer(NamedTuple):
    status: int
    reason: str
    body: bytes
    headers: tuple[tuple[str, str], ...]


def may_see(caller: str, kind: str) -> bool:
    return kind == "anns" and caller in ("ann", "admin", "root")


def expected(caller: str, kind: str, conceal: Conceal) -> tuple[int, str]:
    """The whole rule: who may see it can act on it, others learn nothing of it, nor of what is not there."""
    if caller == "nobody":
        return 401, "UNAUTHENTICATED"
    if may_see(caller, kind):
        return 200, ""
    if kind == "malformed" and caller == "root":
        return 400, "INVALID_ARGUMENT"
    if conceal == "not_found" or caller == "root":
        return 404, "OPERATION_NOT_FOUND"
    return 403, "PERMISSION_DENIED"


class House:
    def __init__(self, store: Store, conceal: Conceal) -> None:
        self.store = store
        self.conceal = conceal
        self.operations = Operations(store, conceal=conceal, limits=Limits(wait=timedelta(milliseconds=1)))
        routes = [
            *operation_routes(self.operations, auth=Hooks()),
            *job_routes(self.operations, jobs=[idle], auth=Hooks()),
        ]
        transport = httpx2.ASGITransport(app=Starlette(routes=[Mount("/v1", routes=routes)]))
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://host/v1/")

    async def name_of(self, kind: str) -> str:
        """Make an operation of this kind, and return what it is called."""
        match kind:
            case "missing":
                return UNKNOWN
            case "malformed":
                return "operations/a%20b"
        name = (await self.operations.start(idle, principal=CALLERS["ann"])).name
        if kind == "deleted":
            await self.operations.delete(name)
        return name

    async def call(self, caller: str, method: str, name: str) -> Answer:
        verb, suffix = METHODS[method]
        headers = {} if caller == "nobody" else {"x-user": caller}
        response = await self.client.request(verb, name + suffix, headers=headers)
        reason = "" if response.status_code == 200 else str(error_of(response)["reason"])
        body = response.content.replace(unquote(name).encode(), b"NAME")
        length = ("content-length", str(len(body)))
        sent = tuple(sorted(item for item in response.headers.items() if item[0] != "content-length"))
        return Answer(response.status_code, reason, body, (*sent, length))


@pytest.fixture(params=["permission_denied", "not_found"])
async def house(store: Store, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    built = House(store, request.param)
    async with built.client:
        yield built


async def test_the_matrix_of_method_caller_and_operation(house: House) -> None:
    for method, caller, kind in product(METHODS, [*CALLERS, "nobody"], KINDS):
        answer = await house.call(caller, method, await house.name_of(kind))
        assert (answer.status, answer.reason) == expected(caller, kind, house.conceal), (method, caller, kind)


KINDS = ("anns", "missing", "deleted", "malformed")


async def test_foreign_missing_deleted_and_malformed_are_the_same_to_the_byte(house: House) -> None:
    for method, caller in product(METHODS, ("amy", "eve", "eva", "barred", "nobody")):
        answers = {await house.call(caller, method, await house.name_of(kind)) for kind in KINDS}
        assert len(answers) == 1, (method, caller)
    for method, caller in product(METHODS, ("ann", "admin")):
        answers = {await house.call(caller, method, await house.name_of(kind)) for kind in KINDS[1:]}
        assert len(answers) == 1, (method, caller)


BAD_CALLS = [
    ("GET", "?colour=red", b""),
    ("GET", "?fields=colour", b""),
    ("DELETE", "?colour=red", b""),
    ("POST", ":cancel?colour=red", b""),
    ("POST", ":cancel", b"{"),
    ("POST", ":cancel", b'{"colour": 1}'),
    ("POST", ":cancel", b'{"name": "operations/other"}'),
    ("POST", ":cancel", b'{"reason": "' + b"x" * 1025 + b'"}'),
    ("POST", ":cancel", b" " * (1024 * 1024 + 1)),
    ("POST", ":wait", b'{"timeout": "soon"}'),
    ("POST", ":wait", b'{"timeout": "-1s"}'),
]


@pytest.mark.parametrize(("verb", "rest", "content"), BAD_CALLS, ids=lambda value: str(value)[:30])
async def test_a_bad_call_for_what_may_not_be_touched_is_refused_for_that(
    house: House, verb: str, rest: str, content: bytes
) -> None:
    for kind in KINDS:
        name = await house.name_of(kind)
        for caller in ("amy", "eve", "eva", "barred"):
            response = await house.client.request(verb, name + rest, content=content, headers={"x-user": caller})
            error = error_of(response)
            assert (error["code"], error["reason"]) == expected(caller, kind, house.conceal), (kind, caller)
    own = await house.client.request(
        verb, await house.name_of("anns") + rest, content=content, headers={"x-user": "ann"}
    )
    assert own.status_code in (400, 413)


async def test_what_is_refused_costs_the_same_reads_whether_it_is_there_or_not(house: House) -> None:
    reads: list[str] = []
    get, update = house.store.get, house.store.update

    async def counting_get(name: str) -> Any:
        reads.append("get")
        return await get(name)

    async def counting_update(name: str, transition: Any, within: Any = None) -> Any:
        reads.append("update")
        return await update(name, transition, within)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(house.store, "get", counting_get)
        patch.setattr(house.store, "update", counting_update)
        for method, caller in product(METHODS, ("amy", "eve", "eva")):
            costs = []
            for kind in ("anns", "missing", "deleted"):
                name = await house.name_of(kind)
                reads.clear()
                await house.call(caller, method, name)
                costs.append(tuple(reads))
            assert len(set(costs)) == 1, (method, caller, costs)
            assert len(costs[0]) == 1, (method, caller, costs)


async def test_a_refused_call_changes_nothing(house: House) -> None:
    name = await house.name_of("anns")
    before = await house.store.get(name)
    for method, caller in product(METHODS, ("amy", "eve", "eva", "barred", "nobody")):
        await house.call(caller, method, name)
    assert await house.store.get(name) == before


async def test_a_list_shows_each_caller_its_own(house: House) -> None:
    for who in ("ann", "ann", "amy", "eve"):
        await house.operations.start(idle, principal=CALLERS[who])
    counts = {}
    for caller in ("ann", "amy", "admin", "eve", "root"):
        response = await house.client.get("operations", headers={"x-user": caller})
        counts[caller] = len(response.json()["operations"])
    assert counts == {"ann": 2, "amy": 1, "admin": 3, "eve": 1, "root": 4}
    assert error_of(await house.client.get("operations", headers={"x-user": "barred"}))["code"] == 403


async def test_a_page_token_is_good_for_who_got_it_only(house: House) -> None:
    for _ in range(3):
        await house.operations.start(idle, principal=CALLERS["ann"])
    tokens = {}
    for caller in ("ann", "admin", "root"):
        page = await house.client.get("operations?pageSize=1", headers={"x-user": caller})
        tokens[caller] = page.json()["nextPageToken"]
    for owner, user in product(tokens, ("ann", "amy", "admin", "eve", "root")):
        query = {"pageSize": "1", "pageToken": tokens[owner]}
        response = await house.client.get("operations", params=query, headers={"x-user": user})
        if owner == user:
            assert response.status_code == 200
        else:
            assert error_of(response)["reason"] == "INVALID_PAGE_TOKEN", (owner, user)


async def test_a_request_id_leads_to_nobody_elses_operation(house: House) -> None:
    names = {}
    for caller in ("ann", "amy", "eve", "admin"):
        body = {"requestId": "monday"}
        first = await house.client.post("jobs/idle:run", json=body, headers={"x-user": caller})
        again = await house.client.post("jobs/idle:run", json=body, headers={"x-user": caller})
        assert first.json()["name"] == again.json()["name"]
        names[caller] = first.json()["name"]
    assert len(set(names.values())) == 4, "the request id of another principal is another request"
    record = await house.store.get(names["ann"])
    assert record is not None
    assert (record.owner, record.tenant) == ("ann", "acme")


async def test_owner_and_tenant_can_not_be_sent(house: House) -> None:
    for field in ("owner", "tenant", "principal", "parent"):
        response = await house.client.post("jobs/idle:run", json={field: "x"}, headers={"x-user": "eve"})
        assert error_of(response)["reason"] == "UNKNOWN_FIELD"


async def test_hooks_come_before_anything_is_looked_at(house: House) -> None:
    """A call with everything wrong is refused for who makes it (AIP-211)."""
    for verb, path in (
        ("GET", "operations?filter=((&pageSize=-1&pageToken=x&colour=red"),
        ("POST", "jobs/idle:run?colour=red"),
        ("POST", "jobs/no.such.job:run"),
        ("POST", "operations/a%20b:cancel"),
        ("GET", "jobs"),
        ("GET", "jobs/no.such.job"),
    ):
        content = b"{" if verb == "POST" else None
        nobody = await house.client.request(verb, path, content=content)
        barred = await house.client.request(verb, path, content=content, headers={"x-user": "barred"})
        assert nobody.status_code == 401, path
        assert barred.status_code in (403, 404), path
        assert error_of(barred)["reason"] in ("PERMISSION_DENIED", "OPERATION_NOT_FOUND"), path


# Hooks that go wrong


class Odd:
    """Hooks that answer as they are told."""

    def __init__(self, who: Callable[[], Any] = Principal, may: Callable[[], Any] = Scope) -> None:
        self._who, self._may = who, may

    def authenticate(self, request: object) -> Any:  # Any: on purpose
        return self._who()

    def authorize(self, principal: Principal, permission: str, resource: str) -> Any:
        return self._may()


def raising(error: Exception) -> Callable[[], Any]:
    def hook() -> Any:
        raise error

    return hook


@pytest.mark.parametrize(
    ("hooks", "status", "reason"),
    [
        (Odd(), 200, ""),
        (Odd(who=lambda: None), 401, "UNAUTHENTICATED"),
        (Odd(who=lambda: True), 503, "AUTHORIZATION_UNAVAILABLE"),
        (Odd(who=lambda: "ann"), 503, "AUTHORIZATION_UNAVAILABLE"),
        (Odd(who=lambda: Principal(7)), 503, "AUTHORIZATION_UNAVAILABLE"),  # type: ignore[arg-type]  # on purpose
        (Odd(may=lambda: None), 403, "PERMISSION_DENIED"),
        (Odd(may=lambda: True), 503, "AUTHORIZATION_UNAVAILABLE"),
        (Odd(may=lambda: "yes"), 503, "AUTHORIZATION_UNAVAILABLE"),
        (Odd(may=lambda: False), 503, "AUTHORIZATION_UNAVAILABLE"),
        (Odd(who=raising(RuntimeError("canary"))), 503, "AUTHORIZATION_UNAVAILABLE"),
        (Odd(may=raising(RuntimeError("canary"))), 503, "AUTHORIZATION_UNAVAILABLE"),
        (Odd(may=raising(ResourceExhausted("slow down", reason="TOO_FAST"))), 429, "TOO_FAST"),
    ],
)
async def test_only_what_a_hook_should_answer_lets_a_call_in(
    store: Store, hooks: Any, status: int, reason: str
) -> None:
    operations = Operations(store)
    name = (await operations.start(idle)).name
    app = Starlette(routes=[Mount("/v1", routes=operation_routes(operations, auth=hooks))])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://host/v1/") as client:
        response = await client.get(name)
    assert response.status_code == status
    assert "canary" not in response.text
    if status != 200:
        assert error_of(response)["reason"] == reason


# Pages of other sites


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin", "origin": "http://host"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"origin": "http://host"}, True),
        ({"origin": "https://app.example.com"}, True),
        ({"sec-fetch-site": "cross-site", "origin": "https://app.example.com"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://evil.example.com"}, False),
        ({"origin": "http://app.example.com"}, False),
        ({"origin": "https://app.example.com:8443"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "HTTP://Host"}, True),
        ({"origin": "http://host", "host": "HOST"}, True),
        ({"origin": "http://host:8000", "host": "host:8000"}, True),
        ({"origin": "http://host:8000"}, False),
        ({"origin": "http://host.evil.example.com"}, False),
        ({"origin": "http://evil@host"}, False),
        ({"origin": "http://host@evil"}, False),
        ({"origin": "http://["}, False),
        ({"origin": "host"}, False),
        ({"origin": "null", "host": ""}, False),
        ({"origin": "", "host": ""}, False),
        ({"origin": "http://", "host": ""}, False),
        ({"sec-fetch-site": "same-origin", "origin": "http://evil.example.com"}, False),
        ({"sec-fetch-site": "Same-Origin"}, False),
        ({"sec-fetch-site": ""}, False),
    ],
    ids=str,
)
async def test_a_page_of_another_site_changes_nothing_unless_its_origin_is_allowed(
    store: Store, headers: dict[str, str], allowed: bool
) -> None:
    operations = Operations(store)
    options: Json = {"auth": AllowAnonymous(), "allowed_origins": ["https://app.example.com"]}
    routes = [*operation_routes(operations, **options), *job_routes(operations, jobs=[idle], **options)]
    app = Starlette(routes=[Mount("/v1", routes=routes)])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://host/v1/") as client:
        name = (await operations.start(idle)).name
        calls = [("POST", "jobs/idle:run"), ("POST", f"{name}:cancel"), ("POST", f"{name}:wait"), ("DELETE", name)]
        for method, path in calls:
            response = await client.request(method, path, headers=headers)
            if allowed:
                assert response.status_code == 200, (method, response.text)
            else:
                assert error_of(response)["reason"] == "CROSS_SITE"
        assert (await client.get("operations", headers=headers)).status_code == 200, "reading changes nothing"


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://", "https://a.example.com/path", "ftp://a", "*", "null"]
)
def test_what_is_no_origin_is_refused_at_construction(origin: str) -> None:
    with pytest.raises(ValueError, match=r"https://app\.example\.com"):
        rules_of(AllowAnonymous(), allowed_origins=[origin])


# What a body may be


async def test_a_body_is_counted_as_it_comes_and_may_take_so_long(store: Store) -> None:
    limits = Limits(body=100, body_time=timedelta(milliseconds=50), depth=3)
    operations = Operations(store, limits=limits)
    routes = job_routes(operations, jobs=[idle], auth=AllowAnonymous())
    app = Starlette(routes=[Mount("/v1", routes=routes)])

    async def in_pieces(size: int) -> AsyncIterator[bytes]:
        for _ in range(size):
            yield b" "

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await anyio.sleep_forever()

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://host/v1/") as client:
        assert (await client.post("jobs/idle:run", content=in_pieces(100))).status_code == 200
        large = error_of(await client.post("jobs/idle:run", content=in_pieces(101)))
        assert (large["code"], large["reason"]) == (413, "BODY_TOO_LARGE")
        lying = error_of(await client.post("jobs/idle:run", content=in_pieces(101), headers={"content-length": "10"}))
        assert lying["reason"] == "BODY_TOO_LARGE"
        late = error_of(await client.post("jobs/idle:run", content=slowly()))
        assert (late["reason"], late["metadata"]) == ("BODY_TIMEOUT", {"seconds": "0.05"})
        deep = error_of(await client.post("jobs/idle:run", content=b'{"params": [[[]]]}'))
        assert deep["reason"] == "INVALID_BODY"


async def test_one_principal_can_not_take_all_the_waits(store: Store) -> None:
    operations = Operations(store, limits=Limits(waits_per_principal=2))
    app = Starlette(routes=[Mount("/v1", routes=operation_routes(operations, auth=Hooks()))])
    name = (await operations.start(idle, principal=CALLERS["ann"])).name
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://host/v1/") as client:

        async def wait(caller: str) -> Json:
            return dict((await client.post(f"{name}:wait", headers={"x-user": caller})).json())

        async with anyio.create_task_group() as group:
            group.start_soon(wait, "ann")
            group.start_soon(wait, "ann")
            with anyio.fail_after(5):
                while operations.waiting < 2:
                    await anyio.lowlevel.checkpoint()
                assert (await wait("ann"))["done"] is False, "one too many is answered at once"
            group.start_soon(wait, "root")
            with anyio.fail_after(5):
                while operations.waiting < 3:
                    await anyio.lowlevel.checkpoint()
            await operations.cancel(name)
