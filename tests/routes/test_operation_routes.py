"""google.longrunning.Operations over REST, as clients see it (wire.md, section 6)."""

from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import pytest

from lro import AllowAnonymous, Operations, Principal, Service, job
from lro.context import Context
from lro.errors import Unavailable
from lro.principal import ANYTHING, Scope
from lro.routes import job_routes, operation_routes
from lro.store import open_store
from tests.routes.conftest import Stage
from tests.routes.requests import UNKNOWN, Json, error_of


async def run(client: httpx2.AsyncClient, job: str, body: Json | None = None) -> Json:
    response = await client.post(f"jobs/{job}:run", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def get(client: httpx2.AsyncClient, name: str) -> Json:
    response = await client.get(name)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def wait(client: httpx2.AsyncClient, name: str, timeout: str = "8s") -> Json:
    response = await client.post(f"{name}:wait", json={"timeout": timeout})
    assert response.status_code == 200, response.text
    return dict(response.json())


def metadata(operation: Json) -> Json:
    return dict(operation["metadata"]["value"])


async def test_a_counting_job_ends_in_its_response(client: httpx2.AsyncClient) -> None:
    started = await run(client, "count", {"params": {"to": 5}})
    assert set(started) == {"name", "metadata", "done"}
    assert started["done"] is False

    ended = await wait(client, started["name"])

    assert set(ended) == {"name", "metadata", "done", "response"}
    struct = {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"counted": 5}}
    assert ended["response"] == struct
    assert metadata(ended)["state"] == "SUCCEEDED"
    assert metadata(ended)["progress"] == {"counted": 5}
    assert metadata(ended)["verb"] == "count"
    assert metadata(ended)["requestedCancellation"] is False
    assert metadata(ended)["cancellable"] is True
    assert "endTime" in metadata(ended)


async def test_a_scalar_is_a_value_and_nothing_is_empty(client: httpx2.AsyncClient, stage: Stage) -> None:
    stage.go_on.set()
    scalar = await wait(client, (await run(client, "patient"))["name"])
    empty = await wait(client, (await run(client, "nothing"))["name"])

    assert scalar["response"] == {"@type": "type.googleapis.com/google.protobuf.Value", "value": "natural end"}
    assert empty["response"] == {"@type": "type.googleapis.com/google.protobuf.Empty"}


async def test_a_cancel_is_acknowledged_shown_and_ends_at_the_next_checkpoint(
    client: httpx2.AsyncClient, stage: Stage
) -> None:
    name = (await run(client, "deaf"))["name"]
    await stage.running.wait()

    answer = await client.post(f"{name}:cancel")
    flagged = await get(client, name)

    assert (answer.status_code, answer.json()) == (200, {})
    assert metadata(flagged)["requestedCancellation"] is True
    assert metadata(flagged)["state"] == "RUNNING"
    assert flagged["done"] is False

    patient = (await run(client, "patient"))["name"]
    await client.post(f"{patient}:cancel")
    ended = await wait(client, patient)
    assert set(ended) == {"name", "metadata", "done", "error"}
    assert ended["error"]["code"] == 1
    assert ended["error"]["details"][0]["reason"] == "OPERATION_CANCELLED"
    assert metadata(ended)["state"] == "CANCELLED"


async def test_a_running_job_that_looks_is_cancelled_as_acknowledged(client: httpx2.AsyncClient, stage: Stage) -> None:
    name = (await run(client, "patient"))["name"]
    await stage.running.wait()
    assert (await client.post(f"{name}:cancel")).json() == {}

    ended = await wait(client, name)

    assert ended["error"]["code"] == 1
    assert metadata(ended)["cancelOutcome"] == "ACKNOWLEDGED"
    assert metadata(ended)["attempt"] == 1


@pytest.mark.parametrize("job", ["deaf", "stubborn"])
async def test_a_job_that_ignores_or_catches_the_cancel_keeps_its_result(
    client: httpx2.AsyncClient, stage: Stage, job: str
) -> None:
    name = (await run(client, job))["name"]
    await stage.running.wait()
    assert (await client.post(f"{name}:cancel")).json() == {}
    stage.go_on.set()

    ended = await wait(client, name)

    assert ended["response"]["value"] == "natural end"
    assert metadata(ended)["requestedCancellation"] is True
    assert metadata(ended)["cancelOutcome"] == "COMPLETED_ANYWAY"


