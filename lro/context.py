"""What a running job sees: where it stands, what it has saved, and when it is to stop.

A stop is told by the worker and delivered here, at the job's checkpoints, by cancelling the scope that
the attempt runs in; where a stop can't wait, the scope is cancelled from outside. What then becomes of
the operation is decided by `attempt` and `lifecycle`.
"""

import logging
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from math import inf
from typing import Any, Generic

import anyio
import anyio.lowlevel
from typing_extensions import TypeVar

from lro.errors import Stopped
from lro.lifecycle import StopReason
from lro.principal import Principal

__all__ = ["Context", "Stop"]

ProgressT = TypeVar("ProgressT", default=None)

YIELD_EVERY = 0.010  # seconds: a loop of bare checkpoints lets others run at least this often

_cleaning: ContextVar[bool] = ContextVar("lro_cleaning", default=False)


class Stop:
    """Why one attempt is to stop, and how far that has come. Told by the worker, used on its event loop.

    Args:
        scope: The cancel scope that the job runs in.
        restartable: Whether the operation may run again after a shutdown.
        deadline: On the event loop's clock, when the scope is to be cancelled at the latest.
    """

    def __init__(self, scope: anyio.CancelScope, *, restartable: bool, deadline: float = inf) -> None:
        self._scope = scope
        self._restartable = restartable
        self._deadline = deadline
        self._force_cancel_at = inf
        self._delivered: StopReason | None = None
        self._shutting_down = False
        self.cancel_requested = False
        self.cancel_reason: str | None = None
        self.forced = False
        self.ended = False  # the job's function is over: nothing can be stopped any more
        self.told = anyio.Event()  # a stop waits for the next checkpoint
        scope.deadline = deadline

    def cancel(self, reason: str | None, grace: float | None) -> None:
        """Pass a client's request on: delivered at a checkpoint, or by force after `grace` seconds."""
        if self.cancel_requested:
            return
        self.cancel_requested, self.cancel_reason = True, reason
        if grace is not None:
            self._force_cancel_at = anyio.current_time() + grace
            self._scope.deadline = min(self._deadline, self._force_cancel_at)
        self.told.set()

    def shut_down(self) -> None:
        """Ask a restartable job to stop at its next checkpoint; another goes on until `force`."""
        if self._restartable:
            self._shutting_down = True
            self.told.set()

    def force(self, reason: StopReason) -> None:
        """Stop the job at once, wherever it awaits."""
        if self.delivered is None:
            self._delivered, self.forced = reason, True
        self.told.set()
        self._scope.cancel()

    @property
    def delivered(self) -> StopReason | None:
        """The reason that the scope was cancelled for, or None while it was not."""
        if self._delivered is None and self._scope.cancel_called:  # by its deadline: whichever came first
            self.forced = True
            is_cancel = self._force_cancel_at <= self._deadline
            self._delivered = StopReason.CANCEL if is_cancel else StopReason.DEADLINE
        return self._delivered

    @property
    def reason(self) -> StopReason | None:
        """The reason that was delivered, or else will be at the next checkpoint."""
        if self.delivered is not None:
            return self.delivered
        if self.cancel_requested:
            return StopReason.CANCEL
        return StopReason.SHUTDOWN if self._shutting_down else None

    @property
    def will_resume(self) -> bool:
        """Whether the operation goes on elsewhere after this stop."""
        reason = self.reason
        return reason is StopReason.LEASE_LOST or (reason is StopReason.SHUTDOWN and self._restartable)

    def deliver(self) -> None:
        """Cancel the scope if a stop is due; the caller stands at a checkpoint."""
        if self.delivered is None and (reason := self.reason) is not None:
            self._delivered = reason
            self._scope.cancel()


