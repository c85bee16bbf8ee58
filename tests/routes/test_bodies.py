"""Request bodies: what is taken for cancel, wait and run, and what is refused before anything happens."""

import gzip
import json

import httpx2
import pytest

from lro import Service
from tests.routes.conftest import Stage
from tests.routes.requests import UNKNOWN, error_of, start, violations

CALLS = ["cancel", "wait", "run"]


async def path_of(call: str, client: httpx2.AsyncClient, stage: Stage) -> str:
    """Return the path of a call, with an operation that goes on if it needs one."""
    if call == "run":
        return "jobs/deaf:run"
    name = await start(client, "deaf")
    await stage.running.wait()
    return f"{name}:{call}"


async def touched(client: httpx2.AsyncClient) -> list[bool]:
    """Return of each operation that there is whether a cancel was requested."""
    listed = (await client.get("operations")).json()["operations"]
    return [one["metadata"]["value"]["requestedCancellation"] for one in listed]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        *((body, kind) for body in (b"", b" \r\n\t ", b"{}") for kind in (None, "application/json")),
        (b"", "application/x-www-form-urlencoded"),
        (b" ", "text/plain"),
        (b"{}", "application/json; charset=utf-8"),
        (b"{}", "Application/JSON"),
        (b"{}", "application/vnd.api+json"),
        (b'{"name": null}', "application/json"),
    ],
)
async def test_a_body_without_anything_in_it_is_taken(
    client: httpx2.AsyncClient, stage: Stage, call: str, body: bytes, kind: str | None
) -> None:
    if call == "run" and b"name" in body:
        body = b'{"request_id": null}'
    if call == "wait":
        stage.go_on.set()
    response = await client.post(
        await path_of(call, client, stage), content=body, headers={} if kind is None else {"content-type": kind}
    )
    assert response.status_code == 200, response.text


BROKEN = {
    "not JSON": b"reason=please",
    "cut": b'{"name": "operat',
    "two": b"{} {}",
    "a list": b"[]",
    "text": b'"cancel"',
    "a number": b"1",
    "null": b"null",
    "NaN": b'{"x": NaN}',
    "infinity": b'{"x": -Infinity}',
    "a number too large": b'{"x": 1e999}',
    "5,000 digits": b'{"x": ' + b"9" * 5_000 + b"}",
    "deep lists": b'{"x": ' + b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and closed": b'{"x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
    "too deep by one": b'{"x": ' + b"[" * 64 + b"]" * 64 + b"}",
    "a key twice": b'{"name": "operations/a", "name": "operations/b"}',
    "a key twice inside": b'{"params": {"a": 1, "a": 2}}',
    "half a surrogate pair": b'{"x": "\\ud800"}',
    "half a surrogate pair in a key": b'{"\\udfff": 1}',
    "a raw NUL": b'{"x": "\0"}',
    "a raw line break in a string": b'{"x": "\n"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "UTF-32": "{}".encode("utf-32-be"),
    "not UTF-8": b'{"x": "\xff"}',
    "overlong UTF-8": b'{"x": "\xc0\xaf"}',
    "surrogates in UTF-8": b'{"x": "\xed\xa0\x80"}',
    "single quotes": b"{'x': 1}",
    "a comment": b"{} // fine",
    "a trailing comma": b'{"x": 1,}',
    "NUL": b"\0",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_no_plain_json_is_refused(client: httpx2.AsyncClient, stage: Stage, call: str, what: str) -> None:
    path = await path_of(call, client, stage)
    before = await touched(client)

    error = error_of(await client.post(path, content=BROKEN[what], headers={"content-type": "application/json"}))

    assert (error["code"], error["status"], error["reason"]) == (400, "INVALID_ARGUMENT", "INVALID_BODY")
    assert len(error["message"]) < 300
    assert await touched(client) == before


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "kind",
    [
        *(
            "application/x-www-form-urlencoded",
            "text/plain",
            "multipart/form-data; boundary=x",
            "application/x-protobuf",
        ),
        *("json", "x" * 500),
    ],
)
async def test_a_body_that_says_it_is_something_else_is_refused(
    client: httpx2.AsyncClient, stage: Stage, call: str, kind: str
) -> None:
    path = await path_of(call, client, stage)
    before = await touched(client)

    error = error_of(await client.post(path, content=b"{}", headers={"content-type": kind}))

    assert (error["code"], error["reason"]) == (400, "CONTENT_TYPE_UNSUPPORTED")
    assert "content-type: application/json" in error["message"]
    assert await touched(client) == before


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate, gzip", "x-bomb"])
async def test_a_compressed_body_is_415(client: httpx2.AsyncClient, stage: Stage, call: str, encoding: str) -> None:
    path = await path_of(call, client, stage)
    before = await touched(client)
    bomb = gzip.compress(b" " * 10_000_000)

    response = await client.post(path, content=bomb, headers={"content-encoding": encoding})

    error = error_of(response)
    assert (error["code"], error["status"], error["reason"]) == (
        415,
        "INVALID_ARGUMENT",
        "CONTENT_ENCODING_UNSUPPORTED",
    )
    assert response.headers["accept-encoding"] == "identity"
    assert await touched(client) == before
    assert (
        await client.post(f"{UNKNOWN}:cancel", content=b"{}", headers={"content-encoding": "identity"})
    ).status_code == 404


