"""What a running job sees: where it stands, what it has saved, and when it is to stop.

An async job has a Context, a job that runs in a thread a SyncContext with the same names, blocking. Both are
made by the library, one for each attempt; they deliver what `stop` was told.
"""

import concurrent.futures
import logging
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import Generic, TypeVarTuple, Unpack

import anyio
import anyio.from_thread
import anyio.lowlevel
from typing_extensions import TypeVar

from lro.clock import moment
from lro.errors import LeaseLost, Stopped
from lro.lifecycle import Record, StopReason
from lro.logs import about
from lro.principal import Principal
from lro.stop import Stop

__all__ = ["AnyContext", "Context", "SyncContext"]

ProgressT = TypeVar("ProgressT", default=None)
ArgsT = TypeVarTuple("ArgsT")
T = TypeVar("T")

YIELD_EVERY = 0.010  # seconds: a loop of bare checkpoints lets others run at least this often

UNHEEDED = 100  # checkpoints that stop one attempt: a few in each of its tasks are in order
SLOWED_DOWN = 0.010  # seconds that each further one takes

_cleaning: ContextVar[float | None] = ContextVar("lro_cleaning", default=None)  # until when, on the loop's clock


class AnyContext(Generic[ProgressT]):
    """What both kinds of context tell; made by the library, one for each attempt.

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
        record: Record,
        progress: ProgressT,
        stop: Stop,
        save: Callable[[], Awaitable[None]],
    ) -> None:
        self.name = record.name
        self.attempt = record.attempt
        self.deadline = None if record.deadline_at is None else moment(record.deadline_at)
        self.principal = Principal(record.owner, record.tenant)
        self.log = about(logging.getLogger("lro.job"), record)
        self._progress = progress
        self._reports = self._saved_reports = 0  # how often there was progress, and how much of that is saved
        self._stop = stop
        self._save = save
        self._set_up()

    def _set_up(self) -> None:
        """Note what the event loop tells; called on it."""

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

    def report(self, progress: ProgressT) -> None:
        """Note progress for the next write: about once a second, and always before the operation's end.

        For high rates; it costs no I/O. Use `checkpoint(progress)` for what a later attempt must not lose.
        """
        self._progress = progress
        self._reports += 1

    @property
    def unsaved(self) -> int:
        """The number of the latest report if it is not saved yet, else 0; for the library."""
        return self._reports if self._reports > self._saved_reports else 0

    def saved(self, report: int) -> None:
        """Note that the progress is saved as it was at this report; for the library."""
        self._saved_reports = max(self._saved_reports, report)


class Context(AnyContext[ProgressT]):
    """What an async job is given to work with."""

    def _set_up(self) -> None:
        self._yielded_at = anyio.current_time()
        self._task = anyio.get_current_task().id
        self._stops = 0  # checkpoints that have stopped the job

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
        cleaning = _cleaning.get() is not None
        if cleaning:
            self._stop.passed += 1
        elif self._stop.deliver() is not None:
            await self._slow_down()
        if anyio.current_time() - self._yielded_at >= YIELD_EVERY:
            await anyio.lowlevel.checkpoint()
            self._yielded_at = anyio.current_time()
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()
        if self._stop.ended or (self._stop.delivered is not None and not cleaning and self._is_outside()):
            raise Stopped(f"{self.name}: this attempt is over or being stopped ({self._stop.reason})")

    async def sleep(self, seconds: float) -> None:
        """Sleep, and stop at once if the attempt is to stop."""
        until = anyio.current_time() + seconds
        if _cleaning.get() is None:
            with anyio.move_on_after(seconds):
                await self._stop.told.wait()
            await self.checkpoint()
        await anyio.sleep(max(0.0, until - anyio.current_time()))

    @contextmanager
    def cleanup(self, *, seconds: float) -> Generator[anyio.CancelScope]:
        """Shield what must be done before the attempt ends, for so many seconds at most.

        The lease is kept meanwhile. Checkpoints inside save, but never stop the job.
        """
        token = _cleaning.set(anyio.current_time() + seconds)
        self._stop.passed += 1
        try:
            with anyio.move_on_after(seconds, shield=True) as scope:
                yield scope
        finally:
            _cleaning.reset(token)
            self._stop.passed += 1
        if scope.cancelled_caught:
            self.log.warning("cleanup took longer than %s s and was broken off", seconds)

    async def _slow_down(self) -> None:
        """Let the others run at ease beside a job that swallows its stop and goes on to the next checkpoint."""
        self._stops += 1
        if self._stops > UNHEEDED:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(SLOWED_DOWN)

    def _is_outside(self) -> bool:
        """Whether the current task is none of the attempt's: anyio knows no parent for a foreign one."""
        task = anyio.get_current_task()
        return task.id != self._task and task.parent_id is None


