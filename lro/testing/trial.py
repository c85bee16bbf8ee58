"""One attempt of one job, run alone: cancel it at its n-th checkpoint, and look at what became of it.

The job meets the very context, attempt and lifecycle that a worker would give it, on a store in memory. Under
trio's MockClock it runs in virtual time: an hour of `ctx.sleep` takes none.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, overload

import anyio

from lro import lifecycle
from lro.attempt import Attempt
from lro.clock import micros
from lro.jobs import Job
from lro.lifecycle import CancelOutcome, Facts, Outcome, Raised, Record, State, StopReason, Unwound
from lro.limits import Limits
from lro.operations import Operations
from lro.principal import Principal
from lro.resource import Operation
from lro.status import Status
from lro.stop import Stop
from lro.testing.memory import MemoryStore, VirtualClock

__all__ = ["Run", "run"]

ParamsT = TypeVar("ParamsT")
ProgressT = TypeVar("ProgressT")
ResultT = TypeVar("ResultT")

WORKER = "testing"
LEASE = micros(timedelta(days=36500))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Generic[ProgressT, ResultT]):
    """What became of an operation in one attempt.

    Attributes:
        state: SUCCEEDED, FAILED or CANCELLED; PENDING if another attempt would follow; RUNNING if it was lost.
        result: What the job returned, as its clients would read it; None if it did not.
        error: Why it failed or was cancelled, as its clients see it; None otherwise.
        exception: What the job raised, if that decided the outcome.
        progress: The last progress saved: with it the next attempt would begin.
        checkpoints: How many checkpoints it came to, those of `ctx.sleep` among them; inside `ctx.cleanup` none count.
        cancel_outcome: How a cancel request ended; None if there was none.
        operation: The operation as its clients see it.
    """

    state: State
    result: ResultT | None
    error: Status | None
    exception: BaseException | None
    progress: ProgressT
    checkpoints: int
    cancel_outcome: CancelOutcome | None
    operation: Operation


@overload
async def run(
    job: Job[None, ProgressT, ResultT],
    params: None = None,
    *,
    cancel_at: int | None = None,
    cancel_after: timedelta | None = None,
    shutdown_at: int | None = None,
    progress: ProgressT | None = None,
    attempt: int = 1,
    timeout: timedelta | None = None,
    principal: Principal | None = None,
    limits: Limits | None = None,
) -> Run[ProgressT, ResultT]: ...
@overload
async def run(
    job: Job[ParamsT, ProgressT, ResultT],
    params: ParamsT,
    *,
    cancel_at: int | None = None,
    cancel_after: timedelta | None = None,
    shutdown_at: int | None = None,
    progress: ProgressT | None = None,
    attempt: int = 1,
    timeout: timedelta | None = None,
    principal: Principal | None = None,
    limits: Limits | None = None,
) -> Run[ProgressT, ResultT]: ...
async def run(
    job: Job[Any, Any, Any],  # Any: a job of any types
    params: Any = None,  # Any: the job's own, here and below
    *,
    cancel_at: int | None = None,
    cancel_after: timedelta | None = None,
    shutdown_at: int | None = None,
    progress: Any = None,
    attempt: int = 1,
    timeout: timedelta | None = None,
    principal: Principal | None = None,
    limits: Limits | None = None,
) -> Run[Any, Any]:
    """Run one attempt of a job, without a worker, and return what became of it.

        outcome = await testing.run(render_book, RenderParams(book="b", pages=9), cancel_at=3)
        assert outcome.state is State.CANCELLED

    Args:
        job: The job.
        params: Its params, as for `Operations.start`.
        cancel_at: Have a client ask to cancel just before this checkpoint, from 1, which then delivers it. A number
            that the job does not come to asks for nothing: look at `checkpoints`.
        cancel_after: Have a client ask to cancel after this time.
        shutdown_at: Have the worker shut down just before this checkpoint; one that is not restartable is told
            there, as at the end of the drain time.
        progress: What an earlier attempt saved.
        attempt: Which attempt it is, from 1.
        timeout: The operation's, instead of the job's own.
        principal: Who started it.
        limits: Those of your service, if they are not the default ones.

    Raises:
        InvalidArgument: The params or another argument are not valid.
        ValueError: A number is below 1.
    """
    for what, number in (("cancel_at", cancel_at), ("shutdown_at", shutdown_at), ("attempt", attempt)):
        if number is not None and number < 1:
            msg = f"{what}={number}: counted from 1"
            raise ValueError(msg)
    clock, bounds = VirtualClock(), limits or Limits()
    heard = _Heard()
    async with MemoryStore(clock=clock, sweeps=False) as store:
        started = await Operations(store, limits=bounds, clock=clock).start(
            job, params, timeout=timeout, principal=principal
        )
        text = (
            None
            if progress is None or job.progress is None
            else job.progress.dump(progress, bounds.progress, bounds.depth)
        )

        def earlier_attempts(record: Record, facts: Facts) -> Record:
            saved = record.progress if text is None else text
            return record._replace(attempt=attempt - 1, progress=saved, version=record.version + 1)

        await store.update(started.name, earlier_attempts)
        await store.join(WORKER, LEASE)
        (claimed,) = await store.claim(WORKER, [job.name], 1)
        stop = partial(_Stop, cancel_at=cancel_at, shutdown_at=shutdown_at, grace=claimed.grace)
        tried = Attempt(
            _listening(job, heard), claimed, store, clock, anyio.CapacityLimiter(1), limits=bounds, stop=stop
        )
        outcome = await _run(tried, store, cancel_after)
        record = claimed
        if tried.stop.cancel_requested:
            record = await store.update(claimed.name, lifecycle.request_cancel)
        if not (isinstance(outcome, Unwound) and outcome.reason is StopReason.LEASE_LOST):
            finish = partial(lifecycle.finish, lease=tried.lease, outcome=outcome, progress=tried.report())
            record = await store.update(claimed.name, finish)
    operation = Operation.of(record)
    assert isinstance(tried.stop, _Stop)
    return Run(
        state=record.state,
        result=None if record.response is None else job.result.load(record.response),
        error=operation.error,
        exception=heard.exception if isinstance(outcome, Raised) else None,
        progress=None if job.progress is None else job.progress.load(record.progress or "{}"),
        checkpoints=tried.stop.checkpoints,
        cancel_outcome=record.cancel_outcome,
        operation=operation,
    )


async def _run(attempt: Attempt, store: MemoryStore, cancel_after: timedelta | None) -> Outcome:
    outcomes: list[Outcome] = []
    async with anyio.create_task_group() as group:
        ended = anyio.Event()

        async def run() -> None:
            outcomes.append(await attempt.run())
            ended.set()

        async def cancel(after: timedelta) -> None:
            await anyio.sleep(after.total_seconds())
            record = await store.update(attempt.record.name, lifecycle.request_cancel)
            if record.cancel_due and not attempt.over:
                attempt.stop.cancel(None, None if record.grace is None else record.grace / 1_000_000)

        group.start_soon(run, name=attempt.record.name)
        if cancel_after is not None:
            group.start_soon(cancel, cancel_after)
        try:
            await ended.wait()
        except anyio.get_cancelled_exc_class():
            attempt.stop.force(StopReason.SHUTDOWN)  # the attempt is shielded: a test that gives up ends it so
            raise
        group.cancel_scope.cancel()
    return outcomes[0]


class _Stop(Stop):
    """A Stop that counts checkpoints, and is told at the right one."""

    def __init__(
        self,
        scope: anyio.CancelScope,
        *,
        restartable: bool,
        deadline: float,
        cancel_at: int | None,
        shutdown_at: int | None,
        grace: int | None,
    ) -> None:
        super().__init__(scope, restartable=restartable, deadline=deadline)
        self._can_resume = restartable
        self._cancel_at = cancel_at
        self._shutdown_at = shutdown_at
        self._grace = None if grace is None else grace / 1_000_000
        self.checkpoints = 0

    @property
    def is_due(self) -> bool:
        """True, so that a thread comes to the event loop at each of its checkpoints."""
        return True

    def deliver(self) -> StopReason | None:
        """Count the checkpoint, and have the stop asked for that is due at it."""
        self.checkpoints += 1
        if self.checkpoints == self._cancel_at:
            self.cancel(None, self._grace)
        if self.checkpoints == self._shutdown_at:
            if self._can_resume:
                self.shut_down()
            else:
                self.force(StopReason.SHUTDOWN)
        return super().deliver()


class _Heard:
    """What a job's function raised."""

    exception: BaseException | None = None


def _listening(job: Job[Any, Any, Any], heard: _Heard) -> Job[Any, Any, Any]:
    """Return the job with a function that notes what it raises."""
    function: Callable[..., Any] = job.function

    async def awaits(*arguments: Any) -> Any:
        try:
            return await function(*arguments)
        except BaseException as error:
            heard.exception = error
            raise

    def calls(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException as error:
            heard.exception = error
            raise

    same = copy.copy(job)
    same.function = calls if job.in_thread else awaits
    return same
