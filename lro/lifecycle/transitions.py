"""Every transition of a record, pure: `(record, facts, ...) -> record`.

A transition returns the very record that it was given where nothing changes, and raises where it
refuses. Which records to load, and how they are kept, is the store's affair.
"""

from typing import Any, assert_never

from lro.errors import FailedPrecondition, LeaseLost, Unimplemented
from lro.lifecycle.outcome import Outcome, Raised, Returned, StopReason, Unwound
from lro.lifecycle.record import CancelOutcome, Facts, Lease, Record, State
from lro.status import Code, Status, error_info

__all__ = [
    "REQUEST_WINDOW",
    "claim",
    "delete",
    "finish",
    "give_back",
    "is_due",
    "pass_commit_point",
    "request_cancel",
    "save_progress",
    "say",
    "start",
    "sweep",
]

REQUEST_WINDOW = 24 * 3600 * 1_000_000
"""How long a request id stands for its operation, in microseconds since the operation's start (AIP-155)."""


def start(
    now: int,
    *,
    name: str,
    job: str,
    retention: int,
    parent: str = "",
    owner: str = "",
    tenant: str = "",
    request_id: str | None = None,
    request_digest: str | None = None,
    target: str = "",
    priority: int = 0,
    schedule_at: int | None = None,
    timeout: int | None = None,
    grace: int | None = None,
    restartable: bool = False,
    attempt_limit: int = 1,
    cancellable: bool = True,
    exclusive: bool = False,
    params: str | None = None,
    progress: str | None = None,
    response_type: str = "",
    metadata_type: str = "",
) -> Record:
    """Return the record of a new operation, PENDING and due at once, or at `schedule_at` if that is later.

    The deadline counts from then. What the others mean: see Record.
    """
    due_at = now if schedule_at is None else max(now, schedule_at)
    return Record(
        state=State.PENDING,
        cancel_outcome=None,
        version=1,
        attempt=0,
        token=0,
        updated_at=now,
        due_at=due_at,
        started_at=None,
        claimed_at=None,
        ended_at=None,
        expire_at=None,
        deleted_at=None,
        lease_owner=None,
        lease_time=None,
        cancel_requested_at=None,
        cancel_reason=None,
        cancel_requester=None,
        committed_at=None,
        progress=progress,
        response=None,
        error=None,
        last_error=None,
        status_message=None,
        name=name,
        parent=parent,
        job=job,
        owner=owner,
        tenant=tenant,
        request_id=request_id,
        request_digest=request_digest,
        target=target,
        priority=priority,
        created_at=now,
        deadline_at=None if timeout is None else due_at + timeout,
        grace=grace,
        retention=retention,
        restartable=restartable,
        attempt_limit=attempt_limit,
        cancellable=cancellable,
        exclusive=exclusive,
        response_type=response_type,
        metadata_type=metadata_type,
        params=params,
    )


def is_due(record: Record, now: int) -> bool:
    """Return whether a PENDING record may be claimed; a clock that jumps back hides nothing that was due.

    A scheduled start waits for the clock. What is due at once needs none. A retry that was written later than
    it is now is due too: the clock has gone back meanwhile, and says nothing of how long it has waited.
    """
    if record.due_at <= now or record.due_at == record.created_at:
        return True
    return record.started_at is not None and record.updated_at > now


