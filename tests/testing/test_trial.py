"""One attempt of one job alone: stopped where the test says, in virtual time where the test likes."""

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest
import trio.testing
from pydantic import BaseModel

from lro import Code, Context, Job, Principal, RetryPolicy, State, Stopped, SyncContext, job, testing
from lro.errors import InvalidArgument
from lro.lifecycle import CancelOutcome

HOUR = 3600.0


class Params(BaseModel):
    pages: int = 5


class Progress(BaseModel):
    pages_done: int = 0


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


virtual = pytest.mark.parametrize(
    "anyio_backend",
    [pytest.param(("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}), id="virtual")],
)


@job("books.render", restartable=True)
async def render(ctx: Context[Progress], params: Params) -> dict[str, int]:
    for page in range(ctx.progress.pages_done, params.pages):
        await ctx.checkpoint(Progress(pages_done=page + 1))
    return {"pages": params.pages}


@job("books.bind")
def bind(ctx: SyncContext[Progress], params: Params) -> dict[str, int]:
    for page in range(ctx.progress.pages_done, params.pages):
        ctx.checkpoint(Progress(pages_done=page + 1))
    return {"pages": params.pages}


both = pytest.mark.parametrize("tried", [render, bind], ids=["async", "thread"])
AnyJob = Job[Params, Progress, dict[str, int]]


@both
async def test_left_alone_it_has_a_result(tried: AnyJob) -> None:
    outcome = await testing.run(tried, Params(pages=4))
    assert outcome.state is State.SUCCEEDED
    assert outcome.result == {"pages": 4}
    assert outcome.progress == Progress(pages_done=4)
    assert outcome.checkpoints == 4
    assert (outcome.error, outcome.exception, outcome.cancel_outcome) == (None, None, None)
    assert outcome.operation.done


@both
@pytest.mark.parametrize("at", [1, 3, 5])
async def test_cancelled_at_a_checkpoint_it_ends_there(tried: AnyJob, at: int) -> None:
    outcome = await testing.run(tried, Params(), cancel_at=at)
    assert outcome.state is State.CANCELLED
    assert outcome.error is not None
    assert outcome.error.code is Code.CANCELLED
    assert outcome.cancel_outcome is CancelOutcome.ACKNOWLEDGED
    assert outcome.checkpoints == at
    assert outcome.progress == Progress(pages_done=at), "a checkpoint saves, then stops"
    assert outcome.result is None


@both
async def test_a_checkpoint_that_it_does_not_come_to_cancels_nothing(tried: AnyJob) -> None:
    outcome = await testing.run(tried, Params(pages=2), cancel_at=3)
    assert (outcome.state, outcome.checkpoints, outcome.cancel_outcome) == (State.SUCCEEDED, 2, None)


@both
async def test_it_resumes_from_a_progress(tried: AnyJob) -> None:
    outcome = await testing.run(tried, Params(), progress=Progress(pages_done=3), attempt=2)
    assert (outcome.state, outcome.checkpoints) == (State.SUCCEEDED, 2)
    assert outcome.operation.metadata["attempt"] == 2


async def test_a_shutdown_gives_a_restartable_one_back_and_fails_another() -> None:
    resumable = await testing.run(render, Params(), shutdown_at=2)
    assert resumable.state is State.PENDING
    assert resumable.progress == Progress(pages_done=2)
    lost = await testing.run(bind, Params(), shutdown_at=2)
    assert lost.state is State.FAILED
    assert lost.error is not None
    assert lost.error.code is Code.UNAVAILABLE


async def test_it_sees_who_started_it_and_which_attempt_it_is() -> None:
    @job("books.ask")
    async def ask(ctx: Context) -> list[str]:
        return [ctx.principal.id, ctx.principal.tenant, str(ctx.attempt), str(ctx.deadline is not None)]

    outcome = await testing.run(ask, principal=Principal("ada", "t"), attempt=3, timeout=timedelta(hours=1))
    assert outcome.result == ["ada", "t", "3", "True"]


async def test_an_exception_is_there_to_be_looked_at() -> None:
    error = ValueError("out of paper")

    @job("books.fail")
    async def fail(ctx: Context) -> None:
        raise error

    @job("books.retry", retry=RetryPolicy(attempts=2))
    def retry(ctx: SyncContext) -> None:
        raise error

    failed = await testing.run(fail)
    assert (failed.state, failed.exception) == (State.FAILED, error)
    first, second = await testing.run(retry), await testing.run(retry, attempt=2)
    assert (first.state, first.exception) == (State.PENDING, error)
    assert (second.state, second.exception) == (State.FAILED, error)


async def test_a_job_that_swallows_its_stop_completes_anyway() -> None:
    @job("books.swallow")
    def swallow(ctx: SyncContext) -> str:
        try:
            ctx.checkpoint()
        except Stopped:
            return "natural"
        return "never stopped"

    outcome = await testing.run(swallow, cancel_at=1)
    assert (outcome.state, outcome.result) == (State.SUCCEEDED, "natural")
    assert outcome.cancel_outcome is CancelOutcome.COMPLETED_ANYWAY


async def test_checkpoints_of_children_count_and_stop_the_job() -> None:
    @job("books.team")
    async def team(ctx: Context) -> None:
        async def work() -> None:
            while True:
                await ctx.checkpoint()

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(work)

    outcome = await testing.run(team, cancel_at=10)
    assert outcome.state is State.CANCELLED
    assert outcome.checkpoints >= 10


async def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="pages"):
        await testing.run(render, {"pages": "many"})  # type: ignore[misc]  # that is the test
    for wrong in ({"cancel_at": 0}, {"shutdown_at": -1}, {"attempt": 0}):
        with pytest.raises(ValueError, match="counted from 1"):
            await testing.run(render, Params(), **wrong)  # type: ignore[call-overload]  # that is the test


async def test_a_test_that_gives_up_ends_the_attempt() -> None:
    ended: list[str] = []

    @job("books.hang")
    async def hang(ctx: Context) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("ended")

    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.02):
            await testing.run(hang)
    assert ended == ["ended"]


# -- virtual time


async def quickly(what: Callable[[], Awaitable[Any]]) -> tuple[Any, float]:
    """Return what it returns and the virtual seconds that it took; in real ones it takes next to none."""
    began, virtually = time.monotonic(), anyio.current_time()
    value = await what()
    assert time.monotonic() - began < 5
    return value, anyio.current_time() - virtually


@job("books.age", timeout=timedelta(days=2))
async def age(ctx: Context) -> str:
    for _ in range(24):
        await ctx.sleep(HOUR)
    return "a day older"


@virtual
async def test_a_day_of_sleep_takes_none() -> None:
    outcome, took = await quickly(lambda: testing.run(age))
    assert outcome.result == "a day older"
    assert took == pytest.approx(24 * HOUR)
    assert outcome.checkpoints == 24


@virtual
async def test_a_cancel_ends_a_sleep_in_the_middle() -> None:
    outcome, took = await quickly(lambda: testing.run(age, cancel_after=timedelta(hours=3.5)))
    assert outcome.state is State.CANCELLED
    assert took == pytest.approx(3.5 * HOUR)


@virtual
async def test_the_deadline_comes_in_virtual_time() -> None:
    outcome, took = await quickly(lambda: testing.run(age, timeout=timedelta(hours=10)))
    assert outcome.error is not None
    assert outcome.error.code is Code.DEADLINE_EXCEEDED
    assert took == pytest.approx(10 * HOUR)


@virtual
async def test_grace_forces_a_job_that_looks_at_nothing() -> None:
    @job("books.deaf", grace=timedelta(minutes=5))
    async def deaf(ctx: Context) -> None:
        await anyio.sleep(24 * HOUR)

    outcome, took = await quickly(lambda: testing.run(deaf, cancel_after=timedelta(minutes=1)))
    assert outcome.cancel_outcome is CancelOutcome.FORCED
    assert took == pytest.approx(360)


@virtual
async def test_without_grace_it_has_its_natural_end() -> None:
    @job("books.deaf")
    async def deaf(ctx: Context) -> str:
        await anyio.sleep(24 * HOUR)
        return "heard nothing"

    outcome, took = await quickly(lambda: testing.run(deaf, cancel_after=timedelta(minutes=1)))
    assert (outcome.result, outcome.cancel_outcome) == ("heard nothing", CancelOutcome.COMPLETED_ANYWAY)
    assert took == pytest.approx(24 * HOUR)


@virtual
async def test_cleanup_has_its_time_and_no_more() -> None:
    cleaned: list[str] = []

    @job("books.clean")
    async def clean(ctx: Context[Progress]) -> None:
        try:
            await ctx.sleep(HOUR)
        except anyio.get_cancelled_exc_class():
            with ctx.cleanup(seconds=600):
                await ctx.checkpoint(Progress(pages_done=1))
                await ctx.sleep(300)
                cleaned.append("shelves")
                await ctx.sleep(301)
                cleaned.append("never")
            raise

    outcome, took = await quickly(lambda: testing.run(clean, cancel_at=1))
    assert outcome.state is State.CANCELLED
    assert cleaned == ["shelves"]
    assert outcome.progress == Progress(pages_done=1)
    assert outcome.checkpoints == 1, "those of the cleanup don't count"
    assert took == pytest.approx(HOUR + 600)