async def test_cancel_of_a_done_operation_answers_ok_and_changes_nothing(client: httpx2.AsyncClient) -> None:
    name = (await run(client, "nothing"))["name"]
    ended = await wait(client, name)

    answer = await client.post(f"{name}:cancel")

    assert (answer.status_code, answer.json()) == (200, {})
    assert await get(client, name) == ended


async def test_cancel_twice_keeps_the_first_request(client: httpx2.AsyncClient, stage: Stage) -> None:
    name = (await run(client, "deaf"))["name"]
    await stage.running.wait()
    await client.post(f"{name}:cancel", json={"reason": "first"})
    first = metadata(await get(client, name))
    answer = await client.post(f"{name}:cancel", json={"reason": "second"})
    second = metadata(await get(client, name))

    assert (answer.status_code, answer.json()) == (200, {})
    assert first["cancelReason"] == "first"
    assert second == first


async def test_cancel_of_a_pending_operation_ends_it_before_it_starts(client: httpx2.AsyncClient, stage: Stage) -> None:
    later = {"scheduleTime": "2100-01-01T00:00:00Z"}
    name = (await run(client, "deaf", later))["name"]
    assert "scheduleTime" in metadata(await get(client, name))

    await client.post(f"{name}:cancel")
    ended = await get(client, name)

    assert ended["error"]["code"] == 1
    assert metadata(ended)["cancelOutcome"] == "BEFORE_START"
    assert metadata(ended)["attempt"] == 0
    assert not stage.running.is_set()


async def test_a_job_that_cannot_be_cancelled_says_so(client: httpx2.AsyncClient, stage: Stage) -> None:
    name = (await run(client, "uncancellable"))["name"]
    await stage.running.wait()

    error = error_of(await client.post(f"{name}:cancel"))

    assert (error["code"], error["status"], error["reason"]) == (501, "UNIMPLEMENTED", "CANCEL_UNSUPPORTED")
    assert metadata(await get(client, name))["requestedCancellation"] is False


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", UNKNOWN), ("DELETE", UNKNOWN), ("POST", f"{UNKNOWN}:cancel"), ("POST", f"{UNKNOWN}:wait")],
)
async def test_what_is_not_there_is_404(client: httpx2.AsyncClient, method: str, path: str) -> None:
    error = error_of(await client.request(method, path))

    assert (error["code"], error["status"], error["reason"]) == (404, "NOT_FOUND", "OPERATION_NOT_FOUND")
    assert error["metadata"]["name"] == UNKNOWN


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", None),
        (b"", "application/json"),
        (b"{}", "application/json"),
        (b"  \n", None),
        (b"", "application/x-www-form-urlencoded"),
        (b"{}", None),
    ],
)
async def test_cancel_takes_every_empty_body(client: httpx2.AsyncClient, body: bytes, content_type: str | None) -> None:
    name = (await run(client, "nothing"))["name"]
    headers = {} if content_type is None else {"content-type": content_type}

    answer = await client.post(f"{name}:cancel", content=body, headers=headers)

    assert (answer.status_code, answer.json()) == (200, {})


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b"a=b",
        b'{"x": 1}',
        b'{"name": "operations/other"}',
        b'{"reason": 5}',
        b'{"reason": NaN}',
        b'{"reason": "a", "reason": "b"}',
        b"\xff",
        b"[" * 100_000,
    ],
)
async def test_cancel_refuses_a_bad_body_and_changes_nothing(
    client: httpx2.AsyncClient, stage: Stage, body: bytes
) -> None:
    name = (await run(client, "deaf"))["name"]
    await stage.running.wait()

    error = error_of(await client.post(f"{name}:cancel", content=body))

    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert metadata(await get(client, name))["requestedCancellation"] is False


async def test_a_body_over_the_limit_is_413(client: httpx2.AsyncClient) -> None:
    error = error_of(await client.post("jobs/count:run", content=b" " * (1024 * 1024 + 1)))

    assert (error["code"], error["reason"]) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    "path", ["operations/{id}%3Acancel", "operations%2F{id}:cancel", "operations/{id}:cancel%0a", "operations/{id}%00"]
)
async def test_only_an_exactly_named_operation_ever_changes(
    client: httpx2.AsyncClient, stage: Stage, path: str
) -> None:
    name = (await run(client, "deaf"))["name"]
    await stage.running.wait()

    response = await client.post(path.format(id=name.removeprefix("operations/")))

    assert 400 <= response.status_code < 500, response.text
    assert metadata(await get(client, name))["requestedCancellation"] is False


