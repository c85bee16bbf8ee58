"""A wall clock that jumps: nothing is stolen, ended or removed early, nothing waits for it, the dead are noticed.

Leases are judged by monotonic clocks (tests/store/test_leases.py, and the contract of the stores); here whole stores
and workers go through jumps of their wall clocks.
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from lro import Code, Context, Job, Operations, State, Worker, job
from lro.clock import BELIEVED_AFTER, NO_JUMP, SystemClock, WaryClock, micros
from lro.lifecycle import Raised, Returned, StopReason, Unwound, claim, finish, sweep
from lro.lifecycle.record import Record
from lro.status import Status
from lro.store.sqlite import SQLiteStore
from lro.testing.contract import ManualClock
from tests.jobs import Relay, Story, ended, result
from tests.places import Apart
from tests.records import HOUR, LEASE, NOW, SECOND, at, record, running
from tests.records import ended as ended_record

YEAR = 365 * 24 * HOUR
AWAY = Status(Code.UNAVAILABLE, "away")
LONG = timedelta(seconds=12)  # a lease whose beat stands still for several looks around
LOOK = 1.2  # seconds in which a store looks around


class JumpyClock(SystemClock):
    """The machine's clocks, but for jumps of the wall clock."""

    def __init__(self) -> None:
        self._ahead = 0

    def now(self) -> int:
        return super().now() + self._ahead

    def jump(self, by: int) -> None:
        self._ahead += by

    def set(self, to: datetime) -> None:
        self._ahead = micros(to) - super().now()


JUMPS: dict[str, Callable[[JumpyClock], None]] = {
    "an hour ahead": lambda clock: clock.jump(HOUR),
    "back again": lambda clock: clock.jump(-HOUR),
    "an hour back": lambda clock: clock.jump(-HOUR),
    "20 s ahead": lambda clock: clock.jump(20 * SECOND),
    "20 s back": lambda clock: clock.jump(-20 * SECOND),
    "1970": lambda clock: clock.set(datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)),
    "2100": lambda clock: clock.set(datetime(2100, 1, 1, tzinfo=UTC)),
    "now": lambda clock: clock.set(datetime.now(UTC)),
}


# -- the clock that is slow to believe


def test_a_jump_ahead_is_believed_only_once_it_has_lasted() -> None:
    clock = ManualClock()
    wary = WaryClock(clock)
    start = clock.now()
    clock.jump(YEAR)
    assert (wary.doubt(), wary.now()) == (YEAR, start)
    clock.advance(round(BELIEVED_AFTER * SECOND) - 1)
    assert wary.doubt() == YEAR
    assert wary.now() == clock.now() - YEAR
    clock.advance(1)
    assert (wary.doubt(), wary.now()) == (0, clock.now())
    assert wary.doubt() == 0


def test_a_jump_that_is_taken_back_leaves_nothing() -> None:
    clock = ManualClock()
    wary = WaryClock(clock)
    clock.jump(YEAR)
    assert wary.doubt() == YEAR
    clock.advance(60 * SECOND)
    clock.jump(-YEAR)
    assert wary.doubt() == 0
    clock.advance(round(BELIEVED_AFTER * SECOND))
    clock.jump(HOUR)
    assert wary.doubt() == HOUR, "the next one is doubted as long"
    clock.advance(round(BELIEVED_AFTER * SECOND) - 1)
    assert wary.doubt() == HOUR


def test_another_jump_is_doubted_from_its_own_time_on() -> None:
    clock = ManualClock()
    wary = WaryClock(clock)
    clock.jump(HOUR)
    assert wary.doubt() == HOUR
    clock.advance(round(BELIEVED_AFTER * SECOND) - 1)
    clock.jump(YEAR)
    assert wary.doubt() == YEAR + HOUR
    clock.advance(1)
    assert wary.doubt() == YEAR + HOUR


def test_a_jump_back_is_believed_at_once() -> None:
    clock = ManualClock()
    wary = WaryClock(clock)
    clock.jump(-YEAR)
    assert (wary.doubt(), wary.now()) == (0, clock.now())
    clock.jump(YEAR)
    assert wary.doubt() == YEAR, "whether it was right before nobody knows"


