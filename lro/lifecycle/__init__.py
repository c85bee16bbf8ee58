"""The life of an operation: every rule about its state, as pure functions.

Each transition takes a Record and the Facts that the store saw in its transaction, and returns the
Record to write: the same object where nothing changes. Nothing here does I/O, reads a clock or logs.
Which records to load, and how they are kept, is the store's affair; it decides nothing about state.

    PENDING ──claim──> RUNNING ──finish──> SUCCEEDED | FAILED | CANCELLED
       ^                  │
       └── retry, shutdown, lost worker
"""

from lro.lifecycle.outcome import Outcome, Raised, RetryPolicy, Returned, StopReason, Unwound
from lro.lifecycle.record import CancelOutcome, Facts, Lease, Record, State, Transition
from lro.lifecycle.transitions import (
    REQUEST_WINDOW,
    claim,
    delete,
    finish,
    give_back,
    is_due,
    pass_commit_point,
    request_cancel,
    save_progress,
    say,
    start,
    sweep,
)

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
    "is_due",
    "pass_commit_point",
    "request_cancel",
    "save_progress",
    "say",
    "start",
    "sweep",
]
