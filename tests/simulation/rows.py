"""What the checks remember of a row."""

import json
from typing import NamedTuple

from lro.lifecycle import CancelOutcome, Record

__all__ = ["Beat", "Row"]


class Row(NamedTuple):
    """The columns that the rules are about."""

    name: str
    state: str
    cancel_outcome: str | None
    version: int
    attempt: int
    token: int
    lease_owner: str | None
    lease_time: int | None
    started_at: int | None
    ended_at: int | None
    expire_at: int | None
    deleted_at: int | None
    cancel_requested_at: int | None
    progress: str | None
    response: str | None
    error: str | None
    job: str
    request_id: str | None
    created_at: int
    deadline_at: int | None
    grace: int | None
    restartable: int
    attempt_limit: int

    @property
    def is_done(self) -> bool:
        return self.ended_at is not None

    @property
    def done(self) -> int:
        """How far its saved progress is."""
        return int(json.loads(self.progress or "{}").get("done", 0))

    @property
    def says_lost(self) -> bool:
        """Whether it ended since its worker was lost, as it says itself."""
        return self.cancel_outcome == CancelOutcome.WORKER_LOST or '"WORKER_LOST"' in (self.error or "")


assert set(Row._fields) <= set(Record._fields)


class Beat(NamedTuple):
    """When a worker's row was last written, and its lease time in seconds."""

    at: float
    lease: float
