"""The queue in front of the database: callers hand in requests, one task serves them in batches.

A caller only ever waits, so a cancelled caller can't leave a transaction open: its request is carried
out or refused like any other, and nobody looks at the answer. What a batch does is `batch`'s affair, and
how a transaction is opened, and on which thread, is the store's.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import anyio

from lro.errors import LROError, StoreClosed, Unavailable

__all__ = ["Queue", "Request"]

log = logging.getLogger(__name__)

T = TypeVar("T")
BATCH_LIMIT = 512  # larger batches buy no throughput and cost latency (measured from 128 callers on)


class Request(Generic[T]):
    """What one caller asks, and the answer it waits for."""

    __slots__ = ("_answer", "_error", "_event", "answered")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._answer: T | None = None
        self._error: BaseException | None = None
        self.answered = False  # True once there is an answer or an error

    def answer(self, value: T) -> None:
        """Give the answer; the caller is woken by `release`, after the commit."""
        self._answer, self._error, self.answered = value, None, True

    def refuse(self, error: BaseException) -> None:
        """Give an error instead of an answer."""
        self._answer, self._error, self.answered = None, error, True

    def reset(self) -> None:
        """Take back what was answered: its transaction did not come about."""
        self._answer, self._error, self.answered = None, None, False

    def release(self) -> None:
        """Wake the caller; on the event loop only."""
        self._event.set()

    async def wait(self) -> T:
        """Wait for the answer and return it, or raise the error."""
        await self._event.wait()
        if self._error is not None:
            raise self._error
        return self._answer  # type: ignore[return-value]  # released only once answered: None is a T here


R = TypeVar("R", bound=Request[Any])  # Any: a queue serves requests of any answer


class Queue(Generic[R]):
    """Where callers queue, and the loop that serves them in batches.

    Args:
        serve: Carries out a batch: answers or refuses every request. If it raises, all of them are refused.
        what: What is queued here, for messages.
    """

    def __init__(self, serve: Callable[[Sequence[R]], Awaitable[None]], what: str) -> None:
        self._serve = serve
        self._what = what
        self._waiting: deque[R] = deque()
        self._wake = anyio.Event()
        self._drained = anyio.Event()
        self._open = False

    def open(self) -> None:
        """Take requests from now on."""
        self._open = True

    def put(self, request: R) -> R:
        """Queue a request.

        Raises:
            StoreClosed: The store is not open.
        """
        if not self._open:
            raise StoreClosed
        self._waiting.append(request)
        self._wake.set()
        return request

    async def run(self) -> None:
        """Serve batches until the queue is closed and empty."""
        while True:
            while not self._waiting:
                if not self._open:
                    self._drained.set()
                    return
                self._wake = anyio.Event()
                await self._wake.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH_LIMIT, len(self._waiting)))]
            try:
                await self._serve(batch)
            except BaseException as error:
                for request in batch:
                    request.refuse(self._refusal(error))
                if not isinstance(error, LROError):
                    raise  # the supervisor logs it and starts this loop again
                log.warning("%s", error)
            finally:
                for request in batch:
                    if not request.answered:
                        request.refuse(self._refusal(None))
                    request.release()

    def refuse_waiting(self, cause: LROError) -> None:
        """Refuse all that wait, who would only wait as long again for the same refusal."""
        while self._waiting:
            request = self._waiting.popleft()
            request.refuse(self._refusal(cause))
            request.release()

    async def close(self, seconds: float) -> None:
        """Take no more requests, and wait until those that are queued are served, for so long at most."""
        self._open = False
        self._wake.set()
        with anyio.move_on_after(seconds):
            await self._drained.wait()
        while self._waiting:
            request = self._waiting.popleft()
            request.refuse(StoreClosed())
            request.release()

    def _refusal(self, cause: BaseException | None) -> LROError:
        if isinstance(cause, LROError):
            error: LROError = type(cause)(
                cause.message, reason=cause.reason, inside=cause.inside
            )  # one for each caller's traceback
        else:
            message = f"The {self._what} failed: its outcome is unknown, so read again before you repeat it"
            error = Unavailable(message, reason="OUTCOME_UNKNOWN")
        error.__cause__ = cause
        return error
