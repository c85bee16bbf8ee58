"""A server for Google's clients, how an operation is started on it, and what the two clients of it share."""

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from google.longrunning import operations_pb2
from google.protobuf import json_format
from google.rpc import error_details_pb2

from lro.status import ERROR_INFO
from tests.servers import Server

LONGRUNNING = "google.longrunning.Operations"
BARE: dict[str, list[dict[str, str]]] = {
    f"{LONGRUNNING}.ListOperations": [{"method": "get", "uri": "/v1/{name=operations}"}],
    f"{LONGRUNNING}.GetOperation": [{"method": "get", "uri": "/v1/{name=operations/**}"}],
    f"{LONGRUNNING}.DeleteOperation": [{"method": "delete", "uri": "/v1/{name=operations/**}"}],
    f"{LONGRUNNING}.CancelOperation": [{"method": "post", "uri": "/v1/{name=operations/**}:cancel", "body": "*"}],
}
"""How operations.proto binds them: for names without a parent, which the clients' own templates do not take."""

NOBODYS = "projects/p/operations/01m886tg1wc09eayj5nrmmnsfa"
"""A name that no operation has."""


def bound(verb: str, path: str) -> dict[str, Any]:
    """Return the options of a transport that gets an operation otherwise."""
    return {"http_options": {f"{LONGRUNNING}.GetOperation": [{"method": verb, "uri": path}]}}


REFUSALS: list[tuple[str, dict[str, Any], str, str]] = [
    # the client's exception, its transport's options, the operation that it gets, and the reason that it finds
    ("NotFound", {}, NOBODYS, "OPERATION_NOT_FOUND"),
    ("NotFound", bound("get", "/v1/{name=**}:frob"), NOBODYS, "ROUTE_NOT_FOUND"),
    ("NotFound", bound("get", "/v1/nothing/{name=**}"), NOBODYS, "ROUTE_NOT_FOUND"),
    ("MethodNotAllowed", bound("put", "/v1/{name=**}"), NOBODYS, "METHOD_NOT_ALLOWED"),
    ("BadRequest", bound("get", "/v1/{name=**}?frob=1"), NOBODYS, "UNKNOWN_FIELD"),
    ("Forbidden", {"path_prefix": "closed/v1"}, NOBODYS, "PERMISSION_DENIED"),
    ("InternalServerError", {"path_prefix": "failing/v1"}, NOBODYS.replace("/p/", "/broken/"), "INTERNAL"),
]


def reason(error: Any) -> str:  # Any: the client's exception of a call that was refused
    """Return the reason in its ErrorInfo; `error.reason` is right from google-api-core 2.44 on."""
    (found,) = (one for one in error.details if one["@type"] == ERROR_INFO)
    assert found["domain"] in ("books.example.com", "lro")
    return str(found["reason"])


def packed(error: Any) -> error_details_pb2.ErrorInfo:  # Any: the client's exception of an operation that failed
    """Return its ErrorInfo, which the clients leave packed."""
    (status,) = error.errors
    info = error_details_pb2.ErrorInfo()
    (detail,) = status.details
    assert detail.Unpack(info)
    return info


class Service:
    """The server, as one sees it who starts operations on it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self, job: str, project: str = "p") -> operations_pb2.Operation:
        """Start a job, and read the answer as Google's clients do: nothing unknown in it."""
        parent = f"projects/{project}/" if project else ""
        answer = httpx2.post(f"{self.url}/v1/{parent}jobs/{job}:run")
        assert answer.status_code == 200, answer.text
        return json_format.Parse(answer.content, operations_pb2.Operation(), ignore_unknown_fields=False)

    def let_end(self, name: str) -> None:
        """Let an operation go on to its natural end."""
        assert httpx2.post(f"{self.url}/end/{name}").status_code == 200

    def cancel(self, name: str) -> None:
        """Ask for an operation to be cancelled."""
        assert httpx2.post(f"{self.url}/v1/{name}:cancel").json() == {}

    def heard_of(self, name: str, words: str) -> None:
        """Wait, within bounds, until an operation as it is shown holds these words."""
        until = time.monotonic() + 10
        while words not in httpx2.get(f"{self.url}/v1/{name}").text:
            assert time.monotonic() < until


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Server("tests.google.app:app", tmp_path_factory.mktemp("google")) as server:
        yield Service(server.url)
