"""What no HTTP client sends, sent to a real uvicorn: nothing but an exactly named operation is ever touched."""

import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from lro.lifecycle import Record
from lro.store import PageQuery, open_store
from tests.routes.requests import Json, checked_error
from tests.servers import Server

LATER = {"scheduleTime": "2100-01-01T00:00:00Z"}
OWN_WORDS = (b"Invalid HTTP request received.", b"Request Header Fields Too Large")  # what the server itself answers


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("tests.apps.wire:app", tmp_path_factory.mktemp("wire")) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as opened:
        yield opened


class Pair(NamedTuple):
    """The operation that a request is about, and another one."""

    name: str
    other: str

    def states(self, client: httpx2.Client) -> list[Json | None]:
        """Return what each looks like; None for one that is not there."""
        found = [client.get(name) for name in self]
        return [None if one.status_code == 404 else one.json() for one in found]


@pytest.fixture
def pair(client: httpx2.Client) -> Pair:
    name, other = (client.post("jobs/idle:run", json=LATER).json()["name"] for _ in range(2))
    return Pair(name, other)


class Response(NamedTuple):
    status: int
    headers: bytes
    body: bytes


def send(server: Server, request: bytes, *, then: str = "read") -> list[Response]:
    """Send bytes on a connection of their own, and return what comes back.

    Args:
        server: To whom.
        request: What.
        then: What follows: "read" all until the server closes, "close" to say before that no more will come,
            "reset" to vanish without reading.
    """
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        if then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return []
        if then == "close":
            connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionResetError:
            pass  # it closed without reading all
    return parsed(received)


def parsed(received: bytes) -> list[Response]:
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status == 100:
            received = rest
            continue
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        size = int(length[1]) if length else len(rest)
        found.append(Response(status, head, rest[:size]))
        received = rest[size:]
    return found


def checked(response: Response) -> Response:
    """Return the response, having checked that it is ours and right, or the server's own."""
    assert response.status < 500, response
    if any(words in response.body for words in OWN_WORDS):
        assert response.status in (400, 431)
    elif response.status >= 400:
        assert b"content-type: application/json" in response.headers
        assert checked_error(response.status, json.loads(response.body))
    elif response.body:
        json.loads(response.body)
    return response


def post(path: str, headers: str = "", body: bytes = b"", method: str = "POST") -> bytes:
    lines = f"{method} /v1/{path} HTTP/1.1\r\nHost: host\r\nConnection: close\r\n{headers}"
    if body and "Length" not in headers and "chunked" not in headers:
        lines += f"Content-Length: {len(body)}\r\n"
    return f"{lines}\r\n".encode("latin-1") + body


# -- paths


PATHS = [
    *(
        "{name}%3Acancel",
        "{flat}:cancel",
        "{name}:cancel%0a",
        "{name}:cancel%00",
        "{name}%00:cancel",
        "{name}%0a:cancel",
    ),
    *(
        "{name}:cancel:cancel",
        "{name}/:cancel",
        "{name}/..:cancel",
        "{name}/../{key}:cancel",
        "%2e%2e/v1/{name}:cancel",
    ),
    *("../v1/{name}:cancel", "./{name}:cancel", "/{name}:cancel", "{name}//:cancel", "operations//{key}:cancel"),
    *(
        "{name}%ff:cancel",
        "{name}%F0%9F%98%80:cancel",
        "{name};x:cancel",
        "{name}:cancel;x",
        "{name}:cancel/",
        "{name}:",
    ),
    *("{upper}:cancel", "operations/:cancel", "operations/{long}:cancel", "operations:cancel", "{name}\\:cancel"),
    *("{name}:cancel{{", "{name}^:cancel", "{name}|:cancel", '{name}":cancel', "{name}<:cancel", "{name}%:cancel"),
    *("{name}%zz:cancel", "{name}%2:cancel", "{name}%u0000:cancel", "{name}:x#:cancel"),
]


@pytest.mark.parametrize("path", PATHS)
def test_an_odd_path_is_answered_and_touches_nothing(
    server: Server, client: httpx2.Client, pair: Pair, path: str
) -> None:
    key = pair.name.rpartition("/")[2]
    sent = path.format(
        name=pair.name, flat=pair.name.replace("/", "%2F"), key=key, upper=pair.name.upper(), long="a" * 10_000
    )
    before = pair.states(client)
    for method in ("POST", "GET", "DELETE"):
        (response,) = send(server, post(sent, method=method))
        assert checked(response).status in (400, 404, 405), response
    assert pair.states(client) == before


@pytest.mark.parametrize("octet", [*range(0x21), *range(0x7F, 0x100, 16), 0xFF])
def test_an_octet_that_no_path_may_hold_touches_nothing(
    server: Server, client: httpx2.Client, pair: Pair, octet: int
) -> None:
    before = pair.states(client)
    raw, name = bytes([octet]), pair.name.encode()
    for path in (name + raw + b":cancel", name + b":cancel" + raw, raw + name):
        request = b"POST /v1/" + path + b" HTTP/1.1\r\nHost: host\r\nConnection: close\r\n\r\n"
        for response in send(server, request):
            if path.rstrip() == name + b":cancel" and checked(response).status == 200:
                return  # the server takes it for the end of the path
            assert checked(response).status >= 400
    assert pair.states(client) == before


