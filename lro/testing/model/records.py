"""What a store must hold and answer: a dict of records, changed one call after the other.

What becomes of a record is `lifecycle`'s to say, here as in the store; which records a call means, in which order,
and that all the others stay as they are, is said anew. `check_step` and `check_record` owe nothing to `lifecycle`.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from lro import lifecycle
from lro.admission import Crowd, admit
from lro.errors import NotFound
from lro.lifecycle import Facts, Lease, Record, State, Transition
from lro.store import PageQuery

__all__ = ["Model", "check_record", "check_step", "key_of"]


class Model:
    """The records that there must be.

    Attributes:
        records: By name, in the order in which they came.
        gone: The names of those that were removed.
        leases: By name, all leases that there ever were.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.gone: set[str] = set()
        self.leases: dict[str, list[Lease]] = {}

    def insert(self, record: Record, pending_limit: int | None, *, validate_only: bool) -> Record:
        """Do as Store.insert."""
        for earlier in self.records.values():
            if record.request_id is not None and _request(earlier) == _request(record):
                return earlier
        open_ = [one for one in self.records.values() if not one.state.is_terminal]
        rivals = [one for one in open_ if one.exclusive and _place(one) == _place(record)]
        pending = sum(one.state is State.PENDING and one.tenant == record.tenant for one in open_)
        admit(record, Crowd(next(iter(rivals), None), pending, pending_limit))
        if not validate_only:
            self.records[record.name] = record
        return record

    def update(self, name: str, transition: Transition, facts: Facts) -> Record:
        """Do as Store.update."""
        if name not in self.records:
            raise NotFound(name=name)
        self.records[name] = transition(self.records[name], facts)
        return self.records[name]

    def claim(self, owner: str, jobs: Collection[str], limit: int, lease_time: int, facts: Facts) -> list[Record]:
        """Do as Store.claim."""
        pending = [one for one in self.records.values() if one.state is State.PENDING and one.job in jobs]
        due = [one for one in pending if _is_due(one, facts.now)]
        due.sort(key=lambda one: (-one.priority, one.due_at))  # stable: of equals the first that came
        claimed: list[Record] = []
        for one in due[:limit]:
            new = self.update(one.name, partial(lifecycle.claim, owner=owner, lease_time=lease_time), facts)
            if new.lease is not None:
                claimed.append(new)
                self.leases.setdefault(one.name, []).append(new.lease)
        return claimed

    def sweep(self, facts: Facts, dead: Collection[str]) -> None:
        """Settle what time has decided, until there is nothing more to settle."""
        settled = False
        while not settled:
            settled = True
            for name, record in list(self.records.items()):
                new = lifecycle.sweep(record, facts._replace(lease_expired=record.lease_owner in dead))
                if new is None:
                    del self.records[name]
                    self.gone.add(name)
                elif new is not record:
                    self.records[name], settled = new, False

    def held(self, owner: str) -> list[Record]:
        """Return the records that a worker holds."""
        return [record for record in self.records.values() if record.lease_owner == owner]

    def listed(self, query: PageQuery, matches: Callable[[Record], bool]) -> list[Record]:
        """Return what is still to be listed, of all pages."""
        found = [
            record
            for record in self.records.values()
            if record.deleted_at is None
            and record.parent == query.parent
            and query.scope.covers(record)
            and matches(record)
            and (query.after is None or key_of(record) < query.after)
        ]
        return sorted(found, key=key_of, reverse=True)

    def standing(self, names: Iterable[str]) -> Sequence[Record | None]:
        """Return the records of these names."""
        return [self.records.get(name) for name in names]


def key_of(record: Record) -> tuple[int, str]:
    """Return by what listings are sorted."""
    return record.created_at, record.name


def _is_due(record: Record, now: int) -> bool:
    """Return whether it may be claimed: scheduled for later by the clock, or written later than now, says nothing."""
    was_scheduled = record.started_at is None and record.due_at != record.created_at
    if was_scheduled:
        return record.due_at <= now
    return record.due_at <= now or record.due_at == record.created_at or record.updated_at > now


def _request(record: Record) -> tuple[str | None, ...]:
    return record.tenant, record.owner, record.job, record.request_id


def _place(record: Record) -> tuple[str, ...]:
    return record.job, record.target, record.tenant, record.parent


def check_record(record: Record) -> None:
    """What must be true of a record at any moment, whatever has happened."""
    results = [record.response is not None, record.error is not None]
    done = record.state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)
    assert sum(results) == (1 if done and record.deleted_at is None else 0), "R2: one of response and error, when done"
    assert (record.ended_at is not None) == done, "R2: the end has its time"
    if done and record.deleted_at is None:
        assert (record.response is not None) == (record.state is State.SUCCEEDED)
    assert (record.lease is not None) == (record.state is State.RUNNING), "who runs has a lease, and nobody else"
    if record.state is State.PENDING:
        assert record.cancel_requested_at is None or record.committed_at is not None, "R4: flagged, and to be run"
    if record.state is State.CANCELLED:
        assert record.cancel_requested_at is not None
        assert record.committed_at is None, "cancelled past its commit point"
    assert 0 <= record.attempt <= record.attempt_limit
    assert record.restartable or record.attempt <= 1, "R12: started twice"


def check_step(before: Record, after: Record | None, now: int) -> None:
    """What must be true of any two states of a record, the one seen after the other, now; None for removed."""
    done = before.state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)
    if after is None:
        assert done or before.deleted_at is not None, "R32: removed, though it had not ended"
        known_until = before.created_at + lifecycle.REQUEST_WINDOW
        assert before.request_id is None or now >= known_until, "R32: removed, though its request id counts"
        return
    fixed = Record._fields.index("name")
    assert before[fixed:-1] == after[fixed:-1], "what was fixed at the start has changed"
    if done:
        kept = ("state", "ended_at", "cancel_outcome", "token", "attempt")
        assert all(getattr(before, field) == getattr(after, field) for field in kept), "R1: an end has changed"
        if after.deleted_at is None:
            assert (before.response, before.error) == (after.response, after.error), "R1: a result has changed"
    if before.deleted_at is not None:
        assert after.deleted_at == before.deleted_at, "R19: what was deleted is back"
    if before.cancel_requested_at is not None:
        first = ("cancel_requested_at", "cancel_reason", "cancel_requester")
        assert all(getattr(before, field) == getattr(after, field) for field in first), "R7: the first request stands"
        assert before.committed_at is not None or after.token == before.token, "R4: flagged, and started"
    assert after.version >= before.version
    assert after.token >= before.token, "R9: a token is used again"
