"""Jobs that are plain functions: they run in threads, stop at checkpoints, and are never left behind."""

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from lro import Code, Context, Job, Operations, RetryPolicy, State, Stopped, SyncContext, Worker, job
from lro.errors import InvalidArgument, LeaseLost, Unavailable
from lro.store import Store
from lro.threads import run_in_thread
from tests.jobs import PATIENCE, Params, Progress, Relay, Story, ended, result, stored, until

MOMENT = timedelta(milliseconds=20)


class Gate:
    """What a job in a thread and its test wait for, within bounds."""

    def __init__(self) -> None:
        self.story = Story()
        self.opened = threading.Event()

    def tell(self, what: str) -> None:
        """Tell from a worker thread."""
        anyio.from_thread.run_sync(self.story.tell, what)

    def wait(self) -> None:
        """Wait in a thread, as a blocking call would, with no checkpoint."""
        assert self.opened.wait(PATIENCE * 2)


@pytest.fixture
def gate() -> Gate:
    return Gate()


def looker(gate: Gate, name: str = "tests.look", **options: Any) -> Job[None, Progress, str]:  # Any: options of job
    """Return a job that says "runs" and looks at its checkpoints until it is stopped."""

    def look(ctx: SyncContext[Progress]) -> str:
        gate.tell("runs")
        try:
            while True:
                ctx.checkpoint(Progress(pages_done=ctx.progress.pages_done + 1))
        except Stopped:
            gate.story.told.append(f"stopped: {ctx.stop_reason}")
            raise

    return job(name, **options)(look)


def sticker(gate: Gate, **options: Any) -> Job[None, None, str]:  # Any: options of job
    """Return a job that says "runs", looks at nothing until the gate opens, and returns."""

    def stick(ctx: SyncContext) -> str:
        gate.tell("runs")
        gate.wait()
        return "stuck to it"

    return job("tests.stick", **options)(stick)


# -- running


async def test_it_runs_in_a_thread_of_its_own_with_params_progress_and_result(store: Store) -> None:
    seen: dict[str, Any] = {}

    @job("tests.render")
    def render(ctx: SyncContext[Progress], params: Params) -> dict[str, int]:
        seen.update(thread=threading.current_thread(), called=threading.current_thread().name, name=ctx.name)
        for page in range(ctx.progress.pages_done, params.pages):
            ctx.checkpoint(Progress(pages_done=page + 1))
        return {"pages": params.pages}

    operations = Operations(store)
    async with Worker(store, [render]):
        operation = await operations.start(render, Params(pages=4))
        assert await result(operations, render, operation.name) == {"pages": 4}

    assert seen["thread"] is not threading.current_thread()
    assert seen["name"] == operation.name
    assert seen["called"] == f"lro: {operation.name}"
    assert seen["thread"].name != seen["called"], "the name is the job's for its own time only"
    assert (await stored(store, operation.name)).progress == '{"pages_done":4}'


async def test_a_checkpoint_returns_after_the_commit(store: Store) -> None:
    found: list[str | None] = []

    @job("tests.commit")
    def commit(ctx: SyncContext[Progress]) -> None:
        ctx.checkpoint(Progress(pages_done=7))
        found.append(anyio.from_thread.run(stored, store, ctx.name).progress)

    operations = Operations(store)
    async with Worker(store, [commit]):
        await ended(operations, (await operations.start(commit)).name)

    assert found == ['{"pages_done":7}']


async def test_a_report_is_saved_before_the_end(store: Store) -> None:
    @job("tests.report")
    def report(ctx: SyncContext[Progress]) -> None:
        for page in range(1000):
            ctx.report(Progress(pages_done=page))

    operations = Operations(store)
    async with Worker(store, [report]):
        name = (await operations.start(report)).name
        await ended(operations, name)

    assert (await stored(store, name)).progress == '{"pages_done":999}'


