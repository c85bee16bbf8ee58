"""Service: store, worker, operations and routes in one object, for the quick start.

Puts the rooms together and decides only their order: the store opens first and closes last, and a
shutdown ends waits before the server drains its connections.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Self

from starlette.applications import Starlette
from starlette.routing import Mount, Router
from starlette.types import Receive, Scope, Send

from lro.errors import Unavailable
from lro.jobs import Job
from lro.limits import Limits
from lro.lookup import Conceal
from lro.operations import Operations
from lro.principal import Authorization
from lro.routes import health_routes, job_routes, openapi_routes, operation_routes
from lro.routes.answer import error_response
from lro.routes.operations import METHODS
from lro.routes.routing import Fallback
from lro.routes.rules import UnknownFields
from lro.store import Store, open_store
from lro.telemetry import Observer
from lro.worker import Worker

__all__ = ["Service"]


class Service:
    """A service of long-running operations, as one ASGI app.

        service = Service("sqlite:///lro.db", jobs=[render_book], auth=AllowAnonymous())
        app = Starlette(routes=[Mount("/v1", app=service)], lifespan=service.lifespan)

    It runs while its `lifespan`, or `async with service:`, lasts; before that it answers 503. It may be started
    again after its end. Mounts go after the host's own routes; the same service may be mounted several times.
    Served by itself, `uvicorn module:service`, its paths have no prefix; `app` gives them one.

    Args:
        store: A store, or the URL of one.
        jobs: The jobs to run and to offer.
        auth: Who may do what; `AllowAnonymous()` for everybody everything.
        worker: False to serve only, where other processes work: `lro worker MODULE:OBJECT` runs its worker alone.
        domain: The ErrorInfo's domain, such as "books.example.com".
        methods: What clients may do with operations; see operation_routes, as for the next.
        unknown_fields: See operation_routes, as for the next.
        allowed_origins: Whose pages may change something from a browser.
        limits: How large, how many, how long; see Limits.
        conceal: See Operations.
        handle_signals: End waits on SIGTERM and SIGINT, before the server waits for their answers.
        concurrency: See Worker, as for the next two.
        lease: See Worker.
        drain: See Worker, as for the next three.
        observer: See Worker.
        blocked_after: See Worker.
        deaf_after: See Worker.

    Attributes:
        operations: To start operations and look after them in process.
        worker: Its worker, whether it runs along or not.
        start: The same as `operations.start`.
    """

    def __init__(
        self,
        store: Store | str,
        *,
        jobs: Iterable[Job[Any, Any, Any]],  # Any: jobs of any types
        auth: Authorization,
        worker: bool = True,
        domain: str = "lro",
        methods: Collection[str] = METHODS,
        unknown_fields: UnknownFields = "reject",
        allowed_origins: Collection[str] = (),
        limits: Limits | None = None,
        conceal: Conceal = "permission_denied",
        handle_signals: bool = True,
        concurrency: int = 10,
        lease: timedelta = timedelta(seconds=30),
        drain: timedelta = timedelta(seconds=20),
        observer: Observer | None = None,
        blocked_after: timedelta | None = timedelta(seconds=1),
        deaf_after: timedelta = timedelta(seconds=10),
    ) -> None:
        self._store = open_store(store) if isinstance(store, str) else store
        jobs = list(jobs)
        self.operations = Operations(self._store, domain=domain, limits=limits, conceal=conceal)
        self.start = self.operations.start
        self.worker = Worker(
            self._store,
            jobs,
            concurrency=concurrency,
            lease=lease,
            drain=drain,
            limits=limits,
            observer=observer,
            blocked_after=blocked_after,
            deaf_after=deaf_after,
        )
        self._works = worker
        self._router = Router(
            routes=[
                *operation_routes(
                    self.operations,
                    auth=auth,
                    methods=methods,
                    unknown_fields=unknown_fields,
                    allowed_origins=allowed_origins,
                ),
                *job_routes(
                    self.operations,
                    jobs=jobs,
                    auth=auth,
                    unknown_fields=unknown_fields,
                    allowed_origins=allowed_origins,
                ),
                *health_routes(lambda: self.ready, domain=domain),
                *openapi_routes(
                    jobs=jobs,
                    auth=auth,
                    domain=domain,
                    limits=limits,
                    methods=methods,
                    unknown_fields=unknown_fields,
                ),
            ],
            lifespan=self.lifespan,  # for a server that has nothing else: a mount is told of none
        )
        self._domain = domain
        self._handle_signals = handle_signals
        self._exits = AsyncExitStack()
        self._started = False

    @property
    def ready(self) -> bool:
        """True while the store is open, the worker works, and all background loops run."""
        return self._started and self._store.ready and (not self._works or self.worker.ready)

    async def __aenter__(self) -> Self:
        """Open the store and begin to work."""
        async with AsyncExitStack() as exits:
            await exits.enter_async_context(self._store)
            if self._works:
                await exits.enter_async_context(self.worker)
            if self._handle_signals:
                exits.callback(_on_termination(self.begin_shutdown))
            exits.callback(self.begin_shutdown)
            self.operations.resume()
            self._started = True
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down: end waits, let the worker drain, close the store."""
        self._started = False
        await self._exits.aclose()

    def lifespan(self, app: object) -> AbstractAsyncContextManager[None]:
        """Run for as long as the app: `Starlette(lifespan=service.lifespan)`."""

        @asynccontextmanager
        async def running() -> AsyncGenerator[None]:
            async with self:
                yield

        return running()

    def app(self, prefix: str = "/v1") -> Starlette:
        """Return an app of its own, for a process that serves nothing else."""
        return Starlette(routes=[Mount(prefix, app=self), Fallback(self._domain)], lifespan=self.lifespan)

    def begin_shutdown(self) -> None:
        """End all waits at once, each with the current state of its operation."""
        self.operations.begin_shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; 503 unless it was started."""
        if scope["type"] == "http" and not self._started:
            error = Unavailable(
                "this lro Service was mounted and not started: hand its lifespan to the app, "
                "Starlette(..., lifespan=service.lifespan), or enter it in your own: async with service:",
                reason="SERVICE_NOT_STARTED",
            )
            await error_response(error, self._domain)(scope, receive, send)
            return
        await self._router(scope, receive, send)


_Handle = Callable[[int, FrameType | None], Any]  # Any: what it returns is ignored


def _on_termination(act: Callable[[], object]) -> Callable[[], None]:
    """Call `act` on the event loop at SIGTERM and SIGINT, and then who handled them before.

    Returns the function that puts the old handlers back. Only where there is such a handler, as under
    uvicorn: without one the signal ends the process as it always did.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    loop = asyncio.get_running_loop()
    chained: list[tuple[signal.Signals, _Handle, _Handle]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        old = signal.getsignal(number)
        if callable(old):
            ours = partial(_chain, loop, act, old)
            signal.signal(number, ours)
            chained.append((number, old, ours))

    def restore() -> None:
        for number, old, ours in chained:
            if signal.getsignal(number) is ours:
                signal.signal(number, old)

    return restore


def _chain(
    loop: asyncio.AbstractEventLoop, act: Callable[[], object], old: _Handle, number: int, frame: FrameType | None
) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(act)  # a handler must wake the loop, for which anyio has no call
    old(number, frame)
