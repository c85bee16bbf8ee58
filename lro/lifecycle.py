"""The life of an operation: every rule about its state, as pure functions.

Each transition takes a Record and the Facts that the store saw in its transaction, and returns the
Record to write: the same object where nothing changes. Nothing here does I/O, reads a clock or logs.
Which records to load, and how they are kept, is the store's affair; it decides nothing about state.

    PENDING ──claim──> RUNNING ──finish──> SUCCEEDED | FAILED | CANCELLED
       ^                  │
       └── retry, shutdown, lost worker
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple, assert_never, cast

from lro.errors import FailedPrecondition, LeaseLost, Unimplemented
from lro.status import Code, Status, error_info

__all__ = [
    "REQUEST_WINDOW",
    "CancelOutcome",
    "Facts",
    "Lease",
    "Outcome",
    "Raised",
    "Record",
    "RetryPolicy",
    "Returned",
    "State",
    "StopReason",
    "Transition",
    "Unwound",
    "claim",
    "delete",
    "finish",
    "give_back",
    "pass_commit_point",
    "request_cancel",
    "save_progress",
    "sweep",
]

REQUEST_WINDOW = 24 * 3600 * 1_000_000
"""How long a request id stands for its operation, in microseconds since the operation's start (AIP-155)."""


class State(StrEnum):
    """Where an operation stands.

    PENDING: set by start, and again by a retry, a shutdown or a lost worker; a claim makes it RUNNING.
    RUNNING: set by a claim; its worker's outcome, or the loss of that worker, ends it.
    SUCCEEDED, FAILED, CANCELLED: final. A cancel is a request on PENDING or RUNNING, not a state.
    """

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """True for a final state; on the wire `done: true`."""
        return self not in (State.PENDING, State.RUNNING)


class CancelOutcome(StrEnum):
    """How a cancel request ended; None on a record while it has not.

    BEFORE_START: it never ran. ACKNOWLEDGED: the job stopped at a checkpoint. FORCED: the job was stopped
    after its grace. WORKER_LOST: its worker died or froze. RETRY_SUPPRESSED: it would have run again.
    COMPLETED_ANYWAY, FAILED_ANYWAY: it had its natural end.
    """

    BEFORE_START = "BEFORE_START"
    ACKNOWLEDGED = "ACKNOWLEDGED"
    FORCED = "FORCED"
    WORKER_LOST = "WORKER_LOST"
    RETRY_SUPPRESSED = "RETRY_SUPPRESSED"
    COMPLETED_ANYWAY = "COMPLETED_ANYWAY"
    FAILED_ANYWAY = "FAILED_ANYWAY"


class StopReason(StrEnum):
    """Why an attempt is told to stop.

    CANCEL: a client asked. DEADLINE: the operation's time is up. SHUTDOWN: its worker is going down.
    LEASE_LOST: another worker has the operation, or it has ended.
    """

    CANCEL = "CANCEL"
    DEADLINE = "DEADLINE"
    SHUTDOWN = "SHUTDOWN"
    LEASE_LOST = "LEASE_LOST"


class Lease(NamedTuple):
    """A worker's claim on an operation.

    Attributes:
        owner: The id of the worker that claimed it.
        token: The fencing token: one more at each claim of this operation and never reused, so a write
            under an older one is refused. It is not the attempt number, which a shutdown gives back.
    """

    owner: str
    token: int


class Facts(NamedTuple):
    """What the store saw inside the transaction.

    Attributes:
        now: The time in microseconds since 1970, UTC.
        lease_expired: True if the worker that holds the record is dead, or has not renewed for one lease
            time on the observer's own clock.
    """

    now: int
    lease_expired: bool = False