def test_what_a_clock_gains_by_and_by_is_no_jump() -> None:
    clock = ManualClock()
    wary = WaryClock(clock)
    for _ in range(1000):
        clock.advance(SECOND)
        clock.jump(NO_JUMP // 10)
        assert wary.doubt() == 0
    assert wary.monotonic() == clock.monotonic()


# -- the rules


def test_a_deadline_at_rest_does_not_pass_by_a_jump_that_is_in_doubt() -> None:
    waiting = record(deadline_at=NOW + 60 * SECOND)
    jumped = at(3600)._replace(doubt=3590 * SECOND)
    assert sweep(waiting, jumped) is waiting
    assert claim(waiting, jumped, owner="w", lease_time=HOUR).state is State.RUNNING
    passed = sweep(waiting, at(3600)._replace(doubt=3540 * SECOND))
    assert passed is not None
    assert passed.state is State.FAILED


def test_an_orphan_a_retry_and_a_shutdown_are_not_late_by_a_jump_that_is_in_doubt() -> None:
    late = running(restartable=True, attempt_limit=3, deadline_at=NOW + 60 * SECOND)
    jumped = at(3600)._replace(doubt=3590 * SECOND)
    orphan = sweep(late, jumped._replace(lease_expired=True))
    assert orphan is not None
    assert orphan.state is State.PENDING
    again = Raised(AWAY, retry_in=SECOND)
    assert finish(late, jumped, lease=LEASE, outcome=again).state is State.PENDING
    assert finish(late, jumped, lease=LEASE, outcome=Raised(AWAY, retry_in=60 * SECOND)).state is State.FAILED
    assert finish(late, jumped, lease=LEASE, outcome=Unwound(StopReason.SHUTDOWN)).state is State.PENDING
    retried = finish(late, jumped, lease=LEASE, outcome=again)
    assert finish(retried, jumped, lease=LEASE, outcome=again) is retried


@pytest.mark.parametrize("request_id", [None, "1"])
def test_nothing_is_removed_by_a_jump_that_is_in_doubt(request_id: str | None) -> None:
    done = ended_record(State.SUCCEEDED, request_id=request_id)
    jumped = at(10)._replace(now=NOW + YEAR + 10 * SECOND, doubt=YEAR)
    assert sweep(done, jumped) is done
    buried = done._replace(deleted_at=NOW, expire_at=NOW + 24 * HOUR)
    assert sweep(buried, jumped) is buried
    assert sweep(done, jumped._replace(doubt=0)) is None
    hidden = sweep(ended_record(State.SUCCEEDED, request_id="1", expire_at=NOW + 5 * SECOND), jumped)
    assert hidden is not None, "its request id counts for another day"
    assert hidden.deleted_at is not None


def test_how_long_a_result_is_kept_does_not_depend_on_a_jump() -> None:
    one = running(retention=HOUR)
    ahead = finish(one, at(10)._replace(now=NOW + YEAR, doubt=YEAR - 10 * SECOND), lease=LEASE, outcome=Returned("1"))
    assert ahead.expire_at == NOW + 10 * SECOND + HOUR
    back = finish(one, at(10)._replace(now=5 * SECOND), lease=LEASE, outcome=Returned("1"))
    assert back.expire_at == NOW + HOUR, "in 1970 it would be removed as soon as the clock is right again"


# -- whole stores and workers


def holder(story: Story) -> Job[None, None, str]:
    @job("tests.hold")
    async def hold(ctx: Context) -> str:
        story.tell(f"holds {ctx.attempt}")
        while "let go" not in story.told:
            await anyio.sleep(0.005)
        return "held"

    return hold


@job("tests.quick")
async def quick(ctx: Context) -> str:
    return "quick"


@job("tests.unknown")
async def unknown(ctx: Context) -> None:
    """One that nobody here runs."""


async def test_jumps_steal_end_and_remove_nothing_and_keep_nothing_waiting(tmp_path: Path) -> None:
    clock, story = JumpyClock(), Story()
    hold = holder(story)
    async with AsyncExitStack() as exits:
        stores = [await exits.enter_async_context(SQLiteStore(Apart(tmp_path, name), clock=clock)) for name in "ab"]
        operations = [Operations(store, clock=clock) for store in stores]
        for store in stores:
            worker = Worker(store, [hold, quick], lease=LONG, clock=clock)
            await exits.enter_async_context(worker)
        held = (await operations[0].start(hold)).name
        await story.heard("holds 1")
        kept = (await operations[0].start(quick, ttl=timedelta(minutes=10))).name
        assert await result(operations[0], quick, kept) == "quick"
        waiting = (await operations[0].start(unknown, timeout=timedelta(minutes=10))).name

        await anyio.sleep(LOOK)  # so that the other one has seen its beat
        for name, jump in JUMPS.items():
            before = [(await operations[0].start(quick)).name]
            jump(clock)
            before.append((await operations[1].start(quick)).name)
            asked = anyio.current_time()
            for one in before:
                assert await result(operations[0], quick, one) == "quick"
            assert anyio.current_time() - asked < 0.9, f"{name}: not at once, but at a look around"
            await anyio.sleep(LOOK if name in ("an hour ahead", "2100") else 0)
            assert (await operations[1].get(held)).state is State.RUNNING, name
            assert (await operations[1].get(waiting)).state is State.PENDING, name
            assert (await operations[1].get(kept)).state is State.SUCCEEDED, name
        story.tell("let go")
        assert await result(operations[1], hold, held) == "held"
        assert story.told.count("holds 1") == 1
        await operations[1].cancel(waiting)


async def jump_again_and_again(clock: JumpyClock) -> None:
    while True:
        for jump in JUMPS.values():
            jump(clock)
            await anyio.sleep(0.1)


class Frozen(Relay):
    """Renews until it is told not to."""

    async def renew(self, owner: str) -> Sequence[Record]:
        if self.stands:
            await anyio.sleep_forever()
        return await super().renew(owner)

    stands = False


async def test_a_dead_worker_is_noticed_within_two_leases_whatever_the_clock_does(tmp_path: Path) -> None:
    lease = timedelta(seconds=2.5)  # and a look around once a second
    clock, story = JumpyClock(), Story()
    hold = holder(story)
    async with (
        SQLiteStore(Apart(tmp_path, "a"), clock=clock) as store,
        SQLiteStore(Apart(tmp_path, "b"), clock=clock) as observer,
        Worker(frozen := Frozen(store), [hold], lease=lease, clock=clock),
    ):
        held = (await Operations(store, clock=clock).start(hold)).name
        await story.heard("holds 1")
        frozen.stands = True
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            group.start_soon(jump_again_and_again, clock)
            with anyio.fail_after(10):
                while not (operation := await Operations(observer, clock=clock).wait(held)).done:
                    pass
            group.cancel_scope.cancel()
        took = anyio.current_time() - began
        story.tell("let go")
    assert operation.error is not None
    assert operation.error.reason == "WORKER_LOST"
    assert lease.total_seconds() / 2 < took < 2 * lease.total_seconds()


# -- deadlines of attempts


@pytest.mark.parametrize("name", ["an hour ahead", "an hour back", "1970", "2100"])
async def test_a_deadline_in_an_attempt_is_as_far_as_it_was(tmp_path: Path, name: str) -> None:
    clock, story = JumpyClock(), Story()

    @job("tests.timed", timeout=timedelta(seconds=0.4))
    async def timed(ctx: Context) -> None:
        story.tell("runs")
        await anyio.sleep_forever()

    async with (
        SQLiteStore(Apart(tmp_path, "a"), clock=clock) as store,
        Worker(store, [timed], clock=clock),
    ):
        operations = Operations(store, clock=clock)
        running_one = (await operations.start(timed)).name
        began = anyio.current_time()
        await story.heard("runs")
        JUMPS[name](clock)
        first = await ended(operations, running_one)
        took = anyio.current_time() - began
    assert first.error is not None
    assert first.error.code == Code.DEADLINE_EXCEEDED
    assert 0.35 < took < 1.5


@pytest.mark.parametrize("name", ["an hour ahead", "an hour back", "1970", "2100"])
async def test_an_attempt_that_begins_after_a_jump_has_the_time_that_was_left(tmp_path: Path, name: str) -> None:
    """All of its time at most, where the clock has gone back and nobody knows."""
    clock, story = JumpyClock(), Story()
    hold = holder(story)
    left: list[float] = []

    @job("tests.timed", timeout=timedelta(hours=1))
    async def timed(ctx: Context) -> None:
        left.append(anyio.current_effective_deadline() - anyio.current_time())

    async with (
        SQLiteStore(Apart(tmp_path, "a"), clock=clock) as store,
        Worker(store, [hold, timed], concurrency=1, clock=clock),
    ):
        operations = Operations(store, clock=clock)
        await operations.start(hold)
        await story.heard("holds 1")
        started = (await operations.start(timed)).name
        JUMPS[name](clock)
        story.tell("let go")
        assert (await ended(operations, started)).state is State.SUCCEEDED
    assert 3590 < left[0] <= 3600


# -- lists


async def test_a_walk_over_the_pages_goes_on_through_jumps(tmp_path: Path) -> None:
    """What existed all the time is seen once; newest first means by the time that each was given."""
    clock = JumpyClock()
    async with SQLiteStore(Apart(tmp_path, "a"), clock=clock) as store:
        operations = Operations(store, clock=clock)
        there: list[str] = []
        for jump in JUMPS.values():
            jump(clock)
            there += [(await operations.start(unknown)).name for _ in range(3)]
        seen: list[str] = []
        token = ""
        for name in ("an hour ahead", "back again", "an hour back", "20 s ahead", "now", *["now"] * 9):
            page = await operations.list(page_size=2, page_token=token)
            seen += [operation.name for operation in page.operations]
            token = page.next_page_token
            if not token:
                break
            JUMPS[name](clock)
            await operations.start(unknown)
        assert not token
    assert len(set(seen)) == len(seen)
    assert set(there) <= set(seen)


async def test_a_request_id_counts_through_a_jump_back(tmp_path: Path) -> None:
    clock = JumpyClock()
    async with SQLiteStore(Apart(tmp_path, "a"), clock=clock) as store:
        operations = Operations(store, clock=clock)
        first = await operations.start(unknown, request_id="1")
        for jump in JUMPS.values():
            jump(clock)
            assert (await operations.start(unknown, request_id="1")).name == first.name