async def test_delete_hides_a_running_operation_and_its_work_goes_on(
    client: httpx2.AsyncClient, stage: Stage, service: Service
) -> None:
    name = (await run(client, "deaf"))["name"]
    await stage.running.wait()

    answer = await client.delete(name)

    assert (answer.status_code, answer.json()) == (200, {})
    assert (await client.get(name)).status_code == 404
    assert (await client.delete(name)).status_code == 404
    assert (await client.get("operations")).json() == {"operations": []}
    record = await service.operations.store.get(name)
    assert record is not None
    assert record.state == "RUNNING"
    assert record.cancel_requested_at is None


async def test_wait_returns_the_latest_state_when_its_time_is_up(client: httpx2.AsyncClient, stage: Stage) -> None:
    name = (await run(client, "deaf"))["name"]
    await stage.running.wait()

    still_running = await wait(client, name, "0.010s")
    at_once = await wait(client, name, "0s")

    assert still_running["done"] is False
    assert at_once["done"] is False
    for timeout in ("-1s", "5", "soon"):
        error = error_of(await client.post(f"{name}:wait", json={"timeout": timeout}))
        assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")


async def test_a_client_that_leaves_during_a_wait_leaves_no_wait_behind(service: Service, stage: Stage) -> None:
    app = service
    started = anyio.Event()
    name = (await _start_deaf(service)).name
    await stage.running.wait()
    before = await service.operations.get(name)

    async def receive() -> Json:
        if not started.is_set():
            started.set()
            return {"type": "http.request", "body": b"", "more_body": False}
        while not service.operations.waiting:
            await anyio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(f"nobody is there to be sent {message}")

    path = f"/{name}:wait"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    with anyio.fail_after(5):
        await app({**scope, "headers": [], "root_path": ""}, receive, send)

    assert not service.operations.waiting
    after = await service.operations.get(name)
    assert (after, after.etag) == (before, before.etag), "who waits or not is nothing to the operation"


async def _start_deaf(service: Service) -> Any:
    deaf = service.worker._jobs["deaf"]
    return await service.start(deaf)


async def test_pages_meet_every_operation_once_newest_first(client: httpx2.AsyncClient) -> None:
    names = [(await run(client, "nothing", {"scheduleTime": "2100-01-01T00:00:00Z"}))["name"] for _ in range(7)]
    seen: list[str] = []
    query: Json = {"pageSize": 3}
    while True:
        response = await client.get("operations", params=query)
        assert response.status_code == 200, response.text
        page = response.json()
        seen += [one["name"] for one in page["operations"]]
        if "nextPageToken" not in page:
            break
        query = {"page_size": 2, "page_token": page["nextPageToken"]}

    assert seen == names[::-1]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("pageSize=-1", "pageSize"),
        ("pageSize=a", "pageSize"),
        ("pageSize=3000000000", "pageSize"),
        ("pageToken=garbage", "pageToken"),
        ("colour=red", "colour"),
        ("pageSize=1&pageSize=2", "pageSize"),
    ],
)
async def test_a_bad_list_parameter_is_named(client: httpx2.AsyncClient, query: str, field: str) -> None:
    error = error_of(await client.get(f"operations?{query}"))

    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    violations = [one for one in error["details"] if one["@type"].endswith("BadRequest")]
    assert violations[0]["fieldViolations"][0]["field"] == field


async def test_system_parameters_and_false_partial_success_are_taken(client: httpx2.AsyncClient) -> None:
    response = await client.get("operations?$alt=json&key=k&prettyPrint=false&returnPartialSuccess=false&pageSize=0")

    assert response.status_code == 200
    assert error_of(await client.get("operations?returnPartialSuccess=true"))["code"] == 501


@pytest.mark.parametrize(
    ("method", "path", "code", "allow"),
    [
        ("GET", "nope", 404, None),
        ("POST", f"{UNKNOWN}:explode", 404, None),
        ("PUT", UNKNOWN, 405, "DELETE, GET, HEAD, OPTIONS"),
        ("GET", f"{UNKNOWN}:cancel", 405, "OPTIONS, POST"),
        ("POST", "operations", 405, "GET, HEAD, OPTIONS"),
        ("DELETE", "jobs", 405, "GET, HEAD, OPTIONS"),
    ],
)
async def test_the_frameworks_own_errors_are_json_too(
    client: httpx2.AsyncClient, method: str, path: str, code: int, allow: str | None
) -> None:
    response = await client.request(method, path)

    assert error_of(response)["code"] == code
    assert response.headers.get("allow") == allow


