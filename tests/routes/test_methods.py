"""Which methods there are: those switched off, wrong verbs, HEAD and OPTIONS, when to ask again."""

import httpx2
import pytest
from starlette.applications import Starlette

from lro import AllowAnonymous, Context, Principal, Service, job
from lro.errors import FailedPrecondition, LROError, ResourceExhausted, Unavailable
from lro.operations import Operations
from lro.principal import Scope
from lro.routes import operation_routes
from lro.routes.answer import RETRY_INFO, error_response
from lro.routes.operations import METHODS
from lro.store import Store, open_store
from tests.routes.conftest import Stage
from tests.routes.requests import UNKNOWN, Json, checked_error, ended, error_of, start

CALLS = {
    "get": ("GET", UNKNOWN),
    "list": ("GET", "operations"),
    "cancel": ("POST", f"{UNKNOWN}:cancel"),
    "delete": ("DELETE", UNKNOWN),
    "wait": ("POST", f"{UNKNOWN}:wait"),
}


@job("idle")
async def idle(ctx: Context) -> None:
    del ctx


class OnlyAda(AllowAnonymous):
    """Knows everybody who says a name, and lets Ada do everything."""

    def authenticate(self, request: httpx2.Request, /) -> Principal | None:  # type: ignore[override]  # may be nobody
        name = request.headers.get("x-user")
        return Principal(name) if name else None

    async def authorize(self, principal: Principal, permission: str, resource: str, /) -> Scope | None:  # type: ignore[override]  # may refuse
        return Scope() if principal.id == "ada" else None


@pytest.mark.parametrize("off", sorted(METHODS))
async def test_a_method_that_is_switched_off_is_501_for_those_who_might_call_it(url: str, off: str) -> None:
    service = Service(url, jobs=[], auth=OnlyAda(), methods=METHODS - {off}, handle_signals=False)
    async with service, httpx2.AsyncClient(transport=httpx2.ASGITransport(app=service), base_url="http://h/") as client:
        for method, (verb, path) in CALLS.items():
            for prefix in ("", "projects/p/"):
                nobody, bob, ada = [
                    error_of(response) if response.is_error else {"code": response.status_code}
                    for who in ({}, {"x-user": "bob"}, {"x-user": "ada"})
                    for response in [await client.request(verb, prefix + path, headers=who)]
                ]
                assert (nobody["code"], bob["code"]) == (401, 403)
                if method == off:
                    assert (ada["code"], ada["status"], ada["reason"]) == (501, "UNIMPLEMENTED", "METHOD_NOT_OFFERED")
                    assert ada["metadata"] == {"method": f"operations.{off}"}
                else:
                    assert ada["code"] == (200 if method == "list" else 404)


async def test_allow_names_what_is_offered_only(url: str) -> None:
    routes = operation_routes(Operations(open_store(url)), auth=AllowAnonymous(), methods=["get", "list"])
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=Starlette(routes=routes)), base_url="http://h/"
    ) as client:
        assert (await client.put(UNKNOWN)).headers["allow"] == "GET, HEAD, OPTIONS"
        assert (await client.get(f"{UNKNOWN}:cancel")).headers["allow"] == "OPTIONS"


class OnlyFor(AllowAnonymous):
    """Lets everybody do one thing, and writes down what it was asked for."""

    def __init__(self, permission: str) -> None:
        self.permission = permission
        self.asked: list[str] = []

    async def authorize(self, principal: Principal, permission: str, resource: str, /) -> Scope | None:  # type: ignore[override]  # may refuse
        self.asked.append(permission)
        return Scope() if permission == self.permission else None


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_a_call_needs_its_own_permission_and_no_other(store: Store, method: str) -> None:
    operations, auth = Operations(store), OnlyFor(f"operations.{method}")
    name = (await operations.start(idle)).name
    app = Starlette(routes=operation_routes(operations, auth=auth))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://h/") as client:
        for other in (*sorted(METHODS - {method}), method):
            verb, path = CALLS[other]
            body = {"timeout": "0s"} if other == "wait" else None
            response = await client.request(verb, path.replace(UNKNOWN, name), json=body)
            assert response.status_code == (200 if other == method else 403)
            assert auth.asked.pop() == f"operations.{other}"
            assert not auth.asked


