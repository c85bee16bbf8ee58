"""Listings over HTTP: filters as query parameters, page tokens that are of use to their caller alone."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from lro import Context, Operations, Principal, job
from lro.errors import Unavailable
from lro.principal import ANYTHING, Scope
from lro.routes import operation_routes
from lro.status import BAD_REQUEST
from lro.store import Page, PageQuery, Store
from lro.store import walk as listing


@job("idle")
async def idle(ctx: Context) -> None:
    del ctx


class Everybody:
    """Hooks that know everybody by a header, and let everybody but those who are out see everything."""

    def __init__(self) -> None:
        self.out: set[str] = set()

    def authenticate(self, request: Any) -> Principal:
        name, _, tenant = request.headers.get("x-user", "").partition("@")
        return Principal(name, tenant)

    async def authorize(self, principal: Principal, permission: str, resource: str) -> Scope | None:
        del permission, resource
        return None if principal.id in self.out else ANYTHING


@pytest.fixture
def everybody() -> Everybody:
    return Everybody()


@pytest.fixture
async def client(store: Store, everybody: Everybody) -> AsyncIterator[httpx2.AsyncClient]:
    operations = Operations(store)
    for target in ("books/a", "books/b", "books/ü c"):
        await operations.start(idle, target=target)
    app = Starlette(routes=[Mount("/v1", routes=operation_routes(operations, auth=everybody))])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://host/v1/") as client:
        yield client


def targets(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [one["metadata"]["value"]["target"] for one in response.json()["operations"]]


def refusal(response: httpx2.Response) -> tuple[int, str, list[str]]:
    """Return the status, the reason and the fields of a 400."""
    error = response.json()["error"]
    (bad,) = [detail for detail in error["details"] if detail["@type"] == BAD_REQUEST]
    return response.status_code, error["details"][0]["reason"], [one["field"] for one in bad["fieldViolations"]]


async def test_a_filter_is_a_query_parameter(client: httpx2.AsyncClient) -> None:
    filtered = await client.get("operations", params={"filter": 'metadata.target = "books/ü c" AND -done = true'})

    assert targets(filtered) == ["books/ü c"]
    assert targets(await client.get("operations?filter=metadata.target%3Dbooks%2Fa+done%3Afalse")) == ["books/a"]
    assert targets(await client.get("operations?filter=")) == ["books/ü c", "books/b", "books/a"]


@pytest.mark.parametrize(
    "text",
    [
        "state = RUNNING",
        "done",
        "metadata.state = x",
        "' OR 1=1 --",
        "\0",
        "(" * 500,
        " OR ".join(["done:*"] * 3000),
    ],
    ids=lambda text: str(text)[:16],
)
async def test_a_filter_that_is_none_is_the_callers_fault(client: httpx2.AsyncClient, text: str) -> None:
    assert refusal(await client.get("operations", params={"filter": text})) == (400, "INVALID_FILTER", ["filter"])


async def test_a_page_token_is_of_use_to_its_caller_alone(client: httpx2.AsyncClient) -> None:
    first = await client.get("operations?pageSize=1", headers={"x-user": "ann@books"})
    query = {"pageToken": first.json()["nextPageToken"]}

    for other in ("bob@books", "ann@films", "ann", ""):
        answer = await client.get("operations", params=query, headers={"x-user": other})
        assert refusal(answer) == (400, "INVALID_PAGE_TOKEN", ["pageToken"])
    own = await client.get("operations", params=query, headers={"x-user": "ann@books"})
    assert targets(own) == ["books/b", "books/a"]
    changed = await client.get("operations", params={**query, "filter": "done=false"}, headers={"x-user": "ann@books"})
    assert refusal(changed) == (400, "INVALID_PAGE_TOKEN", ["pageToken"])
    elsewhere = await client.get("projects/p/operations", params=query, headers={"x-user": "ann@books"})
    assert refusal(elsewhere) == (400, "INVALID_PAGE_TOKEN", ["pageToken"])


async def test_an_empty_page_before_the_end_has_a_token_and_the_last_one_none(
    client: httpx2.AsyncClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LOOKS_AT", listing.STEP)
    operations = Operations(store)
    async with anyio.create_task_group() as group:
        for _ in range(listing.STEP):
            group.start_soon(operations.start, idle)
    query = {"filter": 'metadata.target = "books/a"', "pageSize": "2"}

    first = await client.get("operations", params=query)
    second = await client.get("operations", params={**query, "pageToken": first.json()["nextPageToken"]})

    assert (targets(first), targets(second)) == ([], ["books/a"])
    assert "nextPageToken" not in second.json()


async def test_a_page_token_lets_nobody_in(client: httpx2.AsyncClient, everybody: Everybody) -> None:
    headers = {"x-user": "ann@books"}
    token = (await client.get("operations?pageSize=1", headers=headers)).json()["nextPageToken"]
    everybody.out.add("ann")

    answer = await client.get("operations", params={"pageToken": token}, headers=headers)

    assert (answer.status_code, answer.json()["error"]["status"]) == (403, "PERMISSION_DENIED")


async def test_a_list_has_its_operations_whole_and_the_same_for_everybody(client: httpx2.AsyncClient) -> None:
    for_ann, for_bob = [(await client.get("operations", headers={"x-user": name})).json() for name in ("ann", "bob")]

    assert len(for_ann["operations"]) == 3
    assert for_ann == for_bob
    for one in for_ann["operations"]:
        assert (await client.get(one["name"])).json() == one


async def test_a_list_whose_store_is_away_fails_whole(
    client: httpx2.AsyncClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(query: PageQuery) -> Page:
        del query
        raise Unavailable

    monkeypatch.setattr(store, "list", away)
    answer = await client.get("operations")

    assert (answer.status_code, answer.json()["error"]["status"]) == (503, "UNAVAILABLE")
    assert "operations" not in answer.json()


@pytest.mark.parametrize(
    "token", ["x", "%00", "%FF", "%ED%A0%80", "é", "A" * 60_000, "e30.e30.e30"], ids=lambda it: it[:9]
)
async def test_what_is_no_page_token_is_the_callers_fault(client: httpx2.AsyncClient, token: str) -> None:
    assert refusal(await client.get(f"operations?pageToken={token}")) == (400, "INVALID_PAGE_TOKEN", ["pageToken"])