class Record(NamedTuple):
    """The stored row of one operation.

    The field order is the column order, so that a row is a record: this is on every hot path (measured
    with 43 fields: `_replace` 2 us, against 27 us for a frozen dataclass). Times are microseconds since
    1970 in UTC and end in `_at`; durations are microseconds. JSON is kept as text, as it was written.
    Only transitions make new records.

    Attributes:
        state: See State.
        cancel_outcome: See CancelOutcome.
        version: One more at each write; what an etag is made of.
        attempt: Executions counted so far; a shutdown gives its attempt back.
        token: See Lease.
        updated_at: Time of the last write.
        due_at: No claim before this; set by start, by a retry and by an orphan's return.
        started_at: Time of the first claim, or None.
        claimed_at: Time of the latest claim, or None.
        ended_at: Set with the terminal state.
        expire_at: When a terminal record may be removed; set with the terminal state.
        deleted_at: Set by delete: hidden from clients; once terminal, a tombstone without content.
        lease_owner: The worker that runs it; None unless RUNNING.
        lease_time: That worker's lease time.
        cancel_requested_at: Set by the first cancel request, never cleared.
        cancel_reason: The client's words with that request.
        cancel_requester: Who asked.
        committed_at: The commit point that the job passed: later cancels are recorded, not delivered.
        progress: The job's last saved progress: its resume cursor.
        response: The result, of a SUCCEEDED record only; "null" for a job without one.
        error: A google.rpc.Status, of a FAILED or CANCELLED record only.
        last_error: The error of an earlier attempt, or the one that a cancel suppressed.
        status_message: A sentence for people, or None.
        name: The resource name.
        parent: The resource that the operation belongs to; "" for none.
        job: The job's name.
        owner: The principal that started it.
        tenant: That principal's tenant.
        request_id: The client's idempotency key (AIP-155), or None.
        request_digest: Digest of what was asked with it, to refuse a reuse.
        target: The resource that the operation works on; "" for none.
        priority: Higher is claimed first.
        created_at: Time of start.
        deadline_at: When it must have ended, or None.
        grace: From a cancel request to the moment the job is stopped at any await; None for never.
        retention: From the end to expire_at.
        restartable: Whether it may run again after a lost worker or a shutdown.
        attempt_limit: Attempts in all.
        cancellable: Whether cancel requests are taken.
        response_type: The type URL of the response; "" for Struct, Value or Empty.
        metadata_type: The type URL of the metadata; "" for Struct.
        params: What the job is asked to do; None for a job without params.
    """

    state: State
    cancel_outcome: CancelOutcome | None
    version: int
    attempt: int
    token: int
    updated_at: int
    due_at: int
    started_at: int | None
    claimed_at: int | None
    ended_at: int | None
    expire_at: int | None
    deleted_at: int | None
    lease_owner: str | None
    lease_time: int | None
    cancel_requested_at: int | None
    cancel_reason: str | None
    cancel_requester: str | None
    committed_at: int | None
    progress: str | None
    response: str | None
    error: str | None
    last_error: str | None
    status_message: str | None
    # from here on fixed at the start, but for params, which a tombstone drops
    name: str
    parent: str
    job: str
    owner: str
    tenant: str
    request_id: str | None
    request_digest: str | None
    target: str
    priority: int
    created_at: int
    deadline_at: int | None
    grace: int | None
    retention: int
    restartable: bool
    attempt_limit: int
    cancellable: bool
    response_type: str
    metadata_type: str
    params: str | None

    @property
    def lease(self) -> Lease | None:
        """The lease it runs under, or None."""
        return None if self.lease_owner is None else Lease(self.lease_owner, self.token)

    @property
    def cancel_due(self) -> bool:
        """True if a cancel was requested and is to be delivered: none is past the commit point."""
        return self.cancel_requested_at is not None and self.committed_at is None


Transition = Callable[[Record, Facts], Record]
"""A rule applied by the store: returns the record to write, or the same object; raises to refuse."""


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
        if self.initial_delay < timedelta(0) or self.max_delay < timedelta(0) or self.multiplier < 1:
            msg = "RetryPolicy: delays are not negative and the multiplier is at least 1"
            raise ValueError(msg)

    def delay(self, attempt: int, jitter: float) -> timedelta:
        """Return the wait after attempt number `attempt` has failed, with full jitter.

        Args:
            attempt: The number of the attempt that failed, from 1.
            jitter: A random number from 0 to 1.
        """
        longest = self.max_delay.total_seconds()
        wait = min(self.initial_delay.total_seconds() * self.multiplier ** min(attempt - 1, 64), longest)
        return timedelta(seconds=wait * jitter)

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


