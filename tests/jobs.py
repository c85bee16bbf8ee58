"""What the tests of the engine share: small models, a story that a job tells, and a store to tamper with."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from pydantic import BaseModel

from lro import Job, Operation, Operations
from lro.admission import NO_QUOTAS, Quotas
from lro.lifecycle import Record, Transition
from lro.store import Page, PageQuery, Store
from lro.store.base import OpenTransaction, Within
from lro.store.hints import Listener, Watch

T = TypeVar("T")

PATIENCE = 4.0  # seconds: the bound of every wait


class Params(BaseModel):
    pages: int = 3


class Progress(BaseModel):
    pages_done: int = 0


class Rendered(BaseModel):
    url: str


class Story:
    """What jobs tell of themselves, in order, and what they and the test wait for."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._events: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)

    def tell(self, what: str) -> None:
        self.told.append(what)
        self._events[what].set()

    async def heard(self, what: str) -> None:
        with anyio.fail_after(PATIENCE):
            await self._events[what].wait()


async def ended(operations: Operations, name: str) -> Operation:
    """Wait, within bounds, until an operation is done."""
    with anyio.fail_after(PATIENCE):
        while not (operation := await operations.wait(name)).done:
            pass
    return operation


async def result(operations: Operations, job: Job[Any, Any, T], name: str) -> T:
    """Wait, within bounds, for an operation's result."""
    return await operations.result(job, name, timeout=timedelta(seconds=PATIENCE))


async def until(condition: Callable[[], bool]) -> None:
    """Wait, within bounds, for what no event tells."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.002)


async def stored(store: Store, name: str) -> Record:
    record = await store.get(name)
    assert record is not None
    return record


class Relay:
    """A Store that hands everything on to another one; tests override what shall go wrong."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    @property
    def ready(self) -> bool:
        return self.store.ready

    async def insert(self, record: Record, within: Within | OpenTransaction | None = None, **options: Any) -> Record:
        return await self.store.insert(record, within, **options)

    async def get(self, name: str) -> Record | None:
        return await self.store.get(name)

    async def list(self, query: PageQuery) -> Page:
        return await self.store.list(query)

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        return await self.store.update(name, transition, within)

    async def claim(self, owner: str, jobs: Iterable[str], limit: int, quotas: Quotas = NO_QUOTAS) -> Sequence[Record]:
        return await self.store.claim(owner, jobs, limit, quotas)

    async def join(self, owner: str, lease_time: int) -> None:
        await self.store.join(owner, lease_time)

    async def renew(self, owner: str) -> Sequence[Record]:
        return await self.store.renew(owner)

    async def held(self, owner: str) -> Sequence[Record]:
        return await self.store.held(owner)

    async def leave(self, owner: str) -> None:
        await self.store.leave(owner)

    async def secret(self) -> bytes:
        return await self.store.secret()

    def watch(self, name: str) -> Watch:
        return self.store.watch(name)

    def listen(self, listener: Listener) -> Callable[[], None]:
        return self.store.listen(listener)


def is_call_of(transition: Transition, function: Callable[..., Any]) -> bool:  # Any: a rule of lifecycle
    """Return whether a transition is this rule of lifecycle with its arguments filled in."""
    return getattr(transition, "func", transition) is function
