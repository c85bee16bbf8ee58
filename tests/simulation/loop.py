"""An event loop in virtual time: which of its ready handles runs next is drawn from a seed.

It is asyncio's own `BaseEventLoop` without a selector. The machine steps it, one handle at a time, and tells the
time. Two runs of one seed are equal to the last step: what asyncio and anyio keep in sets is hashed by a number
here, and not by an address.
"""

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from heapq import heappop
from itertools import count
from math import inf
from random import Random
from typing import Any, Protocol

from anyio._backends import _asyncio as backend

__all__ = ["Clockwork", "VirtualLoop", "number_what_is_hashed"]


class Clockwork(Protocol):
    """Where a loop gets the time and its luck."""

    now: float
    random: Random


class _Task(asyncio.Task[Any]):  # Any: whatever its coroutine returns
    """A task that is hashed by its number."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, loop: "VirtualLoop", **options: Any) -> None:
        self.number = next(loop.numbers)
        super().__init__(coroutine, loop=loop, **options)

    def __hash__(self) -> int:
        return self.number


class _Scope(backend.CancelScope):
    """A cancel scope that is hashed by its number."""

    numbers = count()

    def __init__(self, *arguments: Any, **named: Any) -> None:  # Any: as anyio declares them
        self.number = next(self.numbers)
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self.number


def number_what_is_hashed() -> None:
    """Have anyio make scopes that are hashed by a number, from 0 on; for this process and for good."""
    _Scope.numbers = count()
    backend.CancelScope = _Scope  # type: ignore[misc]  # the one way to it from outside


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module.

    Args:
        clockwork: Tells the time.
        shuffled: False to run what is ready in order, as asyncio does; True to draw it.
        failed: Called with what went wrong in a callback or a task that nobody awaits.

    Attributes:
        stopped_until: It is frozen until then.
        tasks: Every task it ever had. Those of a loop that is never stepped again must not be finalised: their
            `finally` would run in a process that is dead.
    """

    def __init__(self, clockwork: Clockwork, *, shuffled: bool, failed: Callable[[str], None]) -> None:
        super().__init__()
        self.stopped_until = 0.0
        self.numbers = count()
        self.tasks: list[asyncio.Task[Any]] = []
        self._clockwork = clockwork
        self._shuffled = shuffled
        self._waiting: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]  # asyncio's own, as is this:
        self._timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _, context: failed(f"{context['message']}: {context.get('exception')!r}"))

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        del loop
        task = _Task(coroutine, loop=self, **options)
        self.tasks.append(task)
        return task

    def _write_to_self(self) -> None:
        """Do nothing: it never sleeps in a selector."""

    def time(self) -> float:
        """Return the machine's time."""
        return self._clockwork.now

    @property
    def is_ready(self) -> bool:
        """Whether a handle waits to be run."""
        return bool(self._waiting)

    @property
    def next_at(self) -> float:
        """When there is something to do, at the earliest; infinity if it only waits for others."""
        if self._waiting:
            return self.stopped_until
        timers = self._timers
        while timers:
            if not timers[0].cancelled():
                at = timers[0].when()
                return max(at, self.stopped_until)
            heappop(timers)._scheduled = False  # type: ignore[attr-defined]  # as asyncio's own loop does
        return inf

    def step(self) -> None:
        """Run one handle, if one is ready."""
        now, timers, waiting = self._clockwork.now, self._timers, self._waiting
        while timers and timers[0].when() <= now:
            timer = heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]
            if not timer.cancelled():
                waiting.append(timer)
        if not waiting:
            return
        if self._shuffled and len(waiting) > 1:
            waiting.rotate(-int(self._clockwork.random.random() * len(waiting)))
        handle = waiting.popleft()
        if not handle.cancelled():
            events._set_running_loop(self)
            try:
                handle._run()
            finally:
                events._set_running_loop(None)
