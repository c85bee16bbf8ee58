"""Inside other people's services: Starlette and FastAPI, mounts of every kind, and starts after starts."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from lro import AllowAnonymous, Context, Operation, Principal, Service, SyncContext, job
from lro.errors import NotFound
from lro.principal import Scope
from lro.routes import exception_handlers, operation_response, operation_routes, principal_of
from tests.servers import Server

Json = dict[str, Any]


class Params(BaseModel):
    pages: int = 1


@job("books.render")
async def render(ctx: Context, params: Params) -> dict[str, str]:
    return {"name": ctx.name, "owner": ctx.principal.id}


@job("books.bind")
def bind(ctx: SyncContext, params: Params) -> int:
    return params.pages


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@pytest.fixture
def service(url: str) -> Service:
    return Service(url, jobs=[render, bind], auth=AllowAnonymous(), handle_signals=False)


def run(client: TestClient, prefix: str = "/v1") -> Json:
    """Start an operation, wait for it, and return it as it ended."""
    started = client.post(f"{prefix}/jobs/books.render:run", json={"params": {}})
    assert started.status_code == 200, started.text
    ended: Json = client.post(f"{prefix}/{started.json()['name']}:wait").json()
    assert ended["response"]["value"]["name"] == started.json()["name"]
    return ended


# -- starting


def starlette(service: Service) -> Any:  # Any: an app, here and below
    return Starlette(routes=[Route("/hello", hello), Mount("/v1", app=service)], lifespan=service.lifespan)


def fastapi(service: Service) -> Any:
    app = FastAPI(lifespan=service.lifespan)
    app.add_route("/hello", hello)
    app.mount("/v1", service)
    return app


def fastapi_with_a_lifespan_of_its_own(service: Service) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_route("/hello", hello)
    app.mount("/v1", service)
    return app


hosts = pytest.mark.parametrize("host", [starlette, fastapi, fastapi_with_a_lifespan_of_its_own])


@hosts
def test_it_works_in_a_host(service: Service, host: Callable[[Service], Any]) -> None:
    with TestClient(host(service)) as client:
        run(client)
        assert client.get("/hello").text == "hello"
        assert client.get("/v1/readyz").status_code == 200


@hosts
def test_a_host_may_be_started_again_as_tests_do(service: Service, host: Callable[[Service], Any]) -> None:
    app = host(service)
    names = []
    for _ in range(3):
        with TestClient(app) as client:
            names.append(run(client)["name"])
            listed = client.get("/v1/operations").json()["operations"]
            assert [operation["name"] for operation in reversed(listed)] == names


@hosts
def test_mounted_and_not_started_it_says_what_to_add(service: Service, host: Callable[[Service], Any]) -> None:
    answer = TestClient(host(service)).get("/v1/operations")  # without `with`, no lifespan is run
    assert answer.status_code == 503
    assert answer.json()["error"]["status"] == "UNAVAILABLE"
    assert "async with service:" in answer.json()["error"]["message"]
    assert "lifespan=service.lifespan" in answer.json()["error"]["message"]


async def test_a_service_can_not_be_started_twice_at_once(service: Service) -> None:
    async with service:
        with pytest.raises(RuntimeError, match="is open already"):
            await service.__aenter__()
        assert (await service.start(render, Params())).name


async def test_in_process_it_starts_and_has_the_result(service: Service) -> None:
    async with service:
        operation = await service.start(bind, Params(pages=7))
        assert await service.operations.result(bind, operation.name) == 7


def test_served_by_itself_it_is_an_app(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(
        "from lro import AllowAnonymous, Service\n"
        "from tests.test_embedding import render\n"
        "service = Service('sqlite:///lro.db', jobs=[render], auth=AllowAnonymous())\n"
        "app = service.app('/api/v3')\n",
        encoding="utf-8",
    )
    for name, prefix in (("service", ""), ("app", "/api/v3")):
        with Server(f"alone:{name}", tmp_path, {"PYTHONPATH": str(tmp_path)}) as server, server.client() as client:
            started = client.post(f"{server.url}{prefix}/jobs/books.render:run", json={"params": {}}).json()
            ended = client.post(f"{server.url}{prefix}/{started['name']}:wait").json()
            assert ended["response"]["value"]["name"] == started["name"]
            server.terminate(timeout=15)


# -- mounts


def test_before_the_hosts_own_routes_a_mount_takes_all_below_its_prefix(service: Service) -> None:
    routes = [Mount("/v1", app=service), Route("/v1/hello", hello), Route("/hello", hello)]
    with TestClient(Starlette(routes=routes, lifespan=service.lifespan)) as client:
        run(client)
        assert client.get("/hello").text == "hello"
        missed = client.get("/v1/hello")
        assert (missed.status_code, missed.json()["error"]["status"]) == (404, "NOT_FOUND")


def test_after_the_hosts_own_routes_both_answer_below_one_prefix(service: Service) -> None:
    routes = [Route("/v1/hello", hello), Mount("/v1", app=service)]
    with TestClient(Starlette(routes=routes, lifespan=service.lifespan)) as client:
        run(client)
        assert client.get("/v1/hello").text == "hello"


def test_twice_in_one_app_and_deep_below_prefixes(service: Service) -> None:
    inner = Starlette(routes=[Mount("/v1beta1", app=service)])
    routes = [Mount("/v1", app=service), Mount("/api/books", app=inner)]
    with TestClient(Starlette(routes=routes, lifespan=service.lifespan)) as client:
        one, two = run(client, "/v1"), run(client, "/api/books/v1beta1")
        for prefix in ("/v1", "/api/books/v1beta1"):
            assert client.get(f"{prefix}/{one['name']}").json() == one
            assert client.get(f"{prefix}/{two['name']}").json() == two


def test_two_services_in_one_process_keep_apart(tmp_path: Path) -> None:
    one, two = (
        Service(f"sqlite:///{tmp_path}/{name}.db", jobs=[render], auth=AllowAnonymous(), handle_signals=False)
        for name in ("one", "two")
    )

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        async with one, two:
            yield

    with TestClient(Starlette(routes=[Mount("/one", one), Mount("/two", two)], lifespan=lifespan)) as client:
        ended = run(client, "/one")
        run(client, "/two")
        assert client.get(f"/two/{ended['name']}").status_code == 404


def test_two_services_in_one_process_may_share_a_file(url: str) -> None:
    one, two = (Service(url, jobs=[render], auth=AllowAnonymous(), handle_signals=False) for _ in range(2))

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        async with one, two:
            yield

    with TestClient(Starlette(routes=[Mount("/one", one), Mount("/two", two)], lifespan=lifespan)) as client:
        for _ in range(5):
            ended = run(client, "/one")
            assert client.get(f"/two/{ended['name']}").json() == ended


def test_a_fastapi_router_takes_the_routes_too(service: Service) -> None:
    app = FastAPI(lifespan=service.lifespan)
    app.router.routes.append(Mount("/v1", routes=operation_routes(service.operations, auth=AllowAnonymous())))
    app.mount("/v2", service)
    with TestClient(app) as client:
        ended = run(client, "/v2")
        assert client.get(f"/v1/{ended['name']}").json() == ended


# -- endpoints of one's own


class Tokens:
    """Knows everybody who gives a name, and breaks for one of them."""

    async def authenticate(self, request: Request) -> Principal | None:
        name = request.headers.get("x-user")
        if name == "trouble":
            raise OSError("the directory is away")
        return Principal(name) if name else None

    async def authorize(self, principal: Principal, permission: str, resource: str) -> Scope:
        return Scope(owner=principal.id)


@pytest.fixture
def own(service: Service) -> FastAPI:
    """A FastAPI app with endpoints of its own."""
    caller = Annotated[Principal, Depends(principal_of(Tokens()))]
    app = FastAPI(lifespan=service.lifespan, exception_handlers=exception_handlers)
    router = APIRouter(prefix="/v1/books")

    @router.post("")
    async def typed(params: Params, who: caller) -> Operation:
        return await service.start(render, params, principal=who)

    @router.post("/{book}", response_model=Operation, status_code=202)
    async def untyped(book: str) -> Any:
        return operation_response(await service.start(render, Params(), target=book))

    @router.get("")
    async def page() -> list[Operation]:
        return list((await service.operations.list()).operations)

    @router.get("/lost")
    async def lost() -> Operation:
        return await service.operations.get(f"operations/{'0' * 26}")

    @router.get("/maybe")
    async def maybe() -> Operation | None:
        return None

    app.include_router(router)
    app.mount("/v1", service)
    return app


def test_a_returned_operation_is_written_as_the_routes_write_it(own: FastAPI) -> None:
    with TestClient(own) as client:
        started = client.post("/v1/books", json={"pages": 2}, headers={"x-user": "ada"}).json()
        assert started.keys() == {"name", "metadata", "done"}
        ended: Json = client.post(f"/v1/{started['name']}:wait").json()
        assert ended["response"]["value"]["owner"] == "ada"
        assert client.get("/v1/books").json() == [ended]
        assert client.get("/v1/books/maybe").json() is None
        other = client.post("/v1/books/moby-dick").json()
        assert other["metadata"]["value"]["target"] == "moby-dick"


def test_the_openapi_names_the_operation_once_and_the_params_too(own: FastAPI) -> None:
    schema = own.openapi()
    reference = {"$ref": "#/components/schemas/Operation"}
    for path, method, status in (("/v1/books", "post", "200"), ("/v1/books/{book}", "post", "202")):
        answers = schema["paths"][path][method]["responses"]
        assert answers[status]["content"]["application/json"]["schema"] == reference
    listed = schema["paths"]["/v1/books"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert listed["items"] == reference
    operation = schema["components"]["schemas"]["Operation"]
    assert operation["properties"].keys() == {"name", "metadata", "done", "error", "response"}
    assert "Params" in schema["components"]["schemas"]
    assert "Status" not in schema["components"]["schemas"]


def test_nobody_known_is_401_and_a_broken_hook_503_from_an_endpoint_of_ones_own(own: FastAPI) -> None:
    with TestClient(own) as client:
        for headers, status, word in (({}, 401, "UNAUTHENTICATED"), ({"x-user": "trouble"}, 503, "UNAVAILABLE")):
            answer = client.post("/v1/books", json={}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["status"]) == (status, word)
            assert "directory" not in answer.text


def test_an_error_of_the_library_out_of_an_endpoint_of_ones_own_is_googles_json(own: FastAPI) -> None:
    with TestClient(own) as client:
        answer = client.get("/v1/books/lost")
    assert answer.status_code == 404
    assert answer.json()["error"]["details"][0]["reason"] == NotFound.reason


def test_what_is_no_operation_is_refused_as_a_response(service: Service) -> None:
    app = FastAPI()

    @app.get("/")
    async def wrong() -> Operation:
        return {"name": "operations/1"}  # type: ignore[return-value]  # that is the test

    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert answer.status_code == 500
