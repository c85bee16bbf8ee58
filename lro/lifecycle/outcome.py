"""How an attempt can end, why it is stopped, and when a job runs again."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple, cast

from lro.status import Status

__all__ = ["Outcome", "Raised", "RetryPolicy", "Returned", "StopReason", "Unwound"]


class StopReason(StrEnum):
    """Why an attempt is told to stop.

    CANCEL: a client asked. DEADLINE: the operation's time is up. SHUTDOWN: its worker is going down.
    LEASE_LOST: another worker has the operation, or it has ended.
    """

    CANCEL = "CANCEL"
    DEADLINE = "DEADLINE"
    SHUTDOWN = "SHUTDOWN"
    LEASE_LOST = "LEASE_LOST"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a job runs again after an exception; it makes the job restartable too.

    Attributes:
        attempts: Executions in all, the first one and those lost with their worker included.
        initial_delay: The longest wait before the second attempt.
        multiplier: By how much that grows with each further one.
        max_delay: What it never exceeds.
        retry_on: The exceptions that lead to another attempt; a group does if all its members do.

    Raises:
        ValueError: A number is out of its range.
    """

    attempts: int = 3
    initial_delay: timedelta = timedelta(seconds=1)
    multiplier: float = 2.0
    max_delay: timedelta = timedelta(seconds=60)
    retry_on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            msg = f"RetryPolicy(attempts={self.attempts}): at least 1, the first attempt counts"
            raise ValueError(msg)
        if self.initial_delay < timedelta(0) or self.max_delay < timedelta(0) or not self.multiplier >= 1:
            msg = "RetryPolicy: delays are not negative and the multiplier is at least 1"
            raise ValueError(msg)

    def delay(self, attempt: int, jitter: float) -> timedelta:
        """Return the wait after attempt number `attempt` has failed, with full jitter.

        Args:
            attempt: The number of the attempt that failed, from 1.
            jitter: A random number from 0 to 1.
        """
        longest = self.max_delay.total_seconds()
        try:
            wait = self.initial_delay.total_seconds() * self.multiplier ** (attempt - 1)
        except OverflowError:
            wait = longest if self.initial_delay else 0.0
        return timedelta(seconds=min(wait, longest) * jitter)

    def covers(self, error: BaseException) -> bool:
        """Return whether this exception leads to another attempt."""
        if isinstance(error, self.retry_on):
            return True
        if not isinstance(error, BaseExceptionGroup):
            return False
        return all(self.covers(member) for member in cast("BaseExceptionGroup[BaseException]", error).exceptions)


class Returned(NamedTuple):
    """The job returned a value: JSON text."""

    response: str


class Raised(NamedTuple):
    """The job raised: `retry_in` microseconds until the next attempt, None if it is not to be retried."""

    status: Status
    retry_in: int | None = None


class Unwound(NamedTuple):
    """The job was stopped by the library: why, and whether it had to be forced."""

    reason: StopReason
    forced: bool = False


Outcome = Returned | Raised | Unwound