async def test_an_unforeseen_error_is_told_by_its_id_only(
    client: httpx2.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(service.operations, "get_record", broken)
    response = await client.get(UNKNOWN)

    error = error_of(response)
    assert (error["code"], error["status"]) == (500, "INTERNAL")
    assert "canary" not in response.text
    assert error["metadata"]["errorId"] in caplog.text


async def test_a_store_that_is_away_is_503_with_retry_after(
    client: httpx2.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise Unavailable

    monkeypatch.setattr(service.operations.store, "get", away)
    response = await client.get(UNKNOWN)

    assert error_of(response)["status"] == "UNAVAILABLE"
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://host"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
async def test_a_page_of_another_site_can_change_nothing(
    client: httpx2.AsyncClient, headers: dict[str, str], status: int
) -> None:
    name = (await run(client, "nothing"))["name"]

    assert (await client.post(f"{name}:cancel", headers=headers)).status_code == status
    assert (await client.post("jobs/nothing:run", headers=headers)).status_code == status
    assert (await client.delete(name, headers=headers)).status_code == status


async def test_jobs_are_described_with_their_schemas(client: httpx2.AsyncClient) -> None:
    listed = (await client.get("jobs")).json()["jobs"]
    one = (await client.get("jobs/count")).json()

    assert one in listed
    assert one["name"] == "jobs/count"
    assert one["paramsSchema"]["properties"]["to"]["type"] == "integer"
    assert one["progressSchema"]["properties"]["counted"]["default"] == 0
    assert error_of(await client.get("jobs/nope"))["reason"] == "JOB_NOT_FOUND"


async def test_run_repeated_with_its_request_id_is_the_same_operation(client: httpx2.AsyncClient) -> None:
    body = {"params": {"to": 1}, "requestId": "r1"}
    first = await run(client, "count", body)
    again = await run(client, "count", {"params": {"to": 1}, "request_id": "r1"})
    error = error_of(await client.post("jobs/count:run", json={"params": {"to": 2}, "requestId": "r1"}))

    assert again["name"] == first["name"]
    assert (error["code"], error["reason"]) == (400, "REQUEST_ID_REUSED")


async def test_run_may_be_only_validated(client: httpx2.AsyncClient) -> None:
    """Done, and nameless, or the error of the real one (AIP-163); `false` starts it."""
    for spelling in ("validateOnly", "validate_only"):
        checked = await run(client, "count", {"params": {"to": 1}, spelling: True})
        assert (checked["name"], checked["done"]) == ("", True)
        assert checked["response"] == {"@type": "type.googleapis.com/google.protobuf.Empty"}
        assert metadata(checked)["verb"] == "count"
    refused = await client.post("jobs/count:run", json={"params": {"to": "x"}, "validateOnly": True})
    assert error_of(refused)["reason"] == "INVALID_PARAMS"
    assert (await client.get("operations")).json() == {"operations": []}
    assert (await run(client, "count", {"params": {"to": 1}, "validateOnly": False}))["name"]


async def test_run_of_a_job_that_takes_one_at_a_time_is_409(client: httpx2.AsyncClient, stage: Stage) -> None:
    first = await run(client, "alone", {"target": "books/b"})
    await stage.running.wait()
    error = error_of(await client.post("jobs/alone:run", json={"target": "books/b"}))
    assert (error["code"], error["status"], error["reason"]) == (409, "ABORTED", "TARGET_BUSY")
    await run(client, "alone", {"target": "books/c"})
    stage.go_on.set()
    while not (await client.post(f"{first['name']}:wait")).json()["done"]:
        pass
    await run(client, "alone", {"target": "books/b"})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"params": {}}, "params.to"),
        ({"params": {"to": 1}, "validateOnly": "true"}, "validateOnly"),
        ({"params": {"to": "many"}}, "params.to"),
        ({"params": []}, "params"),
        ({"params": {"to": 1}, "timeout": "5"}, "timeout"),
        ({"params": {"to": 1}, "priority": "high"}, "priority"),
        ({"params": {"to": 1}, "priority": True}, "priority"),
        ({"params": {"to": 1}, "priority": 1.5}, "priority"),
        ({"params": {"to": 1}, "scheduleTime": "tomorrow"}, "scheduleTime"),
        ({"params": {"to": 1}, "scheduleTime": "2100-01-01T00:00:00"}, "scheduleTime"),
        ({"params": {"to": 1}, "target": 7}, "target"),
        ({"params": {"to": 1}, "colour": "red"}, "colour"),
        ({"params": {"to": 1}, "requestId": "a", "request_id": "b"}, "requestId"),
    ],
)
async def test_run_names_the_field_that_is_wrong_and_starts_nothing(
    client: httpx2.AsyncClient, body: Json, field: str
) -> None:
    error = error_of(await client.post("jobs/count:run", json=body))

    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    violations = [one for one in error["details"] if one["@type"].endswith("BadRequest")]
    assert violations[0]["fieldViolations"][0]["field"] == field
    assert (await client.get("operations")).json() == {"operations": []}


