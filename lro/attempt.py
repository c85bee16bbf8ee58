"""One run of one job, from its claimed record to an Outcome.

Decides what the end of a job's function means: a value, an error, or having been stopped. Whatever the
function raises ends its own operation only. Writing the outcome is the worker's affair.
"""

import logging
import random
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from math import inf
from typing import Any, Literal, TypeVar, cast, overload

import anyio
import anyio.lowlevel
from pydantic import ValidationError

from lro import lifecycle
from lro.clock import Clock, micros
from lro.context import AnyContext, Context, SyncContext
from lro.errors import LeaseLost, LROError, OperationError, Stopped, Unavailable
from lro.jobs import Job
from lro.lifecycle import Lease, Outcome, Raised, Record, Returned, StopReason, Unwound
from lro.limits import Limits
from lro.logs import OperationLog, about
from lro.payload import PayloadError, PayloadTooLarge, encode
from lro.status import ERROR_INFO, Code, Status, error_info
from lro.stop import Stop
from lro.store import Store
from lro.threads import run_in_thread

__all__ = ["Attempt"]

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_REASON = 63  # characters (AIP-193)
SAVE_AGAIN = (0.05, 1.0)  # seconds: the first wait and the longest while the store can't be reached


class Attempt:
    """Runs a claimed operation once.

    Args:
        job: The operation's job.
        record: The operation as it was claimed.
        store: Where its progress is saved.
        clock: Tells how far the deadline is; one that jumps makes it no further than it ever was.
        threads: Whose threads a job runs in that is a plain function.
        limits: How large its progress, its result and its error may be.
        stop: Makes its Stop.

    Attributes:
        record: See above; its lease is the one that the attempt runs under.
        stop: How the worker stops it.
        over: True once the outcome is known: nothing can be stopped any more.
        scope: The cancel scope that the job runs in.
        coroutine: What an async job's function returned when it was called, or None.
        thread_name: What the thread of another job is called meanwhile.
        message: A sentence about it for people, to be saved; None for none.
    """

    def __init__(
        self,
        job: Job[Any, Any, Any],  # Any: any job
        record: Record,
        store: Store,
        clock: Clock,
        threads: anyio.CapacityLimiter,
        *,
        limits: Limits,
        stop: Callable[..., Stop] = Stop,
    ) -> None:
        assert record.lease is not None
        self.job = job
        self.record = record
        self.lease: Lease = record.lease
        self._store = store
        self._threads = threads
        self._limits = limits
        self.coroutine: object = None
        self.thread_name = f"lro: {record.name}"
        self.message: str | None = None
        self.scope = anyio.CancelScope(shield=True)  # only we cancel it: a cancelled host is a shutdown
        begun_at = max(clock.now(), record.created_at)  # a clock that has jumped back grants no time
        left = inf if record.deadline_at is None else (record.deadline_at - begun_at) / 1_000_000
        self.stop = stop(self.scope, restartable=record.restartable, deadline=anyio.current_time() + left)
        self._context: AnyContext[Any] | None = None  # Any: the job's own progress, here and below

    @property
    def over(self) -> bool:
        """True once the outcome is known."""
        return self.stop.ended

    @property
    def _log(self) -> OperationLog:
        return about(log, self.record)

    async def run(self) -> Outcome:
        """Run the job's function and say what became of it; raises nothing of the function's."""
        try:
            arguments = self._arguments()
        except BaseException as error:
            self.stop.ended = True
            return Raised(self._stale_payload(error))
        returned, limits = False, self._limits
        text = ""
        raised: BaseException | None = None
        try:
            with self.scope:
                try:
                    value = await self.call(partial(self.job.function, *arguments))
                    returned = True
                    text = self.job.result.dump(value, limits.result, limits.depth)
                except BaseException as error:
                    raised = error
                    if self.scope.cancel_called:
                        raise  # the scope takes its own cancellation out of this task
        except BaseException:  # noqa: S110 -- `raised` has it whole; what the scope let pass is a part of it
            pass
        finally:
            self.stop.ended = True
        if raised is None:
            return Returned(text)
        try:
            return self._result_error(raised) if returned else self._classify(raised)
        except Exception:  # an exception that can't even be looked at, such as one nested too deeply
            return Raised(self._internal("JOB_FAILED", None))

    async def call(self, function: Callable[[], Any]) -> Any:  # Any: the job's own
        """Call the job's function; the watchdog knows its frames by this one around them."""
        if self.job.in_thread:
            return await run_in_thread(function, name=self.thread_name, limiter=self._threads)
        self.coroutine = coroutine = function()
        return await coroutine

    async def save_report(self) -> None:
        """Save the reported progress, if there is any that is not saved yet.

        Raises:
            LeaseLost, Unavailable: It could not be; it will be with the next write.
        """
        if not self.over and self.report() is not None:
            await self._write_progress()

    async def say(self) -> None:
        """Save the message, unless the attempt is over: its end has it then."""
        if self.over or self.message is None:
            return
        say = partial(lifecycle.say, lease=self.lease, message=self.message)
        try:
            await self._store.update(self.record.name, say)
        except LROError as error:
            self._log.warning("what was to be said of it could not be saved: %s", error)

    def report(self) -> str | None:
        """Return the reported progress that is still to be saved, as JSON text."""
        if self._context is None or not self._context.unsaved:
            return None
        try:
            return self._dump_progress()
        except Exception as error:
            self._log.error("the reported progress can't be saved: %s", type(error).__name__)
            self._context.saved(self._context.unsaved)  # said once; the next report is another
            return None

    def _arguments(self) -> tuple[Any, ...]:  # Any: the function's own
        job, record = self.job, self.record
        progress: Any = None  # Any: the job's own
        if job.progress is not None:
            progress = job.progress.load(record.progress or "{}")
        self._context = (SyncContext if job.in_thread else Context)(
            record=record,
            progress=progress,
            stop=self.stop,
            save=self._save,
        )
        return (self._context,) if job.params is None else (self._context, job.params.load(record.params or "{}"))

    async def _save(self) -> None:
        """Save the progress; while the store can't be reached, wait until it can or the attempt is stopped."""
        self._dump_progress()  # the job hears at once of a progress that is none
        try:
            await until_saved(self._write_progress, self._is_to_stop)
        except LeaseLost:
            self.stop.force(StopReason.LEASE_LOST)
            await anyio.lowlevel.checkpoint_if_cancelled()
            raise

    async def _write_progress(self) -> None:
        """Write the latest progress, so that of two writes the later one never goes back."""
        assert self._context is not None
        report = self._context.unsaved
        save = partial(lifecycle.save_progress, lease=self.lease, progress=self._dump_progress())
        await self._store.update(self.record.name, save)
        self._context.saved(report)

    def _dump_progress(self) -> str:
        assert self._context is not None
        if self.job.progress is None:
            msg = f"job {self.job.name} has no progress: annotate its context as Context[YourProgress]"
            raise TypeError(msg)
        return self.job.progress.dump(self._context.progress, self._limits.progress, self._limits.depth)

    def _is_to_stop(self) -> bool:
        return self.stop.reason is not None

    def _classify(self, raised: BaseException) -> Outcome:
        """Say what an exception of the job's function means."""
        group: BaseExceptionGroup[BaseException] = (
            cast("BaseExceptionGroup[BaseException]", raised)
            if isinstance(raised, BaseExceptionGroup)
            else BaseExceptionGroup("", [raised])
        )
        _, rest = group.split((anyio.get_cancelled_exc_class(), Stopped))
        if rest is not None:
            return self._failed(_lone(rest))
        reason = self.stop.delivered
        if reason is None:
            self._log.error("the job was cancelled by nobody that lro knows of", exc_info=group)
            message = f"{self.record.name} was stopped by a cancellation that nobody had asked for"
            return Raised(Status(Code.INTERNAL, message, (error_info("JOB_FAILED", name=self.record.name),)))
        return Unwound(reason, forced=self.stop.forced and not self.job.in_thread)  # a thread stops by itself

    def _failed(self, error: BaseException) -> Raised:
        status = self._public_status(error) or self._internal("JOB_FAILED", error)
        policy = self.job.retry
        if policy is None or not policy.covers(error):
            return Raised(status)
        self._log.info("attempt %d raised %s", self.record.attempt, type(error).__name__)
        return Raised(status, micros(policy.delay(self.record.attempt, random.random())))  # noqa: S311 -- jitter

    def _public_status(self, error: BaseException) -> Status | None:
        """Return the status of an error that clients may read, or None if it is none of those."""
        if isinstance(error, PayloadError):
            return self._payload_status("progress", error)
        if not isinstance(error, OperationError):
            return None
        try:
            return _shortened(error.status, self._limits)
        except Exception:  # its details are not JSON, or it is a subclass gone wrong
            self._log.exception("an OperationError that has no JSON form is told as INTERNAL")
            return None

    def _result_error(self, error: BaseException) -> Raised:
        """Say why a result could not be kept; the job did its work, so it is not run again."""
        if isinstance(error, PayloadError):
            return Raised(self._payload_status("result", error))
        return Raised(self._internal("RESULT_NOT_JSON", error))

    def _payload_status(self, kind: Literal["progress", "result"], error: PayloadError) -> Status:
        """Say that a progress or a result is not to be kept."""
        self._log.error("its %s can't be kept: it %s", kind, error)
        name, is_result = self.record.name, kind == "result"
        if isinstance(error, PayloadTooLarge):
            limit = str(self._limits.result if is_result else self._limits.progress)
            large = error_info("RESULT_TOO_LARGE" if is_result else "PROGRESS_TOO_LARGE", name=name, limit=limit)
            return Status(Code.RESOURCE_EXHAUSTED, f"the {kind} of {name} is too large: it {error.what}", (large,))
        field = {"field": error.place} if error.place else {}
        info = error_info("RESULT_NOT_JSON" if is_result else "PROGRESS_NOT_JSON", name=name, **field)
        return Status(Code.INTERNAL, f"the {kind} of {name} can't be kept: it {error}", (info,))

    def _internal(self, reason: str, error: BaseException | None) -> Status:
        """Log an error under an id and return what clients may know of it."""
        error_id = uuid.uuid4().hex[:16]
        name, attempt, extra = self.record.name, self.record.attempt, {"error_id": error_id}
        try:
            self._log.error("attempt %d failed, error id %s", attempt, error_id, exc_info=error, extra=extra)
        except RecursionError:
            self._log.error("attempt %d failed, error id %s: too deep to tell", attempt, error_id, extra=extra)
        what = "its result has no JSON form" if reason == "RESULT_NOT_JSON" else "its job raised an exception"
        info = error_info(reason, name=name, errorId=error_id)
        return Status(Code.INTERNAL, f"{name} failed: {what}; the log has it under error id {error_id}", (info,))

    def _stale_payload(self, error: BaseException) -> Status:
        """Log why the stored params or progress can't be read and return what clients may know of it."""
        if not isinstance(error, ValidationError):
            return self._internal("JOB_FAILED", error)
        name, model = self.record.name, error.title
        self._log.error("what is stored no longer fits %s", model, exc_info=error)
        message = f"{name} can't run: its stored params or progress no longer fit the model {model}"
        return Status(Code.FAILED_PRECONDITION, message, (error_info("PAYLOAD_STALE", name=name, model=model),))