TARGETS = [
    *("http://host/v1/{name}:cancel", "http://evil.example/v1/{name}:cancel", "//host/v1/{name}:cancel", "host:80"),
    *("//v1/{name}:cancel", "*", "v1/{name}:cancel", "?{name}:cancel"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "CONNECT"])
def test_a_target_in_another_form_is_answered(
    server: Server, client: httpx2.Client, pair: Pair, target: str, method: str
) -> None:
    before = pair.states(client)
    line = f"{method} {target.format(name=pair.name)} HTTP/1.1\r\nHost: host\r\nConnection: close\r\n\r\n"
    for response in send(server, line.encode()):
        checked(response)
        if response.status == 200:  # a server that knows the absolute form hands on the path in it
            assert target.startswith("http://")
            assert method == "POST"
            return
    assert pair.states(client) == before


# -- bodies and their framing


EMPTY = [
    ("Content-Length: 0\r\nContent-Type: application/json\r\n", b""),  # as Google's clients cancel
    ("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n", b""),
    ("", b""),
    ("Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", b"1;x=y\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: y\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", b"1\r\n \r\n0\r\n\r\n"),
    ("", b"{}"),
    ("Content-Type:\r\n", b"{}"),
    ("Expect: 100-continue\r\nContent-Type: application/json\r\n", b"{}"),
    ("Expect: 100-continue\r\nContent-Length: 0\r\n", b""),
    ("X-HTTP-Method-Override: DELETE\r\n", b""),
    ("Host: evil.example\r\n", b""),
]


@pytest.mark.parametrize(("headers", "body"), EMPTY)
def test_every_way_to_send_nothing_cancels(
    server: Server, client: httpx2.Client, pair: Pair, headers: str, body: bytes
) -> None:
    before = pair.states(client)
    request = post(f"{pair.name}:cancel", headers, body)
    if headers.startswith("Host"):
        request = request.replace(b"Host: host\r\n", b"")
    (response,) = send(server, request)
    assert (response.status, response.body) == (200, b"{}")
    mine, other = pair.states(client)
    assert mine is not None
    assert mine["error"]["code"] == 1
    assert other == before[1]


