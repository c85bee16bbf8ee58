"""Query parameters: both casings, those that are not known, the system parameters, and partial answers."""

import json

import httpx2
import pytest

from lro import AllowAnonymous, Service
from lro.operations import Operations
from lro.routes import job_routes, operation_routes
from lro.store import open_store
from lro.testing import MemoryStore
from tests.routes.conftest import Stage
from tests.routes.requests import UNKNOWN, Json, ended, error_of, start, violations

STRUCT = "type.googleapis.com/google.protobuf.Struct"


# -- what is known


@pytest.mark.parametrize("query", ["pageSize=1&pageToken={}", "page_size=1&page_token={}", "pageSize=1&page_token={}"])
async def test_either_casing_is_taken(client: httpx2.AsyncClient, query: str) -> None:
    names = [await start(client) for _ in range(3)]
    first = (await client.get("operations?page_size=1")).json()
    second = (await client.get(f"operations?{query.format(first['nextPageToken'])}")).json()

    assert [one["name"] for one in first["operations"] + second["operations"]] == [names[2], names[1]]


@pytest.mark.parametrize(
    "query", ["pageSize=", "pageToken=", "filter=", "returnPartialSuccess=", "name=", "fields=", "alt="]
)
async def test_an_empty_parameter_is_not_set(client: httpx2.AsyncClient, query: str) -> None:
    await ended(client)
    assert (await client.get(f"operations?{query}")).json() == (await client.get("operations")).json()


@pytest.mark.parametrize(
    ("path", "query", "fields"),
    [
        (UNKNOWN, "colour=red&shape=&colour=blue", ["colour", "shape"]),
        (UNKNOWN, "pageSize=1", ["pageSize"]),
        (UNKNOWN, "name=operations/1", ["name"]),
        ("operations", "page%20size=1&Filter=&pagesize=1", ["page size", "Filter", "pagesize"]),
        ("operations", "orderBy=name", ["orderBy"]),
        ("operations", "$colour=red", ["$colour"]),
        ("operations", "$pageSize=1", ["$pageSize"]),
        ("jobs", "filter=x", ["filter"]),
        ("jobs/count", "filter=x", ["filter"]),
    ],
)
async def test_all_parameters_that_are_not_known_are_named(
    client: httpx2.AsyncClient, path: str, query: str, fields: list[str]
) -> None:
    error = error_of(await client.get(f"{path}?{query}"))

    assert (error["code"], error["status"], error["reason"]) == (400, "INVALID_ARGUMENT", "UNKNOWN_FIELD")
    assert list(violations(error)) == fields
    assert error["metadata"]["field"] == ",".join(fields)


@pytest.mark.parametrize("call", [f"{UNKNOWN}:cancel", f"{UNKNOWN}:wait", "jobs/nothing:run"])
async def test_a_call_with_a_body_has_no_parameters(client: httpx2.AsyncClient, call: str) -> None:
    for field in ("name", "timeout", "reason", "requestId"):
        assert list(violations(error_of(await client.post(f"{call}?{field}=1")))) == [field]
    assert (await client.get("operations")).json() == {"operations": []}


async def test_an_answer_about_many_unknown_parameters_is_short(client: httpx2.AsyncClient) -> None:
    query = "&".join(f"{'x' * 200}{number}=1" for number in range(100))
    response = await client.get(f"operations?{query}")

    assert len(violations(error_of(response))) == 1  # cut to the same 100 characters
    assert len(response.content) < 15_000


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("pageSize=1&pageSize=1", "pageSize"),
        ("pageSize=1&page_size=1", "pageSize"),
        ("filter=&filter=", "filter"),
        ("fields=name&$fields=name", "fields"),
        ("alt=json&$alt=json", "alt"),
        ("prettyPrint=true&prettyPrint=true", "prettyPrint"),
    ],
)
async def test_what_is_given_twice_is_refused(client: httpx2.AsyncClient, query: str, field: str) -> None:
    error = error_of(await client.get(f"operations?{query}"))
    assert violations(error) == {field: "is given twice"}


@pytest.mark.parametrize(
    ("path", "query"),
    [("operations", "name=operations"), ("projects/p/operations", "name=projects/p"), ("operations", "name=")],
)
async def test_the_name_in_the_path_may_be_repeated_in_a_listing(
    client: httpx2.AsyncClient, path: str, query: str
) -> None:
    assert (await client.get(f"{path}?{query}")).json() == {"operations": []}
    assert "name" in violations(error_of(await client.get(f"{path}?name=projects/q")))


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("returnPartialSuccess=false", 200, None),
        ("return_partial_success=false", 200, None),
        ("returnPartialSuccess=true", 501, "PARTIAL_SUCCESS_UNSUPPORTED"),
        ("returnPartialSuccess=1", 400, "INVALID_ARGUMENT"),
        ("returnPartialSuccess=True", 400, "INVALID_ARGUMENT"),
    ],
)
async def test_partial_success_is_not_offered(
    client: httpx2.AsyncClient, query: str, status: int, reason: str | None
) -> None:
    response = await client.get(f"operations?{query}")
    assert response.status_code == status
    assert reason is None or error_of(response)["reason"] == reason


