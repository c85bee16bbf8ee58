"""Google's asynchronous client, unmodified: it reads every error as JSON, and dies of what is none."""

import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from google.api_core import exceptions, operation_async, retry_async
from google.api_core.future import async_future
from google.api_core.operations_v1 import AsyncOperationsRestClient, AsyncOperationsRestTransport
from google.auth.aio.credentials import AnonymousCredentials
from google.auth.aio.transport.sessions import AsyncAuthorizedSession
from google.longrunning import operations_pb2
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict

from tests.google.conftest import BARE, NOBODYS, REFUSALS, Service, packed, reason
from tests.google.messages import Book, Writing

SOON = retry_async.AsyncRetry(
    predicate=retry_async.if_exception_type(async_future._OperationNotComplete),
    initial=0.01,
    maximum=0.05,
    timeout=10,
)
"""How futures poll here: their own first pause is a second."""

Connect = Callable[..., AsyncOperationsRestClient]


@pytest.fixture
async def connect(service: Service) -> AsyncIterator[Connect]:
    """Return the function that makes a client of the server, with options of its transport."""
    transports: list[AsyncOperationsRestTransport] = []

    def make(**options: Any) -> AsyncOperationsRestClient:  # Any: the transport's own
        transport = AsyncOperationsRestTransport(host=service.url, credentials=AnonymousCredentials(), **options)
        transports.append(transport)
        return AsyncOperationsRestClient(transport=transport)

    yield make
    for transport in transports:
        await transport._session.close()  # it has no close of its own


@pytest.fixture
def client(connect: Connect) -> AsyncOperationsRestClient:
    return connect()


async def start(service: Service, job: str, project: str = "p") -> operations_pb2.Operation:
    return await anyio.to_thread.run_sync(service.start, job, project)


def follow(
    started: operations_pb2.Operation,
    client: AsyncOperationsRestClient,
    response: Any = struct_pb2.Struct,  # Any: a message's class
    metadata: Any = struct_pb2.Struct,
) -> operation_async.AsyncOperation:
    """Return what a method of a generated client returns: a future."""
    return operation_async.from_gapic(started, client, response, metadata_type=metadata, retry=SOON)


async def test_a_future_shows_the_metadata_and_returns_the_result(
    service: Service, client: AsyncOperationsRestClient
) -> None:
    it = follow(await start(service, "books.print"), client)
    assert not await it.done()
    assert "endTime" not in MessageToDict(it.metadata)
    await anyio.to_thread.run_sync(service.let_end, it.operation.name)

    assert MessageToDict(await it.result()) == {"pages": 1, "isbn": "9007199254740993"}
    assert (await it.done(), await it.cancelled(), await it.exception(), await it.cancel()) == (
        True,
        False,
        None,
        False,
    )
    assert MessageToDict(it.metadata)["state"] == "SUCCEEDED"


async def test_a_future_cancels(service: Service, client: AsyncOperationsRestClient) -> None:
    it = follow(await start(service, "books.print"), client)

    assert await it.cancel() is True
    with pytest.raises(exceptions.GoogleAPICallError, match="was cancelled") as caught:
        await it.result()

    assert await it.cancelled()
    assert packed(caught.value).reason == "OPERATION_CANCELLED"
    assert MessageToDict(it.metadata)["requestedCancellation"] is True


async def test_the_error_of_a_job_is_an_exception(service: Service, client: AsyncOperationsRestClient) -> None:
    error = await follow(await start(service, "books.lose"), client).exception()

    assert isinstance(error, exceptions.GoogleAPICallError)
    assert (error.message, error.errors[0].code) == ("the book is lent", 9)
    assert packed(error).reason == "BOOK_LENT"


async def test_a_job_may_name_messages_of_its_own(service: Service, client: AsyncOperationsRestClient) -> None:
    it = follow(await start(service, "books.write"), client, Book, Writing)
    await anyio.to_thread.run_sync(service.let_end, it.operation.name)

    assert (await it.result()).copies == 2**53 + 1
    assert (it.metadata.chapter, it.metadata.state) == ("Loomings", "SUCCEEDED")


async def test_a_list_comes_in_pages(service: Service, client: AsyncOperationsRestClient) -> None:
    names = [(await start(service, "books.count", "async-pages")).name for _ in range(3)]

    pager = await client.list_operations("projects/async-pages", "", page_size=2)
    pages = [[one.name for one in page.operations] async for page in pager.pages]

    assert [len(page) for page in pages] == [2, 1]
    assert [name for page in pages for name in page] == names[::-1]


async def test_names_without_a_parent_need_the_bindings_of_the_proto(service: Service, connect: Connect) -> None:
    client = connect(http_options=BARE)
    name = (await start(service, "books.print", "")).name

    assert name in [one.name async for one in await client.list_operations("operations", "")]
    await client.cancel_operation(name)
    await client.delete_operation(name)
    with pytest.raises(exceptions.NotFound):
        await client.get_operation(name)


@pytest.mark.parametrize(
    ("kind", "options", "name", "why"),
    [*REFUSALS, ("Unauthorized", {"path_prefix": "unknown/v1"}, NOBODYS, "UNAUTHENTICATED")],
)
async def test_a_refusal_is_an_exception_with_a_reason(
    connect: Connect, kind: str, options: dict[str, Any], name: str, why: str
) -> None:
    with pytest.raises(getattr(exceptions, kind)) as caught:
        await connect(**options).get_operation(name)

    assert reason(caught.value) == why


async def test_a_body_that_is_too_large_is_told_in_json_too(service: Service) -> None:
    session = AsyncAuthorizedSession(AnonymousCredentials())
    url = f"{service.url}/v1/{NOBODYS}:cancel"
    try:
        response = await session.post(
            url, data=io.BytesIO(b" " * 2_000_000), headers={"content-type": "application/json"}
        )
        payload = json.loads(await response.read())
    finally:
        await session.close()

    error = exceptions.format_http_response_error(response, "POST", url, payload)
    assert (error.code, reason(error)) == (413, "BODY_TOO_LARGE")


async def test_a_store_that_is_away_for_a_moment_is_asked_again(service: Service, connect: Connect) -> None:
    name = (await start(service, "books.count")).name

    assert (await connect(path_prefix="failing/v1").get_operation(name)).name == name
