"""The worker: claims no more than it can run, keeps its leases, passes stops on, and goes down in good order."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import anyio
import pytest

from lro import Code, Context, Job, Operations, RetryPolicy, State, StopReason, Worker, job, lifecycle
from lro.admission import NO_QUOTAS, Quotas
from lro.errors import InvalidArgument, LeaseLost, LROError, NotFound, StoreClosed, Unavailable
from lro.lifecycle import Record, Transition
from lro.store import Store, open_store
from lro.store.base import Within
from tests.jobs import PATIENCE, Params, Progress, Relay, Story, ended, is_call_of, result, stored, until

SHORT = timedelta(milliseconds=90)  # a lease that is renewed every 30 ms
MOMENT = timedelta(milliseconds=20)

AnyJob = Job[Any, Any, Any]  # Any: a job of any types


def sleeper(story: Story, name: str = "tests.sleep", **options: Any) -> Job[None, None, None]:  # Any: options of job
    """Return a job that says "runs" and sleeps until it is stopped."""

    async def sleep(ctx: Context) -> None:
        story.tell("runs")
        try:
            await ctx.sleep(3600)
        finally:
            story.tell(f"stopped: {ctx.stop_reason}")

    return job(name, **options)(sleep)


def sticker(story: Story, **options: Any) -> Job[None, None, str]:  # Any: options of job
    """Return a job that says "runs" and looks at nothing until it hears "go on"."""

    async def stick(ctx: Context) -> str:
        story.tell("runs")
        await story.heard("go on")
        return "stuck to it"

    return job("tests.stick", **options)(stick)


# -- claiming


async def test_a_worker_runs_no_more_at_once_than_it_has_slots(store: Store) -> None:
    running, most = 0, 0

    @job("tests.count")
    async def count(ctx: Context, params: Params) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        return params.pages

    class Counting(Relay):
        most_wanted = 0

        async def claim(
            self, owner: str, jobs: Iterable[str], limit: int, quotas: Quotas = NO_QUOTAS
        ) -> Sequence[Record]:
            records = await super().claim(owner, jobs, limit, quotas)
            Counting.most_wanted = max(Counting.most_wanted, limit)
            assert len(await self.held(owner)) <= 3
            return records

    operations = Operations(store)
    names = [(await operations.start(count, Params(pages=page))).name for page in range(100)]
    async with Worker(Counting(store), [count], concurrency=3):
        results = [await result(operations, count, name) for name in names]

    assert results == list(range(100))
    assert most == 3
    assert Counting.most_wanted == 3


async def test_higher_priority_runs_first_and_then_the_older_one(store: Store) -> None:
    order: list[int] = []

    @job("tests.order")
    async def note(ctx: Context, params: Params) -> None:
        order.append(params.pages)

    operations = Operations(store)
    names = [
        (await operations.start(note, Params(pages=page), priority=priority)).name
        for page, priority in enumerate([0, -5, 7, 0, 7, 2**31 - 1])
    ]
    async with Worker(store, [note], concurrency=1):
        for name in names:
            await ended(operations, name)

    assert order == [5, 2, 4, 0, 3, 1]


async def test_a_scheduled_start_does_not_run_before_its_time(store: Store) -> None:
    started: list[datetime] = []

    @job("tests.later")
    async def later(ctx: Context) -> None:
        started.append(datetime.now(UTC))

    operations = Operations(store)
    async with Worker(store, [later]):
        at = datetime.now(UTC) + timedelta(milliseconds=150)
        operation = await operations.start(later, schedule_at=at)
        assert operation.metadata["scheduleTime"]
        await ended(operations, operation.name)

    assert at <= started[0] < at + timedelta(milliseconds=500)


async def test_jobs_that_a_worker_was_not_given_are_left_alone(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    async with Worker(store, [sleeper(story, "tests.mine")]):
        foreign = await operations.start(sleeper(story, "tests.foreign"))
        await operations.start(sleeper(story, "tests.mine"))
        await story.heard("runs")
        assert (await operations.get(foreign.name)).state is State.PENDING
        for name in (foreign.name,):
            await operations.cancel(name)
        await anyio.lowlevel.checkpoint()
        assert story.told == ["runs"]
        (mine,) = [operation for operation in (await operations.list()).operations if not operation.done]
        await operations.cancel(mine.name)


async def test_two_workers_share_the_work_and_nothing_runs_twice(url: str, store: Store) -> None:
    runs: list[tuple[str, int]] = []

    def make(worker: str) -> Job[Params, None, None]:
        async def work(ctx: Context, params: Params) -> None:
            runs.append((worker, params.pages))
            await anyio.sleep(0.001)

        return job("tests.share")(work)

    operations = Operations(store)
    names = [(await operations.start(make("none"), Params(pages=page))).name for page in range(60)]
    async with (
        open_store(url) as second,
        Worker(store, [make("first")], concurrency=2),
        Worker(second, [make("second")], concurrency=2),
    ):
        for name in names:
            await ended(operations, name)

    assert sorted(page for _, page in runs) == list(range(60))
    assert {worker for worker, _ in runs} == {"first", "second"}


async def test_a_quota_is_kept_by_all_workers_and_the_next_begins_as_soon_as_one_ends(url: str) -> None:
    """Each worker has a store of its own, as in another process; the free slots of both are no use."""
    running, most = 0, 0
    began: list[float] = []

    @job("tests.scarce", concurrency=2, concurrency_per_target=1)
    async def scarce(ctx: Context) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        began.append(anyio.current_time())
        await anyio.sleep(0.01)
        running -= 1

    async with open_store(url) as store, open_store(url) as other:
        operations = Operations(store)
        names = [(await operations.start(scarce, target=f"shelves/{number % 3}")).name for number in range(20)]
        async with Worker(store, [scarce]), Worker(other, [scarce]):
            for name in names:
                await ended(operations, name)

    assert most == 2
    gaps = [after - before for before, after in pairwise(began)]
    assert sorted(gaps)[len(gaps) // 2] < 0.5, "nobody waits for the next look, which comes once a second"


async def test_an_attempt_may_follow_at_once_on_the_one_before(store: Store) -> None:
    """A claim in the same batch as the end of the attempt before is answered while that is still leaving."""
    runs: list[int] = []

    @job("tests.again", retry=RetryPolicy(attempts=30, initial_delay=timedelta(0)))
    async def again(ctx: Context) -> int:
        runs.append(ctx.attempt)
        if ctx.attempt < 30:
            raise ValueError
        return ctx.attempt

    operations = Operations(store)
    async with Worker(store, [again], concurrency=4) as worker:
        names = [(await operations.start(again)).name for _ in range(3)]
        assert [await result(operations, again, name) for name in names] == [30, 30, 30]
        await until(lambda: worker.running == ())

    assert sorted(runs) == sorted(list(range(1, 31)) * 3)


class HoldingUp(Relay):
    """Answers a claim only when it is let go, long after its commit."""

    def __init__(self, store: Store, story: Story) -> None:
        super().__init__(store)
        self.story = story

    async def claim(self, owner: str, jobs: Iterable[str], limit: int, quotas: Quotas = NO_QUOTAS) -> Sequence[Record]:
        records = await super().claim(owner, jobs, limit, quotas)
        if records:
            self.story.tell("claimed")
            await self.story.heard("let go")
        return records


@pytest.mark.parametrize("drain", [timedelta(seconds=20), timedelta(0)], ids=str)
async def test_what_is_claimed_while_the_worker_goes_down_is_given_back(store: Store, drain: timedelta) -> None:
    story = Story()
    operations = Operations(store)
    name = (await operations.start(sleeper(story))).name
    worker = Worker(HoldingUp(store, story), [sleeper(story)], drain=drain)

    async def let_go() -> None:
        await until(lambda: not worker.ready)
        await anyio.wait_all_tasks_blocked()  # whatever a drain that is over had to wait for, it waits for no more
        story.tell("let go")

    async with worker:
        await story.heard("claimed")
        task = asyncio.create_task(let_go())
    await task

    record = await stored(store, name)
    assert (record.state, record.attempt, record.lease_owner) == (State.PENDING, 0, None)
    assert story.told == ["claimed", "let go"]


class ForgettingClaims(Relay):
    """Commits the first claim that finds something, and then says that its outcome is unknown."""

    def __init__(self, store: Store, error: Exception) -> None:
        super().__init__(store)
        self.error = error
        self.forgot = anyio.Event()

    async def claim(self, owner: str, jobs: Iterable[str], limit: int, quotas: Quotas = NO_QUOTAS) -> Sequence[Record]:
        records = await super().claim(owner, jobs, limit, quotas)
        if records and not self.forgot.is_set():
            self.forgot.set()
            raise self.error
        return records


@pytest.mark.parametrize("error", [Unavailable(), RuntimeError("no answer")], ids=["Unavailable", "RuntimeError"])
async def test_a_claim_whose_outcome_is_unknown_is_neither_lost_nor_started_twice(
    store: Store, error: Exception
) -> None:
    runs: list[str] = []

    @job("tests.once")
    async def once(ctx: Context) -> None:
        runs.append(ctx.name)
        await anyio.sleep(0.001)

    operations = Operations(store)
    names = [(await operations.start(once)).name for _ in range(5)]
    async with Worker(ForgettingClaims(store, error), [once], concurrency=3):
        for name in names:
            assert (await ended(operations, name)).metadata["attempt"] == 1

    assert sorted(runs) == sorted(names)


async def test_a_claim_whose_outcome_is_unknown_at_shutdown_is_given_back(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    name = (await operations.start(sleeper(story))).name
    forgetting = ForgettingClaims(store, Unavailable())

    async with Worker(forgetting, [sleeper(story)]):
        with anyio.fail_after(PATIENCE):
            await forgetting.forgot.wait()

    record = await stored(store, name)
    assert (record.state, record.attempt) == (State.PENDING, 0)
    assert story.told == []


class RefusingOnce(Relay):
    """Refuses one kind of write once, with an error of the test's choice."""

    def __init__(self, store: Store, rule: Any, error: LROError, *, times: int = 1) -> None:  # Any: of lifecycle
        super().__init__(store)
        self.rule = rule
        self.error = error
        self.times = times

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        if self.times and is_call_of(transition, self.rule):
            self.times -= 1
            raise self.error
        return await super().update(name, transition, within)


