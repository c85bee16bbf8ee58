"""Names in paths: which operation a call means, below which mounts, and that it never means another one."""

import json
import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Asgi

from lro import AllowAnonymous, Context, Operations, Principal, Service, job
from lro.lifecycle import Record
from lro.limits import Limits
from lro.principal import ANYTHING, Scope
from lro.routes import operation_routes
from lro.routes.path import MAX_NAME
from lro.testing import MemoryStore
from tests.routes.requests import Json, ask


@job("endless")
async def endless(ctx: Context) -> None:
    await ctx.sleep(3600)


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:  # nothing here needs a file
    async with MemoryStore() as opened:
        yield opened


@pytest.fixture
async def operations(store: MemoryStore) -> Operations:
    return Operations(store, limits=Limits(wait=timedelta(milliseconds=1)))


@pytest.fixture
def app(operations: Operations) -> Starlette:
    return Starlette(routes=[Mount("/v1", routes=operation_routes(operations, auth=AllowAnonymous()))])


async def everything(operations: Operations) -> dict[str, Record]:
    """Return all records in the store."""
    from lro.store import PageQuery

    parents = ("", "projects/p", "projects/p/locations/l", "projects/operations", "operations/x")
    pages = [await operations.store.list(PageQuery(parent, limit=10_000)) for parent in parents]
    return {record.name: record for page in pages for record in page.records}


# -- parents and prefixes


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "projects/p",
        "projects/p/locations/l",
        "projects/operations",
        "operations/x",
        "organizations/0/things/~a.b_c-d",
    ],
)
async def test_any_parent_is_served(operations: Operations, app: Starlette, parent: str) -> None:
    name = (await operations.start(endless, parent=parent)).name
    other = (await operations.start(endless, parent="folders/f")).name
    collection = f"/v1/{parent}/operations" if parent else "/v1/operations"

    assert json.loads((await ask(app, "GET", f"/v1/{name}")).body)["name"] == name
    listed = json.loads((await ask(app, "GET", collection)).body)["operations"]
    assert [one["name"] for one in listed] == [name]
    assert (await ask(app, "POST", f"/v1/{name}:cancel")).body == b"{}"
    assert json.loads((await ask(app, "POST", f"/v1/{name}:wait")).body)["error"]["code"] == 1
    assert (await ask(app, "DELETE", f"/v1/{name}")).body == b"{}"
    assert (await ask(app, "GET", f"/v1/{name}")).status == 404
    assert (await operations.get(other)).done is False


def prefixed(operations: Operations, prefix: str) -> Mount:
    return Mount(prefix, routes=operation_routes(operations, auth=AllowAnonymous()))


async def test_several_versions_live_at_once(operations: Operations) -> None:
    app = Starlette(routes=[prefixed(operations, prefix) for prefix in ("/v1", "/v3", "/v1beta1", "/ui/v1")])
    name = (await operations.start(endless, parent="projects/p")).name
    for prefix in ("/v1", "/v3", "/v1beta1", "/ui/v1"):
        assert json.loads((await ask(app, "GET", f"{prefix}/{name}")).body)["name"] == name


def fastapi(operations: Operations) -> FastAPI:
    app = FastAPI()
    app.mount("/v1", Starlette(routes=operation_routes(operations, auth=AllowAnonymous())))
    return app