async def test_reads_across_parents_are_refused_and_no_parent_is_called_so(
    client: httpx2.AsyncClient, service: Service
) -> None:
    error = error_of(await client.get("projects/-/operations"))
    assert (error["code"], error["reason"]) == (501, "WILDCARD_UNSUPPORTED")
    with pytest.raises(Exception, match="parent"):
        await service.start(service.worker._jobs["nothing"], parent="projects/-")


# -- ignoring what is not known


@pytest.fixture
async def lenient(url: str) -> Service:
    return Service(url, jobs=[], auth=AllowAnonymous(), unknown_fields="ignore", handle_signals=False)


async def test_a_lenient_service_ignores_what_it_does_not_know(lenient: Service) -> None:
    async with lenient:
        transport = httpx2.ASGITransport(app=lenient)
        async with httpx2.AsyncClient(transport=transport, base_url="http://host/") as client:
            assert (await client.get("operations?colour=red&fields=colour,operations")).json() == {"operations": []}
            for verb in ("cancel", "wait"):
                error = error_of(await client.post(f"{UNKNOWN}:{verb}", json={"colour": "red", "x": {"y": 1}}))
                assert error["code"] == 404
            for query in ("alt=proto", "pageSize=x", "fields=a(", "pageSize=1&pageSize=1", "prettyPrint=yes"):
                assert error_of(await client.get(f"operations?{query}"))["code"] == 400
            assert error_of(await client.post(f"{UNKNOWN}:wait", json={"timeout": 5}))["code"] == 400


async def test_another_word_than_reject_or_ignore_is_refused(url: str) -> None:
    operations = Operations(open_store(url))
    with pytest.raises(ValueError, match="'reject' or 'ignore'"):
        operation_routes(operations, auth=AllowAnonymous(), unknown_fields="forgive")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'reject' or 'ignore'"):
        job_routes(operations, jobs=[], auth=AllowAnonymous(), unknown_fields=True)  # type: ignore[arg-type]


# -- system parameters


IGNORED = (
    "key=k&$key=k&quotaUser=q&$userProject=p&access_token=t&oauth_token=t&callback=f&$callback=f&uploadType=media"
    "&upload_protocol=raw&$.xgafv=2&$apiFormat=1&$apiVersion=v&$ct=text/plain&$httpMethod=DELETE&$outputDefaults=true"
)


async def test_system_parameters_without_a_meaning_here_change_nothing(client: httpx2.AsyncClient) -> None:
    name = await ended(client)
    for path in (name, "operations", "jobs", "jobs/count"):
        plain = await client.get(path)
        for query in (IGNORED, IGNORED.replace("$", "%24"), f"{IGNORED}&{IGNORED}"):
            answer = await client.get(f"{path}?{query}")
            assert (answer.status_code, answer.text) == (200, plain.text)
            assert answer.headers["content-type"] == "application/json"
    for verb in ("cancel", "wait"):
        assert (await client.post(f"{name}:{verb}?{IGNORED}")).status_code == 200
    assert (await client.post(f"jobs/nothing:run?{IGNORED}")).status_code == 200
    assert (await client.delete(f"{name}?{IGNORED}")).json() == {}


@pytest.mark.parametrize("key", ["alt", "$alt"])
async def test_the_answer_is_json_or_refused(client: httpx2.AsyncClient, key: str) -> None:
    name = await start(client, "deaf")
    for value in ("json", "json;enum-encoding=int", "json%3Benum-encoding%3Dint"):
        assert (await client.get(f"{name}?{key}={value}")).status_code == 200
    for value in ("proto", "media", "sse", "JSON", "json;enum-encoding=string", "atom"):
        for method, path in (("GET", name), ("POST", f"{name}:cancel"), ("DELETE", name)):
            error = error_of(await client.request(method, f"{path}?{key}={value}"))
            assert (error["code"], error["reason"], list(violations(error))) == (400, "FORM_UNSUPPORTED", ["alt"])
    assert "cancelTime" not in (await client.get(name)).text


