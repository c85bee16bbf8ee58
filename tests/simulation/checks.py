"""What must hold, checked after every commit, every start of a job and every answer to a client.

It knows what was committed by triggers on the tables, whichever statement wrote it, and keeps a second account of its
own: who claimed what, which function ran under which lease and what it returned, what clients asked and were told.
Every rule names the invariant of the library's guarantees that it holds up.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from lro.lifecycle import CancelOutcome, Lease, State
from lro.stop import Stop
from tests.simulation.machine import Machine, Process
from tests.simulation.rows import Beat, Row

__all__ = ["Checks", "Run"]

BEAT_SLACK = 0.001  # seconds: beats are compared as floats
DELIVERED_WITHIN = 1.5  # seconds: a worker looks once a second where no hint reaches it


class Run:
    """One execution of a job's function.

    Attributes:
        process: Where.
        name: The operation.
        lease: What it runs under.
        stop: What it was told.
        over: True once the function has left, by whatever.
        returned: The JSON of what it returned, or None.
        raised: What it raised, or None.
    """

    def __init__(self, checks: "Checks", process: Process, name: str, lease: Lease, stop: Stop) -> None:
        self._checks = checks
        self.process = process
        self.name = name
        self.lease = lease
        self.stop = stop
        self.over = False
        self.returned: Any = None  # Any: JSON
        self.raised: BaseException | None = None

    def leave(self) -> None:
        """Note that the function is over."""
        self.over = True
        self._checks.left(self)

    def saved(self, done: int) -> None:
        """Check that a checkpoint returned after its commit (R27)."""
        self._checks.expect_saved(self, done)


class Checks:
    """See the module.

    Args:
        machine: Where it all happens.

    Attributes:
        columns: Of which columns it is to be told.
        rows: The operations as they were last committed.
        removed: Those that were removed, as they were last.
        unfinished: The names of those that have not ended.
        workers: Which process a worker lives in.
    """

    columns: Sequence[str] = Row._fields

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.rows: dict[str, Row] = {}
        self.removed: dict[str, Row] = {}
        self.unfinished: set[str] = set()
        self.workers: dict[str, Process] = {}  # which process a worker lives in, for good
        self._beats: dict[str, Beat] = {}
        self._beats_before: dict[str, Beat] = {}  # before the transaction that is looked at
        self._claims: dict[tuple[str, int], str] = {}
        self._runs: dict[tuple[str, int], Run] = {}
        self._running: dict[tuple[str, int], Run] = {}  # those that have not left
        self._starts: dict[str, int] = {}
        self._asked_to_cancel: set[str] = set()
        self._told_cancelled: set[str] = set()
        self._told_deleted: set[str] = set()
        self._seen: dict[str, int] = {}  # the latest version that a client has seen

    # What is committed.

    def committed(self, writes: Sequence[tuple[Any, ...]], lane: Any) -> None:  # Any: columns; the lane of a place
        """Take what one transaction has written; see place.Watcher."""
        writer: Process | None = None if lane is None else lane.process
        machine = self._machine
        self._beats_before = dict(self._beats)
        for table, *values in writes:
            if table == "workers":
                self._take_beat(values, writer)
        for table, *values in writes:
            if table == "operations" and len(values) > 1:
                self._check(Row(*values), writer)
            elif table == "operations":
                self._check_removal(values[0])
        machine.counts["commits"] += 1
        machine.note(len(writes), *(value for write in writes for value in write[:8] if not isinstance(value, float)))

    def _take_beat(self, values: Sequence[Any], writer: Process | None) -> None:  # Any: columns
        worker, *lease_time = values
        self._machine.say(f"{writer and writer.name}: worker {worker[:4]} {'beats' if lease_time else 'is forgotten'}")
        if not lease_time:
            self._beats.pop(worker, None)
            return
        self._beats[worker] = Beat(self._machine.now, lease_time[0] / 1_000_000)
        if writer is not None:
            self.workers.setdefault(worker, writer)

    def _expect(self, holds: object, rule: str, row: Row, old: Row | None = None) -> None:
        if not holds:
            before = "" if old is None else f"; it was {old}"
            self._machine.fail(f"{rule}: {row}{before}")

    def _check(self, new: Row, writer: Process | None) -> None:
        old = self.rows.get(new.name)
        self.rows[new.name] = new
        if new.is_done:
            self.unfinished.discard(new.name)
        else:
            self.unfinished.add(new.name)
        self._machine.say(
            f"{writer and writer.name}: {new.name[-4:]} {new.state} version {new.version} token {new.token}"
        )
        if old is None:
            self._expect(new.name not in self.removed, "R19 what was removed comes back", new)
            self._expect(new.state == "PENDING" and new.token == new.attempt == 0, "a start is PENDING", new)
            return
        if new == old:
            return
        expect = self._expect
        expect(new.version > old.version, "every write has a version of its own", new, old)
        expect(
            new.cancel_requested_at == old.cancel_requested_at or old.cancel_requested_at is None,
            "R4 a cancel request stands",
            new,
            old,
        )
        expect(new.deleted_at == old.deleted_at or old.deleted_at is None, "R19 deleted stays deleted", new, old)
        expect(new.attempt <= new.attempt_limit, "R12 attempts are bounded", new, old)
        if old.is_done:
            self._check_final(new, old)
        elif new.token != old.token:
            self._check_claim(new, old, writer)
        elif old.state == "RUNNING":
            if new.state == "RUNNING":
                expect(new.lease_owner == old.lease_owner, "R11 a token has one owner", new, old)
                expect(new.done >= old.done, "R27 progress is monotone per token", new, old)
                its_own = writer is not None and writer is self.workers.get(old.lease_owner or "")
                expect(its_own or new.progress == old.progress, "R9 another process wrote the progress", new, old)
                if new.cancel_requested_at is not None and old.cancel_requested_at is None:
                    self._watch_delivery(new)
            else:
                self._check_left(new, old, writer)
        elif new.is_done:
            self._check_end(new, old, None)

    def _watch_delivery(self, row: Row) -> None:
        """Have it checked that a healthy worker passes a cancel request on, without any hint within its poll (R5)."""
        run = self._running.get((row.name, row.token))

        def check() -> None:
            if run is not None and not run.over and run.process.is_alive and not run.process.faults:
                self._expect(run.stop.reason is not None, "R5 a job was not told of a cancel request", row)

        self._machine.after(DELIVERED_WITHIN, check)

    def _check_final(self, new: Row, old: Row) -> None:
        """Check that what has ended stays as it is (R1); a tombstone drops its content."""
        self._expect((new.state, new.ended_at) == (old.state, old.ended_at), "R1 terminal is final", new, old)
        self._expect(new.token == old.token and new.attempt == old.attempt, "R1 terminal is final", new, old)
        if new.deleted_at is None:
            same = (new.response, new.error) == (old.response, old.error)
            self._expect(same, "R1 a result never changes", new, old)

    def _check_claim(self, new: Row, old: Row, writer: Process | None) -> None:
        expect = self._expect
        expect(new.token == old.token + 1 and new.state == "RUNNING", "R9 each claim counts the token up", new, old)
        expect(old.cancel_requested_at is None, "R4 nothing is claimed that is to be cancelled", new, old)
        if old.state == "RUNNING":
            self._check_taken_over(new, old, writer)
        expect(writer is not None and writer is self.workers.get(new.lease_owner or ""), "who claims it has it", new)
        beat = self._beats.get(new.lease_owner or "")
        expect(beat is not None and self._machine.now - beat.at < beat.lease, "a claim under a stale lease", new)
        self._claims[new.name, new.token] = new.lease_owner or ""

    def _check_left(self, new: Row, old: Row, writer: Process | None) -> None:
        """Check how an operation ceased to be RUNNING: by its worker's word, or since that was lost."""
        run = self._runs.get((old.name, old.token))
        by_owner = writer is not None and writer is self.workers.get(old.lease_owner or "")
        lost = not by_owner or new.says_lost or (run is not None and not run.over)
        if lost:
            self._check_taken_over(new, old, writer)
        if new.is_done:
            self._check_end(new, old, None if lost else run)
            return
        expect = self._expect
        expect(old.cancel_requested_at is None, "R4 nothing is retried that is to be cancelled", new, old)
        if run is not None or lost:
            expect(old.restartable, "R12 at most once unless declared restartable", new, old)

    def _check_taken_over(self, new: Row, old: Row, writer: Process | None) -> None:
        """Check that a lease was dropped by who may: its worker is dead, or was not heard of for a lease time."""
        owner = self.workers.get(old.lease_owner or "")
        if owner is None:
            self._machine.fail(f"nobody knows the owner: {old}")
            return
        self._machine.counts["taken over"] += 1
        if not owner.is_alive or owner.is_over:
            return
        beat = self._beats_before.get(old.lease_owner or "")
        silent = beat is None or self._machine.now - beat.at >= beat.lease - BEAT_SLACK
        self._expect(silent, "R8 a lease was taken from a worker that renewed it", new, old)
        self._expect(owner.faults, "R13 a healthy worker has lost a lease", new, old)

    def _check_end(self, new: Row, old: Row, run: Run | None) -> None:
        """Check an end: by its run, or where None by time, by a client, or by the loss of its worker."""
        expect = self._expect
        expect(new.lease_owner is None, "what has ended has no lease", new, old)
        if new.deleted_at is not None:
            expect(new.response is None and new.error is None, "R20 a deleted operation's result is dropped", new, old)
            return
        error = json.loads(new.error) if new.error else None
        reason = error["details"][0].get("reason") if error else None
        match State(new.state):
            case State.SUCCEEDED:
                expect(run is not None, "R6 only a run succeeds", new, old)
                returned = None if run is None else run.returned
                expect(returned is not None, "R6 a success was returned", new, old)
                expect(json.loads(new.response or "null") == returned, "R6 the response is what was returned", new, old)
            case State.CANCELLED:
                expect(new.name in self._asked_to_cancel, "R4 somebody asked for it", new, old)
                self._check_cancelled(new, old, run)
            case State.FAILED:
                if reason == "WORKER_LOST":
                    again = old.restartable and old.attempt < old.attempt_limit and old.deleted_at is None
                    expect(run is None and not again, "R8 what may run again does", new, old)
                elif reason == "DEADLINE_EXCEEDED":
                    late = new.deadline_at is not None and new.deadline_at <= self._machine.latest_possible
                    expect(late, "a deadline is not early", new, old)
                elif reason != "WORKER_SHUTDOWN":
                    expect(run is not None and run.raised is not None, "R6 a failure was raised", new, old)
        returned_at_all = run is not None and run.returned is not None
        expect(not returned_at_all or new.state == "SUCCEEDED", "R6 a value returned is never dropped", new, old)

    def _check_cancelled(self, new: Row, old: Row, run: Run | None) -> None:
        expect = self._expect
        match CancelOutcome(new.cancel_outcome or ""):
            case CancelOutcome.BEFORE_START:
                expect(new.name not in self._starts, "cancelled before its start, yet it ran", new, old)
            case CancelOutcome.ACKNOWLEDGED | CancelOutcome.FORCED:
                expect(run is not None and run.over, "R6 the work stopped before it was called cancelled", new, old)
            case CancelOutcome.RETRY_SUPPRESSED:
                expect(new.name in self._starts or old.attempt, "a retry was suppressed of what never ran", new, old)
            case CancelOutcome.WORKER_LOST:
                expect(run is None and old.state == "RUNNING", "its worker was lost", new, old)
            case _:
                expect(False, "such a cancel has another state", new, old)

    def _check_removal(self, name: str) -> None:
        row = self.rows.pop(name, None)
        if row is None:
            return
        self.removed[name] = row
        self._expect(row.is_done, "R32 only what has ended is removed", row)
        is_due = row.expire_at is not None and row.expire_at <= self._machine.latest_wall
        self._expect(is_due, "R32 nothing is removed early", row)

    # What runs.

    def started(self, process: Process, name: str, lease: Lease, stop: Stop, done: int) -> Run:
        """Note that a job's function begins, and check that it may."""
        key = name, lease.token
        row = self.rows.get(name)
        self._machine.counts["starts"] += 1
        if self._claims.get(key) != lease.owner:
            self._machine.fail(f"R11 {name} starts under {lease}, which nobody has claimed")
        if key in self._runs:
            self._machine.fail(f"R11 {name} starts twice under {lease}")
        if self.workers.get(lease.owner) is not process:
            self._machine.fail(f"R11 {name} starts in {process.name} under another's {lease}")
        before = self._starts.get(name, 0)
        if row is not None:
            self._expect(not before or row.restartable, "R12 at most once unless declared restartable", row)
            held = row.state == "RUNNING" and row.token == lease.token
            self._expect(not held or row.deleted_at or done == row.done, "an attempt resumes where it was saved", row)
        self._starts[name] = before + 1
        run = self._runs[key] = self._running[key] = Run(self, process, name, lease, stop)
        return run

    def left(self, run: Run) -> None:
        """Note that a job's function is over."""
        self._running.pop((run.name, run.lease.token), None)

    def expect_saved(self, run: Run, done: int) -> None:
        """Check that a checkpoint returned after its commit (R27)."""
        row = self.rows.get(run.name)
        if row is not None and row.token == run.lease.token and row.state == "RUNNING":
            self._expect(row.done >= done, f"R27 a checkpoint returned before {done} was saved", row)

    def check_left_nothing(self, process: Process) -> None:
        """Check that a process that shut down undisturbed has left nothing for others to find out about (R24)."""
        for row in self.rows.values():
            mine = row.state == "RUNNING" and self.workers.get(row.lease_owner or "") is process
            self._expect(not mine, f"R24 {process.name} has shut down and still holds it", row)

    def running(self) -> list[Run]:
        """Return the functions that run now in processes that live."""
        return [run for run in self._running.values() if run.process.is_alive]

    # What clients ask and are told.

    def asks_to_cancel(self, name: str) -> None:
        """Note that a client is about to ask."""
        self._asked_to_cancel.add(name)

    def told(self, name: str, *, cancelled: bool = False, deleted: bool = False) -> None:
        """Note what a client was told, and check that it is in the database."""
        row = self.rows.get(name) or self.removed.get(name)
        if row is None:
            self._machine.fail(f"R3 {name} was acknowledged, and is not in the database")
            return
        if cancelled:
            self._told_cancelled.add(name)
            self._expect(row.cancel_requested_at or row.is_done, "R4 an acknowledged cancel is durable", row)
        if deleted:
            self._told_deleted.add(name)
            self._expect(row.deleted_at, "R19 an acknowledged delete is durable", row)

    def version_before(self, name: str) -> int:
        """Return the latest version that any client has seen, before another asks."""
        return self._seen.get(name, 0)

    def saw(self, name: str, version: int, before: int, *, done: bool) -> None:
        """Check what a client was shown: not older than what was seen before it asked, and true."""
        if version < before:
            self._machine.fail(f"{name} is shown in version {version} after {before}")
        self._seen[name] = max(version, self._seen.get(name, 0))
        row = self.rows.get(name) or self.removed.get(name)
        if row is None:
            self._machine.fail(f"R3 {name} is shown, and is not in the database")
        elif done:
            self._expect(row.is_done, "R1 it was shown as done", row)

    def is_deleted(self, name: str) -> bool:
        """Return whether some client was told that it is deleted."""
        return name in self._told_deleted

    def is_gone(self, name: str) -> bool:
        """Return whether it may be missing for a client."""
        row = self.rows.get(name)
        return row is None or row.deleted_at is not None

    # At the end.

    def check_all(self, rows: Callable[[], Sequence[tuple[Any, ...]]]) -> None:  # Any: columns
        """Compare the database with the account of it."""
        found = {row[0]: Row(*row) for row in rows()}
        if found != self.rows:
            self._machine.fail(f"the database is not what was committed: {found.keys() ^ self.rows.keys()}")
        for name in self._told_cancelled & found.keys():
            row = found[name]
            self._expect(row.cancel_requested_at or row.is_done, "R4 an acknowledged cancel survives", row)
        for name in self._told_deleted & found.keys():
            self._expect(found[name].deleted_at, "R19 deleted stays deleted", found[name])