class Guard:
    """Hooks as a service would write them: a header names the caller, some may see only their own."""

    def authenticate(self, request: Any) -> Principal | None:
        name = request.headers.get("x-user")
        if name == "broken":
            raise RuntimeError("canary")
        return None if name is None else Principal(name, tenant="t")

    async def authorize(self, principal: Principal, permission: str, resource: str) -> Scope | None:
        del resource
        if principal.id == "root":
            return ANYTHING
        return None if permission == "operations.delete" else Scope(owner=principal.id, tenant=principal.tenant)


async def test_foreign_and_missing_operations_are_the_same_to_a_caller(url: str) -> None:
    @job("idle")
    async def idle(ctx: Context) -> None:
        del ctx

    from starlette.applications import Starlette
    from starlette.routing import Mount

    async with open_store(url) as store:
        operations = Operations(store)
        # the fallback of the first list must not hide the routes of the second
        routes = [*operation_routes(operations, auth=Guard()), *job_routes(operations, jobs=[idle], auth=Guard())]
        app = Starlette(routes=[Mount("/v1", routes=routes)])
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://host/v1/") as client:
            ada, bob, root = ({"x-user": name} for name in ("ada", "bob", "root"))
            name = (await client.post("jobs/idle:run", headers=ada)).json()["name"]

            assert (await client.get(name, headers=ada)).status_code == 200
            assert (await client.get(name, headers=root)).status_code == 200
            for method, verb in (("GET", ""), ("POST", ":cancel"), ("POST", ":wait")):
                foreign = await client.request(method, name + verb, headers=bob)
                missing = await client.request(method, UNKNOWN + verb, headers=bob)
                assert foreign.status_code == missing.status_code == 403
                assert foreign.text.replace(name, UNKNOWN) == missing.text
            assert (await client.get("operations", headers=bob)).json() == {"operations": []}
            assert len((await client.get("operations", headers=ada)).json()["operations"]) == 1
            assert error_of(await client.get(UNKNOWN, headers=root))["code"] == 404
            assert error_of(await client.delete(name, headers=ada))["code"] == 403
            nobody = await client.get(name)
            assert error_of(nobody)["status"] == "UNAUTHENTICATED"
            assert "www-authenticate" in nobody.headers
            broken = await client.get(name, headers={"x-user": "broken"})
            assert error_of(broken)["reason"] == "AUTHORIZATION_UNAVAILABLE"
            assert "canary" not in broken.text
            page = await client.get("operations?pageSize=1", headers=root)
            assert page.status_code == 200


async def test_routes_without_auth_are_refused_at_construction(url: str) -> None:
    operations = Operations(open_store(url))
    with pytest.raises(TypeError, match=r"AllowAnonymous\(\)"):
        operation_routes(operations, auth=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"AllowAnonymous\(\)"):
        Service(url, jobs=[], auth=object())  # type: ignore[arg-type]


async def test_a_service_that_was_not_started_answers_503_with_the_line_to_add(url: str) -> None:
    service = Service(url, jobs=[], auth=AllowAnonymous())
    transport = httpx2.ASGITransport(app=service)
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        error = error_of(await client.get("/operations"))

    assert (error["code"], error["reason"]) == (503, "SERVICE_NOT_STARTED")
    assert "lifespan=service.lifespan" in error["message"]