class Context(Generic[ProgressT]):
    """What an async job is given to work with; made by the library, one for each attempt.

    Attributes:
        name: The operation's name, the same on every attempt: name outside resources by it.
        attempt: Which execution this is, from 1.
        deadline: When the operation must have ended, in UTC, or None.
        principal: Who started it.
        log: A logger whose records carry `operation`, `job` and `attempt`.
    """

    def __init__(
        self,
        *,
        name: str,
        job: str,
        attempt: int,
        deadline: datetime | None,
        principal: Principal,
        progress: ProgressT,
        stop: Stop,
        save: Callable[[], Awaitable[None]],
    ) -> None:
        self.name = name
        self.attempt = attempt
        self.deadline = deadline
        self.principal = principal
        self.log = _OperationLog(logging.getLogger("lro.job"), {"operation": name, "job": job, "attempt": attempt})
        self._progress = progress
        self._reports = self._saved_reports = 0  # how often there was progress, and how much of that is saved
        self._stop = stop
        self._save = save
        self._yielded_at = anyio.current_time()
        self._task = anyio.get_current_task().id

    @property
    def progress(self) -> ProgressT:
        """The last progress saved or reported, at first that of the attempt before: the resume cursor."""
        return self._progress

    @property
    def cancel_requested(self) -> bool:
        """True once a client has asked to cancel; it is delivered at the next checkpoint."""
        return self._stop.cancel_requested

    @property
    def cancel_reason(self) -> str | None:
        """The client's words with the cancel request, or None."""
        return self._stop.cancel_reason

    @property
    def stop_reason(self) -> StopReason | None:
        """Why this attempt is being stopped, or will be at its next checkpoint; None if it is not."""
        return self._stop.reason

    @property
    def will_resume(self) -> bool:
        """True if the operation goes on in another attempt, whose work is not to be cleaned away."""
        return self._stop.will_resume

    async def checkpoint(self, progress: ProgressT | None = None) -> None:
        """Save the progress, if any is given, and stop here if the attempt is to stop.

        With progress it returns after the commit. Without, it does no I/O. Either way it lets other tasks
        run if the last time was more than 10 ms ago. While the store can't be reached it waits.

        Raises:
            anyio.get_cancelled_exc_class(): The attempt is stopped; clean up and let it go on.
            Stopped: The same, in a task outside the attempt's own.
        """
        if progress is not None:
            self.report(progress)  # if it can't be saved now, then with the next write
            await self._save()
            self._yielded_at = anyio.current_time()
        cleaning = _cleaning.get()
        if not cleaning:
            self._stop.deliver()
        if anyio.current_time() - self._yielded_at >= YIELD_EVERY:
            await anyio.lowlevel.checkpoint()
            self._yielded_at = anyio.current_time()
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()
        if self._stop.ended or (self._stop.delivered is not None and not cleaning and self._is_outside()):
            raise Stopped(f"{self.name}: this attempt is over or being stopped ({self._stop.reason})")

    def report(self, progress: ProgressT) -> None:
        """Note progress for the next write: about once a second, and always before the operation's end.

        For high rates; it costs no I/O. Use `checkpoint(progress)` for what a later attempt must not lose.
        """
        self._progress = progress
        self._reports += 1

    async def sleep(self, seconds: float) -> None:
        """Sleep, and stop at once if the attempt is to stop."""
        until = anyio.current_time() + seconds
        if not _cleaning.get():
            with anyio.move_on_after(seconds):
                await self._stop.told.wait()
            await self.checkpoint()
        await anyio.sleep(max(0.0, until - anyio.current_time()))

    @contextmanager
    def cleanup(self, *, seconds: float) -> Generator[anyio.CancelScope]:
        """Shield what must be done before the attempt ends, for so many seconds at most.

        The lease is kept meanwhile. Checkpoints inside save, but never stop the job.
        """
        token = _cleaning.set(True)
        try:
            with anyio.move_on_after(seconds, shield=True) as scope:
                yield scope
        finally:
            _cleaning.reset(token)
        if scope.cancelled_caught:
            self.log.warning("cleanup took longer than %s s and was broken off", seconds)

    @property
    def unsaved(self) -> int:
        """The number of the latest report if it is not saved yet, else 0; for the library."""
        return self._reports if self._reports > self._saved_reports else 0

    def saved(self, report: int) -> None:
        """Note that the progress is saved as it was at this report; for the library."""
        self._saved_reports = max(self._saved_reports, report)

    def _is_outside(self) -> bool:
        """Whether the current task is none of the attempt's: anyio knows no parent for a foreign one."""
        task = anyio.get_current_task()
        return task.id != self._task and task.parent_id is None


class _OperationLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the operation to every record, beside what the caller gives as `extra`."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:  # Any: as logging declares it
        own: Mapping[str, object] = self.extra or {}
        return f"{own['operation']}: {msg}", {**kwargs, "extra": {**own, **kwargs.get("extra", {})}}
