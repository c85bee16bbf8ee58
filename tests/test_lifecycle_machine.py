"""Any story that clients, workers, zombies and a jumping clock can tell, against the state table.

The oracle below is written from the table of docs/design.md and calls nothing of `lifecycle`. Every record
that a story reaches is also inserted in a real database, whose CHECK constraints must take it.
LRO_TEST_EXAMPLES is how many stories there are.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from lro.errors import FailedPrecondition, LeaseLost, LROError, Unimplemented
from lro.lifecycle import (
    Facts,
    Lease,
    Outcome,
    Raised,
    Record,
    Returned,
    StopReason,
    Unwound,
    claim,
    delete,
    finish,
    give_back,
    pass_commit_point,
    request_cancel,
    save_progress,
    sweep,
)
from lro.status import Code, Status, error_info
from tests.records import HOUR, NOW, record

MIGRATION = Path(__file__).parent.parent / "migrations" / "sqlite" / "0001_operations.sql"
BROKEN = Status(Code.UNAVAILABLE, "the printer is away", (error_info("PRINTER_AWAY"),))

CANCELLED = "CANCELLED OPERATION_CANCELLED"
LATE = "DEADLINE_EXCEEDED DEADLINE_EXCEEDED"
LOST = "ABORTED WORKER_LOST"
SHUT_DOWN = "UNAVAILABLE WORKER_SHUTDOWN"
NOBODY_ASKED = "INTERNAL JOB_FAILED"

WINDOW = 24 * HOUR

# The clock goes by hours; deadlines and expiries stand between them, so that nothing is decided by a tie.
HALF = HOUR // 2


@dataclass
class Story:
    """One operation as the table tells it."""

    created: int
    due: int
    deadline: int | None
    restartable: bool
    limit: int
    cancellable: bool
    retention: int
    with_request_id: bool
    state: str = "PENDING"
    attempt: int = 0
    token: int = 0
    runs: list[int] = field(default_factory=list[int])  # when each claim began that was not given back
    owner: str | None = None
    cancel_at: int | None = None
    committed: bool = False
    deleted: bool = False
    progress: str | None = None
    suppressed: bool = False  # the error of an earlier attempt is kept
    response: str | None = None
    error: str | None = None
    cancel_outcome: str | None = None
    ended: int | None = None
    given: list[Lease] = field(default_factory=list[Lease])  # all leases there ever were
    accepted: tuple[Lease, Outcome] | None = None  # the last finish that was taken
    accepted_record: Record | None = None  # what it made
    ended_by_finish: bool = False
    untouched: bool = True  # the current attempt has written nothing yet
    written: int = 0  # when it was last changed

    @property
    def is_done(self) -> bool:
        return self.state in ("SUCCEEDED", "FAILED", "CANCELLED")

    @property
    def cancel_due(self) -> bool:
        return self.cancel_at is not None and not self.committed

    def is_late(self, now: int) -> bool:
        return self.deadline is not None and now >= self.deadline

    def is_held_under(self, lease: Lease) -> bool:
        return self.state == "RUNNING" and lease.token == self.token

    def expiry(self) -> int | None:
        if self.ended is None:
            return None
        if self.deleted:
            return self.created + (WINDOW if self.with_request_id else 0)
        return max(self.ended, self.created) + self.retention

    # what the cells of the table say

    def end(self, now: int, state: str, how: str, cancel_outcome: str | None = None) -> None:
        self.state, self.ended, self.owner = state, now, None
        if state == "SUCCEEDED":
            self.response = how
        else:
            self.error = how
        if self.cancel_at is not None:
            natural = "COMPLETED_ANYWAY" if state == "SUCCEEDED" else "FAILED_ANYWAY"
            self.cancel_outcome = cancel_outcome or natural
        if self.deleted:
            self.bury()

    def bury(self) -> None:
        self.response = self.error = self.progress = None
        self.suppressed = False

    def stop(self, now: int, cancel_outcome: str) -> None:
        """Cancel and deadline both: the earlier one."""
        cancel_at = self.cancel_at if self.cancel_due else None
        if cancel_at is not None and (self.deadline is None or cancel_at < self.deadline):
            self.end(now, "CANCELLED", CANCELLED, cancel_outcome)
        else:
            self.end(now, "FAILED", LATE)

    def release(self, due: int | None = None) -> None:
        """Make it wait for a claim, at its place in the queue or, if it is to be tried again, behind."""
        self.state, self.owner, self.due = "PENDING", None, self.created if due is None else due

    def is_due(self, now: int) -> bool:
        """At once means at once; only the clock tells of a scheduled start; a clock that went back delays no retry."""
        return self.due == self.created or now >= self.due or (bool(self.runs) and now < self.written)

    def orphan(self, now: int) -> None:
        if self.cancel_due or self.is_late(now):
            self.stop(now, "WORKER_LOST")
        elif self.restartable and self.attempt < self.limit and not self.deleted:
            self.release()
        else:
            self.end(now, "FAILED", LOST)

    def sweep(self, now: int, expired: bool) -> bool:
        """Let time decide; False if the operation is to be removed."""
        if self.state == "PENDING" and self.is_late(now):
            self.end(now, "FAILED", LATE)
        elif self.state == "RUNNING" and expired:
            self.orphan(now)
        elif (expiry := self.expiry()) is not None and now >= expiry:
            window_open = self.with_request_id and now < self.created + WINDOW
            if self.deleted or not window_open:
                return False
            self.deleted = True
            self.bury()
        return True

    def claim(self, now: int, expired: bool, owner: str) -> None:
        if self.is_done:
            return
        self.sweep(now, expired)
        if self.state == "PENDING" and self.is_due(now):
            self.state, self.owner, self.untouched = "RUNNING", owner, True
            self.attempt += 1
            self.token += 1
            self.runs.append(now)

    def cancel(self, now: int, expired: bool) -> None:
        if self.is_done:
            return
        if self.cancel_at is None:
            self.cancel_at = now
        if self.committed:
            return
        if self.state == "PENDING":
            self.stop(now, "RETRY_SUPPRESSED" if self.runs else "BEFORE_START")
        elif expired:
            self.orphan(now)

    def give_back(self, now: int) -> None:
        self.runs.pop()
        self.attempt -= 1
        if self.cancel_due:
            self.stop(now, "RETRY_SUPPRESSED" if self.runs else "BEFORE_START")
        else:
            self.release()

    def finish(self, now: int, outcome: Outcome) -> None:
        match outcome:
            case Returned(response):
                self.end(now, "SUCCEEDED", response)
            case Raised(_, retry_in):
                forestalled = retry_in is not None and self.is_late(now + retry_in)
                if retry_in is None or self.attempt == self.limit or forestalled:
                    self.end(now, "FAILED", "UNAVAILABLE PRINTER_AWAY")
                elif self.cancel_due:
                    self.suppressed = True
                    self.end(now, "CANCELLED", CANCELLED, "RETRY_SUPPRESSED")
                else:
                    self.suppressed = True
                    self.release(now + retry_in)
            case Unwound(StopReason.CANCEL, forced):
                if self.cancel_due:
                    self.stop(now, "FORCED" if forced else "ACKNOWLEDGED")
                else:
                    self.end(now, "FAILED", NOBODY_ASKED)
            case Unwound(StopReason.DEADLINE, _):
                self.stop(now, "FORCED")
            case Unwound(_, _):
                if self.cancel_due or self.is_late(now):
                    self.stop(now, "RETRY_SUPPRESSED")
                elif self.restartable:
                    self.attempt -= 1
                    self.release()
                else:
                    self.end(now, "FAILED", SHUT_DOWN)

    def told(self) -> dict[str, object]:
        """What the record must say."""
        return {
            "state": self.state,
            "attempt": self.attempt,
            "token": self.token,
            "due": self.due,
            "started": self.runs[0] if self.runs else None,
            "owner": self.owner,
            "cancel_at": self.cancel_at,
            "cancel_outcome": self.cancel_outcome,
            "committed": self.committed,
            "deleted": self.deleted,
            "ended": self.ended,
            "expiry": self.expiry(),
            "response": self.response,
            "error": self.error,
            "progress": self.progress,
            "suppressed": self.suppressed,
        }


def said(it: Record) -> dict[str, object]:
    """What the record does say, in the oracle's words."""
    error = None if it.error is None else Status.from_json(it.error)
    return {
        "state": str(it.state),
        "attempt": it.attempt,
        "token": it.token,
        "due": it.due_at,
        "started": it.started_at,
        "owner": it.lease_owner,
        "cancel_at": it.cancel_requested_at,
        "cancel_outcome": None if it.cancel_outcome is None else str(it.cancel_outcome),
        "committed": it.committed_at is not None,
        "deleted": it.deleted_at is not None,
        "ended": it.ended_at,
        "expiry": it.expire_at,
        "response": it.response,
        "error": None if error is None else f"{error.code.name} {error.reason}",
        "progress": it.progress,
        "suppressed": it.last_error is not None,
    }