@pytest.mark.parametrize("key", ["prettyPrint", "$prettyPrint"])
async def test_pretty_is_indented_and_the_same(client: httpx2.AsyncClient, key: str) -> None:
    name = await ended(client)
    for path in (name, "operations", "jobs"):
        plain, pretty = [(await client.get(f"{path}?{key}={value}")).text for value in ("false", "true")]
        assert pretty == json.dumps(json.loads(plain), indent=2, ensure_ascii=False)
        assert "\n" not in plain
    assert "prettyPrint" in violations(error_of(await client.get(f"{name}?{key}=yes")))


# -- partial answers


@pytest.mark.parametrize("key", ["fields", "$fields", "X-Goog-FieldMask"])
async def test_a_client_may_ask_for_a_part(client: httpx2.AsyncClient, key: str, stage: Stage) -> None:
    name = await ended(client, "count", {"params": {"to": 3}})

    async def ask(method: str, path: str, mask: str, body: Json | None = None) -> Json:
        header, query = ({key: mask}, {}) if key.startswith("X") else ({}, {key: mask})
        answer = await client.request(method, path, params=query, headers=header, json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    assert await ask("GET", name, "name,done") == {"name": name, "done": True}
    progress = {"metadata": {"@type": STRUCT, "value": {"progress": {"counted": 3}}}}
    for mask in ("metadata/value/progress", "metadata.value.progress.counted", "metadata(value(progress(counted)))"):
        assert await ask("GET", name, mask) == progress
    assert await ask("GET", name, "response,error") == {"response": {"@type": STRUCT, "value": {"counted": 3}}}
    assert await ask("GET", name, "*") == (await client.get(name)).json()
    assert await ask("GET", "operations", "operations(name)") == {"operations": [{"name": name}]}
    assert await ask("GET", "operations", "nextPageToken") == {}
    assert await ask("POST", f"{name}:wait", "done") == {"done": True}
    assert await ask("POST", f"{name}:cancel", "name,anything") == {}
    assert set(await ask("POST", "jobs/deaf:run", "name")) == {"name"}
    await stage.running.wait()
    assert await ask("GET", "jobs/count", "params_schema/properties/to/type") == {
        "paramsSchema": {"properties": {"to": {"type": "integer"}}}
    }
    assert {"name": "jobs/count"} in (await ask("GET", "jobs", "jobs/name"))["jobs"]


async def test_a_part_keeps_its_etag_and_may_be_pretty(client: httpx2.AsyncClient) -> None:
    name = await ended(client)
    whole, part = [await client.get(path) for path in (name, f"{name}?fields=done&prettyPrint=true")]
    assert part.text == '{\n  "done": true\n}'
    assert part.headers["etag"] == whole.headers["etag"]


async def test_the_parameter_wins_over_the_header_and_headers_add_up(client: httpx2.AsyncClient) -> None:
    name = await ended(client)
    both = [("x-goog-fieldmask", "name"), ("x-goog-fieldmask", "done")]
    assert (await client.get(name, headers=both)).json() == {"name": name, "done": True}
    assert (await client.get(f"{name}?fields=done", headers=both)).json() == {"done": True}
    assert (await client.get(f"{name}?fields=", headers=both)).json() == {"name": name, "done": True}


@pytest.mark.parametrize("mask", ["colour", "name/x", "name,(", "a" * 2000, "operations", "x" + "/y" * 20])
async def test_a_bad_mask_is_refused_before_anything_is_done(client: httpx2.AsyncClient, mask: str) -> None:
    name = await ended(client)
    for method, path in (("GET", name), ("POST", f"{name}:wait"), ("POST", "jobs/nothing:run")):
        for query, headers in (({"fields": mask}, {}), ({}, {"x-goog-fieldmask": mask})):
            error = error_of(await client.request(method, path, params=query, headers=headers))
            assert (error["code"], error["reason"]) == (400, "INVALID_FIELD_MASK")
            assert list(violations(error)) == ["fields"]
    assert len((await client.get("operations")).json()["operations"]) == 1


async def test_a_mask_is_read_after_the_caller_is_known() -> None:
    class Nobody(AllowAnonymous):
        def authenticate(self, request: object, /) -> None:  # type: ignore[override]  # lets nobody in
            return None

    async with MemoryStore() as store:
        service = Service(store, jobs=[], auth=Nobody(), worker=False, handle_signals=False)
        transport = httpx2.ASGITransport(app=service._router)
        async with httpx2.AsyncClient(transport=transport, base_url="http://host/") as client:
            for query in ("fields=(", "colour=red", "alt=proto"):
                assert error_of(await client.get(f"{UNKNOWN}?{query}"))["code"] == 401
