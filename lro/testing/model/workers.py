"""What workers do: claim, renew, save, finish, and write too late."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from hypothesis import strategies as st
from hypothesis.stateful import rule

from lro import lifecycle
from lro.lifecycle import Lease, Outcome, Raised, Returned, State, StopReason, Unwound
from lro.operations import Operations
from lro.resource import Operation
from lro.status import Code, Status, error_info
from lro.testing.contract.tools import HOUR, LEASE
from lro.testing.model.history import FRONT, WHICH, WORKER, Teller
from lro.testing.model.records import key_of
from lro.testing.model.sides import in_order

__all__ = ["Workers"]

BROKEN = Status(Code.UNAVAILABLE, "the printer is away", (error_info("PRINTER_AWAY"),))
OUTCOMES: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Returned, st.sampled_from(["1", "null"])),
    st.builds(Raised, st.just(BROKEN), st.sampled_from([None, 0, HOUR])),
    st.builds(Unwound, st.sampled_from([StopReason.CANCEL, StopReason.DEADLINE, StopReason.SHUTDOWN]), st.booleans()),
)


class Workers(Teller):
    """What workers do."""

    @rule(worker=WORKER, jobs=st.sampled_from([("a",), ("a", "b"), ("a", "b"), ("b", "c")]), limit=st.integers(1, 3))
    def claim(self, worker: str, jobs: Sequence[str], limit: int) -> None:
        """Claim what is due, and see to it that something is."""
        owner = self.owners[worker]
        if owner in self.frozen:
            return
        if not any(record.state is State.PENDING for record in self.model.records.values()):
            self._create(restartable=True, attempt_limit=3)
        due = {name: record.token for name, record in self.model.records.items()}
        expected = self.model.claim(owner, jobs, limit, LEASE, self._facts(worker))
        assert self._ask(lambda side: side.store(worker).claim(owner, jobs, limit)) == expected
        for record in expected:
            assert record.lease == Lease(owner, due[record.name] + 1), "R9: a token of its own for each claim"

    def _renew(self, worker: str) -> None:
        """Renew the leases of a worker, which learns what it holds."""
        owner = self.owners[worker]
        if owner not in self.frozen:
            expected = sorted(self.model.held(owner), key=key_of)
            assert self._ask(lambda side: in_order(side.store(worker).renew(owner))) == expected

    @rule(which=WHICH, what=st.sampled_from(["save", "save", "commit", "give back"]), progress=st.integers(1, 2))
    def go_on(self, which: int, what: str, progress: int) -> None:
        """Save the progress of an attempt, go past its commit point, or undo a claim that has not begun."""
        record = self.model.records.get(self._pick_claimed(which))
        if what == "save":
            self._write(which, 0, partial(lifecycle.save_progress, progress=f'{{"n":{progress}}}'))
        elif what == "commit":
            self._write(which, 0, lifecycle.pass_commit_point)
        elif record is not None and record.progress is None and record.committed_at is None:
            self._write(which, 0, lifecycle.give_back)

    @rule(which=WHICH, outcome=OUTCOMES, progress=st.none() | st.just('{"n":3}'), repeats=st.booleans())
    def finish(self, which: int, outcome: Outcome, progress: str | None, repeats: bool) -> None:
        """End an attempt; the same call again changes nothing."""
        record = self.model.records.get(self._pick_claimed(which))
        if isinstance(outcome, Raised) and record is not None and not record.restartable:
            outcome = outcome._replace(retry_in=None)  # a retry policy makes the job restartable
        write = partial(lifecycle.finish, outcome=outcome, progress=progress)
        written = self._write(which, 0, write)
        if written and repeats:
            assert record is not None
            name, lease = record.name, record.lease
            assert lease is not None
            standing = self.model.records[name]
            self._change(self._home_of(lease), name, partial(write, lease=lease))
            assert self.model.records[name] is standing, "the same finish again changed something"

    @rule(which=WHICH, age=st.sampled_from([1, 1, 2]))
    def write_late(self, which: int, age: int) -> None:
        """Write as a zombie does: under a token that is not the last one any more."""
        for write in (
            partial(lifecycle.save_progress, progress='{"n":9}'),
            partial(lifecycle.finish, outcome=Returned('"late"'), progress='{"n":9}'),
            lifecycle.pass_commit_point,
            lifecycle.give_back,
        ):
            assert not self._write(which, age, write), "R9: a zombie wrote"

    @rule(front=FRONT, which=WHICH)
    def wait_for_a_result(self, front: str, which: int) -> None:
        """Wait on one store for what a worker ends on another."""
        record = self.model.records.get(self._pick_claimed(which))
        if record is None or record.deleted_at is not None or record.lease is None:
            return
        name, lease = record.name, record.lease
        waits = [
            self._portal.start_task_soon(Operations(side.store(front)).wait, name, timedelta(seconds=8))
            for side in self.sides
        ]
        self._change(self._home_of(lease), name, partial(lifecycle.finish, lease=lease, outcome=Returned("2")))
        for wait in waits:
            assert wait.result(20) == Operation.of(self.model.records[name])