DONE = ("SUCCEEDED", "FAILED", "CANCELLED")
COLUMNS = ", ".join(Record._fields)
INSERT = f"INSERT INTO operations ({COLUMNS}) VALUES ({', '.join('?' * len(Record._fields))})"


def plain(it: Record) -> tuple[object, ...]:
    outcome = None if it.cancel_outcome is None else it.cancel_outcome.value
    return (it.state.value, outcome, *it[2:])


OUTCOMES: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Returned, st.sampled_from(["1", "null"])),
    st.builds(Raised, st.just(BROKEN), st.sampled_from([None, 0, HOUR, 3 * HOUR])),
    st.builds(Unwound, st.sampled_from([StopReason.CANCEL, StopReason.DEADLINE, StopReason.SHUTDOWN]), st.booleans()),
)

WHICH = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4])
AGE = st.sampled_from([0, 0, 0, 0, 1, 2])
EXPIRED = st.sampled_from([False, False, False, True])

Write = Callable[[Record, Facts], Record | None]


class Lifecycle(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.count = 0
        self.records: dict[str, Record] = {}
        self.stories: dict[str, Story] = {}
        self.database = sqlite3.connect(":memory:")
        self.database.executescript(MIGRATION.read_text())

    def teardown(self) -> None:
        self.database.close()

    # what happens

    @initialize()
    def begin(self) -> None:
        self._start(restartable=True, limit=2, with_request_id=True)

    @precondition(lambda self: sum(not story.is_done for story in self.stories.values()) < 3)
    @rule(
        restartable=st.booleans(),
        limit=st.integers(1, 3),
        time_out=st.none() | st.integers(0, 6),
        delay=st.sampled_from([0, 0, 2]),
        cancellable=st.sampled_from([True, True, True, False]),
        retention=st.sampled_from([2, 40]),
        with_request_id=st.booleans(),
    )
    def start(
        self,
        *,
        restartable: bool,
        limit: int,
        time_out: int | None,
        delay: int,
        cancellable: bool,
        retention: int,
        with_request_id: bool,
    ) -> None:
        self._start(
            restartable=restartable,
            limit=limit,
            time_out=time_out,
            delay=delay,
            cancellable=cancellable,
            retention=retention,
            with_request_id=with_request_id,
        )

    def _start(
        self,
        *,
        restartable: bool,
        limit: int,
        time_out: int | None = None,
        delay: int = 0,
        cancellable: bool = True,
        retention: int = 40,
        with_request_id: bool,
    ) -> None:
        self.count += 1
        name = f"operations/{self.count:026}"
        story = self.stories[name] = Story(
            created=self.now,
            due=self.now + delay * HOUR,
            deadline=None if time_out is None else self.now + time_out * HOUR + HALF,
            restartable=restartable,
            limit=limit,
            cancellable=cancellable,
            retention=retention * HOUR + HALF,
            with_request_id=with_request_id,
        )
        self.records[name] = record(
            name=name,
            created_at=story.created,
            updated_at=story.created,
            due_at=story.due,
            deadline_at=story.deadline,
            restartable=restartable,
            attempt_limit=limit,
            cancellable=cancellable,
            retention=story.retention,
            request_id=name if with_request_id else None,
        )
        self._check(name)

    @rule(hours=st.sampled_from([1, 1, 2, 5, 30, -1, -1, -3, -30]))
    def time_passes_or_jumps(self, hours: int) -> None:
        self.now += hours * HOUR

    @rule(which=WHICH, worker=st.sampled_from(["w1", "w2", "w3"]), expired=EXPIRED)
    def claim(self, which: int, worker: str, expired: bool) -> None:
        name = self._pick(which)
        before, cancel_was_due = self.records[name], self.stories[name].cancel_due
        self.stories[name].claim(self.now, expired, worker)
        after = self._write(name, partial(claim, owner=worker, lease_time=HOUR), expired=expired)
        assert after is not None
        if after.token == before.token:
            return
        assert not cancel_was_due, "an operation was started whose cancel was due"
        assert after.token == before.token + 1
        assert after.lease is not None
        self.stories[name].given.append(after.lease)

    @rule(
        which=WHICH, events=st.lists(st.sampled_from(["commit", "cancel", "delete", "time"]), max_size=3, unique=True)
    )
    def an_attempt_goes_on(self, which: int, events: list[str]) -> None:
        """Several steps in one, since what is worth seeing comes after them."""
        self.claim(which=which, worker="w1", expired=False)
        for event in events:
            match event:
                case "commit":
                    self.pass_commit_point(which=which, age=0, expired=False)
                case "cancel":
                    self.request_cancel(which=which, reason=None, expired=False)
                case "delete":
                    self.delete(which=which, reject_running=False)
                case _:
                    self.time_passes_or_jumps(hours=3)

    @rule(which=WHICH, reason=st.sampled_from([None, "first", "second"]), expired=EXPIRED)
    def request_cancel(self, which: int, reason: str | None, expired: bool) -> None:
        name = self._pick(which)
        story = self.stories[name]
        write = partial(request_cancel, reason=reason, requester="ann")
        if story.cancellable:
            story.cancel(self.now, expired)
            self._write(name, write, expired=expired)
        else:
            self._refused(name, write, Unimplemented, expired=expired)

    @rule(which=WHICH, age=AGE, progress=st.sampled_from(['{"n":1}', '{"n":2}']), expired=EXPIRED)
    def save_progress(self, which: int, age: int, progress: str, expired: bool) -> None:
        name = self._pick(which)
        story, lease = self.stories[name], self._lease(name, age)
        write = partial(save_progress, lease=lease, progress=progress)
        if story.is_held_under(lease):
            story.progress, story.untouched = progress, False
            self._write(name, write, expired=expired)
        else:
            self._refused(name, write, LeaseLost, expired=expired)

    @rule(which=WHICH, age=AGE, expired=EXPIRED)
    def pass_commit_point(self, which: int, age: int, expired: bool) -> None:
        name = self._pick(which)
        story, lease = self.stories[name], self._lease(name, age)
        write = partial(pass_commit_point, lease=lease)
        if story.is_held_under(lease):
            story.committed = story.committed or story.cancel_at is None
            story.untouched = False
            self._write(name, write, expired=expired)
        else:
            self._refused(name, write, LeaseLost, expired=expired)

    @rule(
        which=WHICH,
        age=AGE,
        outcome=OUTCOMES,
        progress=st.none() | st.just('{"n":3}'),
        expired=EXPIRED,
    )
    def finish(self, which: int, age: int, outcome: Outcome, progress: str | None, expired: bool) -> None:
        name = self._pick(which)
        story, lease = self.stories[name], self._lease(name, age)
        if isinstance(outcome, Raised) and not story.restartable:
            outcome = outcome._replace(retry_in=None)  # a retry policy makes the job restartable
        write = partial(finish, lease=lease, outcome=outcome, progress=progress)
        if story.is_held_under(lease):
            story.progress = progress or story.progress
            story.accepted = (lease, outcome)
            story.finish(self.now, outcome)
            story.ended_by_finish = story.is_done
            story.accepted_record = self._write(name, write, expired=expired)
            if isinstance(outcome, Returned):
                kept = self.records[name]
                assert kept.state == "SUCCEEDED", "a value returned under a lease was dropped"
                assert kept.response == (None if story.deleted else outcome.response)
        else:
            self._late(name, write, lease, outcome, expired=expired)

    @rule(which=WHICH, expired=EXPIRED)
    def repeat_the_last_finish(self, which: int, expired: bool) -> None:
        name = self._pick(which)
        if (accepted := self.stories[name].accepted) is None:
            return
        lease, outcome = accepted
        write = partial(finish, lease=lease, outcome=outcome, progress='{"n":4}')
        self._late(name, write, lease, outcome, expired=expired)

    def _late(self, name: str, write: Write, lease: Lease, outcome: Outcome, *, expired: bool) -> None:
        """A finish by a worker that does not hold the operation: nothing is written."""
        before, story = self.records[name], self.stories[name]
        if lease.token < story.token:
            self._refused(name, write, LeaseLost, expired=expired)
        elif (lease, outcome) == story.accepted and (story.ended_by_finish or before is story.accepted_record):
            assert write(before, Facts(self.now, expired)) is before, "the same finish again was not taken as such"
        else:  # ended, or waiting, otherwise: refused, unless it asks for what has become of it anyway
            try:
                after = write(before, Facts(self.now, expired))
            except LeaseLost:
                return
            assert after is before
            assert isinstance(outcome, Returned) == (before.state == "SUCCEEDED"), "acknowledged in vain"

    @rule(which=WHICH, age=AGE, expired=EXPIRED)
    def give_back(self, which: int, age: int, expired: bool) -> None:
        name = self._pick(which)
        story, lease = self.stories[name], self._lease(name, age)
        write = partial(give_back, lease=lease)
        if not story.is_held_under(lease):
            self._refused(name, write, LeaseLost, expired=expired)
        elif story.untouched:
            story.give_back(self.now)
            self._write(name, write, expired=expired)

    @rule(which=WHICH, reject_running=st.booleans())
    def delete(self, which: int, reject_running: bool) -> None:
        name = self._pick(which)
        story = self.stories[name]
        write = partial(delete, reject_running=reject_running)
        if reject_running and not story.deleted and not story.is_done:
            self._refused(name, write, FailedPrecondition, expired=False)
            return
        story.deleted = True
        if story.is_done:
            story.bury()
        self._write(name, write, expired=False)

    @rule(which=WHICH, expired=EXPIRED)
    def sweep(self, which: int, expired: bool) -> None:
        name = self._pick(which)
        stays = self.stories[name].sweep(self.now, expired)
        after = self._write(name, sweep, expired=expired)
        assert (after is not None) == stays
        if after is None:
            self.database.execute("DELETE FROM operations WHERE name = ?", (name,))
            del self.records[name], self.stories[name]
            if not self.records:
                self.begin()

    def _pick(self, which: int) -> str:
        """Choose an operation, more often one that has not ended, of those the youngest."""
        names = sorted(self.records, key=lambda name: (not self.stories[name].is_done, name), reverse=True)
        return names[which % len(names)]

    def _lease(self, name: str, age: int) -> Lease:
        """Choose a lease of all that were given on this operation: the last one, or one that went before."""
        given = self.stories[name].given
        return given[-1 - age] if age < len(given) else Lease("nobody", -1)

    # what must hold of every step

    def _write(self, name: str, write: Write, *, expired: bool, rows: int = 1) -> Record | None:
        """Apply a transition; `rows` is how many rows of the table one call may apply."""
        before = self.records[name]
        after = write(before, Facts(self.now, expired))
        if after is None:
            return None
        if after is before:
            self._check(name)
            return after
        assert before != after, "an unchanged record is the same object"
        assert 1 <= after.version - before.version <= rows
        assert after.updated_at == self.now
        _check_step(before, after)
        self.records[name] = after
        self.stories[name].written = self.now
        self._check(name)
        return after

    def _refused(self, name: str, write: Write, error: type[LROError], *, expired: bool) -> None:
        try:
            write(self.records[name], Facts(self.now, expired))
        except error:
            self._check(name)
        else:
            raise AssertionError(f"{write} was not refused on {self.records[name]}")

    def _check(self, name: str) -> None:
        assert said(self.records[name]) == self.stories[name].told()
        row = plain(self.records[name])
        self.database.execute("DELETE FROM operations WHERE name = ?", (name,))
        self.database.execute(INSERT, row)
        with closing(self.database.execute(f"SELECT {COLUMNS} FROM operations WHERE name = ?", (name,))) as cursor:
            assert cursor.fetchone() == row

    @invariant()
    def every_record_is_one_that_the_design_knows(self) -> None:
        for name, it in self.records.items():
            story = self.stories[name]
            results = [it.response is not None, it.error is not None]
            assert sum(results) == (1 if it.state in DONE and it.deleted_at is None else 0)
            assert (it.cancel_outcome is not None) == (it.state in DONE and it.cancel_requested_at is not None)
            if it.state == "CANCELLED":
                assert it.cancel_requested_at is not None
                assert it.committed_at is None, "cancelled past its commit point"
            assert 0 <= it.attempt <= it.attempt_limit
            assert it.restartable or len(story.runs) <= 1, "started twice without being restartable"
            assert (it.state == "RUNNING") == (it.lease is not None)

    @invariant()
    def at_most_one_holder_has_a_token_that_stands(self) -> None:
        for name, it in self.records.items():
            given = self.stories[name].given
            assert len({lease.token for lease in given}) == len(given)
            standing = [lease for lease in given if it.state == "RUNNING" and lease.token == it.token]
            assert standing == ([it.lease] if it.state == "RUNNING" else [])


def _check_step(before: Record, after: Record) -> None:
    """What no transition may do, whatever the oracle says."""
    fixed = Record._fields.index("name")
    assert after[fixed:-1] == before[fixed:-1]
    assert after.params in (before.params, None)
    assert after.token in (before.token, before.token + 1)
    if after.token != before.token:
        assert after.state == "RUNNING", "a token grew without a claim"
    if before.state in DONE:
        assert (after.state, after.ended_at) == (before.state, before.ended_at)
        assert after.cancel_outcome == before.cancel_outcome
        assert (before.deleted_at, after.response, after.error) == (None, None, None), "an end changed"
        assert after.deleted_at is not None
    for once in ("cancel_requested_at", "deleted_at", "committed_at"):
        was = getattr(before, once)
        assert was is None or getattr(after, once) == was, f"{once} changed"
    if before.cancel_requested_at is not None:
        assert (after.cancel_reason, after.cancel_requester) == (before.cancel_reason, before.cancel_requester)


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=int(os.environ.get("LRO_TEST_EXAMPLES", "100")),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