def claim(record: Record, facts: Facts, *, owner: str, lease_time: int) -> Record:
    """Give a due operation to a worker: RUNNING under a new token; unchanged if it can't be claimed.

    An orphan is first settled as `sweep` would, in the same transaction.
    """
    record = sweep(record, facts) or record
    if record.state is not State.PENDING or record.due_at > facts.now:
        return record
    return _changed(
        record,
        facts,
        state=State.RUNNING,
        attempt=record.attempt + 1,
        token=record.token + 1,
        lease_owner=owner,
        lease_time=lease_time,
        started_at=facts.now if record.started_at is None else record.started_at,
        claimed_at=facts.now,
    )


def request_cancel(record: Record, facts: Facts, *, reason: str | None = None, requester: str | None = None) -> Record:
    """Record the wish to cancel; the first one stands.

    PENDING ends CANCELLED at once and never runs. RUNNING is flagged for its worker, or ends CANCELLED at
    once if that worker's lease has expired. Terminal stays as it is. Past the commit point the wish is
    recorded and not delivered.

    Raises:
        Unimplemented: The job was declared with cancellable=False.
    """
    if not record.cancellable:
        msg = f"{record.name} can't be cancelled: job {record.job} does not support it"
        raise Unimplemented(msg, reason="CANCEL_UNSUPPORTED", name=record.name, job=record.job)
    if record.state.is_terminal:
        return record
    if record.cancel_requested_at is None:
        record = _changed(
            record,
            facts,
            cancel_requested_at=facts.now,
            cancel_reason=reason,
            cancel_requester=requester,
        )
    if not record.cancel_due:
        return record
    if record.state is State.RUNNING:
        return _orphaned(record, facts) if facts.lease_expired else record
    never_ran = record.started_at is None
    outcome = CancelOutcome.BEFORE_START if never_ran else CancelOutcome.RETRY_SUPPRESSED
    return _stopped_for_good(record, facts, outcome)


def finish(record: Record, facts: Facts, *, lease: Lease, outcome: Outcome, progress: str | None = None) -> Record:
    """Write what became of an attempt: a terminal state, or PENDING for another attempt.

    Asked again with the same lease and outcome it changes nothing, so that a worker whose commit got lost
    may repeat it.

    Args:
        record: The record as it is now.
        facts: What the store saw.
        lease: The lease that the attempt ran under.
        outcome: What became of it.
        progress: The last reported progress that was not saved yet.

    Raises:
        LeaseLost: The operation is another worker's by now, or has ended otherwise.
    """
    if record.token == lease.token and record.state is not State.RUNNING:
        running = record._replace(state=State.RUNNING, cancel_outcome=None, response=None, error=None)
        again = _outcome(running, facts, outcome)
        if (again.state, again.response, again.error) == (record.state, record.response, record.error):
            return record
    _check_lease(record, lease)
    if progress is not None:
        record = record._replace(progress=progress)
    return _outcome(record, facts, outcome)


def _outcome(record: Record, facts: Facts, outcome: Outcome) -> Record:
    match outcome:
        case Returned(response):
            return _ended(record, facts, State.SUCCEEDED, response=response)
        case Raised(status, retry_in):
            due_at = facts.now + (retry_in or 0)
            in_time = record.deadline_at is None or due_at < record.deadline_at
            if retry_in is None or record.attempt >= record.attempt_limit or not in_time:
                return _ended(record, facts, State.FAILED, error=status)
            if record.cancel_due:
                record = record._replace(last_error=status.to_json())
                return _cancelled(record, facts, CancelOutcome.RETRY_SUPPRESSED)
            return _pending(record, facts, due_at=due_at, last_error=status.to_json())
        case Unwound(StopReason.CANCEL | StopReason.DEADLINE as reason, forced):
            if record.cancel_due and _cancel_came_first(record):
                acknowledged = reason is StopReason.CANCEL and not forced
                return _cancelled(record, facts, CancelOutcome.ACKNOWLEDGED if acknowledged else CancelOutcome.FORCED)
            never_asked = reason is StopReason.CANCEL and not record.cancel_due
            error = _unrequested(record) if never_asked else _deadline_exceeded(record)
            return _ended(record, facts, State.FAILED, error=error)
        case Unwound(StopReason.SHUTDOWN):
            if record.cancel_due or _is_late(record, facts):
                return _stopped_for_good(record, facts, CancelOutcome.RETRY_SUPPRESSED)
            if record.restartable:
                return _pending(record, facts, due_at=facts.now, attempt=record.attempt - 1)
            return _ended(record, facts, State.FAILED, error=_worker_shutdown(record))
        case Unwound():  # LEASE_LOST: what is under this name now is not this attempt's to write
            raise LeaseLost(name=record.name)
        case _:
            assert_never(outcome)


