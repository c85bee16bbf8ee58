"""Plain functions on threads, never left behind.

Whoever waits for one waits for its end, whatever happens to the waiter: work that goes on while nobody
counts it would make a truthful answer impossible.
"""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

__all__ = ["frame_of", "run_in_thread"]

T = TypeVar("T")


async def run_in_thread(function: Callable[[], T], *, name: str, limiter: anyio.CapacityLimiter) -> T:
    """Run a function on a thread and return what it returns, or raise what it raises.

    A caller that is cancelled before the function has begun keeps it from beginning; later it waits all the
    same, and what the function returned or raised counts.

    Args:
        function: What to run.
        name: What the thread is called meanwhile, for logs and debuggers.
        limiter: Whose threads these are.
    """
    call = _Call(function, name)
    try:
        await anyio.to_thread.run_sync(call.run, limiter=limiter)
    except anyio.get_cancelled_exc_class():
        if call.begin():
            raise  # it never will
        await _outlast(call.ended)
    return call.result()


async def _outlast(ended: threading.Event) -> None:
    """Wait for a thread, though this task is cancelled by hand: anyio's own shield has no power over that."""
    while not ended.is_set():
        try:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(ended.wait, limiter=anyio.CapacityLimiter(1))
        except anyio.get_cancelled_exc_class():
            continue


def frame_of(thread: int | str) -> FrameType | None:
    """Return where a thread stands that is known by its identifier or its name, or None if there is none."""
    named = thread if isinstance(thread, int) else _identifier(thread)
    frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- documented, for debuggers
    return None if named is None else frames.get(named)


def _identifier(name: str) -> int | None:
    return next((one.ident for one in threading.enumerate() if one.name == name), None)


class _Call(Generic[T]):
    """A function that is run at most once, and what it returned or raised."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._name = name
        self._begun = threading.Lock()
        self._value: T | None = None
        self._error: BaseException | None = None
        self.ended = threading.Event()

    def begin(self) -> bool:
        """Return True to the first who asks."""
        return self._begun.acquire(blocking=False)

    def run(self) -> None:
        """Run the function, unless it was decided that it does not begin."""
        if not self.begin():
            return
        thread = threading.current_thread()
        old, thread.name = thread.name, self._name
        try:
            self._value = self._function()
        except BaseException as error:  # whatever it is, it ends this function only
            self._error = error
        finally:
            thread.name = old
            self.ended.set()

    def result(self) -> T:
        """Return what the function returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # it has ended without an error: None is a T here
