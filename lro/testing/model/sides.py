"""The stores that a history is told to, and how they are asked: all of them the same, for one answer."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal

from lro.clock import Clock
from lro.errors import LeaseLost, LROError, NotFound
from lro.lifecycle import Record
from lro.store import Store
from lro.testing.contract.tools import ManualClock
from lro.testing.model.records import key_of

__all__ = [
    "LEASE_LOST",
    "NOT_FOUND",
    "Database",
    "NewDatabase",
    "Refusal",
    "Side",
    "answer_of",
    "in_order",
    "refused",
    "told",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Database:
    """A new, empty database, for one history.

    Attributes:
        make_store: Returns another store on it, which is not opened yet and settles nothing by itself once it has
            been; called on the event loop.
        sweep: Has an open store look for what time has decided, and settle it.
    """

    make_store: Callable[[Clock], Store]
    sweep: Callable[[Store], Awaitable[object]]


NewDatabase = Callable[[], AbstractContextManager[Database]]
"""Makes a Database, and removes it at the end of the history."""


class Side:
    """The stores of one database that are open: two that serve clients, and one for each worker."""

    def __init__(self, portal: BlockingPortal, database: Database, clock: ManualClock) -> None:
        self._portal = portal
        self._database = database
        self._clock = clock
        self._open: dict[str, tuple[Store, AbstractContextManager[Store]]] = {}

    def open(self, who: str) -> None:
        """Open another store under this name."""
        store = self._portal.call(self._database.make_store, self._clock)
        context = self._portal.wrap_async_context_manager(store)
        context.__enter__()
        self._open[who] = store, context

    def close(self, who: str) -> None:
        """Close the store of this name."""
        _, context = self._open.pop(who)
        context.__exit__(None, None, None)

    def close_all(self) -> None:
        """Close all that are open."""
        for who in list(self._open):
            self.close(who)

    def store(self, who: str) -> Store:
        """Return the open store of this name."""
        return self._open[who][0]

    async def sweep(self, who: str) -> None:
        """Have a store settle what time has decided, until there is nothing more."""
        for _ in range(2):  # what one settles may be for the next to remove
            await self._database.sweep(self.store(who))


@dataclass(frozen=True, eq=False)
class Refusal:
    """How a call was refused.

    Attributes:
        kind: The kind of error.
        reason: Its reason.
        message: What it says: stores must agree upon that, the model has words of its own.
    """

    kind: type[LROError]
    reason: str
    message: str = ""

    def __eq__(self, other: object) -> bool:
        """Compare what both say."""
        if not isinstance(other, Refusal) or (self.kind, self.reason) != (other.kind, other.reason):
            return False
        return not self.message or not other.message or self.message == other.message

    __hash__ = None  # type: ignore[assignment]  # it may equal two that differ in their messages


NOT_FOUND, LEASE_LOST = Refusal(NotFound, NotFound.reason), Refusal(LeaseLost, LeaseLost.reason)


def told(answer: object) -> object:
    """Return an answer, or how the call was refused."""
    if isinstance(answer, LROError):
        return Refusal(type(answer), answer.reason, answer.message)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def refused(call: Callable[[], T]) -> object:
    """Return what the model returns, or how it refuses; its messages are its own."""
    try:
        return call()
    except LROError as error:
        return Refusal(type(error), error.reason)


async def answer_of(call: Coroutine[Any, Any, T]) -> object:  # Any: as awaited
    """Return what a call returns, or how it is refused."""
    try:
        return await call
    except LROError as error:
        return told(error)


async def in_order(call: Awaitable[Sequence[Record]]) -> list[Record]:
    """Return records sorted, where a store may return them in any order."""
    return sorted(await call, key=key_of)