def give_back(record: Record, facts: Facts, *, lease: Lease) -> Record:
    """Undo a claim whose attempt never started: PENDING, its attempt given back, restartable or not.

    Raises:
        LeaseLost: The operation is another worker's by now, or has ended.
    """
    _check_lease(record, lease)
    first = record.started_at == record.claimed_at
    record = record._replace(attempt=record.attempt - 1, started_at=None if first else record.started_at)
    if record.cancel_due:
        return _cancelled(record, facts, CancelOutcome.BEFORE_START if first else CancelOutcome.RETRY_SUPPRESSED)
    return _pending(record, facts, due_at=facts.now)


def save_progress(record: Record, facts: Facts, *, lease: Lease, progress: str) -> Record:
    """Save the job's progress, JSON text.

    Raises:
        LeaseLost: The operation is another worker's by now, or has ended.
    """
    _check_lease(record, lease)
    return _changed(record, facts, progress=progress)


def pass_commit_point(record: Record, facts: Facts, *, lease: Lease) -> Record:
    """Let the job go past its point of no return; unchanged if a cancel is due, which then comes first.

    Raises:
        LeaseLost: The operation is another worker's by now, or has ended.
    """
    _check_lease(record, lease)
    if record.cancel_due or record.committed_at is not None:
        return record
    return _changed(record, facts, committed_at=facts.now)


def delete(record: Record, facts: Facts, *, reject_running: bool = False) -> Record:
    """Hide the operation from clients; the work goes on (operations.proto, DeleteOperation).

    A terminal record becomes a tombstone at once, a running one when it ends.

    Raises:
        FailedPrecondition: It has not ended, and `reject_running` is set.
    """
    if record.deleted_at is not None:
        return record
    if record.state.is_terminal:
        return _tombstone(_changed(record, facts, deleted_at=facts.now))
    if reject_running:
        msg = f"{record.name} is {record.state}: cancel it, or wait for its end, before deleting it"
        raise FailedPrecondition(msg, reason="OPERATION_RUNNING", name=record.name, state=record.state)
    return _changed(record, facts, deleted_at=facts.now)


def sweep(record: Record, facts: Facts) -> Record | None:
    """Settle what time has decided; None if the record is to be removed.

    PENDING past its deadline fails. A RUNNING orphan ends or runs again. A terminal record past its
    expiry is removed, but for a tombstone while its request id must still be known.
    """
    match record.state:
        case State.PENDING:
            if _is_late(record, facts):
                return _ended(record, facts, State.FAILED, error=_deadline_exceeded(record))
            return record
        case State.RUNNING:
            return _orphaned(record, facts) if facts.lease_expired else record
        case _:
            if record.expire_at is None or record.expire_at > facts.now:
                return record
            if record.deleted_at is not None or _request_end(record) <= facts.now:
                return None
            return _tombstone(_changed(record, facts, deleted_at=facts.now))


def _orphaned(record: Record, facts: Facts) -> Record:
    """Settle a RUNNING record whose worker is gone; needs no knowledge of its job."""
    if record.cancel_due or _is_late(record, facts):
        return _stopped_for_good(record, facts, CancelOutcome.WORKER_LOST)
    if record.restartable and record.attempt < record.attempt_limit and record.deleted_at is None:
        return _pending(record, facts, due_at=facts.now)
    status = Status(
        Code.ABORTED,
        f"The worker that ran {record.name} was lost in attempt {record.attempt} of {record.attempt_limit}",
        (error_info("WORKER_LOST", name=record.name, attempt=str(record.attempt), limit=str(record.attempt_limit)),),
    )
    return _ended(record, facts, State.FAILED, error=status)