def claim(record: Record, facts: Facts, *, owner: str, lease_time: int) -> Record:
    """Give a due operation to a worker: RUNNING under a new token; unchanged if it can't be claimed.

    An orphan is first settled as `sweep` would, in the same transaction.
    """
    if record.state.is_terminal:
        return record
    settled = sweep(record, facts) or record  # never None: only what has ended is removed
    if settled.state is not State.PENDING or not is_due(settled, facts.now):
        return settled
    started_at = settled.started_at
    return _changed(
        settled._replace(version=record.version),
        facts,
        state=State.RUNNING,
        attempt=record.attempt + 1,
        token=record.token + 1,
        lease_owner=owner,
        lease_time=lease_time,
        started_at=facts.now if started_at is None else started_at,
        claimed_at=facts.now if started_at is None else max(facts.now, started_at + 1),  # a clock may jump back
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
    asked = record
    if record.cancel_requested_at is None:
        asked = record._replace(cancel_requested_at=facts.now, cancel_reason=reason, cancel_requester=requester)
    if asked.cancel_due and record.state is State.PENDING:
        never_ran = record.started_at is None
        outcome = CancelOutcome.BEFORE_START if never_ran else CancelOutcome.RETRY_SUPPRESSED
        return _stopped_for_good(asked, facts, outcome)
    if asked.cancel_due and facts.lease_expired:
        return _orphaned(asked, facts)
    return record if asked is record else _changed(asked, facts)


def finish(
    record: Record,
    facts: Facts,
    *,
    lease: Lease,
    outcome: Outcome,
    progress: str | None = None,
    message: str | None = None,
) -> Record:
    """Write what became of an attempt: a terminal state, or PENDING for another attempt.

    Asked again with the same lease and outcome it changes nothing, so that a worker whose commit got lost
    may repeat it.

    Args:
        record: The record as it is now.
        facts: What the store saw.
        lease: The lease that the attempt ran under.
        outcome: What became of it.
        progress: The last reported progress that was not saved yet.
        message: What else is to be said of the attempt, for people.

    Raises:
        LeaseLost: The operation is another worker's by now, or has ended otherwise.
    """
    if record.token == lease.token and record.state is not State.RUNNING:
        running = record._replace(state=State.RUNNING, cancel_outcome=None, response=None, error=None)
        written_at = record.updated_at if record.ended_at is None else record.ended_at
        again = _outcome(running, Facts(written_at, doubt=facts.doubt), outcome)
        if (again.state, again.response, again.error) == (record.state, record.response, record.error):
            return record
    _check_lease(record, lease)
    if progress is not None:
        record = record._replace(progress=progress)
    if message is not None:
        record = record._replace(status_message=message)
    return _outcome(record, facts, outcome)


def _outcome(record: Record, facts: Facts, outcome: Outcome) -> Record:
    match outcome:
        case Returned(response):
            return _ended(record, facts, State.SUCCEEDED, response=response)
        case Raised(status, retry_in):
            due_at = facts.now + (retry_in or 0)
            in_time = record.deadline_at is None or due_at - facts.doubt < record.deadline_at
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
                return _pending(record, facts, attempt=record.attempt - 1)
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
        outcome = CancelOutcome.BEFORE_START if first else CancelOutcome.RETRY_SUPPRESSED
        return _stopped_for_good(record, facts, outcome)
    return _pending(record, facts)


def save_progress(record: Record, facts: Facts, *, lease: Lease, progress: str) -> Record:
    """Save the job's progress, JSON text.

    Raises:
        LeaseLost: The operation is another worker's by now, or has ended.
    """
    _check_lease(record, lease)
    return _changed(record, facts, progress=progress)


def say(record: Record, facts: Facts, *, lease: Lease, message: str) -> Record:
    """Say something about a running operation, for people; unchanged if that is what it says already.

    Raises:
        LeaseLost: The operation is another worker's by now, or has ended.
    """
    _check_lease(record, lease)
    return record if record.status_message == message else _changed(record, facts, status_message=message)


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
            if record.expire_at is None or record.expire_at > facts.surely:
                return record
            if record.deleted_at is not None or record.request_id is None or _request_end(record) <= facts.surely:
                return None
            return _tombstone(_changed(record, facts, deleted_at=facts.now))


def _orphaned(record: Record, facts: Facts) -> Record:
    """Settle a RUNNING record whose worker is gone; needs no knowledge of its job."""
    if record.cancel_due or _is_late(record, facts):
        return _stopped_for_good(record, facts, CancelOutcome.WORKER_LOST)
    if record.restartable and record.attempt < record.attempt_limit and record.deleted_at is None:
        return _pending(record, facts)
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


def _pending(record: Record, facts: Facts, *, due_at: int | None = None, **changes: Any) -> Record:  # Any: as above
    """Make it wait for another claim; one that is due at once keeps its place in the queue."""
    due_at = record.created_at if due_at is None else due_at
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
        expire_at=max(facts.surely, record.created_at) + record.retention,  # nor early if the clock had jumped back
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
    return record.deadline_at is not None and record.deadline_at <= facts.surely


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
