"""Google's own client of google.longrunning.Operations, unmodified, against a real server."""

from collections.abc import Callable
from typing import Any

import pytest
from google.api_core import exceptions, operation, retry
from google.api_core.future import polling
from google.api_core.operations_v1 import AbstractOperationsClient, OperationsRestTransport
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import InvalidOperation
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2, struct_pb2
from google.protobuf.json_format import MessageToDict

from tests.google.conftest import BARE, NOBODYS, REFUSALS, Service, packed, reason
from tests.google.messages import Book, Writing

SOON = retry.Retry(predicate=polling.POLLING_PREDICATE, initial=0.01, maximum=0.05, timeout=10)
"""How futures poll here: their own first pause is a second."""

Connect = Callable[..., AbstractOperationsClient]


@pytest.fixture
def connect(service: Service) -> Connect:
    """Return the function that makes a client of the server, with options of its transport."""

    def make(**options: Any) -> AbstractOperationsClient:  # Any: the transport's own
        transport = OperationsRestTransport(host=service.url, credentials=AnonymousCredentials(), **options)
        return AbstractOperationsClient(transport=transport)

    return make


@pytest.fixture
def client(connect: Connect) -> AbstractOperationsClient:
    return connect()


def follow(
    started: operations_pb2.Operation,
    client: AbstractOperationsClient,
    response: Any = struct_pb2.Struct,  # Any: a message's class
    metadata: Any = struct_pb2.Struct,
) -> operation.Operation:
    """Return what a method of a generated client returns: a future."""
    return operation.from_gapic(started, client, response, metadata_type=metadata, polling=SOON)


def test_a_future_shows_the_metadata_and_returns_the_result(service: Service, client: AbstractOperationsClient) -> None:
    it = follow(service.start("books.print"), client)
    service.heard_of(it.operation.name, '"progress":{"printed":1}')

    assert not it.done()
    running = MessageToDict(it.metadata)
    service.let_end(it.operation.name)

    assert MessageToDict(it.result()) == {"pages": 1, "isbn": "9007199254740993"}
    assert (it.done(), it.cancelled(), it.exception(), it.cancel()) == (True, False, None, False)
    ended = MessageToDict(it.metadata)
    assert (running["state"], running["progress"], running["verb"]) == ("RUNNING", {"printed": 1}, "books.print")
    assert (ended["state"], ended["progress"], ended["target"]) == ("SUCCEEDED", {"printed": 1}, "books/moby-dick")
    assert "endTime" not in running
    assert ended["createTime"] == running["createTime"] < ended["endTime"]


def test_a_future_cancels(service: Service, client: AbstractOperationsClient) -> None:
    it = follow(service.start("books.print"), client)

    assert it.cancel() is True
    with pytest.raises(exceptions.Cancelled, match="was cancelled") as caught:
        it.result()

    assert it.cancelled()
    assert (packed(caught.value).reason, packed(caught.value).domain) == ("OPERATION_CANCELLED", "books.example.com")
    assert MessageToDict(it.metadata)["requestedCancellation"] is True
    kept = client.get_operation(it.operation.name)
    assert (kept.done, kept.error.code) == (True, 1)
    assert it.operation.name in [one.name for one in client.list_operations("projects/p", "")]


def test_a_cancel_after_the_end_changes_nothing(service: Service, client: AbstractOperationsClient) -> None:
    it = follow(service.start("books.count"), client, struct_pb2.Value)
    it.result()

    client.cancel_operation(it.operation.name)

    assert MessageToDict(client.get_operation(it.operation.name)) == MessageToDict(it.operation)


def test_a_job_that_can_not_be_cancelled_says_so(service: Service, client: AbstractOperationsClient) -> None:
    it = follow(service.start("books.burn"), client, empty_pb2.Empty)

    with pytest.raises(exceptions.MethodNotImplemented) as caught:
        it.cancel()
    service.let_end(it.operation.name)

    assert reason(caught.value) == "CANCEL_UNSUPPORTED"
    assert it.result() == empty_pb2.Empty()


def test_the_error_of_a_job_is_an_exception_with_its_code(service: Service, client: AbstractOperationsClient) -> None:
    error = follow(service.start("books.lose"), client).exception()

    assert isinstance(error, exceptions.FailedPrecondition)
    assert error.message == "the book is lent"
    info = packed(error)
    assert (info.reason, info.domain, dict(info.metadata)) == ("BOOK_LENT", "books.example.com", {"until": "Monday"})


def test_an_unexpected_error_of_a_job_is_internal(service: Service, client: AbstractOperationsClient) -> None:
    error = follow(service.start("books.drop"), client).exception()

    assert isinstance(error, exceptions.InternalServerError)
    assert "secret" not in str(error.errors)
    assert packed(error).reason == "JOB_FAILED"


def test_a_list_and_nothing_are_results_too(service: Service, client: AbstractOperationsClient) -> None:
    listed = follow(service.start("books.count"), client, struct_pb2.Value).result()

    assert MessageToDict(listed) == [1, "two", None]