def _stopped_for_good(record: Record, facts: Facts, outcome: CancelOutcome) -> Record:
    """End a record that is cancelled, late or both, by what came first."""
    if record.cancel_due and _cancel_came_first(record):
        return _cancelled(record, facts, outcome)
    return _ended(record, facts, State.FAILED, error=_deadline_exceeded(record))


def _changed(record: Record, facts: Facts, **changes: Any) -> Record:  # Any: one type per field of Record
    return record._replace(version=record.version + 1, updated_at=facts.now, **changes)


def _pending(record: Record, facts: Facts, *, due_at: int, **changes: Any) -> Record:  # Any: as above
    return _changed(record, facts, state=State.PENDING, due_at=due_at, lease_owner=None, lease_time=None, **changes)


def _cancelled(record: Record, facts: Facts, outcome: CancelOutcome) -> Record:
    status = Status(
        Code.CANCELLED,
        f"{record.name} was cancelled" + (f": {record.cancel_reason}" if record.cancel_reason else ""),
        (error_info("OPERATION_CANCELLED", name=record.name, outcome=outcome),),
    )
    return _ended(record, facts, State.CANCELLED, error=status, cancel_outcome=outcome)


def _ended(
    record: Record,
    facts: Facts,
    state: State,
    *,
    response: str | None = None,
    error: Status | None = None,
    cancel_outcome: CancelOutcome | None = None,
) -> Record:
    if cancel_outcome is None and record.cancel_requested_at is not None:
        ok = state is State.SUCCEEDED
        cancel_outcome = CancelOutcome.COMPLETED_ANYWAY if ok else CancelOutcome.FAILED_ANYWAY
    record = _changed(
        record,
        facts,
        state=state,
        response=response,
        error=None if error is None else error.to_json(),
        cancel_outcome=cancel_outcome,
        ended_at=facts.now,
        expire_at=facts.now + record.retention,
        lease_owner=None,
        lease_time=None,
    )
    return record if record.deleted_at is None else _tombstone(record)


def _tombstone(record: Record) -> Record:
    """Drop the content; keep who it was for as long as its request id must not start it again."""
    return record._replace(
        params=None,
        progress=None,
        response=None,
        error=None,
        last_error=None,
        status_message=None,
        expire_at=_request_end(record),
    )


def _request_end(record: Record) -> int:
    return record.created_at if record.request_id is None else record.created_at + REQUEST_WINDOW


def _check_lease(record: Record, lease: Lease) -> None:
    if record.state is not State.RUNNING or record.token != lease.token:
        msg = (
            f"{record.name} is {record.state} under token {record.token}, not RUNNING under {lease.token}: "
            "another worker has it now, or it has ended; nothing was written"
        )
        raise LeaseLost(msg, name=record.name)


def _cancel_came_first(record: Record) -> bool:
    requested_at, deadline_at = record.cancel_requested_at, record.deadline_at
    return requested_at is not None and (deadline_at is None or requested_at <= deadline_at)


def _is_late(record: Record, facts: Facts) -> bool:
    return record.deadline_at is not None and record.deadline_at <= facts.now


def _deadline_exceeded(record: Record) -> Status:
    info = error_info("DEADLINE_EXCEEDED", name=record.name)
    return Status(Code.DEADLINE_EXCEEDED, f"{record.name} did not end before its deadline", (info,))


def _worker_shutdown(record: Record) -> Status:
    message = f"The worker that ran {record.name} was shut down, and job {record.job} is not restartable"
    info = error_info("WORKER_SHUTDOWN", name=record.name, job=record.job)
    return Status(Code.UNAVAILABLE, message, (info,))


def _unrequested(record: Record) -> Status:
    message = f"{record.name} was stopped as if cancelled, but nobody had asked for that"
    return Status(Code.INTERNAL, message, (error_info("JOB_FAILED", name=record.name),))