async def test_a_hundred_of_them_leave_the_host_its_threads_and_its_event_loop(store: Store, gate: Gate) -> None:
    stick = sticker(gate)
    operations = Operations(store)
    try:
        async with Worker(store, [stick], concurrency=100, drain=timedelta(seconds=PATIENCE)) as worker:
            names = [(await operations.start(stick)).name for _ in range(100)]
            await until(lambda: gate.story.told.count("runs") == 100)
            assert len(worker.running) == 100

            with anyio.fail_after(PATIENCE):
                assert await anyio.to_thread.run_sync(threading.get_ident)  # the default limiter has 40
                assert not (await operations.get(names[0])).done
            gate.opened.set()
            for name in names:
                assert (await ended(operations, name)).state is State.SUCCEEDED
    finally:
        gate.opened.set()


async def test_the_checkpoints_of_a_computing_thread_let_the_event_loop_in(store: Store, gate: Gate) -> None:
    """Pure Python holds the GIL 5 ms at a time, and a write needs it a dozen times."""

    @job("tests.compute")
    def compute(ctx: SyncContext, params: Params) -> None:
        gate.tell("computes")
        while not gate.opened.is_set():
            for _ in range(5000):
                pass
            if params.pages:
                ctx.checkpoint()

    operations = Operations(store)
    took: dict[bool, float] = {}
    async with Worker(store, [compute]):
        for looks in (True, False):
            gate.opened.clear()
            name = (await operations.start(compute, Params(pages=looks))).name
            await until(lambda: gate.story.told.count("computes") == len(took) + 1)
            began = time.monotonic()
            for _ in range(8):
                await operations.start(compute, Params(), schedule_at=datetime(2100, 1, 1, tzinfo=UTC))
            took[looks] = time.monotonic() - began
            gate.opened.set()
            await ended(operations, name)

    assert took[True] < took[False] / 2


async def test_threads_that_the_job_starts_may_use_its_context(store: Store) -> None:
    @job("tests.pool")
    def pool(ctx: SyncContext[Progress]) -> list[bool]:
        with concurrent.futures.ThreadPoolExecutor(3) as executor:
            list(executor.map(lambda page: ctx.checkpoint(Progress(pages_done=page)), range(30)))
            return list(executor.map(lambda _: ctx.cancel_requested, range(2)))

    operations = Operations(store)
    async with Worker(store, [pool]):
        assert await result(operations, pool, (await operations.start(pool)).name) == [False, False]


# -- stopping


async def test_a_cancel_stops_it_at_its_next_checkpoint(store: Store, gate: Gate) -> None:
    look = looker(gate)
    operations = Operations(store)
    async with Worker(store, [look]):
        name = (await operations.start(look)).name
        await gate.story.heard("runs")
        await operations.cancel(name, reason="wrong book")
        operation = await ended(operations, name)

    assert operation.state is State.CANCELLED
    assert operation.error is not None
    assert operation.error.code is Code.CANCELLED
    assert operation.metadata["cancelOutcome"] == "ACKNOWLEDGED"
    assert gate.story.told == ["runs", "stopped: CANCEL"]


async def test_a_bare_checkpoint_stops_it_too(store: Store, gate: Gate) -> None:
    @job("tests.bare")
    def bare(ctx: SyncContext) -> None:
        gate.tell("runs")
        while True:
            ctx.checkpoint()

    operations = Operations(store)
    async with Worker(store, [bare]):
        name = (await operations.start(bare)).name
        await gate.story.heard("runs")
        await operations.cancel(name)
        assert (await ended(operations, name)).state is State.CANCELLED


async def test_what_it_returns_in_spite_of_a_cancel_is_its_result(store: Store, gate: Gate) -> None:
    stick = sticker(gate)
    operations = Operations(store)
    async with Worker(store, [stick]):
        name = (await operations.start(stick)).name
        await gate.story.heard("runs")
        await operations.cancel(name)
        assert not (await operations.get(name)).done, "it still works: it is not cancelled"
        gate.opened.set()
        operation = await ended(operations, name)

    assert operation.state is State.SUCCEEDED
    assert operation.response == "stuck to it"
    assert operation.metadata["cancelOutcome"] == "COMPLETED_ANYWAY"