@overload
async def until_saved(write: Callable[[], Awaitable[T]]) -> T: ...
@overload
async def until_saved(write: Callable[[], Awaitable[T]], give_up: Callable[[], bool]) -> T | None: ...
async def until_saved(write: Callable[[], Awaitable[T]], give_up: Callable[[], bool] | None = None) -> T | None:
    """Repeat a write while the store can't be reached; None if it was given up.

    Args:
        write: The write; repeating it must be harmless.
        give_up: Asked after each failure; None for never.

    Raises:
        StoreClosed: The store is closed: it never will be reached again.
        LROError: Whatever else the write raises.
    """
    wait, longest = SAVE_AGAIN
    while True:
        try:
            return await write()
        except Unavailable as error:
            if give_up is not None and give_up():
                return None
            log.warning("%s; the write is repeated in %.2f s", error, wait)
        await anyio.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 -- jitter
        wait = min(wait * 2, longest)


def _lone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception of a group of one, however nested; else the group."""
    while len(group.exceptions) == 1:
        only = next(iter(group.exceptions))
        if not isinstance(only, BaseExceptionGroup):
            return only
        group = cast("BaseExceptionGroup[BaseException]", only)
    return group


def _shortened(status: Status, limits: Limits) -> Status:
    """Return a job's own status within the limits, its ErrorInfo kept: too long an error is still an error.

    Raises:
        Exception: It is not made of JSON values, or holds text that can't be kept.
    """
    message, bound = status.message, limits.error
    if len(message.encode()) > bound:
        message = message.encode()[: max(0, bound - 3)].decode(errors="ignore") + "…"
    encode(message, sys.maxsize, limits.depth)
    details: list[Mapping[str, Any]] = []  # Any: JSON
    left = bound
    for detail in sorted(status.details, key=_is_no_error_info):
        size = len(encode(dict(detail), sys.maxsize, limits.depth).encode())
        if size > left and not _is_no_error_info(detail):
            reason = str(detail.get("reason"))
            details.append(error_info(reason[:MAX_REASON]))
        elif size <= left:
            details.append(detail)
            left -= size
    return Status(status.code, message, tuple(details))


def _is_no_error_info(detail: Mapping[str, Any]) -> bool:  # Any: JSON
    return detail.get("@type") != ERROR_INFO
