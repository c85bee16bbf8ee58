"""What the tests of the routes have in common: a look at errors, and requests just as they are to be sent."""

import json
from typing import Any, NamedTuple
from urllib.parse import unquote

import anyio
import httpx2
from starlette.types import ASGIApp, Message

from lro.status import ERROR_INFO

Json = dict[str, Any]  # Any: JSON

UNKNOWN = "operations/00000000000000000000000000"


def error_of(response: httpx2.Response) -> Json:
    """Return the error of a failed call, having checked that it is AIP-193's."""
    assert response.headers["content-type"] == "application/json"
    return checked_error(response.status_code, response.json())


def checked_error(status: int, body: Json) -> Json:
    """Return the error in a body, with what its one ErrorInfo says."""
    assert set(body) == {"error"}
    error: Json = body["error"]
    assert error["code"] == status
    assert isinstance(error["status"], str)
    kinds = [one["@type"] for one in error["details"]]
    assert len(set(kinds)) == len(kinds)
    (info,) = (one for one in error["details"] if one["@type"] == ERROR_INFO)
    assert info["domain"] == "lro"
    return {**error, "reason": info["reason"], "metadata": info.get("metadata", {})}


def violations(error: Json) -> dict[str, str]:
    """Return what is said to be wrong, by field."""
    (detail,) = (one for one in error["details"] if one["@type"].endswith("google.rpc.BadRequest"))
    return {one["field"]: one["description"] for one in detail["fieldViolations"]}


async def start(client: httpx2.AsyncClient, job: str = "nothing", body: Json | None = None) -> str:
    """Start an operation over REST, and return its name."""
    response = await client.post(f"jobs/{job}:run", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["name"])


async def ended(client: httpx2.AsyncClient, job: str = "nothing", body: Json | None = None) -> str:
    """The same, when the operation has ended."""
    name = await start(client, job, body)
    assert (await client.post(f"{name}:wait")).json()["done"]
    return name


class Answer(NamedTuple):
    """What an app answered, as it was sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> Json:
        """The error in it."""
        assert self.headers["content-type"] == "application/json"
        return checked_error(self.status, json.loads(self.body))


async def ask(app: ASGIApp, method: str, sent: str, body: bytes = b"", **scope: Any) -> Answer:  # Any: ASGI
    """Call an app with a path just as it was sent; servers decode it as uvicorn does."""
    parts: list[Message] = []
    path, _, query = sent.partition("?")
    told = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(b"host", b"host")],
        **scope,
    }

    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not unread:
            await anyio.sleep_forever()  # the client stays
        return unread.pop()

    async def send(message: Message) -> None:
        parts.append(message)

    with anyio.fail_after(20):
        await app({key: value for key, value in told.items() if value is not None}, receive, send)
    begin, *rest = parts
    headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in begin["headers"]}
    return Answer(begin["status"], headers, b"".join(part.get("body", b"") for part in rest))