@pytest.mark.parametrize("methods", [{"get", "run"}, "get", ["GET"]])
async def test_methods_that_do_not_exist_can_not_be_offered(url: str, methods: object) -> None:
    with pytest.raises(ValueError, match="cancel, delete, get, list, wait"):
        operation_routes(Operations(open_store(url)), auth=AllowAnonymous(), methods=methods)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("operations", "GET, HEAD, OPTIONS"),
        (UNKNOWN, "DELETE, GET, HEAD, OPTIONS"),
        (f"projects/p/{UNKNOWN}", "DELETE, GET, HEAD, OPTIONS"),
        (f"{UNKNOWN}:cancel", "OPTIONS, POST"),
        (f"{UNKNOWN}:wait", "OPTIONS, POST"),
        ("jobs", "GET, HEAD, OPTIONS"),
        ("jobs/count", "GET, HEAD, OPTIONS"),
        ("jobs/count:run", "OPTIONS, POST"),
        ("healthz", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_wrong_verb_is_405_and_options_says_which_are_right(
    client: httpx2.AsyncClient, path: str, allow: str
) -> None:
    for verb in ("PUT", "PATCH", "TRACE", "BREW", "POST", "DELETE", "GET"):
        if verb not in allow.split(", "):
            response = await client.request(verb, path)
            error = error_of(response)
            assert (error["code"], error["status"], error["reason"]) == (405, "UNIMPLEMENTED", "METHOD_NOT_ALLOWED")
            assert response.headers["allow"] == error["metadata"]["allow"] == allow
    options = await client.options(path)
    assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", allow)


async def test_head_is_get_without_a_body_to_read(client: httpx2.AsyncClient) -> None:
    name = await ended(client)
    for path, status in ((name, 200), ("operations", 200), (UNKNOWN, 404)):
        head, get = await client.head(path), await client.get(path)
        assert head.status_code == get.status_code == status
        assert head.headers["content-length"] == get.headers["content-length"]
        assert head.headers.get("etag") == get.headers.get("etag")
    assert (await client.head(f"{UNKNOWN}:cancel")).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        *(f"{UNKNOWN}:explode", f"{UNKNOWN}:", f"{UNKNOWN}:Cancel", "operations:cancel", "jobs/count:stop", "jobs:run"),
        *("projects/p", "nope", ""),
    ],
)
async def test_what_nobody_knows_is_404(client: httpx2.AsyncClient, path: str) -> None:
    for verb in ("GET", "POST"):
        error = error_of(await client.request(verb, path))
        assert (error["code"], error["status"], error["reason"]) == (404, "NOT_FOUND", "ROUTE_NOT_FOUND")


# -- when to ask again


async def test_an_operation_that_is_not_done_says_when_to_look_again(client: httpx2.AsyncClient, stage: Stage) -> None:
    run = await client.post("jobs/deaf:run")
    name = run.json()["name"]
    await stage.running.wait()
    get, wait = await client.get(name), await client.post(f"{name}:wait", json={"timeout": "0s"})
    for response in (run, get, wait):
        assert response.headers["retry-after"] == "1"
        assert response.headers["etag"]
    stage.go_on.set()
    for response in (await client.post(f"{name}:wait"), await client.get(name)):
        assert response.json()["done"]
        assert "retry-after" not in response.headers
    assert "retry-after" not in (await client.post("jobs/nothing:run", json={"validateOnly": True})).headers


@pytest.mark.parametrize(
    ("error", "header", "delay"),
    [
        (Unavailable(), "1", "1s"),
        (ResourceExhausted(), "1", "1s"),
        (Unavailable(details=[{"@type": RETRY_INFO, "retryDelay": "2.500s"}]), "3", "2.500s"),
        (ResourceExhausted(details=[{"@type": RETRY_INFO, "retryDelay": "60s"}]), "60", "60s"),
        (ResourceExhausted(details=[{"@type": RETRY_INFO, "retryDelay": "soon"}]), None, "soon"),
        (ResourceExhausted(details=[{"@type": RETRY_INFO}]), None, None),
        (FailedPrecondition(), None, None),
    ],
)
def test_what_may_be_tried_again_says_when(error: LROError, header: str | None, delay: str | None) -> None:
    import json

    response = error_response(error, "lro")
    body: Json = json.loads(bytes(response.body))
    details = checked_error(response.status_code, body)["details"]
    told = [one for one in details if one["@type"] == RETRY_INFO]

    assert response.headers.get("retry-after") == header
    assert [one.get("retryDelay") for one in told] == ([] if isinstance(error, FailedPrecondition) else [delay])


async def test_a_refused_start_says_when_to_try_again(client: httpx2.AsyncClient, service: Service) -> None:
    await start(client)
    await service.__aexit__(None, None, None)
    response = await client.post("jobs/nothing:run")
    assert error_of(response)["code"] == 503
    assert response.headers["retry-after"] == "1"
    await service.__aenter__()