async def test_who_catches_stopped_and_returns_has_a_result_and_who_raises_has_failed(store: Store, gate: Gate) -> None:
    @job("tests.swallow")
    def swallow(ctx: SyncContext) -> str:
        gate.tell("swallows")
        with contextlib.suppress(Stopped):
            ctx.sleep(3600)
        return "natural"

    @job("tests.raise")
    def fail(ctx: SyncContext) -> str:
        gate.tell("fails")
        try:
            ctx.sleep(3600)
        finally:
            raise ValueError("out of paper")

    operations = Operations(store)
    async with Worker(store, [swallow, fail]):
        one, two = (await operations.start(swallow)).name, (await operations.start(fail)).name
        await gate.story.heard("swallows")
        await gate.story.heard("fails")
        await operations.cancel(one)
        await operations.cancel(two)
        assert (await ended(operations, one)).response == "natural"
        failed = await ended(operations, two)

    assert failed.state is State.FAILED
    assert failed.metadata["cancelOutcome"] == "FAILED_ANYWAY"


async def test_swallowed_once_it_is_raised_again(store: Store, gate: Gate) -> None:
    @job("tests.stubborn")
    def stubborn(ctx: SyncContext) -> None:
        gate.tell("runs")
        for _ in range(3):
            try:
                ctx.sleep(3600)
            except Stopped:
                gate.story.told.append("stopped")
        ctx.checkpoint()

    operations = Operations(store)
    async with Worker(store, [stubborn]):
        name = (await operations.start(stubborn)).name
        await gate.story.heard("runs")
        await operations.cancel(name)
        assert (await ended(operations, name)).state is State.CANCELLED

    assert gate.story.told == ["runs", "stopped", "stopped", "stopped"]


async def test_its_sleep_ends_with_the_stop(store: Store, gate: Gate) -> None:
    @job("tests.sleep")
    def sleep(ctx: SyncContext) -> None:
        gate.tell("sleeps")
        ctx.sleep(3600)

    operations = Operations(store)
    async with Worker(store, [sleep]):
        name = (await operations.start(sleep)).name
        await gate.story.heard("sleeps")
        await operations.cancel(name)
        assert (await ended(operations, name)).state is State.CANCELLED


async def test_its_sleep_lasts_as_long_as_it_says(store: Store) -> None:
    @job("tests.nap")
    def nap(ctx: SyncContext) -> float:
        began = time.monotonic()
        ctx.sleep(0.05)
        return time.monotonic() - began

    operations = Operations(store)
    async with Worker(store, [nap]):
        assert 0.05 <= await result(operations, nap, (await operations.start(nap)).name) < PATIENCE


async def test_a_deadline_ends_its_sleep_and_the_operation(store: Store, gate: Gate) -> None:
    @job("tests.late", timeout=timedelta(milliseconds=60))
    def late(ctx: SyncContext) -> None:
        try:
            ctx.sleep(3600)
        finally:
            gate.story.told.append(f"{ctx.stop_reason}")

    operations = Operations(store)
    async with Worker(store, [late]):
        operation = await ended(operations, (await operations.start(late)).name)

    assert operation.error is not None
    assert operation.error.code is Code.DEADLINE_EXCEEDED
    assert gate.story.told == ["DEADLINE"]


async def test_a_deadline_stops_it_at_a_bare_checkpoint(store: Store) -> None:
    @job("tests.busy", timeout=timedelta(milliseconds=60))
    def busy(ctx: SyncContext) -> None:
        while True:
            ctx.checkpoint()

    operations = Operations(store)
    async with Worker(store, [busy]):
        operation = await ended(operations, (await operations.start(busy)).name)

    assert operation.error is not None
    assert operation.error.code is Code.DEADLINE_EXCEEDED


async def test_cleanup_saves_and_is_not_stopped_again(store: Store, gate: Gate) -> None:
    @job("tests.clean")
    def clean(ctx: SyncContext[Progress]) -> None:
        gate.tell("runs")
        try:
            ctx.sleep(3600)
        except Stopped:
            with ctx.cleanup(seconds=PATIENCE):
                ctx.checkpoint(Progress(pages_done=9))
                ctx.sleep(0.01)
            gate.story.told.append("clean")
            raise

    operations = Operations(store)
    async with Worker(store, [clean]):
        name = (await operations.start(clean)).name
        await gate.story.heard("runs")
        await operations.cancel(name)
        assert (await ended(operations, name)).state is State.CANCELLED

    assert gate.story.told == ["runs", "clean"]
    assert (await stored(store, name)).progress == '{"pages_done":9}'


