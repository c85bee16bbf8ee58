"""Why one attempt is to stop, and how far that has come: told by the worker, delivered to the job.

A stop is delivered at the job's checkpoints, by cancelling the scope that the attempt runs in; where a stop
can't wait, the scope is cancelled from outside. A thread has no scope: it sees at its checkpoints that the
attempt's was cancelled. What then becomes of the operation is decided by `attempt` and `lifecycle`.
"""

from math import inf

import anyio

from lro.lifecycle import StopReason

__all__ = ["Stop"]


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
        self.passed = 0  # how many checkpoints the job has passed, and begins and ends of its cleanup
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
        if self._delivered is None and self._is_cancelled():  # by its deadline: whichever came first
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

    @property
    def is_due(self) -> bool:
        """Whether the next checkpoint is to stop the job; may be asked from any thread."""
        return self.reason is not None

    def deliver(self) -> StopReason | None:
        """Cancel the scope if a stop is due, and return why; the caller stands at a checkpoint."""
        if self.delivered is None and (reason := self.reason) is not None:
            self._delivered = reason
            self._scope.cancel()
        return self._delivered

    def _is_cancelled(self) -> bool:
        try:
            return self._scope.cancel_called
        except RuntimeError:
            return False  # asked from a thread, which trio refuses: the next `deliver` will know

    async def wait(self, seconds: float) -> None:
        """Wait until a checkpoint is to stop the job, or that many seconds; outside the scope."""
        with anyio.CancelScope(deadline=min(anyio.current_time() + seconds, self._scope.deadline)):
            await self.told.wait()
        if anyio.current_time() >= self._scope.deadline:
            self._scope.cancel()  # as it is about to do by itself