def test_a_job_may_name_messages_of_its_own(service: Service, client: AbstractOperationsClient) -> None:
    it = follow(service.start("books.write"), client, Book, Writing)
    begun = it.metadata
    service.let_end(it.operation.name)
    book, ended = it.result(), it.metadata

    assert (book.name, book.pages, book.copies) == ("books/moby-dick", 585, 2**53 + 1)
    assert (begun.target, begun.verb, begun.state) == ("books/moby-dick", "write", "PENDING")
    assert (ended.chapter, ended.state, ended.requested_cancellation) == ("Loomings", "SUCCEEDED", False)
    assert begun.create_time == ended.create_time
    assert not begun.HasField("end_time")
    assert ended.end_time.ToNanoseconds() > ended.create_time.ToNanoseconds()


def test_its_metadata_tells_of_a_cancel(service: Service, client: AbstractOperationsClient) -> None:
    it = follow(service.start("books.write"), client, Book, Writing)

    it.cancel()

    assert isinstance(it.exception(), exceptions.Cancelled)
    assert (it.metadata.state, it.metadata.requested_cancellation) == ("CANCELLED", True)


def test_a_list_comes_in_pages(service: Service, client: AbstractOperationsClient) -> None:
    names = [service.start("books.count", "pages").name for _ in range(5)]
    service.start("books.count", "other")

    pages = [
        [one.name for one in page.operations]
        for page in client.list_operations("projects/pages", "", page_size=2).pages
    ]

    assert [len(page) for page in pages] == [2, 2, 1]
    assert [name for page in pages for name in page] == names[::-1]


def test_a_page_that_is_not_one_is_refused_with_a_reason(client: AbstractOperationsClient) -> None:
    with pytest.raises(exceptions.BadRequest, match="pageToken") as caught:
        client.list_operations("projects/p", "", page_token="nonsense")
    assert reason(caught.value) == "INVALID_PAGE_TOKEN"
    with pytest.raises(exceptions.BadRequest, match="pageSize") as caught:
        client.list_operations("projects/p", "", page_size=-1)
    assert reason(caught.value) == "INVALID_ARGUMENT"


def test_what_is_deleted_is_not_found(service: Service, client: AbstractOperationsClient) -> None:
    name = service.start("books.print").name

    client.delete_operation(name)

    for method in (client.get_operation, client.cancel_operation, client.delete_operation):
        with pytest.raises(exceptions.NotFound) as caught:
            method(name)
        assert reason(caught.value) == "OPERATION_NOT_FOUND"


def test_names_without_a_parent_need_the_bindings_of_the_proto(service: Service, connect: Connect) -> None:
    client = connect(http_options=BARE)
    it = follow(service.start("books.print", project=""), client)

    assert it.operation.name in [one.name for one in client.list_operations("operations", "")]
    assert it.cancel() is True
    assert isinstance(it.exception(), exceptions.Cancelled)
    client.delete_operation(it.operation.name)
    with pytest.raises(exceptions.NotFound):
        client.get_operation(it.operation.name)
    with pytest.raises(ValueError, match="at least one accepted HTTP binding"):
        connect().get_operation(it.operation.name)


@pytest.mark.parametrize(("kind", "options", "name", "why"), REFUSALS)
def test_a_refusal_is_an_exception_with_a_reason(
    connect: Connect, kind: str, options: dict[str, Any], name: str, why: str
) -> None:
    with pytest.raises(getattr(exceptions, kind)) as caught:
        connect(**options).get_operation(name)

    assert reason(caught.value) == why
    assert "secret" not in str(caught.value)


def test_without_credentials_the_client_itself_gives_up(connect: Connect) -> None:
    with pytest.raises(InvalidOperation, match="Anonymous credentials"):
        connect(path_prefix="unknown/v1").get_operation(NOBODYS)


def test_a_store_that_is_away_for_a_moment_is_asked_again(service: Service, connect: Connect) -> None:
    name = service.start("books.count").name

    assert connect(path_prefix="failing/v1").get_operation(name).name == name


@pytest.fixture(scope="module")
def filtered(service: Service) -> str:
    """Return a parent under which, the latest first, one operation was cancelled, one failed and one succeeded."""
    for job in ("books.count", "books.lose"):
        service.heard_of(service.start(job, "filtered").name, '"done":true')
    name = service.start("books.print", "filtered").name
    service.heard_of(name, '"progress":{"printed":1}')
    service.cancel(name)
    service.heard_of(name, '"done":true')
    return "projects/filtered"


@pytest.mark.parametrize(
    ("wanted", "verbs"),
    [
        ("done = true", ["books.print", "books.lose", "books.count"]),
        ("done = false", []),
        ("error.code = 9", ["books.lose"]),
        ('metadata.state = "CANCELLED" OR metadata.verb = "books.count"', ["books.print", "books.count"]),
        ('metadata.target = "books/*" AND metadata.requestedCancellation = true', ["books.print"]),
        ("metadata.progress.printed > 0", ["books.print"]),
        ("-error:*", ["books.count"]),
    ],
)
def test_a_list_may_be_filtered(
    service: Service, client: AbstractOperationsClient, filtered: str, wanted: str, verbs: list[str]
) -> None:
    found = client.list_operations(filtered, wanted, page_size=1)

    assert [MessageToDict(one.metadata)["value"]["verb"] for one in found] == verbs


def test_a_filter_that_is_none_is_refused_with_a_reason(client: AbstractOperationsClient) -> None:
    with pytest.raises(exceptions.BadRequest, match="filter") as caught:
        client.list_operations("projects/p", "metadata.nonsense = 1")
    assert reason(caught.value)
