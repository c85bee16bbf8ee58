"""What type checkers must accept, and infer as it says here. Read by mypy and pyright, never run."""

from datetime import timedelta
from typing import Any, assert_type

from pydantic import BaseModel

from lro import Context, Job, Operation, Operations, RetryPolicy, SyncContext, Worker, job, testing
from lro.store import open_store


class Params(BaseModel):
    pages: int


class Progress(BaseModel):
    pages_done: int = 0


class Rendered(BaseModel):
    url: str


@job("books.render", retry=RetryPolicy(attempts=3), grace=timedelta(seconds=30))
async def render(ctx: Context[Progress], params: Params) -> Rendered:
    assert_type(ctx, Context[Progress])
    assert_type(ctx.progress, Progress)
    await ctx.checkpoint()
    await ctx.checkpoint(Progress(pages_done=ctx.progress.pages_done + 1))
    ctx.report(Progress())
    with ctx.cleanup(seconds=10):
        await ctx.sleep(1)
    return Rendered(url=f"{ctx.name}/{params.pages}")


@job("books.count")
async def count(ctx: Context) -> int:
    assert_type(ctx.progress, None)
    await ctx.checkpoint()
    return 1


@job("books.sort")
async def sort(ctx: Context, params: Params) -> list[str]:
    return [ctx.name] * params.pages


@job("books.scan")
async def scan(ctx: Context[Progress]) -> dict[str, Any]:
    return {"done": ctx.progress.pages_done}


@job("books.clear", restartable=True)
async def clear(ctx: Context[None]) -> None:
    await ctx.checkpoint()


@job("books.bind")
def bind(ctx: SyncContext[Progress], params: Params) -> Rendered:
    assert_type(ctx.progress, Progress)
    ctx.checkpoint()
    ctx.checkpoint(Progress(pages_done=ctx.progress.pages_done + 1))
    with ctx.cleanup(seconds=10):
        ctx.sleep(1)
    return Rendered(url=f"{ctx.name}/{params.pages}")


@job("books.weigh", restartable=True)
def weigh(ctx: SyncContext) -> float:
    ctx.checkpoint()
    return 1.5


assert_type(render, Job[Params, Progress, Rendered])
assert_type(count, Job[None, None, int])
assert_type(sort, Job[Params, None, list[str]])
assert_type(scan, Job[None, Progress, dict[str, Any]])
assert_type(clear, Job[None, None, None])
assert_type(bind, Job[Params, Progress, Rendered])
assert_type(weigh, Job[None, None, float])


async def use() -> None:
    store = open_store("sqlite:///lro.db")
    operations = Operations(store)
    async with store, Worker(store, jobs=[render, count, sort, scan, clear, bind, weigh], concurrency=4) as worker:
        assert_type(worker, Worker)
        operation = await operations.start(render, Params(pages=3), request_id="r", timeout=timedelta(hours=1))
        assert_type(operation, Operation)
        assert_type(await operations.start(count), Operation)
        assert_type(await operations.start(clear, None, priority=1), Operation)
        assert_type(await operations.result(render, operation.name), Rendered)
        assert_type(await operations.result(count, operation.name, timeout=timedelta(seconds=1)), int)
        assert_type(await operations.result(sort, operation.name), list[str])
        await operations.result(clear, operation.name)
        assert_type(await operations.result(bind, operation.name), Rendered)
        assert_type(await operations.result(weigh, operation.name), float)
        assert_type(await operations.wait(operation.name), Operation)
        assert_type(await operations.cancel(operation.name, reason="wrong book"), Operation)


async def try_out() -> None:
    outcome = await testing.run(render, Params(pages=3), cancel_at=2)
    assert_type(outcome, testing.Run[Progress, Rendered])
    assert_type(outcome.result, Rendered | None)
    assert_type(outcome.progress, Progress)
    assert_type(await testing.run(weigh), testing.Run[None, float])
