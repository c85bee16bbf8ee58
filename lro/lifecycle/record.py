"""What is known of an operation: its record, the states, and the facts that transitions are given."""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

__all__ = ["CancelOutcome", "Facts", "Lease", "Record", "State", "Transition"]


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
        doubt: By how much the clock has lately jumped ahead, in microseconds: not believed yet where something
            would be ended or removed.
    """

    now: int
    lease_expired: bool = False
    doubt: int = 0

    @property
    def surely(self) -> int:
        """The time that has come in any case: deadlines and expiry go by it."""
        return self.now - self.doubt


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
        due_at: Its place in the queue, and no claim before this, see `is_due`. The time of its start if it is due
            at once: set by start, by a shutdown and by an orphan's return. Later for a scheduled start and a retry.
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
        status_message: A sentence for people, set by a worker, or None.
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
        exclusive: Whether it is the only one of its job on its target until it ends.
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
    exclusive: bool
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