@pytest.mark.parametrize(
    ("call", "body", "fields"),
    [
        ("cancel", {"colour": 1, "shape": None, "reason": "r"}, ["colour", "shape"]),
        ("cancel", {"timeout": "1s"}, ["timeout"]),
        ("wait", {"reason": "r"}, ["reason"]),
        ("run", {"name": "operations/mine"}, ["name"]),
        ("run", {"Params": {}, "owner": "me", "tenant": "t", "parent": "x"}, ["Params", "owner", "tenant", "parent"]),
    ],
)
async def test_all_members_that_are_not_known_are_named(
    client: httpx2.AsyncClient, stage: Stage, call: str, body: dict[str, object], fields: list[str]
) -> None:
    path = await path_of(call, client, stage)
    before = await touched(client)

    error = error_of(await client.post(path, json=body))

    assert (error["code"], error["reason"]) == (400, "UNKNOWN_FIELD")
    assert list(violations(error)) == fields
    assert await touched(client) == before


@pytest.mark.parametrize(
    ("call", "body", "field"),
    [
        ("cancel", {"reason": 5}, "reason"),
        ("cancel", {"reason": ["r"]}, "reason"),
        ("cancel", {"reason": "\0"}, "reason"),
        ("cancel", {"reason": "r" * 1025}, "reason"),
        ("cancel", {"name": UNKNOWN}, "name"),
        ("cancel", {"name": 1}, "name"),
        ("cancel", {"name": ""}, "name"),
        ("wait", {"name": UNKNOWN}, "name"),
        ("wait", {"timeout": 5}, "timeout"),
        ("wait", {"timeout": "5"}, "timeout"),
        ("wait", {"timeout": "-0.001s"}, "timeout"),
        ("wait", {"timeout": "٣s"}, "timeout"),
        ("wait", {"timeout": "1e3s"}, "timeout"),
        ("wait", {"timeout": "9" * 400 + "s"}, "timeout"),
        ("wait", {"timeout": ""}, "timeout"),
        ("run", {"requestId": "r" * 1025}, "requestId"),
        ("run", {"requestId": "\0"}, "requestId"),
        ("run", {"scheduleTime": "0000-00-00T00:00:00Z"}, "scheduleTime"),
        ("run", {"ttl": "-1s"}, "ttl"),
        ("run", {"priority": 2**31}, "priority"),
        ("run", {"priority": 1.5}, "priority"),
        ("run", {"validateOnly": "true"}, "validateOnly"),
    ],
)
async def test_a_value_that_does_not_fit_is_named(
    client: httpx2.AsyncClient, stage: Stage, call: str, body: dict[str, object], field: str
) -> None:
    path = await path_of(call, client, stage)
    before = await touched(client)

    error = error_of(await client.post(path, json=body))

    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert list(violations(error)) == [field]
    assert await touched(client) == before


async def test_either_casing_is_taken_in_bodies_too(client: httpx2.AsyncClient) -> None:
    body = {"params": {"to": 1}, "request_id": "r", "schedule_time": "2100-01-01T00:00:00Z", "validate_only": True}
    assert (await client.post("jobs/count:run", json=body)).json()["done"]
    assert (await client.get("operations")).json() == {"operations": []}


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD"])
@pytest.mark.parametrize("body", [b"{}", b'{"name": "operations/other"}', b"not JSON", b"\xff" * 100_000])
async def test_the_body_of_a_call_that_has_none_is_not_read(
    client: httpx2.AsyncClient, service: Service, method: str, body: bytes
) -> None:
    name = await start(client, "nothing", {"scheduleTime": "2100-01-01T00:00:00Z"})
    other = await start(client, "nothing", {"scheduleTime": "2100-01-01T00:00:00Z"})
    assert (await client.request(method, name, content=body)).status_code == 200
    assert json.loads((await client.get(other)).text)["done"] is False
    assert (await service.operations.get(other)).metadata["requestedCancellation"] is False
