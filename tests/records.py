"""Records for tests: a fresh PENDING one, a RUNNING one, an ended one, each with what a test changes."""

from typing import Any

from lro.lifecycle import CancelOutcome, Facts, Lease, Record, State, start
from lro.status import Code, Status, error_info

SECOND = 1_000_000
"""In microseconds, as everything below."""

HOUR = 3600 * SECOND

NOW = 1_795_378_500 * SECOND
"""When records start: 2026-11-22T20:15:00Z."""

NAME = "operations/01kaprb5mg0000000000000000"

LEASE = Lease("worker-1", 1)
"""The lease of `running()`."""


def record(**changes: Any) -> Record:  # Any: one type per field of Record
    """Return a fresh PENDING record, started at NOW, with these fields changed."""
    fresh = start(NOW, name=NAME, job="books.render", retention=720 * HOUR, params='{"pages":9}')
    return fresh._replace(**changes)


def running(**changes: Any) -> Record:  # Any: as above
    """Return a record in its first attempt, claimed a second after NOW under LEASE."""
    claimed = {
        "state": State.RUNNING,
        "version": 2,
        "attempt": 1,
        "token": LEASE.token,
        "updated_at": NOW + SECOND,
        "started_at": NOW + SECOND,
        "claimed_at": NOW + SECOND,
        "lease_owner": LEASE.owner,
        "lease_time": 30 * SECOND,
    }
    return record(**(claimed | changes))


def ended(state: State, **changes: Any) -> Record:  # Any: as above
    """Return a record that ended in this state two seconds after NOW, in its first attempt."""
    final: dict[str, Any] = {  # Any: as above
        "state": state,
        "version": 3,
        "updated_at": NOW + 2 * SECOND,
        "ended_at": NOW + 2 * SECOND,
        "expire_at": NOW + 2 * SECOND + 720 * HOUR,
        "lease_owner": None,
        "lease_time": None,
    }
    if state is State.SUCCEEDED:
        final["response"] = '{"url":"u"}'
    elif state is State.FAILED:
        final["error"] = Status(Code.INTERNAL, "broken", (error_info("JOB_FAILED", name=NAME),)).to_json()
    else:
        final["error"] = Status(Code.CANCELLED, "gone", (error_info("OPERATION_CANCELLED", name=NAME),)).to_json()
        final["cancel_outcome"] = CancelOutcome.ACKNOWLEDGED
        final["cancel_requested_at"] = NOW + SECOND
    return running(**(final | changes))


def at(seconds: float, *, expired: bool = False) -> Facts:
    """Return the facts as the store sees them so many seconds after NOW."""
    return Facts(NOW + round(seconds * SECOND), lease_expired=expired)
