"""The worker: claims operations, keeps their leases, runs their attempts, and goes down in good order.

Decides when to claim, when to renew and whom to tell to stop. What an attempt's end means is decided by
`attempt` and `lifecycle`. It never meets those who start operations except in the store.
"""

import logging
import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from heapq import heappop, heappush
from types import TracebackType
from typing import Any, Self

import anyio

from lro import lifecycle
from lro.admission import Quota
from lro.attempt import Attempt, until_saved
from lro.clock import Clock, SystemClock, WaryClock, micros
from lro.errors import LeaseLost, LROError, NotFound, StoreClosed, Unavailable
from lro.jobs import Job
from lro.lifecycle import Outcome, Raised, Record, State, StopReason, Unwound
from lro.limits import Limits
from lro.logs import about
from lro.status import Code, Status, error_info
from lro.store import Store
from lro.supervisor import Supervisor
from lro.telemetry import Observer, tell
from lro.watchdog import Watchdog

__all__ = ["Worker"]

log = logging.getLogger(__name__)

POLL_EVERY = 1.0  # seconds between two looks where no hint came
MAX_DUE = 10_000  # delayed operations whose time is kept in mind; the others are found by looking
UNWIND_LOG_EVERY = 5.0  # seconds
LAST_CLAIM = 10.0  # seconds that a shutdown waits for the answer to a claim; a store's patience is shorter