async def test_what_could_not_be_given_back_is_tried_again(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    name = (await operations.start(sleeper(story))).name
    refusing = RefusingOnce(HoldingUp(store, story), lifecycle.give_back, Unavailable())
    worker = Worker(refusing, [sleeper(story)])

    async def let_go() -> None:
        await until(lambda: not worker.ready)
        story.tell("let go")

    async with worker:
        await story.heard("claimed")
        task = asyncio.create_task(let_go())
    await task

    record = await stored(store, name)
    assert (record.state, record.attempt) == (State.PENDING, 0)


class SlowHeld(ForgettingClaims):
    """Answers `held` with what it read before the attempt of another operation ended."""

    def __init__(self, store: Store, story: Story) -> None:
        super().__init__(store, Unavailable())
        self.story = story

    async def claim(self, owner: str, jobs: Iterable[str], limit: int, quotas: Quotas = NO_QUOTAS) -> Sequence[Record]:
        if not self.story.told:
            return await self.store.claim(owner, jobs, 1)
        return await super().claim(owner, jobs, limit, quotas)

    async def held(self, owner: str) -> Sequence[Record]:
        records = await super().held(owner)
        if anyio.get_current_task().name == "lro: claimer":
            assert len(records) == 2
            self.story.tell("go on")
            await self.story.heard("over")
        return records


async def test_what_ended_while_the_worker_looked_for_a_lost_claim_is_not_started_again(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    stick = sticker(story)

    @job("tests.second")
    async def second(ctx: Context) -> None:
        await story.heard("over")

    slow = SlowHeld(store, story)
    async with Worker(slow, [stick, second], concurrency=5, lease=timedelta(seconds=300)) as worker:
        first = (await operations.start(stick)).name
        await story.heard("runs")
        other = (await operations.start(second)).name
        await ended(operations, first)
        await until(lambda: first not in worker.running)
        story.tell("over")
        await ended(operations, other)
        await until(lambda: worker.running == ())

    assert story.told.count("runs") == 1


class Breaking(Relay):
    """Raises what no store should, a few times."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.left = 3
        self.broke = 0

    async def claim(self, owner: str, jobs: Iterable[str], limit: int, quotas: Quotas = NO_QUOTAS) -> Sequence[Record]:
        if self.left:
            self.left -= 1
            self.broke += 1
            raise ZeroDivisionError
        return await super().claim(owner, jobs, limit, quotas)


async def test_a_worker_survives_whatever_the_store_raises(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    @job("tests.fine")
    async def fine(ctx: Context) -> str:
        return "fine"

    operations, breaking = Operations(store), Breaking(store)
    async with Worker(breaking, [fine]) as worker:
        await until(lambda: breaking.broke > 0)
        ready = [worker.ready]
        assert await result(operations, fine, (await operations.start(fine)).name) == "fine"
        ready.append(worker.ready)
    ready.append(worker.ready)

    assert ready == [False, True, False]
    assert breaking.broke == 3
    assert "claimer failed; it starts again in" in caplog.text


# -- definition


async def test_two_jobs_of_one_name_are_refused(store: Store) -> None:
    story = Story()
    one, other = sleeper(story), sleeper(story)

    with pytest.raises(ValueError, match="two jobs are named tests"):
        Worker(store, [one, other])
    Worker(store, [one, one])


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"lease": timedelta(0)}, {"drain": timedelta(microseconds=-1)}], ids=str
)
async def test_numbers_out_of_range_are_refused(store: Store, options: dict[str, Any]) -> None:  # Any: of Worker
    with pytest.raises(ValueError, match="concurrency is at least 1, lease is positive and drain is not negative"):
        Worker(store, [], **options)


async def test_a_worker_may_be_left_as_soon_as_it_is_entered(store: Store) -> None:
    worker = Worker(store, [])

    async def enter_and_leave() -> None:
        async with worker:
            assert worker.ready

    task = asyncio.create_task(enter_and_leave())  # no scope of ours would end it: the shutdown is shielded
    done, _ = await asyncio.wait({task}, timeout=1)

    assert done
    assert not worker.ready


async def test_a_worker_is_entered_once_at_a_time_and_again_under_another_id(store: Store) -> None:
    operations, story = Operations(store), Story()
    quick = job("tests.quick")(_tell_it_ran(story))
    worker = Worker(store, [quick])
    ids = []
    for _ in range(2):
        async with worker:
            with pytest.raises(RuntimeError, match="this worker works already: make another one"):
                await worker.__aenter__()
            ids.append(worker.id)
            assert (await ended(operations, (await operations.start(quick)).name)).state is State.SUCCEEDED
        assert not worker.ready

    assert ids[0] != ids[1]
    assert story.told == ["ran", "ran"]


async def test_a_worker_that_could_not_join_can_be_entered_later(url: str) -> None:
    store = open_store(url)
    worker = Worker(store, [])
    with pytest.raises(StoreClosed):
        await worker.__aenter__()
    async with store, worker:
        assert worker.ready


def _tell_it_ran(story: Story) -> Any:
    async def quick(ctx: Context) -> None:
        story.tell("ran")

    return quick


# -- leases and stops


async def test_all_leases_are_renewed_with_one_write(store: Store) -> None:
    story = Story()

    class Counting(Relay):
        renewals = 0
        updates = 0

        async def renew(self, owner: str) -> Sequence[Record]:
            records = await super().renew(owner)
            Counting.renewals += 1
            assert len(records) == 5
            return records

        async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
            Counting.updates += 1
            return await super().update(name, transition, within)

    operations = Operations(store)
    stick = sticker(story)
    names = [(await operations.start(stick)).name for _ in range(5)]
    async with Worker(Counting(store), [stick], lease=timedelta(milliseconds=300)):
        await until(lambda: story.told.count("runs") == 5)
        versions = [(await stored(store, name)).version for name in names]
        await until(lambda: Counting.renewals >= 2)
        assert Counting.updates == 0
        assert [(await stored(store, name)).version for name in names] == versions
        story.tell("go on")
        for name in names:
            await ended(operations, name)


async def test_a_cancel_reaches_a_running_job_at_its_next_checkpoint(store: Store) -> None:
    story = Story()

    @job("tests.steps")
    async def steps(ctx: Context) -> None:
        await ctx.checkpoint()
        story.tell("runs")
        await story.heard("cancelled")
        story.tell("before its checkpoint")
        await ctx.checkpoint()
        story.tell("never")

    operations = Operations(store)
    async with Worker(store, [steps]):
        name = (await operations.start(steps)).name
        await story.heard("runs")
        await operations.cancel(name)
        story.tell("cancelled")
        assert (await ended(operations, name)).state is State.CANCELLED

    assert story.told == ["runs", "cancelled", "before its checkpoint"]


async def test_a_cancel_through_another_store_reaches_it_too(url: str, store: Store) -> None:
    story = Story()
    async with open_store(url) as other, Worker(store, [sleeper(story)]):
        name = (await Operations(other).start(sleeper(story))).name
        await story.heard("runs")
        await Operations(other).cancel(name, reason="from afar")
        assert (await ended(Operations(store), name)).state is State.CANCELLED

    assert story.told == ["runs", "stopped: CANCEL"]


class Deaf(Relay):
    """A store without hints."""

    def listen(self, listener: Any) -> Any:  # Any: see Store
        return lambda: None


async def test_without_any_hint_work_and_cancels_are_found_all_the_same(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    async with Worker(Deaf(store), [sleeper(story)], lease=SHORT):
        name = (await operations.start(sleeper(story))).name
        await story.heard("runs")
        await operations.cancel(name)
        assert (await ended(operations, name)).state is State.CANCELLED


async def test_a_cancel_between_the_claim_and_the_start_is_delivered(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    async with Worker(HoldingUp(store, story), [sleeper(story)]):
        name = (await operations.start(sleeper(story))).name
        await story.heard("claimed")
        await operations.cancel(name)
        story.tell("let go")
        assert (await ended(operations, name)).state is State.CANCELLED


def taken_over(record: Record, facts: lifecycle.Facts) -> Record:
    """Do what another worker's claim after an expired lease would have done."""
    orphan = record._replace(state=State.PENDING, due_at=0)
    return lifecycle.claim(orphan, facts, owner="another", lease_time=30_000_000)


@pytest.mark.parametrize("deaf", [False, True], ids=["told by a hint", "found by a renewal"])
async def test_a_job_whose_lease_was_lost_is_stopped(store: Store, deaf: bool) -> None:
    story = Story()
    operations = Operations(store)
    async with Worker(Deaf(store) if deaf else store, [sleeper(story)], lease=SHORT) as worker:
        name = (await operations.start(sleeper(story))).name
        await story.heard("runs")
        await store.update(name, taken_over)
        await story.heard("stopped: LEASE_LOST")
        await until(lambda: worker.running == ())

    record = await stored(store, name)
    assert (record.state, record.lease_owner, record.token) == (State.RUNNING, "another", 2)


async def test_the_late_write_of_a_lost_lease_is_refused(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    story = Story()
    refused: list[str] = []

    class Watching(Deaf):
        async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
            try:
                return await super().update(name, transition, within)
            except LeaseLost as error:
                refused.append(error.message)
                raise

    operations = Operations(store)
    async with Worker(Watching(store), [sticker(story)], lease=timedelta(seconds=300)) as worker:
        name = (await operations.start(sticker(story))).name
        await story.heard("runs")
        await store.update(name, taken_over)
        story.tell("go on")
        await until(lambda: worker.running == ())

    record = await stored(store, name)
    assert (record.state, record.lease_owner, record.response) == (State.RUNNING, "another", None)
    assert refused == [
        (
            f"{name} is RUNNING under token 2, not RUNNING under 1: another worker has it now, or it has ended; "
            "nothing was written"
        )
    ]
    assert f"{name}: the lease was lost; what this attempt made of it" in caplog.text


# -- a store that is down


class Down(Relay):
    """Can't be reached while `down` is set, but for what the test itself does."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.down = False
        self.refused: list[str] = []

    def _check(self, what: str) -> None:
        if self.down:
            self.refused.append(what)
            raise Unavailable

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        self._check("finish" if is_call_of(transition, lifecycle.finish) else "save")
        return await super().update(name, transition, within)

    async def claim(self, owner: str, jobs: Iterable[str], limit: int, quotas: Quotas = NO_QUOTAS) -> Sequence[Record]:
        self._check("claim")
        return await super().claim(owner, jobs, limit, quotas)

    async def renew(self, owner: str) -> Sequence[Record]:
        self._check("renew")
        return await super().renew(owner)

    async def held(self, owner: str) -> Sequence[Record]:
        self._check("held")
        return await super().held(owner)


async def test_a_store_that_is_down_for_a_while_fails_no_job(store: Store) -> None:
    story = Story()

    @job("tests.saves")
    async def saves(ctx: Context[Progress]) -> str:
        story.tell("runs")
        await story.heard("go on")
        await ctx.checkpoint(Progress(pages_done=1))
        return "saved"

    operations, down = Operations(store), Down(store)
    async with Worker(down, [saves, sticker(story)], lease=SHORT) as worker:
        first = (await operations.start(saves)).name
        second = (await operations.start(sticker(story))).name
        await until(lambda: story.told.count("runs") == 2)
        down.down = True
        story.tell("go on")
        third = (await operations.start(saves)).name
        await until(lambda: {"save", "finish", "claim", "renew"} <= set(down.refused))
        assert worker.ready
        assert (await operations.get(second)).state is State.RUNNING
        down.down = False
        done = [await ended(operations, name) for name in (first, second, third)]

    assert [operation.response for operation in done] == ["saved", "stuck to it", "saved"]
    assert [operation.metadata["attempt"] for operation in done] == [1, 1, 1]


async def test_a_terminal_write_whose_outcome_is_unknown_is_repeated(store: Store) -> None:
    class Forgetting(Relay):
        finishes = 0

        async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
            record = await super().update(name, transition, within)
            if is_call_of(transition, lifecycle.finish):
                Forgetting.finishes += 1
                if Forgetting.finishes == 1:
                    raise Unavailable
            return record

    story = Story()
    operations = Operations(store)
    async with Worker(Forgetting(store), [sticker(story)]) as worker:
        name = (await operations.start(sticker(story))).name
        story.tell("go on")
        done = await ended(operations, name)
        await until(lambda: worker.running == ())

    assert (done.response, Forgetting.finishes) == ("stuck to it", 2)
    assert (await operations.get(name)).etag == done.etag


async def test_an_outcome_that_the_store_refuses_fails_the_operation(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    refusing = RefusingOnce(store, lifecycle.finish, InvalidArgument("of no use"))
    async with Worker(refusing, [sticker(story)]):
        name = (await operations.start(sticker(story))).name
        story.tell("go on")
        done = await ended(operations, name)

    assert done.error is not None
    assert (done.error.code, done.error.reason) == (Code.INTERNAL, "RESULT_NOT_STORABLE")


@pytest.mark.parametrize(
    ("error", "words"),
    [(NotFound(), "is gone from the store"), (StoreClosed(), "the store was closed before the end could be written")],
    ids=["NotFound", "StoreClosed"],
)
async def test_an_end_that_can_no_longer_be_written_is_logged_and_frees_the_slot(
    store: Store, caplog: pytest.LogCaptureFixture, error: LROError, words: str
) -> None:
    story = Story()
    operations = Operations(store)
    async with Worker(RefusingOnce(store, lifecycle.finish, error), [sticker(story)]) as worker:
        name = (await operations.start(sticker(story))).name
        story.tell("go on")
        await story.heard("runs")
        await until(lambda: worker.running == ())
        assert worker.ready

    assert words in caplog.text
    assert name in caplog.text


async def test_a_report_whose_lease_is_lost_stops_the_attempt(store: Store) -> None:
    story = Story()

    @job("tests.report")
    async def report(ctx: Context[Progress]) -> None:
        ctx.report(Progress(pages_done=1))
        try:
            await anyio.sleep_forever()
        finally:
            story.tell(f"stopped: {ctx.stop_reason}")

    operations = Operations(store)
    async with Worker(RefusingOnce(store, lifecycle.save_progress, LeaseLost()), [report], lease=SHORT) as worker:
        await operations.start(report)
        await story.heard("stopped: LEASE_LOST")
        await until(lambda: worker.running == ())


# -- going down


async def test_a_restartable_job_stops_at_its_next_checkpoint_and_resumes_elsewhere(store: Store) -> None:
    story = Story()

    @job("tests.resume", restartable=True)
    async def resume(ctx: Context[Progress]) -> list[int]:
        if ctx.progress.pages_done:
            return [ctx.attempt, ctx.progress.pages_done]
        await ctx.checkpoint(Progress(pages_done=1))
        ctx.report(Progress(pages_done=2))
        story.tell("runs")
        await ctx.sleep(3600)
        raise AssertionError

    operations = Operations(store)
    async with Worker(store, [resume]):
        name = (await operations.start(resume)).name
        await story.heard("runs")
    record = await stored(store, name)
    assert (record.state, record.attempt, record.lease_owner) == (State.PENDING, 0, None)
    assert record.progress == '{"pages_done":2}'

    async with Worker(store, [resume]):
        assert await result(operations, resume, name) == [1, 2]
    assert (await stored(store, name)).token == 2


async def test_another_job_may_finish_within_the_drain_time(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    worker = Worker(store, [sticker(story)])

    async def go_on_once_it_closes() -> None:
        await until(lambda: not worker.ready)
        story.tell("go on")

    async with anyio.create_task_group() as group, worker:
        name = (await operations.start(sticker(story))).name
        await story.heard("runs")
        late = (await operations.start(sleeper(story, "tests.other"))).name
        group.start_soon(go_on_once_it_closes)

    assert (await operations.get(name)).response == "stuck to it"
    assert (await operations.get(late)).state is State.PENDING


async def test_leases_are_kept_while_the_worker_drains(store: Store) -> None:
    story = Story()
    renewed = anyio.Event()
    worker: Worker

    class Counting(Relay):
        async def renew(self, owner: str) -> Sequence[Record]:
            records = await super().renew(owner)
            if not worker.ready and records:
                story.tell("go on")
                renewed.set()
            return records

    operations = Operations(store)
    worker = Worker(Counting(store), [sticker(story)], lease=SHORT)
    with anyio.fail_after(PATIENCE):
        async with worker:
            name = (await operations.start(sticker(story))).name
            await story.heard("runs")

    assert renewed.is_set()
    assert (await operations.get(name)).state is State.SUCCEEDED


async def test_a_job_that_does_not_end_within_the_drain_time_fails(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    with anyio.fail_after(PATIENCE):
        async with Worker(store, [sleeper(story)], drain=MOMENT):
            name = (await operations.start(sleeper(story))).name
            await story.heard("runs")

    operation = await operations.get(name)
    assert operation.error is not None
    assert (operation.state, operation.error.code) == (State.FAILED, Code.UNAVAILABLE)
    assert operation.error.reason == "WORKER_SHUTDOWN"
    assert story.told == ["runs", "stopped: SHUTDOWN"]


async def test_a_restartable_job_that_reaches_no_checkpoint_is_stopped_when_the_drain_time_ends(store: Store) -> None:
    story = Story()

    @job("tests.deep", restartable=True)
    async def deep(ctx: Context) -> None:
        story.tell("runs")
        await anyio.sleep_forever()

    operations = Operations(store)
    with anyio.fail_after(PATIENCE):
        async with Worker(store, [deep], drain=MOMENT):
            name = (await operations.start(deep)).name
            await story.heard("runs")

    record = await stored(store, name)
    assert (record.state, record.attempt) == (State.PENDING, 0)


async def test_a_cancel_during_the_shutdown_is_a_cancel(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    worker = Worker(store, [sleeper(story)])

    async def cancel_once_it_closes(name: str) -> None:
        await until(lambda: not worker.ready)
        await operations.cancel(name)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group, worker:
            name = (await operations.start(sleeper(story))).name
            await story.heard("runs")
            group.start_soon(cancel_once_it_closes, name)

    operation = await operations.get(name)
    assert (operation.state, operation.metadata["cancelOutcome"]) == (State.CANCELLED, "ACKNOWLEDGED")


async def test_a_job_that_swallows_its_stop_is_named_and_waited_for(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lro.worker.UNWIND_LOG_EVERY", 0.02)
    story = Story()

    @job("tests.stubborn")
    async def stubborn(ctx: Context) -> str:
        story.tell("runs")
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await until(lambda: "still runs" in caplog.text)
        return "at last"

    operations = Operations(store)
    async with Worker(store, [stubborn], drain=timedelta(0)):
        name = (await operations.start(stubborn)).name
        await story.heard("runs")

    assert (await operations.get(name)).response == "at last"
    assert f"{name}: it was stopped and still runs: it swallows its cancellation" in caplog.text


@pytest.mark.parametrize("restartable", [True, False])
async def test_a_cancelled_host_is_a_shutdown_and_no_cancel(store: Store, restartable: bool) -> None:
    story = Story()
    operations = Operations(store)
    napper = sleeper(story, restartable=restartable)
    with anyio.fail_after(PATIENCE), anyio.CancelScope() as host:
        async with Worker(store, [napper], drain=MOMENT):
            name = (await operations.start(napper)).name
            await story.heard("runs")
            host.cancel()
            await anyio.sleep_forever()

    assert host.cancelled_caught
    operation = await operations.get(name)
    assert operation.state is (State.PENDING if restartable else State.FAILED)
    assert operation.metadata["requestedCancellation"] is False
    assert story.told == ["runs", f"stopped: {StopReason.SHUTDOWN}"]


async def test_what_the_body_raises_comes_out_as_it_is(store: Store) -> None:
    story = Story()
    error = ValueError("of the body")
    operations = Operations(store)

    async def fail() -> None:
        async with Worker(store, [sleeper(story, restartable=True)]):
            await operations.start(sleeper(story, restartable=True))
            await story.heard("runs")
            raise error

    with pytest.raises(ValueError, match="of the body") as caught:
        await fail()

    assert caught.value is error


async def test_a_worker_that_cannot_take_its_leave_goes_all_the_same(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Clinging(Relay):
        async def leave(self, owner: str) -> None:
            raise Unavailable

    async with Worker(Clinging(store), []) as worker:
        await anyio.sleep(0.001)

    assert f"worker {worker.id} could not take its leave" in caplog.text


async def test_what_is_deleted_while_it_runs_goes_on_and_leaves_nothing(store: Store) -> None:
    story = Story()
    operations = Operations(store)
    async with Worker(store, [sticker(story)]) as worker:
        name = (await operations.start(sticker(story), request_id="r")).name
        await story.heard("runs")
        await operations.delete(name)
        story.tell("go on")
        await until(lambda: worker.running == ())

    record = await stored(store, name)
    assert (record.state, record.response, record.params) == (State.SUCCEEDED, None, None)
