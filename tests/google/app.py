"""What Google's clients talk to: operations with a parent and without, a part of a real API, and what goes wrong."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from lro import AllowAnonymous, Code, Context, Job, OperationError, Operations, Principal, Worker, job
from lro.errors import Unavailable
from lro.lifecycle import Record
from lro.principal import Scope
from lro.routes import exception_handlers, operation_response, operation_routes
from lro.store import Store, open_store
from tests.jobs import Relay

STORE = open_store("sqlite:///google.db")
OPERATIONS = Operations(STORE, domain="books.example.com")

_let_end: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)


class Message(BaseModel):
    """A model whose JSON is protobuf's: lowerCamel."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Pages(Message):
    printed: int = 0


@job("books.print")
async def print_book(ctx: Context[Pages]) -> dict[str, Any]:
    """Print until it is let end, or cancelled."""
    await ctx.checkpoint(Pages(printed=1))
    while not _let_end[ctx.name].is_set():
        await ctx.sleep(0.005)
    return {"pages": 1, "isbn": str(2**53 + 1)}


@job("books.burn", cancellable=False)
async def burn(ctx: Context) -> None:
    """Go on whatever is asked."""
    await _let_end[ctx.name].wait()


@job("books.lose")
async def lose(ctx: Context) -> None:
    """Fail in a way that its client is to know."""
    raise OperationError(Code.FAILED_PRECONDITION, "the book is lent", reason="BOOK_LENT", until="Monday")


@job("books.drop")
async def drop(ctx: Context) -> None:
    """Fail in a way that nobody is to know."""
    raise RuntimeError("a secret")


@job("books.count")
async def count(ctx: Context) -> list[Any]:
    """Return what is no object."""
    return [1, "two", None]


class Book(Message):
    name: str
    pages: int = 0
    copies: str = "0"  # an int64, which protobuf's JSON writes as a string


class Writing(Message):
    create_time: datetime | None = None
    end_time: datetime | None = None
    target: str = ""
    verb: str = "write"
    requested_cancellation: bool = False
    state: str = ""
    chapter: str = ""


@job("books.write", response_type="acme.v1.Book", metadata_type="type.googleapis.com/acme.v1.Writing")
async def write(ctx: Context[Writing]) -> Book:
    """Return a message of its own."""
    await ctx.checkpoint(Writing(chapter="Loomings"))
    while not _let_end[ctx.name].is_set():
        await ctx.sleep(0.005)
    return Book(name="books/moby-dick", pages=585, copies=str(2**53 + 1))


class NodeConfig(Message):
    cpu_count: int = 0
    memory_size_mb: int = 0


class Instance(Message):
    """As much of google.cloud.memcache.v1.Instance as is kept here."""

    name: str = ""
    display_name: str = ""
    node_count: int = 0
    node_config: NodeConfig = NodeConfig()
    create_time: datetime | None = None
    state: str = "CREATING"
    discovery_endpoint: str = ""


class Change(Message):
    """Is google.cloud.memcache.v1.OperationMetadata."""

    create_time: datetime | None = None
    end_time: datetime | None = None
    target: str = ""
    verb: str = ""
    status_detail: str = ""
    cancel_requested: bool = False
    api_version: str = "v1"


MEMCACHE = "type.googleapis.com/google.cloud.memcache.v1"


@job(
    "instances.create",
    parallel="reject",
    response_type=f"{MEMCACHE}.Instance",
    metadata_type=f"{MEMCACHE}.OperationMetadata",
)
async def create_instance(ctx: Context[Change], instance: Instance) -> Instance:
    """Set an instance up, until it is let end, or cancelled."""
    await ctx.checkpoint(Change(verb="create", status_detail="waiting for a host"))
    while not _let_end[ctx.name].is_set():
        await ctx.sleep(0.005)
    ready = {"state": "READY", "create_time": datetime.now(UTC), "discovery_endpoint": "10.0.0.3:11211"}
    return instance.model_copy(update=ready)


@job("instances.delete", response_type="google.protobuf.Empty", metadata_type=f"{MEMCACHE}.OperationMetadata")
async def delete_instance(ctx: Context[Change]) -> None:
    """Remove an instance."""
    await ctx.checkpoint(Change(verb="delete"))


JOBS: list[Job[Any, Any, Any]] = [print_book, burn, lose, drop, count, write, create_instance, delete_instance]


async def start(request: Request) -> Response:
    """Start a job that takes no params, under a project or not."""
    named = {one.name: one for one in JOBS}
    project = request.path_params.get("project")
    parent = f"projects/{project}" if project else ""
    operation = await OPERATIONS.start(named[request.path_params["job"]], parent=parent, target="books/moby-dick")
    return operation_response(operation)


async def let_end(request: Request) -> Response:
    """Let an operation go on to its natural end."""
    _let_end[request.path_params["name"]].set()
    return Response()


async def create(request: Request) -> Response:
    """Be CloudMemcache.CreateInstance: POST /v1/{parent=projects/*/locations/*}/instances?instanceId=."""
    parent = "projects/{project}/locations/{location}".format(**request.path_params)
    name = f"{parent}/instances/{request.query_params['instanceId']}"
    instance = Instance.model_validate_json(await request.body()).model_copy(update={"name": name})
    return operation_response(await OPERATIONS.start(create_instance, instance, parent=parent, target=name))


async def remove(request: Request) -> Response:
    """Be CloudMemcache.DeleteInstance: DELETE /v1/{name=projects/*/locations/*/instances/*}."""
    parent = "projects/{project}/locations/{location}".format(**request.path_params)
    name = f"{parent}/instances/{request.path_params['instance']}"
    return operation_response(await OPERATIONS.start(delete_instance, parent=parent, target=name))


class Failing(Relay):
    """A store that can't be reached at every other look, and in which an operation called so can't be read at all."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._looks = 0

    async def get(self, name: str) -> Record | None:
        if name.startswith("projects/broken/"):
            raise RuntimeError("a secret")
        self._looks += 1
        if self._looks % 2:
            raise Unavailable("the disk is full")
        return await super().get(name)


class Doorman:
    """Knows everybody or nobody, and lets nobody in."""

    def __init__(self, principal: Principal | None) -> None:
        self._principal = principal

    def authenticate(self, request: Any) -> Principal | None:  # Any: as the protocol leaves it open
        return self._principal

    async def authorize(self, principal: Principal, permission: str, resource: str) -> Scope | None:
        return None


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with STORE, Worker(STORE, JOBS):
        yield


LOCATION = "/v1/projects/{project}/locations/{location}"

app = Starlette(
    routes=[
        Route("/v1/jobs/{job}:run", start, methods=["POST"]),
        Route("/v1/projects/{project}/jobs/{job}:run", start, methods=["POST"]),
        Route("/end/{name:path}", let_end, methods=["POST"]),
        Route(LOCATION + "/instances", create, methods=["POST"]),
        Route(LOCATION + "/instances/{instance}", remove, methods=["DELETE"]),
        Mount("/failing/v1", routes=operation_routes(Operations(Failing(STORE)), auth=AllowAnonymous())),
        Mount("/unknown/v1", routes=operation_routes(OPERATIONS, auth=Doorman(None))),
        Mount("/closed/v1", routes=operation_routes(OPERATIONS, auth=Doorman(Principal("ann")))),
        Mount("/v1", routes=operation_routes(OPERATIONS, auth=AllowAnonymous())),
    ],
    lifespan=lifespan,
    exception_handlers=exception_handlers,
)
