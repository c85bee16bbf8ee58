"""What type checkers must refuse: exactly the lines that say so. Read by mypy and pyright, never run."""

from datetime import timedelta

from pydantic import BaseModel

from lro import Context, Operations, RetryPolicy, SyncContext, Worker, job, testing
from lro.store import open_store


class Params(BaseModel):
    pages: int


class Other(BaseModel):
    book: str


class Progress(BaseModel):
    pages_done: int = 0


class Rendered(BaseModel):
    url: str


@job("books.render")
async def render(ctx: Context[Progress], params: Params) -> Rendered:
    await ctx.checkpoint(Other(book="b"))  # error
    ctx.report(None)  # error
    await ctx.checkpoint({"pages_done": 1})  # error
    await ctx.sleep("1")  # error
    ctx.name.missing()  # error
    with ctx.cleanup():  # error
        pass
    return Rendered(url=params.pages)  # error


@job("books.count")
async def count(ctx: Context) -> int:
    await ctx.checkpoint(Progress())  # error
    ctx.progress.pages_done  # error # noqa: B018 -- that is the point
    return "1"  # error


@job("books.bind")
def bind(ctx: SyncContext[Progress], params: Params) -> Rendered:
    ctx.checkpoint(Other(book="b"))  # error
    with ctx.cleanup():  # error
        pass
    return Rendered(url=params.pages)  # error


job("books.retry", retry=3)  # error
job("books.grace", grace=30)  # error
job(name="books.name", unknown=True)  # error
RetryPolicy(3)  # error


async def too_much(ctx: Context, params: Params, more: int) -> None: ...


async def nothing() -> None: ...


def plain(ctx: Context) -> int:
    return 1


job("books.much")(too_much)  # error
job("books.nothing")(nothing)  # error
job("books.plain")(plain)  # error


async def use(operations: Operations) -> None:
    await operations.start(render)  # error
    await operations.start(render, Other(book="b"))  # error
    await operations.start(count, Params(pages=1))  # error
    await operations.start(render, Params(pages=1), timeout=3)  # error
    await operations.start(render, Params(pages=1), unknown=3)  # error
    await operations.start("books.render", Params(pages=1))  # error
    number: int = await operations.result(render, "operations/x")  # error
    bound: int = await operations.result(bind, "operations/x")  # error
    await operations.start(bind, Other(book="b"))  # error
    text: str = await operations.result(count, "operations/x")  # error
    await operations.result(count, "operations/x", timeout=3)  # error
    await operations.cancel("operations/x", "because")  # error
    await testing.run(render)  # error
    await testing.run(render, Other(book="b"))  # error
    await testing.run(render, Params(pages=1), cancel_at="3")  # error
    print(number, text, bound, timedelta())  # noqa: T201 -- to use what is assigned


Worker(open_store("sqlite:///lro.db"), jobs=[plain])  # error
open_store("sqlite:///lro.db", durability="none")  # error