class Worker:
    """Runs operations, as `async with Worker(store, jobs=[...]):` inside the store's own `async with`.

    Leaving the block shuts down: no more claims; restartable jobs stop at their next checkpoint, others have
    the drain time to end; then all are stopped. Leases are kept throughout.

    Args:
        store: Where operations are found; open it first.
        jobs: The jobs to run; operations of others are left to other workers.
        concurrency: How many attempts run at once, in threads or not.
        lease: How long without a sign of life until others may take its operations over; renewed at a third.
        drain: How long a shutdown waits for jobs that are not restartable.
        limits: How large progress, results and errors may be.
        observer: Hears of attempts that begin, end or don't give way.
        blocked_after: How long one may hold the event loop up until it is named; None to watch none.
        deaf_after: How long one that was told to stop may pass no checkpoint until it is named.

    Raises:
        ValueError: Two jobs have the same name, or a number is out of its range.

    Attributes:
        store: The store.
        concurrency: How many attempts run at once.
        id: Its name in the store, new at each start.
    """

    def __init__(
        self,
        store: Store,
        jobs: Iterable[Job[Any, Any, Any]],  # Any: jobs of any types
        *,
        concurrency: int = 10,
        lease: timedelta = timedelta(seconds=30),
        drain: timedelta = timedelta(seconds=20),
        limits: Limits | None = None,
        observer: Observer | None = None,
        blocked_after: timedelta | None = timedelta(seconds=1),
        deaf_after: timedelta = timedelta(seconds=10),
        clock: Clock | None = None,
    ) -> None:
        self._jobs: dict[str, Job[Any, Any, Any]] = {}
        for one in jobs:
            if self._jobs.setdefault(one.name, one) is not one:
                msg = f"two jobs are named {one.name}: a worker must know which one to run"
                raise ValueError(msg)
        if concurrency < 1 or lease <= timedelta(0) or drain < timedelta(0):
            msg = "Worker: concurrency is at least 1, lease is positive and drain is not negative"
            raise ValueError(msg)
        if deaf_after <= timedelta(0) or (blocked_after is not None and blocked_after <= timedelta(0)):
            msg = "Worker: blocked_after and deaf_after are positive; blocked_after=None watches none"
            raise ValueError(msg)
        self._quotas = {name: one.quota for name, one in self._jobs.items() if one.quota != Quota()}
        self.store = store
        self.concurrency = concurrency
        self._lease = lease
        self._drain = drain
        self._limits = limits or Limits()
        self._observer = observer or Observer()
        self._blocked_after = blocked_after
        self._deaf_after = deaf_after
        self._clock = clock or SystemClock()
        self._works = False
        self._start_over()

    def _start_over(self) -> None:
        """Make all that lasts from one start to its end."""
        self.id = uuid.uuid4().hex
        self._wary = WaryClock(self._clock)
        self._attempts: dict[str, Attempt] = {}
        self._threads = anyio.CapacityLimiter(
            self.concurrency
        )  # of its own: an app's other threads are never in the way
        self._supervisor = Supervisor(log)
        self._watchdog: Watchdog | None = None
        if self._blocked_after is not None:
            self._watchdog = Watchdog(
                self._attempts.values,
                blocked_after=self._blocked_after.total_seconds(),
                deaf_after=self._deaf_after.total_seconds(),
                observer=self._observer,
            )
        self._closing = False
        self._wake_claimer = anyio.Event()
        self._wake_keeper = anyio.Event()
        self._slot_freed = anyio.Event()
        self._due: list[int] = []  # a heap of times at which delayed operations may be claimed, as far as known
        self._claim_lost = False  # a claim failed that may have been committed: then its records are ours
        self._claimer_done = anyio.Event()
        self._store_lost = False

    @property
    def ready(self) -> bool:
        """True while it claims and keeps its leases."""
        return self._supervisor.healthy and not self._closing and not self._store_lost

    @property
    def running(self) -> tuple[str, ...]:
        """The names of the operations that it runs now."""
        return tuple(self._attempts)

    async def __aenter__(self) -> Self:
        """Join the store and begin to claim."""
        if self._works:
            msg = "this worker works already: make another one"
            raise RuntimeError(msg)
        self._start_over()  # a process forked meanwhile must not have the id of another
        await self.store.join(self.id, micros(self._lease))
        await self._supervisor.__aenter__()
        self._stop_listening = self.store.listen(self._notice)
        self._supervisor.start("claimer", self._claim)
        self._supervisor.start("keeper", self._keep)
        if self._watchdog is not None:
            self._supervisor.start("watchdog", self._watchdog.watch)
        self._works = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down."""
        with anyio.CancelScope(shield=True):
            await self._shut_down()
        self._stop_listening()
        await self._supervisor.__aexit__(None, None, None)
        with anyio.CancelScope(shield=True):
            try:
                await self.store.leave(self.id)
            except LROError as error:
                log.warning("worker %s could not take its leave: %s", self.id, error)
        self._works = False

    async def _claim(self) -> None:
        """Claim whenever there is a free slot and perhaps something due."""
        while not self._closing:
            free = self.concurrency - len(self._attempts)
            if free <= 0:
                self._slot_freed = anyio.Event()
                await self._slot_freed.wait()
                continue
            self._wake_claimer = anyio.Event()
            try:
                records = await (self._find_lost() if self._claim_lost else self._claim_due(free))
            except Unavailable as error:
                log.warning("claiming failed: %s", error)
                await self._pause(POLL_EVERY)
                continue
            except StoreClosed as error:
                self._lose_store(error)
                break
            for record in records:
                await self._start(record)
            if not records:
                await self._pause(self._until_due())
        if self._claim_lost and not self._store_lost:
            for record in await until_saved(self._find_lost):
                await self._give_back(record)
        self._claimer_done.set()

    def _lose_store(self, error: StoreClosed) -> None:
        """Stop all that runs: the store has stopped, and nothing that is done from now on would ever be known."""
        if not self._store_lost:
            self._store_lost = True
            log.error("worker %s stops its operations: %s", self.id, error)
        for attempt in self._attempts.values():
            if not attempt.over:
                attempt.stop.force(StopReason.LEASE_LOST)

    async def _claim_due(self, limit: int) -> Sequence[Record]:
        self._claim_lost = True  # until we know better
        records = await self.store.claim(self.id, self._jobs, limit, self._quotas)
        self._claim_lost = False
        return records

    async def _find_lost(self) -> Sequence[Record]:
        """Return what this worker holds and has never started."""
        known = {(attempt.record.name, attempt.lease.token) for attempt in self._attempts.values()}
        records = await self.store.held(self.id)  # before the look, nobody but this loop could start one
        self._claim_lost = False
        return [record for record in records if (record.name, record.token) not in known]

    async def _pause(self, seconds: float) -> None:
        if not self._closing:
            with anyio.move_on_after(seconds):
                await self._wake_claimer.wait()

    def _until_due(self) -> float:
        now = self._clock.now()
        while self._due and self._due[0] <= now:
            heappop(self._due)
        return min((self._due[0] - now) / 1_000_000, POLL_EVERY) if self._due else POLL_EVERY

    async def _start(self, record: Record) -> None:
        if self._closing:
            await self._give_back(record)
            return
        attempt = Attempt(self._jobs[record.job], record, self.store, self._wary, self._threads, limits=self._limits)
        self._attempts[record.name] = attempt  # in place of one that is over and has just let it go
        if self._watchdog is not None:
            self._watchdog.begin()
        self._supervisor.spawn(record.name, partial(self._run, attempt))

    async def _give_back(self, record: Record) -> None:
        assert record.lease is not None
        transition = partial(lifecycle.give_back, lease=record.lease)
        until = anyio.current_time() + self._lease.total_seconds()  # after that it is anybody's
        try:
            await until_saved(partial(self.store.update, record.name, transition), lambda: anyio.current_time() > until)
        except LROError as error:
            about(log, record).warning("it could not be given back: %s", error)

    async def _run(self, attempt: Attempt) -> None:
        """Run an attempt and write what became of it."""
        record, began = attempt.record, anyio.current_time()
        written = record
        outcome: Outcome | None = None
        tell(self._observer.attempt_started, record)
        try:
            outcome = await attempt.run()
            if not (isinstance(outcome, Unwound) and outcome.reason is StopReason.LEASE_LOST):
                written = await self._finish_undisturbed(attempt, outcome)
                self._log_end(written, anyio.current_time() - began)
        except LeaseLost:
            about(log, record).warning("the lease was lost; what this attempt made of it (%s) is dropped", outcome)
        except NotFound:
            about(log, record).warning("it is gone from the store; what this attempt made of it is dropped")
        except StoreClosed:
            about(log, record).error("the store was closed before the end could be written; it is an orphan now")
        finally:
            if self._attempts.get(record.name) is attempt:
                del self._attempts[record.name]
            self._slot_freed.set()
            tell(self._observer.attempt_ended, written, anyio.current_time() - began)

    def _log_end(self, record: Record, seconds: float) -> None:
        if log.isEnabledFor(logging.INFO):
            state = record.state.value
            extra = {"state": state, "seconds": round(seconds, 6)}
            about(log, record).info("attempt ended after %.3f s: %s", seconds, state, extra=extra)

    async def _finish_undisturbed(self, attempt: Attempt, outcome: Outcome) -> Record:
        """Write the outcome, even if the job has left a cancellation of its own behind in this task."""
        while True:
            try:
                return await self._finish(attempt, outcome)
            except anyio.get_cancelled_exc_class():  # this task is shielded: only Task.cancel() comes through
                about(log, attempt.record).warning("its task was cancelled by hand while its end was written")

    async def _finish(self, attempt: Attempt, outcome: Outcome) -> Record:
        name, progress = attempt.record.name, attempt.report()
        finish = partial(
            lifecycle.finish, lease=attempt.lease, outcome=outcome, progress=progress, message=attempt.message
        )
        try:
            return await until_saved(partial(self.store.update, name, finish))
        except (LeaseLost, NotFound, StoreClosed):
            raise
        except LROError as error:  # the store can't keep it
            about(log, attempt.record).exception("its outcome can't be stored")
            info = error_info("RESULT_NOT_STORABLE", name=name)
            status = Status(
                Code.INTERNAL, f"{name} ended, but its outcome could not be stored: {error.message}", (info,)
            )
            finish = partial(lifecycle.finish, lease=attempt.lease, outcome=Raised(status))
            return await until_saved(partial(self.store.update, name, finish))

    def _notice(self, record: Record | None) -> None:
        """Take a hint of the store's; called on each commit, so it is quick."""
        if record is None:
            self._wake_claimer.set()
            self._wake_keeper.set()
            return
        if record.state is not State.RUNNING and record.job in self._quotas:
            self._wake_claimer.set()  # one less of it runs, so another may
        if record.state is State.PENDING:
            if record.job in self._jobs:
                self._notice_due(record)
        elif (attempt := self._attempts.get(record.name)) is not None:
            self._tell(attempt, record)
        elif record.lease_owner == self.id and record.cancel_due:
            self._wake_keeper.set()  # claimed, and cancelled before its attempt began here

    def _notice_due(self, record: Record) -> None:
        if lifecycle.is_due(record, self._clock.now()):
            self._wake_claimer.set()
        elif len(self._due) < MAX_DUE:
            heappush(self._due, record.due_at)
            if self._due[0] == record.due_at:
                self._wake_claimer.set()

    def _tell(self, attempt: Attempt, record: Record | None) -> None:
        """Tell an attempt what its record says now; None for a record that is not this worker's any more."""
        if attempt.over:
            return
        if record is None or record.token != attempt.lease.token or record.state is not State.RUNNING:
            attempt.stop.force(StopReason.LEASE_LOST)
        elif record.cancel_due:
            grace = None if record.grace is None else record.grace / 1_000_000
            attempt.stop.cancel(record.cancel_reason, grace)

    async def _keep(self) -> None:
        """Renew the leases, save reported progress, and pass on what no hint told."""
        renew_every = self._lease.total_seconds() / 3
        renewed_at = anyio.current_time()
        while True:
            wait = min(POLL_EVERY, max(0.0, renewed_at + renew_every - anyio.current_time()))
            with anyio.move_on_after(wait):
                await self._wake_keeper.wait()
            self._wake_keeper = anyio.Event()
            self._wary.doubt()  # it is to see a jump when it happens, not when the next attempt begins
            now = anyio.current_time()
            mine = list(self._attempts.values())
            try:
                if now - renewed_at >= renew_every:
                    records = await self.store.renew(self.id)
                    renewed_at = now
                elif mine:
                    records = await self.store.held(self.id)
                else:
                    continue
            except Unavailable as error:
                log.warning("the leases of worker %s could not be renewed or read: %s", self.id, error)
                await anyio.sleep(POLL_EVERY / 4)
                continue
            except StoreClosed as error:
                self._lose_store(error)
                return
            held = {record.name: record for record in records}
            for attempt in mine:
                self._tell(attempt, held.get(attempt.record.name))
            await self._save_reports(mine)

    async def _save_reports(self, attempts: list[Attempt]) -> None:
        async with anyio.create_task_group() as group:
            for attempt in attempts:
                group.start_soon(self._save_report, attempt)

    async def _save_report(self, attempt: Attempt) -> None:
        try:
            await attempt.save_report()
        except LeaseLost:
            self._tell(attempt, None)
        except LROError as error:
            about(log, attempt.record).warning("its progress could not be saved: %s", error)

    async def _shut_down(self) -> None:
        self._closing = True
        self._wake_claimer.set()
        self._slot_freed.set()
        for attempt in self._attempts.values():
            attempt.stop.shut_down()
        with anyio.move_on_after(self._drain.total_seconds()):
            await self._claimer_done.wait()
            await self._all_over()
        for attempt in self._attempts.values():
            if not attempt.over:
                about(log, attempt.record).warning("it did not end within the drain time and is stopped")
                attempt.stop.force(StopReason.SHUTDOWN)
        while self._attempts:
            with anyio.move_on_after(UNWIND_LOG_EVERY):
                await self._all_over()
            for attempt in self._attempts.values():
                why = "its thread reaches no checkpoint" if attempt.job.in_thread else "it swallows its cancellation"
                about(log, attempt.record).error("it was stopped and still runs: %s; waiting for it", why)
        with anyio.move_on_after(LAST_CLAIM):
            await self._claimer_done.wait()  # what a slow claim has brought is to be given back, or it counts as lost

    async def _all_over(self) -> None:
        while self._attempts:
            self._slot_freed = anyio.Event()
            await self._slot_freed.wait()
