"""The OpenAPI document: valid, whole, and true to what the service takes."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from lro import AllowAnonymous, Context, Principal, Service, job
from lro.lifecycle import CancelOutcome, State
from lro.limits import Limits
from lro.principal import Scope
from lro.routes.openapi import openapi_document
from lro.status import Code
from tests.apps import shop

Json = dict[str, Any]  # Any: JSON


class Operation(BaseModel):
    """A model that has the name of one of ours."""

    cuts: int


class Record(BaseModel):
    done: int = 0


@job("surgery.operate")
async def operate(ctx: Context, params: Operation) -> Operation:
    return params


@job("surgery.rest")
async def rest(ctx: Context) -> None:
    raise NotImplementedError


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    service = Service(url, jobs=[operate, rest], auth=AllowAnonymous(), domain="surgery.example.com")
    app = Starlette(routes=[Mount("/v1", app=service), Mount("/deep/v3beta1", app=service)])
    async with service, httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://host/") as opened:
        yield opened


def run_of(document: Json, name: str) -> Json:
    return dict(document["paths"][f"/jobs/{name}:run"]["post"])


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (target for key, target in value.items() if key == "$ref")
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from references(member)


async def test_it_is_valid_and_its_paths_go_on_from_the_mount(client: httpx2.AsyncClient) -> None:
    for prefix in ("/v1", "/deep/v3beta1"):
        document = (await client.get(f"{prefix}/openapi.json")).json()
        validate(document)
        assert document["openapi"] == "3.1.0"
        assert document["info"]["title"] == "surgery.example.com"
        assert document["servers"] == [{"url": prefix}]
        for path in document["paths"]:
            answer = await client.options(prefix + path.replace("{operation}", "01kaprb5mg0000000000000000"))
            assert answer.status_code == 204, f"{path} is nowhere"
            offered = {method.upper() for method in document["paths"][path]} - {"PARAMETERS"}
            assert set(answer.headers["allow"].split(", ")) - {"HEAD", "OPTIONS"} == offered


async def test_what_the_service_does_not_offer_is_not_in_it(url: str) -> None:
    service = Service(url, jobs=[rest], auth=AllowAnonymous(), methods={"get", "cancel"})
    transport = httpx2.ASGITransport(app=service.app())
    async with service, httpx2.AsyncClient(transport=transport, base_url="http://host/v1/") as client:
        document = (await client.get("openapi.json")).json()
        assert "paths" in (await client.get("openapi.json?fields=paths&prettyPrint=true")).json()
    validate(document)
    methods = {method["operationId"] for path in document["paths"].values() for method in _methods(path)}
    assert methods == {"operations.get", "operations.cancel", "run.surgery.rest"}
    links = run_of(document, "surgery.rest")["responses"]["200"]["links"]
    assert {link["operationId"] for link in links.values()} == {"operations.get", "operations.cancel"}


async def test_a_run_shows_its_jobs_own_types(client: httpx2.AsyncClient) -> None:
    document = (await client.get("v1/openapi.json")).json()
    schemas = document["components"]["schemas"]
    body = run_of(document, "surgery.operate")["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert (body["required"], schema["required"], schema["additionalProperties"]) == (True, ["params"], False)
    assert schema["properties"]["params"] == {"$ref": "#/components/schemas/Operation"}
    cuts = schemas["Operation"]["properties"]["cuts"]
    assert (cuts["minimum"], cuts["maximum"]) == (-(2**63), 2**64 - 1), "what is no 64-bit integer is refused"
    assert schemas["google.longrunning.Operation"]["properties"]["done"]["type"] == "boolean"
    bare = run_of(document, "surgery.rest")["requestBody"]
    assert bare["required"] is False
    assert "params" not in bare["content"]["application/json"]["schema"]["properties"]


def test_messages_are_told_by_their_types() -> None:
    @job("surgery.write", response_type="acme.v1.Operation", metadata_type="acme.v1.Progress", progress=Record)
    async def write(ctx: Context[Record]) -> Operation:
        raise NotImplementedError

    document = openapi_document({"surgery.write": write}, Limits(), title="t", server="/")
    validate(document)
    schema = run_of(document, "surgery.write")["responses"]["200"]["content"]["application/json"]["schema"]
    own = schema["allOf"][1]["properties"]
    assert own["response"] == {"properties": {"@type": {"const": "type.googleapis.com/acme.v1.Operation"}}}
    assert own["metadata"] == {"properties": {"@type": {"const": "type.googleapis.com/acme.v1.Progress"}}}


async def test_a_run_leads_on_to_what_can_be_done_with_its_operation(client: httpx2.AsyncClient) -> None:
    document = (await client.get("v1/openapi.json")).json()
    methods = {method["operationId"] for path in document["paths"].values() for method in _methods(path)}
    links = run_of(document, "surgery.rest")["responses"]["200"]["links"]
    assert {link["operationId"] for link in links.values()} <= methods
    started = await client.post("v1/jobs/surgery.rest:run")
    assert started.json()["name"] == f"operations/{started.headers['operation-id']}"
    for link in links.values():
        assert link["parameters"] == {"operation": "$response.header.Operation-Id"}


def test_every_reference_leads_somewhere_and_names_of_models_may_meet() -> None:
    class Book(BaseModel):
        title: str

    other = Book

    class Book(BaseModel):  # type: ignore[no-redef]  # another one of that name
        pages: int

    @job("a", params=other, result=list[other])  # type: ignore[valid-type]  # a variable
    async def first(ctx: Context, params: Any) -> Any:
        raise NotImplementedError

    @job("b", params=Book)
    async def second(ctx: Context, params: Any) -> None:
        raise NotImplementedError

    document = openapi_document({"a": first, "b": second}, Limits(), title="t", server="/")
    validate(document)
    schemas = document["components"]["schemas"]
    assert {tuple(schema["properties"]) for name, schema in schemas.items() if "Book" in name} == {
        ("title",),
        ("pages",),
    }


class Guard:
    """Knows callers by a header; who may list jobs is asked."""

    def authenticate(self, request: Any) -> Principal | None:  # Any: Starlette's
        name = request.headers.get("x-user")
        return None if name is None else Principal(name)

    async def authorize(self, principal: Principal, permission: str, resource: str) -> Scope | None:
        assert (permission, resource) == ("jobs.list", "jobs")
        return Scope() if principal.id == "ann" else None


async def test_it_is_for_who_may_list_the_jobs(url: str) -> None:
    service = Service(url, jobs=[rest], auth=Guard())
    transport = httpx2.ASGITransport(app=service.app())
    async with service, httpx2.AsyncClient(transport=transport, base_url="http://host/v1/") as client:
        assert (await client.get("openapi.json")).status_code == 401
        assert (await client.get("openapi.json", headers={"x-user": "bob"})).status_code == 403
        assert (await client.get("openapi.json", headers={"x-user": "ann"})).status_code == 200


def test_the_shop_of_the_schema_tests_has_all_kinds_of_schemas(tmp_path: Path) -> None:
    jobs = {job.name: job for job in (shop.bind, shop.nap, shop.lose, shop.add, shop.alone)}
    document = openapi_document(jobs, Limits(), title="shop", server="/")
    validate(document)
    for target in references(document):
        found: Any = document  # Any: JSON
        for step in target.removeprefix("#/").split("/"):
            found = found[step]


async def test_no_schema_closes_the_list_of_states(client: httpx2.AsyncClient) -> None:
    """Generated clients would refuse a state that is new (AIP-216)."""
    document = (await client.get("v1/openapi.json")).json()
    closed = [value for schema in _objects(document) for value in (*schema.get("enum", ()), schema.get("const"))]

    assert "NOT_FOUND" in closed, "the codes of errors are a closed list"
    assert not ({*State, *CancelOutcome} - Code.__members__.keys()) & set(map(str, closed))


def _objects(value: object) -> Iterator[Json]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from _objects(member)


def _methods(path: Json) -> list[Json]:
    return [method for name, method in path.items() if name != "parameters"]