class Stripping:
    """An app behind a proxy that takes its prefix off, and that knows of it: FastAPI's `root_path=`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        await self.app({**scope, "root_path": "/api"}, receive, send)


MOUNTS: dict[str, tuple[Callable[[Operations], ASGIApp], str, str]] = {
    "plain": (lambda it: Starlette(routes=[prefixed(it, "/v1")]), "", "/v1"),
    "at the root": (lambda it: Starlette(routes=operation_routes(it, auth=AllowAnonymous())), "", ""),
    "nested": (lambda it: Starlette(routes=[Mount("/a", Starlette(routes=[prefixed(it, "/b/v1")]))]), "", "/a/b/v1"),
    "with a parameter": (lambda it: Starlette(routes=[prefixed(it, "/a/{x}/v1")]), "", "/a/b/v1"),
    "with an odd parameter": (lambda it: Starlette(routes=[prefixed(it, "/a/{x}/v1")]), "", "/a/b%20%C3%BC/v1"),
    "with a path": (lambda it: Starlette(routes=[prefixed(it, "/a/{x:path}/v1")]), "", "/a/b/c/v1"),
    "fastapi": (fastapi, "", "/v1"),
    "root_path of the server": (lambda it: Starlette(routes=[prefixed(it, "/v1")]), "/api", "/api/v1"),
    "root_path with a slash": (lambda it: Starlette(routes=[prefixed(it, "/v1")]), "/api/", "/api//v1"),
    "root_path of an app": (lambda it: Stripping(Starlette(routes=[prefixed(it, "/v1")])), "", "/v1"),
    "root_path of FastAPI": (lambda it: Stripping(fastapi(it)), "", "/v1"),
    "an encoded prefix": (lambda it: Starlette(routes=[prefixed(it, "/v1")]), "", "/%761"),
}


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize("raw", [True, False])
async def test_below_any_mount_an_exact_name_is_found_and_others_are_not(
    operations: Operations, mount: str, raw: bool
) -> None:
    make, root, prefix = MOUNTS[mount]
    app = make(operations)
    scope: Json = {"root_path": root} if raw else {"root_path": root, "raw_path": None}
    name = (await operations.start(endless, parent="projects/p")).name

    assert json.loads((await ask(app, "GET", f"{prefix}/{name}", **scope)).body)["name"] == name
    assert (await ask(app, "GET", f"{prefix}/projects/p/operations", **scope)).status == 200
    assert (await ask(app, "POST", f"{prefix}/{name}x:cancel", **scope)).status in (400, 404)
    if raw:
        for odd in (f"{name}%3Acancel", f"{name}:%63ancel", f"{name.replace('/', '%2F')}:cancel"):
            assert (await ask(app, "POST", f"{prefix}/{odd}", **scope)).status in (400, 404, 405)
        if prefix:
            assert (await ask(app, "POST", f"{prefix}%2F{name}:cancel", **scope)).status == 404
            assert (await ask(app, "POST", f"{prefix}%2Fx/{name}:cancel", **scope)).status == 404
    assert (await operations.store.get(name)) == (await everything(operations))[name]
    assert (await everything(operations))[name].cancel_requested_at is None
    assert (await ask(app, "POST", f"{prefix}/{name}:cancel", **scope)).body == b"{}"
    assert (await everything(operations))[name].cancel_requested_at is not None


async def test_a_middleware_that_rewrites_the_path_alone_is_followed(operations: Operations, app: Starlette) -> None:
    name = (await operations.start(endless)).name
    answer = await ask(app, "GET", f"/v1/{name}", raw_path=f"/old/v1/{name}".encode())
    assert answer.status == 200


# -- names that are none

ODD = [
    *("..", ".", "%2e%2e", "%2E", "../operations/{id}", "./{id}", "{id}/.", "{id}/..", "{id}/", "", "/{id}", "{id}//"),
    *("{id}%00", "%00", "{id}%0a", "{id}%0d%0a", "{id}%20", "%20{id}", "{id}%09", "{id}%ff", "%ff%fe", "%c3%28"),
    *("{id}%2F", "%2F{id}", "x%2f{id}", "{id}%252F", "{id}%3A", "{id}%3Acancel", "{id}%3await", "{id}:", "{id}::"),
    *("{id}%5c", "{id}\\", "{id}%3F", "{id}%23", "{id};a=b", "{id},{id}", "{id}*", "*", "**", "-", "{id}+", "{id}%2B"),
    *("%F0%9F%98%80", "{id}%F0%9F%98%80", "%EF%BC%8E%EF%BC%8E", "{id}%E2%80%AE", "a" * 10_000, "%61" * 3_000),
    *("{upper}", "{id}0", "{short}", "0{id}", "{id}/{id}", "operations", "operations/{id}", "%00" * 100),
]


VERBS = ["", ":cancel", ":wait", ":cancel:cancel", ":cancel%0a", ":cancel%00", ":%63ancel", ":CANCEL", "%3Acancel"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("parent", ["", "projects/p/"])
async def test_odd_names_are_refused_and_touch_nothing(
    operations: Operations, app: Starlette, parent: str, verb: str
) -> None:
    name = (await operations.start(endless, parent=parent.removesuffix("/"))).name
    key = name.rpartition("/")[2]
    await operations.start(endless, parent="operations/x")
    before = await everything(operations)
    for odd in ODD:
        path = odd.format(id=key, upper=key.upper(), short=key[:-1])
        for method in ("GET", "POST", "DELETE"):
            for raw in (True, False):
                scope: Json = {} if raw else {"raw_path": None}
                sent = f"/v1/{parent}operations/{path}{verb}"
                if not raw and unquote(sent).removesuffix(":cancel").removesuffix(":wait") == f"/v1/{name}":
                    continue  # decoded, it is the name
                answer = await ask(app, method, sent, **scope)
                if "\n" in unquote(sent) and answer.body == b"Not Found":  # no Mount knows it: the host answers
                    assert answer.status == 404
                else:
                    assert answer.error["code"] in (400, 404, 405), (method, sent)
                    assert len(answer.body) < 5_000
    assert await everything(operations) == before


LONG = "projects/" + "p" * 10_000


@pytest.mark.parametrize(
    "parent",
    ["..", "projects", "projects/..", "projects/%2e", "projects//x/y", "projects/p%2Fq/x/y", "projects/%ff", LONG],
)
async def test_an_odd_parent_is_refused(operations: Operations, app: Starlette, parent: str) -> None:
    await operations.start(endless, parent="projects/p")
    answer = await ask(app, "GET", f"/v1/{parent}/operations")
    assert answer.error["code"] in (400, 404)
    assert b"operations/0" not in answer.body


NAMELESS = [
    "operations/",
    "operations/..",
    "operations/a%2Fb",
    "operations/a%3Ab",
    "a//operations/b",
    "a/b:c/operations/d",
]


@pytest.mark.parametrize("name", [*NAMELESS, "operations/" + "a" * MAX_NAME])
async def test_a_name_that_can_not_be_one_is_named_as_such_once_the_caller_is_known(
    operations: Operations, app: Starlette, name: str
) -> None:
    error = (await ask(app, "GET", f"/v1/{name}")).error
    assert (error["code"], error["status"], error["metadata"]["field"]) == (400, "INVALID_ARGUMENT", "name")
    assert (await ask(app, "POST", f"/v1/{name}:cancel:cancel")).error["metadata"]["field"] == "name"

    class Refusing(AllowAnonymous):
        asked = ""

        async def authorize(self, principal: Principal, permission: str, resource: str, /) -> Scope | None:  # type: ignore[override]  # may refuse
            self.asked = resource
            return ANYTHING if permission == "operations.cancel" else None

    auth = Refusing()
    strict = Starlette(routes=operation_routes(operations, auth=auth))
    assert (await ask(strict, "GET", f"/{name}")).error["code"] == 403
    assert auth.asked == unquote(name.replace("%2F", "%252F"))
    assert (await ask(strict, "POST", f"/{name}:cancel")).error["code"] == 400


async def test_an_operation_below_a_parent_is_found_by_its_whole_name_only(
    operations: Operations, app: Starlette
) -> None:
    name = (await operations.start(endless, parent="projects/p")).name
    key = name.rpartition("/")[2]
    for other in (f"operations/{key}", f"projects/q/operations/{key}", f"projects/p/locations/l/operations/{key}"):
        for method, verb in (("GET", ""), ("DELETE", ""), ("POST", ":cancel"), ("POST", ":wait")):
            assert (await ask(app, method, f"/v1/{other}{verb}")).error["reason"] == "OPERATION_NOT_FOUND"
    assert (await everything(operations))[name].cancel_requested_at is None
    assert (await ask(app, "POST", f"/v1/projects/p/operations/%{ord(key[0]):x}{key[1:]}:cancel")).status == 200


PIECES = st.sampled_from(
    [
        *(
            "operations",
            "{id}",
            "/",
            ":",
            ":cancel",
            ":wait",
            "projects",
            "p",
            "%2F",
            "%3A",
            "%00",
            "%0d",
            "%2e",
            ".",
            "..",
        ),
        *("%25", "%", "%zz", "?", "a", "-", "%ff", "//", "%63ancel", ""),
    ]
)


@st.composite
def near_misses(draw: st.DrawFn) -> str:
    """Return a path of an operation, or one that is a slip or two from it."""
    pieces = ["operations", "/", "{id}", *draw(st.sampled_from([[], [":cancel"], [":cancel"], [":wait"]]))]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(pieces)))
        pieces[at : at + draw(st.integers(0, 1))] = [draw(PIECES)]
    return "".join(pieces)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=400)
@given(path=near_misses(), method=st.sampled_from(["GET", "POST", "POST", "DELETE", "PUT", "HEAD"]))
async def test_no_path_touches_an_operation_but_its_own(
    operations: Operations, app: Starlette, path: str, method: str
) -> None:
    name = (await operations.start(endless)).name
    before = await everything(operations)
    path = path.format(id=name.rpartition("/")[2])

    answer = await ask(app, method, f"/v1/{path}")

    assert answer.status < 500
    if answer.status >= 400 and method != "HEAD":
        assert answer.error
    after = await everything(operations)
    found = re.fullmatch(r"operations/([^/:?]+)(:cancel)?(\?.*)?", path)
    meant = found is not None and unquote(found[1]) == name.rpartition("/")[2]
    if found and meant and method == ("POST" if found[2] else "DELETE") and found[3] in (None, "?"):
        assert answer.status == 200
        assert after.pop(name, None) != before.pop(name)
    assert after == before


async def test_an_app_of_its_own_answers_in_json_everywhere(url: str) -> None:
    async with Service(url, jobs=[endless], auth=AllowAnonymous(), worker=False, handle_signals=False) as service:
        app = service.app("/v1")
        for path in (
            "/",
            "/v2/operations",
            "//v1/operations",
            "/v1%2Foperations",
            "/v1/operations%0a",
            "http://host/v1/operations",
            "*",
        ):
            assert (await ask(app, "GET", path)).error["reason"] == "ROUTE_NOT_FOUND"
        assert (await ask(app, "GET", "/v1/operations")).status == 200
        assert (await ask(service, "GET", "/operations%0a")).error["code"] == 404