async def test_cleanup_is_left_when_its_time_is_over(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    @job("tests.slow")
    def slow(ctx: SyncContext) -> str:
        with ctx.cleanup(seconds=0.02):
            ctx.sleep(3600)
            gate.story.told.append("never")
        return "went on"

    operations = Operations(store)
    with caplog.at_level(logging.WARNING, "lro.job"):
        async with Worker(store, [slow]):
            assert await result(operations, slow, (await operations.start(slow)).name) == "went on"

    assert gate.story.told == []
    assert "was broken off" in caplog.text


async def test_a_restartable_one_stops_at_a_shutdown_and_goes_on_elsewhere(store: Store, gate: Gate) -> None:
    look = looker(gate, restartable=True)
    operations = Operations(store)
    async with Worker(store, [look]):
        name = (await operations.start(look)).name
        await gate.story.heard("runs")

    record = await stored(store, name)
    assert (record.state, record.attempt) == (State.PENDING, 0)
    assert record.progress is not None
    assert gate.story.told == ["runs", "stopped: SHUTDOWN"]


async def test_another_one_has_the_drain_time_and_is_then_told(store: Store, gate: Gate) -> None:
    look = looker(gate)
    operations = Operations(store)
    async with Worker(store, [look], drain=MOMENT):
        name = (await operations.start(look)).name
        await gate.story.heard("runs")

    operation = await operations.get(name)
    assert operation.error is not None
    assert operation.error.code is Code.UNAVAILABLE
    assert gate.story.told == ["runs", "stopped: SHUTDOWN"]


async def test_a_shutdown_waits_for_a_thread_that_looks_at_nothing_and_names_it(
    store: Store, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lro.worker.UNWIND_LOG_EVERY", 0.02)
    stick = sticker(gate)
    operations = Operations(store)
    with caplog.at_level(logging.ERROR, "lro.worker"):
        async with anyio.create_task_group() as group:

            async def open_when_named() -> None:
                await until(lambda: "its thread reaches no checkpoint" in caplog.text)
                assert (await stored(store, name)).state is State.RUNNING, "the work goes on: the row says so"
                gate.opened.set()

            try:
                async with Worker(store, [stick], drain=MOMENT):
                    name = (await operations.start(stick)).name
                    await gate.story.heard("runs")
                    group.start_soon(open_when_named)
            finally:
                gate.opened.set()

    assert name in caplog.text
    assert (await operations.get(name)).response == "stuck to it"


async def test_a_lost_lease_stops_it_at_the_next_checkpoint(store: Store, gate: Gate) -> None:
    look = looker(gate)

    class Losing(Relay):
        lost = False

        async def update(self, name: str, transition: Any, within: Any = None) -> Any:
            if self.lost:
                raise LeaseLost
            return await super().update(name, transition, within)

    losing = Losing(store)
    operations = Operations(store)
    async with Worker(losing, [look]) as worker:
        name = (await operations.start(look)).name
        await gate.story.heard("runs")
        losing.lost = True
        await until(lambda: not worker.running)
        losing.lost = False

    assert gate.story.told == ["runs", "stopped: LEASE_LOST"]
    assert not (await operations.get(name)).done, "whoever lost the lease writes nothing"


async def test_while_the_store_can_not_be_reached_a_checkpoint_waits(store: Store, gate: Gate) -> None:
    failures = 3

    class Failing(Relay):
        async def update(self, name: str, transition: Any, within: Any = None) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                raise Unavailable("the disk is away")
            return await super().update(name, transition, within)

    @job("tests.wait")
    def wait(ctx: SyncContext[Progress]) -> int:
        ctx.checkpoint(Progress(pages_done=1))
        return 1

    operations = Operations(store)
    async with Worker(Failing(store), [wait]):
        assert await result(operations, wait, (await operations.start(wait)).name) == 1
    assert failures == 0


# -- errors


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(1),
        concurrent.futures.CancelledError(), asyncio.CancelledError(), Stopped("not by you"), BaseException(),
        ExceptionGroup("two", [ValueError(), KeyError()]),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
async def test_whatever_it_raises_ends_its_own_operation_only(store: Store, error: BaseException) -> None:
    @job("tests.fail")
    def fail(ctx: SyncContext) -> None:
        raise error

    @job("tests.fine")
    def fine(ctx: SyncContext) -> int:
        return 1

    operations = Operations(store)
    async with Worker(store, [fail, fine]) as worker:
        operation = await ended(operations, (await operations.start(fail)).name)
        assert await result(operations, fine, (await operations.start(fine)).name) == 1
        assert worker.ready

    assert operation.state is State.FAILED
    assert operation.error is not None
    assert operation.error.code is Code.INTERNAL


async def test_it_is_tried_again_as_its_policy_says(store: Store) -> None:
    @job("tests.retry", retry=RetryPolicy(attempts=3, initial_delay=timedelta(0)))
    def retry(ctx: SyncContext) -> int:
        if ctx.attempt < 3:
            raise OSError("not yet")
        return ctx.attempt

    operations = Operations(store)
    async with Worker(store, [retry]):
        assert await result(operations, retry, (await operations.start(retry)).name) == 3


# -- never left behind


async def test_a_task_cancelled_by_hand_still_waits_for_its_thread(gate: Gate) -> None:
    def work() -> str:
        gate.tell("runs")
        gate.wait()
        return "done"

    limiter = anyio.CapacityLimiter(1)
    task = asyncio.create_task(run_in_thread(work, name="work", limiter=limiter))
    await gate.story.heard("runs")
    for _ in range(3):
        task.cancel()
        await asyncio.wait([task], timeout=0.01)
        assert not task.done()
    gate.opened.set()

    assert await asyncio.wait_for(task, PATIENCE) == "done"


async def test_cancelled_before_it_begins_it_never_does(gate: Gate) -> None:
    limiter = anyio.CapacityLimiter(1)
    told: list[str] = []
    async with limiter:
        task = asyncio.create_task(run_in_thread(lambda: told.append("runs"), name="work", limiter=limiter))
        await until(lambda: limiter.statistics().tasks_waiting == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert told == []


async def test_a_thread_left_by_the_job_can_no_longer_save(store: Store, gate: Gate) -> None:
    raised: list[BaseException] = []
    threads: list[threading.Thread] = []

    @job("tests.leave")
    def leave(ctx: SyncContext[Progress]) -> int:
        def late() -> None:
            gate.wait()
            for progress in (Progress(pages_done=99), None):
                try:
                    ctx.checkpoint(progress)
                except BaseException as error:
                    raised.append(error)

        threads.append(threading.Thread(target=late))
        threads[0].start()
        ctx.checkpoint(Progress(pages_done=1))
        return 1

    operations = Operations(store)
    async with Worker(store, [leave]):
        name = (await operations.start(leave)).name
        await ended(operations, name)
        gate.opened.set()
        await anyio.to_thread.run_sync(threads[0].join, PATIENCE)

    assert [type(error) for error in raised] == [Stopped, Stopped]
    assert (await stored(store, name)).progress == '{"pages_done":1}'


# -- definition


def test_the_context_must_fit_the_kind_of_function() -> None:
    async def asynchronous(ctx: SyncContext) -> None: ...

    def plain(ctx: Context) -> None: ...

    def generator(ctx: SyncContext) -> Any:
        yield

    with pytest.raises(TypeError, match="an async job is a Context, not"):
        job("tests.one")(asynchronous)
    with pytest.raises(TypeError, match=r"plain `def`.* is a SyncContext, not"):
        job("tests.two")(plain)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(TypeError, match="without yield"):
        job("tests.three")(generator)
    with pytest.raises(TypeError, match="without yield"):
        job("tests.four")(Story)  # type: ignore[arg-type]


async def test_grace_is_refused_where_nothing_could_force_a_stop(store: Store) -> None:
    def plain(ctx: SyncContext) -> None: ...

    with pytest.raises(ValueError, match="a thread has none"):
        job("tests.one", grace=MOMENT)(plain)
    with pytest.raises(InvalidArgument, match="grace"):
        await Operations(store).start(job("tests.one")(plain), grace=MOMENT)


def test_it_stays_callable() -> None:
    @job("tests.call")
    def call(ctx: SyncContext, params: Params) -> int:
        return params.pages

    assert call(None, Params(pages=5)) == 5
    assert call.in_thread