FRAMES = [
    ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nPOST /v1/{other}:cancel HTTP/1.1\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n"),
    ("Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    ("Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    ("Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"),
    ("Transfer-Encoding:\tchunked\r\n", b"0\r\n\r\n"),
    ("Content-Length: 2\r\nContent-Length: 3\r\n", b"{} "),
    ("Content-Length: 2, 2\r\n", b"{}"),
    ("Content-Length: -2\r\n", b"{}"),
    ("Content-Length: +2\r\n", b"{}"),
    ("Content-Length: 0x2\r\n", b"{}"),
    ("Content-Length: 1\r\n", b"{}"),
    ("Transfer-Encoding: chunked\r\n", b"-2\r\n{}\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", b"zz\r\n{}\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", b"2\r\n{}0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n", b"1\r\n{\r\n0\r\n\r\n"),
    ("X: \0\r\n", b""),
    ("X: y\r\n folded\r\n", b""),
    ("X\r\n", b""),
    (": x\r\n", b""),
    ("X: " + "y" * 100_000 + "\r\n", b""),
    ("".join(f"X-{number}: y\r\n" for number in range(5_000)), b""),
    ("Content-Type: \xff\xfe\r\n", b"{}"),
    ("Content-Encoding: \xff\r\n", b"{}"),
    ("Origin: \xff\r\n", b""),
    ("Origin: http://[::1\r\n", b""),
    ("Sec-Fetch-Site: \xff\r\n", b""),
    ("X-Goog-FieldMask: \xff(\r\n", b""),
    ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n", b""),
]


@pytest.mark.parametrize(("headers", "body"), FRAMES)
def test_odd_framing_and_headers_are_answered(
    server: Server, client: httpx2.Client, pair: Pair, headers: str, body: bytes
) -> None:
    before = pair.states(client)
    sent = body.replace(b"{other}", pair.other.encode())
    responses = send(server, post(f"{pair.name}:cancel", headers, sent))
    for response in responses:
        checked(response)
    mine, other = pair.states(client)
    if not any(response.status == 200 for response in responses):
        assert mine == before[0]
    if b"POST" not in body:
        assert other == before[1]


LINES = [
    *(f"POST /v1/{{name}}:cancel HTTP/{version}" for version in ("1.0", "1.1", "9.9")),
    *("POST /v1/{name}:cancel", "POST  /v1/{name}:cancel HTTP/1.1", "PO ST /v1/{name}:cancel HTTP/1.1"),
    *("post /v1/{name}:cancel HTTP/1.1", "P\0ST /v1/{name}:cancel HTTP/1.1"),
]


@pytest.mark.parametrize("request_line", LINES)
def test_other_request_lines_are_answered(server: Server, client: httpx2.Client, pair: Pair, request_line: str) -> None:
    before = pair.states(client)
    responses = send(server, f"{request_line.format(name=pair.name)}\r\nConnection: close\r\n\r\n".encode())
    for response in responses:
        checked(response)
    if not any(response.status == 200 for response in responses):
        assert pair.states(client) == before
    else:
        assert request_line.split()[:1] == ["POST"]
    assert pair.states(client)[1] == before[1]


HALVES = [
    b"POST /v1/{name}:cancel HTTP/1.1\r\nHost: host\r\n",
    b"POST /v1/{name}:cancel HTTP/1.1\r\nHost: host\r\nContent-Length: 100\r\n\r\n{}",
    b"POST /v1/{name}:cancel HTTP/1.1\r\nHost: host\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    b"POST /v1/{name}:cancel HTTP/1.1\r\nHost: host\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    b"POST /v1/{name}:wait HTTP/1.1\r\nHost: host\r\nContent-Length: 100\r\n\r\n{",
    b"POST /v1/jobs/idle:run HTTP/1.1\r\nHost: host\r\nContent-Length: 100\r\n\r\n{}",
    b"POST /v1/{name}:cancel HTTP/1.1\r\nHost: host\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"POST /v1/{name}:cancel HTTP/1.1\r\nHost: host\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
]


@pytest.mark.parametrize("request_", HALVES)
@pytest.mark.parametrize("then", ["close", "reset"])
def test_half_a_request_does_nothing(
    server: Server, client: httpx2.Client, pair: Pair, request_: bytes, then: str
) -> None:
    before, count = pair.states(client), len(client.get("operations?pageSize=1000").json()["operations"])
    for response in send(server, request_.replace(b"{name}", pair.name.encode()), then=then):
        checked(response)
        assert response.status >= 400
    assert pair.states(client) == before
    assert len(client.get("operations?pageSize=1000").json()["operations"]) == count


def test_a_body_larger_than_the_limit_is_413_however_it_is_framed(
    server: Server, client: httpx2.Client, pair: Pair
) -> None:
    before = pair.states(client)
    size = 1024 * 1024 + 1
    for headers, body in (
        (f"Content-Length: {size}\r\n", b" " * size),
        (
            "Transfer-Encoding: chunked\r\n",
            b"10000\r\n" + b" " * 65536 + b"\r\n" * 1 + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 16,
        ),
    ):
        responses = send(server, post(f"{pair.name}:cancel", headers, body))
        assert [checked(response).status for response in responses] in ([413], [])  # [] where the answer met a reset
    assert pair.states(client) == before


def test_a_body_on_a_call_without_one_is_no_second_request(server: Server, client: httpx2.Client, pair: Pair) -> None:
    before = pair.states(client)
    hidden = f"POST /v1/{pair.other}:cancel HTTP/1.1\r\nHost: host\r\n\r\n".encode()
    for method, path in (
        ("GET", pair.name),
        ("GET", "operations"),
        ("GET", "nope"),
        ("PUT", pair.name),
    ):
        request = post(path, f"Content-Length: {len(hidden)}\r\n", hidden, method).replace(
            b"Connection: close\r\n", b""
        )
        first, last = send(server, request + post("healthz", method="GET"))
        assert first.status in (200, 404, 405)
        assert (last.status, last.body) == (200, b"{}")
    assert pair.states(client) == before
    (deleted,) = send(server, post(pair.name, f"Content-Length: {len(hidden)}\r\n", hidden, "DELETE"))
    assert (deleted.status, deleted.body) == (200, b"{}")
    assert pair.states(client) == [None, before[1]]


def test_a_page_of_another_site_can_not_reach_it_by_its_address(
    server: Server, client: httpx2.Client, pair: Pair
) -> None:
    before = pair.states(client)
    for headers in ("Origin: http://evil.example\r\n", "Sec-Fetch-Site: cross-site\r\n", "Origin: null\r\n"):
        (response,) = send(server, post(f"{pair.name}:cancel", headers))
        assert checked(response).status == 403
    assert pair.states(client) == before


async def test_in_the_store_nothing_has_changed_but_what_was_asked_for(tmp_path: Path) -> None:
    with Server("tests.apps.wire:app", tmp_path) as server, server.client() as client:
        names = [client.post("jobs/idle:run", json=LATER).json()["name"] for _ in range(len(PATHS) + 1)]
        cancelled = names.pop()
        for path, name in zip(PATHS, names, strict=True):
            key = name.rpartition("/")[2]
            sent = path.format(name=name, flat=name.replace("/", "%2F"), key=key, upper=name.upper(), long=key * 300)
            for method in ("POST", "DELETE"):
                send(server, post(sent, method=method))
        for headers, body in FRAMES:
            send(server, post(f"{cancelled}:cancel", headers, body))
        server.terminate(timeout=15)
    async with open_store(f"sqlite:///{tmp_path}/lro.db") as store:
        records: list[Record] = list((await store.list(PageQuery(limit=1000))).records)
    assert {record.name for record in records} == {*names, cancelled}
    for record in records:
        assert (record.cancel_requested_at is not None) == (record.name == cancelled)
        assert record.version == (2 if record.name == cancelled else 1)
        assert record.deleted_at is None
