"""Background loops that must live: an error in one is logged, counted and followed by a restart.

Decides nothing about what the loops do. A loop that fails never ends the task group of the host: its
supervisor waits, longer each time, and starts it again; meanwhile `healthy` is false. Nor does a host
that is cancelled end a loop: they run, shielded, until the block is left in order.
"""

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

__all__ = ["Supervisor"]

_FIRST_WAIT, _LONGEST_WAIT = 0.05, 5.0  # seconds
_STEADY = 30.0  # seconds after which a loop counts as recovered


class Supervisor:
    """Runs named loops for the time of an `async with` block; leaving it cancels what still runs.

    Attributes:
        failures: How often a loop has failed so far.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._group: TaskGroup | None = None
        self._failing: set[str] = set()
        self._scopes: set[anyio.CancelScope] = set()
        self.failures = 0

    @property
    def healthy(self) -> bool:
        """True if it is entered and no loop waits for its restart."""
        return self._group is not None and not self._failing

    async def __aenter__(self) -> Self:
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The body's exception is not handed to the group: it would come out wrapped in an exception group.
        group, self._group = self._group, None
        if group is not None:
            group.cancel_scope.shield = True  # what is left to do here is short
            for scope in tuple(self._scopes):
                scope.cancel()
            await group.__aexit__(None, None, None)

    def start(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Start a loop and keep it running until it returns or the block is left."""
        if self._group is None:
            msg = f"{name} can't be started: the supervisor is not entered"
            raise RuntimeError(msg)
        scope = anyio.CancelScope(shield=True)
        self._scopes.add(scope)  # here, so that a loop that has not begun yet is ended too
        self._group.start_soon(self._supervise, name, loop, scope, name=f"lro: {name}")

    def spawn(self, name: str, function: Callable[[], Awaitable[None]]) -> None:
        """Start something that runs once, to its own end; an error in it is logged."""
        if self._group is None:
            msg = f"{name} can't be started: the supervisor is not entered"
            raise RuntimeError(msg)
        self._group.start_soon(self._once, name, function, name=name)

    async def _once(self, name: str, function: Callable[[], Awaitable[None]]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await function()
        except Exception:
            self.failures += 1
            self._log.exception("%s failed", name)

    async def _supervise(self, name: str, loop: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        with scope:
            wait = _FIRST_WAIT
            while True:
                started = anyio.current_time()
                try:
                    await loop()
                except Exception:
                    self.failures += 1
                    if anyio.current_time() - started > _STEADY:
                        wait = _FIRST_WAIT
                    self._log.exception("%s failed; it starts again in %.2f s", name, wait)
                else:
                    break
                self._failing.add(name)
                await anyio.sleep(wait)
                self._failing.discard(name)
                wait = min(wait * 2, _LONGEST_WAIT)
        self._scopes.discard(scope)
