"""What time does, and what breaks: leases end, workers freeze and crash, stores are closed and opened again."""

from hypothesis import strategies as st
from hypothesis.stateful import rule

from lro.testing.contract.tools import HOUR, LEASE, SECOND
from lro.testing.model.history import FRONT, FRONTS, WHICH, WORKER, WORKERS
from lro.testing.model.workers import Workers

__all__ = ["Times"]


class Times(Workers):
    """What time does, and what breaks."""

    @rule(
        seconds=st.sampled_from(
            [4, *(hour * 3600 for hour in (1, 1, 2, 5, 30))]
        ),  # whole: leases end to the microsecond
        jump=st.sampled_from([0, 0, 0, -30, -1, 1, 30]),
        sweeper=st.none() | FRONT,
    )
    def time_passes(self, seconds: int, jump: int, sweeper: str | None) -> None:
        """Let time pass, in which all that live renew their leases; the wall clock may jump, which kills nobody."""
        self._pass(seconds * SECOND)
        self.clock.jump(jump * HOUR)
        self._observe()
        if sweeper is not None:
            self._sweep(sweeper)

    @rule(worker=WORKER, beyond=st.booleans())
    def freeze_or_thaw(self, worker: str, beyond: bool) -> None:
        """Stop a worker's renewals, perhaps until its leases have ended; a frozen one goes on instead."""
        if self.owners[worker] in self.frozen:
            self._thaw(worker)
        elif beyond:
            self._lose_the_leases(worker)
        else:
            self._freeze(worker)

    def _freeze(self, worker: str) -> None:
        self._observe()
        self.frozen.setdefault(self.owners[worker], self.clock.monotonic())

    def _lose_the_leases(self, worker: str) -> None:
        self._freeze(worker)
        self._pass(LEASE - 1)
        self._sweep(FRONTS[0])
        self._pass(1)

    def _thaw(self, worker: str) -> None:
        """Let a frozen worker go on: it is alive again, whatever became of what it held."""
        if self.frozen.pop(self.owners[worker], None) is not None:
            self._renew(worker)
            self._observe()

    @rule(worker=WORKER, crashes=st.booleans())
    def end_a_worker(self, worker: str, crashes: bool) -> None:
        """End a worker, without a word or once it holds nothing, and begin another in its place."""
        owner = self.owners[worker]
        if crashes or owner in self.frozen:
            self._freeze(worker)
            self._close(worker)
            self._pass(LEASE)
            self._sweep(FRONTS[1])
            self.frozen.pop(self.owners.pop(worker))
            self._begin_work(worker)
            return
        self._ask(lambda side: side.store(worker).leave(owner))
        if not self.model.held(owner):
            self._close(worker)
            self._begin_work(worker)

    @rule(front=FRONT)
    def open_again(self, front: str) -> None:
        """Close a store and open another: all is as it was, but for what time has decided."""
        if any(self.model.held(owner) for owner in self.frozen):  # a store that opens has not seen them live
            self._pass(LEASE)
            self._sweep(front)
        self._close(front)
        self._open(front)

    @rule(which=WHICH)
    def take_over(self, which: int) -> None:
        """Freeze a worker until another has what it held; then it goes on, and writes."""
        record = self.model.records.get(self._pick_claimed(which))
        if record is None or record.lease is None:
            return
        holder = self._home_of(record.lease)
        self._lose_the_leases(holder)
        self._sweep(FRONTS[1])
        other = WORKERS[1 - WORKERS.index(holder)]
        self._thaw(other)
        self.claim(other, ("a", "b"), 3)
        self.write_late(which, 1)
        self._thaw(holder)

    def _sweep(self, front: str) -> None:
        self.model.sweep(self._facts(front), self._dead())
        self._ask(lambda side: side.sweep(front))

    def _pass(self, micros: int) -> None:
        self._observe()
        self.clock.advance(micros)
        for worker in self.owners:
            self._renew(worker)
        self._observe()
