"""What a running job sees: checkpoints, saved progress, stops and cleanup, through a store and a worker."""

import asyncio
import logging
from datetime import timedelta
from itertools import pairwise

import anyio
import pytest

from lro import Context, Operations, State, Stopped, StopReason, Worker, job, lifecycle
from lro.errors import OperationCancelled, Unavailable
from lro.lifecycle import Record, Transition
from lro.principal import Principal
from lro.store import Store
from lro.store.base import Within
from tests.jobs import Progress, Relay, Story, ended, is_call_of, result, stored, until


async def test_a_loop_of_bare_checkpoints_lets_others_run_every_ten_milliseconds(store: Store) -> None:
    turns: list[float] = []

    @job("tests.spin")
    async def spin(ctx: Context) -> int:
        async def other() -> None:
            while True:
                turns.append(anyio.current_time())
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(other)
            until = anyio.current_time() + 0.3
            while anyio.current_time() < until:
                await ctx.checkpoint()
            group.cancel_scope.cancel()
        return len(turns)

    operations = Operations(store)
    async with Worker(store, [spin]):
        assert (await ended(operations, (await operations.start(spin)).name)).state is State.SUCCEEDED

    gaps = sorted(later - earlier for earlier, later in pairwise(turns))
    assert len(turns) >= 10
    assert gaps[len(gaps) // 2] < 0.03


async def test_a_bare_checkpoint_costs_no_write(store: Store) -> None:
    @job("tests.look")
    async def look(ctx: Context[Progress]) -> int:
        before = await stored(store, ctx.name)
        for _ in range(100):
            await ctx.checkpoint()
        return (await stored(store, ctx.name)).version - before.version

    operations = Operations(store)
    async with Worker(store, [look]):
        assert await result(operations, look, (await operations.start(look)).name) == 0


async def test_a_checkpoint_with_progress_returns_after_the_commit(store: Store) -> None:
    @job("tests.save")
    async def save(ctx: Context[Progress]) -> list[str | None]:
        found = []
        for done in (1, 2):
            await ctx.checkpoint(Progress(pages_done=done))
            assert ctx.progress == Progress(pages_done=done)
            found.append((await stored(store, ctx.name)).progress)
        return found

    operations = Operations(store)
    async with Worker(store, [save]):
        found = await result(operations, save, (await operations.start(save)).name)

    assert found == ['{"pages_done":1}', '{"pages_done":2}']


class CountingSaves(Relay):
    """Counts what is saved of progress."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.saves = 0

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        self.saves += is_call_of(transition, lifecycle.save_progress)
        return await super().update(name, transition, within)


async def test_reports_are_gathered_and_the_last_one_is_there_at_the_end(store: Store) -> None:
    @job("tests.report")
    async def report(ctx: Context[Progress]) -> None:
        for done in range(10_000):
            ctx.report(Progress(pages_done=done))
        assert ctx.progress == Progress(pages_done=9_999)
        await ctx.checkpoint()

    counting, operations = CountingSaves(store), Operations(store)
    async with Worker(counting, [report]):
        done = await ended(operations, (await operations.start(report)).name)

    assert done.metadata["progress"] == {"pages_done": 9_999}
    assert counting.saves <= 1


async def test_the_last_report_is_there_even_if_the_job_raises_afterwards(store: Store) -> None:
    @job("tests.report")
    async def report(ctx: Context[Progress]) -> None:
        ctx.report(Progress(pages_done=7))
        raise ValueError

    operations = Operations(store)
    async with Worker(store, [report]):
        done = await ended(operations, (await operations.start(report)).name)

    assert (done.state, done.metadata["progress"]) == (State.FAILED, {"pages_done": 7})


async def test_a_report_is_written_while_the_job_goes_on(store: Store) -> None:
    story = Story()

    @job("tests.report")
    async def report(ctx: Context[Progress]) -> None:
        ctx.report(Progress(pages_done=7))
        story.tell("reported")
        await story.heard("seen")

    operations = Operations(store)
    async with Worker(store, [report], lease=timedelta(milliseconds=90)):
        name = (await operations.start(report)).name
        await story.heard("reported")
        with anyio.fail_after(3):
            while "progress" not in (await operations.get(name)).metadata:
                await anyio.sleep(0.005)
        story.tell("seen")
        await ended(operations, name)


class LosingReports(Relay):
    """The store can't be reached when the worker saves a report for the first time."""

    def __init__(self, store: Store, story: Story) -> None:
        super().__init__(store)
        self.story = story

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        if is_call_of(transition, lifecycle.save_progress) and "lost" not in self.story.told:
            self.story.tell("lost")
            raise Unavailable
        return await super().update(name, transition, within)


async def test_a_report_that_could_not_be_written_is_not_forgotten(store: Store) -> None:
    story = Story()

    @job("tests.report")
    async def report(ctx: Context[Progress]) -> None:
        ctx.report(Progress(pages_done=7))
        await story.heard("lost")

    operations = Operations(store)
    async with Worker(LosingReports(store, story), [report], lease=timedelta(milliseconds=90)):
        done = await ended(operations, (await operations.start(report)).name)

    assert done.metadata.get("progress") == {"pages_done": 7}


class HoldingSaves(Relay):
    """Answers the first save of progress only when the job has reported again."""

    def __init__(self, store: Store, story: Story) -> None:
        super().__init__(store)
        self.story = story

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        record = await super().update(name, transition, within)
        if is_call_of(transition, lifecycle.save_progress) and "saved" not in self.story.told:
            self.story.tell("saved")
            await self.story.heard("reported again")
            self.story.tell("answered")
        return record


async def test_what_is_reported_while_a_report_is_written_is_written_too(store: Store) -> None:
    story = Story()

    @job("tests.report")
    async def report(ctx: Context[Progress]) -> None:
        progress = Progress(pages_done=1)
        ctx.report(progress)
        await story.heard("saved")
        progress.pages_done = 2  # the same object, as a loop that counts up would have it
        ctx.report(progress)
        story.tell("reported again")
        await story.heard("answered")
        await anyio.lowlevel.checkpoint()

    operations = Operations(store)
    async with Worker(HoldingSaves(store, story), [report], lease=timedelta(milliseconds=90)):
        done = await ended(operations, (await operations.start(report)).name)

    assert done.metadata["progress"] == {"pages_done": 2}


async def test_a_report_that_has_no_json_form_is_logged_once_and_forgotten(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    @job("tests.report")
    async def report(ctx: Context[Progress]) -> None:
        ctx.report(Progress.model_construct(pages_done="many"))
        await until(lambda: "the reported progress can't be saved" in caplog.text)
        await anyio.sleep(0.05)

    operations = Operations(store)
    async with Worker(store, [report], lease=timedelta(milliseconds=30)):
        done = await ended(operations, (await operations.start(report)).name)

    assert "progress" not in done.metadata
    said = [line.getMessage() for line in caplog.records if line.name == "lro.attempt"]
    assert said == [f"{done.name}: the reported progress can't be saved: PydanticSerializationError"]


async def test_a_reason_that_was_delivered_stands(store: Store) -> None:
    story = Story()
    seen: list[StopReason | None] = []

    @job("tests.both")
    async def both(ctx: Context) -> None:
        story.tell("runs")
        try:
            await ctx.sleep(3600)
        finally:
            with ctx.cleanup(seconds=3):
                story.tell("unwinds")
                await story.heard("taken over")
            seen.append(ctx.stop_reason)

    operations = Operations(store)
    async with Worker(store, [both]) as worker:
        name = (await operations.start(both)).name
        await story.heard("runs")
        await operations.cancel(name)
        await story.heard("unwinds")
        await store.update(name, taken_over)
        story.tell("taken over")
        await until(lambda: worker.running == ())

    assert seen == [StopReason.CANCEL]
    assert (await stored(store, name)).lease_owner == "another"


async def test_the_next_attempt_resumes_from_what_the_last_one_saved(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    policy = lifecycle.RetryPolicy(attempts=3, initial_delay=timedelta(0))

    @job("tests.resume", retry=policy)
    async def resume(ctx: Context[Progress]) -> int:
        seen.append((ctx.attempt, ctx.progress.pages_done))
        if ctx.attempt == 1:
            await ctx.checkpoint(Progress(pages_done=1))
            raise ValueError
        if ctx.attempt == 2:
            ctx.report(Progress(pages_done=2))
            raise ValueError
        return ctx.progress.pages_done

    operations = Operations(store)
    async with Worker(store, [resume]):
        assert await result(operations, resume, (await operations.start(resume)).name) == 2

    assert seen == [(1, 0), (2, 1), (3, 2)]


async def test_progress_given_to_a_job_without_any_is_a_clear_error(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    @job("tests.bare")
    async def bare(ctx: Context) -> str:
        try:
            await ctx.checkpoint(Progress())  # type: ignore[arg-type]  # that is the point
        except TypeError as error:
            return str(error)
        return ""

    operations = Operations(store)
    async with Worker(store, [bare]):
        message = await result(operations, bare, (await operations.start(bare)).name)

    assert message == "job tests.bare has no progress: annotate its context as Context[YourProgress]"


async def test_sleep_ends_at_once_on_a_stop_and_else_takes_its_time(store: Store) -> None:
    story = Story()

    @job("tests.sleep")
    async def sleep(ctx: Context) -> None:
        started = anyio.current_time()
        await ctx.sleep(0.02)
        assert anyio.current_time() - started >= 0.019
        story.tell("sleeps")
        try:
            await ctx.sleep(3600)
        finally:
            with ctx.cleanup(seconds=1):
                await ctx.sleep(0.001)
                story.tell("slept in cleanup")

    operations = Operations(store)
    async with Worker(store, [sleep]):
        name = (await operations.start(sleep)).name
        await story.heard("sleeps")
        await operations.cancel(name)
        done = await ended(operations, name)

    assert (done.state, done.metadata["cancelOutcome"]) == (State.CANCELLED, "ACKNOWLEDGED")
    assert story.told == ["sleeps", "slept in cleanup"]


async def test_cleanup_shields_and_saves_but_delivers_nothing(store: Store) -> None:
    story = Story()

    @job("tests.clean")
    async def clean(ctx: Context[Progress]) -> None:
        with ctx.cleanup(seconds=3):  # in good time, before any stop
            story.tell("in cleanup")
            await story.heard("cancelled")
            await ctx.checkpoint()
            await ctx.checkpoint(Progress(pages_done=1))
            assert ctx.cancel_requested
            story.tell("after its checkpoints")
        try:
            await ctx.checkpoint()
            story.tell("never")
        finally:
            with ctx.cleanup(seconds=3):  # while the stop goes on
                await anyio.sleep(0.001)
                await ctx.checkpoint(Progress(pages_done=2))
                await ctx.checkpoint()
                story.tell("cleaned up")

    operations = Operations(store)
    async with Worker(store, [clean]):
        name = (await operations.start(clean)).name
        await story.heard("in cleanup")
        await operations.cancel(name)
        story.tell("cancelled")
        done = await ended(operations, name)

    assert story.told == ["in cleanup", "cancelled", "after its checkpoints", "cleaned up"]
    assert (done.state, done.metadata["progress"]) == (State.CANCELLED, {"pages_done": 2})
    assert done.metadata["cancelOutcome"] == "ACKNOWLEDGED"


async def test_cleanup_that_takes_too_long_is_broken_off_with_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story()

    @job("tests.clean")
    async def clean(ctx: Context) -> None:
        story.tell("runs")
        try:
            await ctx.sleep(3600)
        finally:
            with ctx.cleanup(seconds=0.01):
                await anyio.sleep_forever()
            story.tell("after cleanup")

    operations = Operations(store)
    async with Worker(store, [clean]):
        name = (await operations.start(clean)).name
        await story.heard("runs")
        await operations.cancel(name)
        done = await ended(operations, name)

    assert done.state is State.CANCELLED
    assert story.told == ["runs", "after cleanup"]
    (warning,) = [entry for entry in caplog.records if "cleanup" in entry.getMessage()]
    assert warning.levelno == logging.WARNING
    assert warning.getMessage() == f"{name}: cleanup took longer than 0.01 s and was broken off"


async def test_a_job_sees_that_and_why_a_client_cancelled(store: Store) -> None:
    story = Story()

    @job("tests.watch")
    async def watch(ctx: Context) -> list[object]:
        before = [ctx.cancel_requested, ctx.cancel_reason, ctx.stop_reason, ctx.will_resume]
        story.tell("runs")
        await story.heard("cancelled")
        return [*before, ctx.cancel_requested, ctx.cancel_reason, ctx.stop_reason, ctx.will_resume]

    operations = Operations(store)
    async with Worker(store, [watch]):
        name = (await operations.start(watch)).name
        await story.heard("runs")
        await operations.cancel(name, reason="wrong book")
        await operations.cancel(name, reason="again")
        story.tell("cancelled")
        seen = await result(operations, watch, name)

    assert seen == [False, None, None, False, True, "wrong book", "CANCEL", False]


async def test_a_deadline_stops_at_any_await_and_says_so(store: Store) -> None:
    seen: list[object] = []

    @job("tests.late", restartable=True)
    async def late(ctx: Context) -> None:
        assert ctx.deadline is not None
        try:
            await anyio.sleep_forever()
        finally:
            seen.extend([ctx.stop_reason, ctx.will_resume, ctx.cancel_requested])

    operations = Operations(store)
    async with Worker(store, [late]):
        name = (await operations.start(late, timeout=timedelta(milliseconds=30))).name
        done = await ended(operations, name)

    assert done.error is not None
    assert done.error.reason == "DEADLINE_EXCEEDED"
    assert seen == [StopReason.DEADLINE, False, False]


@pytest.mark.parametrize("restartable", [True, False])
async def test_a_shutdown_says_whether_the_job_will_resume(store: Store, restartable: bool) -> None:
    story = Story()
    seen: list[object] = []

    @job("tests.down", restartable=restartable)
    async def down(ctx: Context) -> None:
        story.tell("runs")
        try:
            await ctx.sleep(3600)
        finally:
            seen.extend([ctx.stop_reason, ctx.will_resume, ctx.cancel_requested])

    operations = Operations(store)
    async with Worker(store, [down], drain=timedelta(milliseconds=20)):
        name = (await operations.start(down)).name
        await story.heard("runs")

    assert seen == [StopReason.SHUTDOWN, restartable, False]
    assert (await operations.get(name)).state is (State.PENDING if restartable else State.FAILED)


def taken_over(record: Record, facts: lifecycle.Facts) -> Record:
    """Do what another worker's claim after an expired lease would have done."""
    orphan = record._replace(state=State.PENDING, due_at=0)
    return lifecycle.claim(orphan, facts, owner="another", lease_time=30_000_000)


async def test_a_lost_lease_stops_at_once_and_cleanup_is_left_to_the_next(store: Store) -> None:
    story = Story()
    seen: list[object] = []

    @job("tests.lost")
    async def lost(ctx: Context) -> None:
        story.tell("runs")
        try:
            await anyio.sleep_forever()
        finally:
            seen.extend([ctx.stop_reason, ctx.will_resume, ctx.cancel_requested])
            story.tell("stopped")

    operations = Operations(store)
    async with Worker(store, [lost]):
        name = (await operations.start(lost)).name
        await story.heard("runs")
        await store.update(name, taken_over)
        await story.heard("stopped")

    assert seen == [StopReason.LEASE_LOST, True, False]
    assert (await stored(store, name)).lease_owner == "another"


@pytest.mark.parametrize("ending", ["cancelled", "ended"])
async def test_a_raw_task_that_outlives_its_attempt_is_stopped_at_its_checkpoint(store: Store, ending: str) -> None:
    story = Story()
    tasks: list[asyncio.Task[None]] = []

    @job("tests.raw")
    async def raw(ctx: Context) -> None:
        async def stray() -> None:
            await ctx.checkpoint()
            story.tell("stray runs")
            await story.heard("over")
            await ctx.checkpoint()
            story.tell("never")

        tasks.append(asyncio.create_task(stray()))
        await story.heard("stray runs")
        if ending == "cancelled":
            await ctx.sleep(3600)

    operations = Operations(store)
    async with Worker(store, [raw]):
        name = (await operations.start(raw)).name
        await story.heard("stray runs")
        if ending == "cancelled":
            await operations.cancel(name)
        await ended(operations, name)
        story.tell("over")
        with anyio.fail_after(3), pytest.raises(Stopped, match=f"{name}: this attempt is over"):
            await tasks[0]

    assert "never" not in story.told


async def test_a_raw_task_is_stopped_while_its_attempt_still_unwinds(store: Store) -> None:
    story = Story()

    @job("tests.raw")
    async def raw(ctx: Context) -> None:
        async def stray() -> None:
            await story.heard("unwinding")
            await ctx.checkpoint()

        task = asyncio.create_task(stray())
        story.tell("runs")
        try:
            await ctx.sleep(3600)
        finally:
            story.tell("unwinding")
            with ctx.cleanup(seconds=3), pytest.raises(Stopped):
                await task
            story.tell("stray stopped")

    operations = Operations(store)
    async with Worker(store, [raw]):
        name = (await operations.start(raw)).name
        await story.heard("runs")
        await operations.cancel(name)
        done = await ended(operations, name)

    assert story.told[-1] == "stray stopped"
    assert (done.state, done.metadata["cancelOutcome"]) == (State.CANCELLED, "ACKNOWLEDGED")


async def test_task_groups_inside_a_job_are_cancelled_as_anyio_users_expect(store: Store) -> None:
    story = Story()

    @job("tests.group")
    async def group(ctx: Context) -> None:
        async def child(number: int) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                story.tell(f"child {number} unwinds")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child, 1)
            tasks.start_soon(child, 2)
            await anyio.lowlevel.checkpoint()
            story.tell("runs")
            await ctx.sleep(3600)

    operations = Operations(store)
    async with Worker(store, [group]):
        name = (await operations.start(group)).name
        await story.heard("runs")
        await operations.cancel(name)
        done = await ended(operations, name)

    assert (done.state, done.metadata["cancelOutcome"]) == (State.CANCELLED, "ACKNOWLEDGED")
    assert sorted(story.told) == ["child 1 unwinds", "child 2 unwinds", "runs"]


async def test_a_checkpoint_of_a_child_stops_the_whole_attempt(store: Store) -> None:
    story = Story()

    @job("tests.group")
    async def group(ctx: Context) -> None:
        async def child() -> None:
            while True:
                await ctx.sleep(3600)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
            story.tell("runs")
            await anyio.sleep_forever()

    operations = Operations(store)
    async with Worker(store, [group]):
        name = (await operations.start(group)).name
        await story.heard("runs")
        await operations.cancel(name)
        assert (await ended(operations, name)).state is State.CANCELLED


async def test_except_exception_does_not_swallow_a_stop(store: Store) -> None:
    story = Story()

    @job("tests.careless")
    async def careless(ctx: Context) -> None:
        story.tell("runs")
        while True:
            try:
                await ctx.sleep(3600)
            except Exception:
                story.tell("swallowed")
                raise

    operations = Operations(store)
    async with Worker(store, [careless]):
        name = (await operations.start(careless)).name
        await story.heard("runs")
        await operations.cancel(name)
        with anyio.fail_after(3), pytest.raises(OperationCancelled):
            await result(operations, careless, name)

    assert story.told == ["runs"]


async def test_log_records_say_which_operation_job_and_attempt(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    @job("tests.log")
    async def log(ctx: Context) -> None:
        ctx.log.warning("page %d is empty", 3, extra={"page": 3})

    operations = Operations(store)
    async with Worker(store, [log]):
        name = (await operations.start(log)).name
        await ended(operations, name)

    (entry,) = [entry for entry in caplog.records if entry.name == "lro.job"]
    assert entry.getMessage() == f"{name}: page 3 is empty"
    found = {key: getattr(entry, key, None) for key in ("operation", "job", "attempt", "page")}
    assert found == {"operation": name, "job": "tests.log", "attempt": 1, "page": 3}


async def test_a_job_knows_its_operation_and_who_started_it(store: Store) -> None:
    @job("tests.who")
    async def who(ctx: Context) -> list[object]:
        return [ctx.name, ctx.attempt, ctx.principal.id, ctx.principal.tenant, ctx.deadline is None]

    operations = Operations(store)
    async with Worker(store, [who]):
        name = (await operations.start(who, principal=Principal("ann", "books"))).name
        assert await result(operations, who, name) == [name, 1, "ann", "books", True]


class Flaky(Relay):
    """Can't be reached for progress until told otherwise."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.down = True
        self.refused = 0

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        if self.down and is_call_of(transition, lifecycle.save_progress):
            self.refused += 1
            raise Unavailable
        return await super().update(name, transition, within)


async def test_a_checkpoint_waits_for_a_store_that_is_down(store: Store) -> None:
    @job("tests.save")
    async def save(ctx: Context[Progress]) -> None:
        await ctx.checkpoint(Progress(pages_done=1))

    flaky, operations = Flaky(store), Operations(store)
    async with Worker(flaky, [save]):
        name = (await operations.start(save)).name
        await until(lambda: flaky.refused >= 2)
        assert (await operations.get(name)).state is State.RUNNING
        flaky.down = False
        done = await ended(operations, name)

    assert (done.state, done.metadata["progress"]) == (State.SUCCEEDED, {"pages_done": 1})


async def test_a_cancel_ends_the_wait_of_a_checkpoint_for_its_store(store: Store) -> None:
    @job("tests.save")
    async def save(ctx: Context[Progress]) -> None:
        await ctx.checkpoint(Progress(pages_done=1))

    flaky, operations = Flaky(store), Operations(store)
    async with Worker(flaky, [save]):
        name = (await operations.start(save)).name
        await until(lambda: flaky.refused >= 1)
        await operations.cancel(name)
        done = await ended(operations, name)

    assert (done.state, done.metadata["cancelOutcome"]) == (State.CANCELLED, "ACKNOWLEDGED")