class SyncContext(AnyContext[ProgressT]):
    """What a job that runs in a thread is given to work with: the same names, blocking.

    Threads that the job starts for its own work may use it too.
    """

    def _set_up(self) -> None:
        self._loop = anyio.lowlevel.current_token()

    def checkpoint(self, progress: ProgressT | None = None) -> None:
        """Save the progress, if any is given, and stop here if the attempt is to stop.

        With progress it returns after the commit. Without, it takes next to no time. Either way other threads get
        a turn: between two checkpoints, Python code that computes holds them all up, the event loop's among them.
        While the store can't be reached it waits.

        Raises:
            Stopped: The attempt is stopped; clean up and let it go on. It is no Exception.
        """
        if progress is not None:
            self.report(progress)
            try:
                self._await(self._save)
            except LeaseLost:
                self._stop_here()
                raise
        else:
            time.sleep(0)  # gives up the GIL: measured, a write beside a busy thread takes 11 ms so, else 92 ms
        self._stop_here()

    def sleep(self, seconds: float) -> None:
        """Sleep, and stop at once if the attempt is to stop.

        Raises:
            Stopped: As by `checkpoint`.
        """
        self._await(anyio.sleep if _cleaning.get() is not None else self._stop.wait, seconds)
        self._stop_here()

    @contextmanager
    def cleanup(self, *, seconds: float) -> Generator[None]:
        """Do what must be done before the attempt ends, for so many seconds at most.

        The lease is kept meanwhile. Checkpoints inside save, but never stop the job. A thread can't be broken
        off: once the time is up, the calls of this context inside leave the block.
        """
        token = _cleaning.set(anyio.from_thread.run_sync(anyio.current_time, token=self._loop) + seconds)
        self._stop.passed += 1
        try:
            yield
        except _CleanupOver:
            self.log.warning("cleanup took longer than %s s and was broken off", seconds)
        finally:
            _cleaning.reset(token)
            self._stop.passed += 1

    def _stop_here(self) -> None:
        if self._stop.ended:
            raise Stopped(f"{self.name}: this attempt is over")
        if _cleaning.get() is not None:
            self._stop.passed += 1
        elif self._stop.is_due:
            reason = anyio.from_thread.run_sync(self._stop.deliver, token=self._loop)
            if reason is not None:
                raise Stopped(f"{self.name}: this attempt is being stopped ({reason})")

    def _await(self, function: Callable[[Unpack[ArgsT]], Awaitable[T]], *args: *ArgsT) -> T:
        """Call a function on the event loop and wait for it, whatever becomes of the attempt's scope."""
        until = _cleaning.get()

        async def shielded() -> T:
            with anyio.CancelScope(shield=True, deadline=inf if until is None else until):
                return await function(*args)
            raise _CleanupOver(f"{self.name}: the time for cleanup is over")

        try:
            return anyio.from_thread.run(shielded, token=self._loop)
        except (anyio.RunFinishedError, concurrent.futures.CancelledError) as error:
            raise Stopped(f"{self.name}: the event loop is gone") from error


class _CleanupOver(Stopped):
    """The time of a `cleanup` is over."""
