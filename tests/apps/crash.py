"""An app to be killed: its jobs note every start in a file, and end once a file called `go` is there."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from lro import AllowAnonymous, Context, Service, job

STARTS, GO = Path("starts"), Path("go")


def note_start(ctx: Context) -> None:
    with STARTS.open("a") as starts:
        starts.write(f"{ctx.name}\n")


@job("once")
async def once(ctx: Context) -> str:
    note_start(ctx)
    while not GO.exists():
        await ctx.sleep(0.01)
    return "done"


@job("again", restartable=True)
async def again(ctx: Context) -> str:
    note_start(ctx)
    while not GO.exists():
        await ctx.sleep(0.01)
    return "done"


@job("deaf")
async def deaf(ctx: Context) -> str:
    note_start(ctx)
    with ctx.cleanup(seconds=3600):
        while not GO.exists():
            await ctx.sleep(0.01)
    return "done"


service = Service("sqlite:///crash.db", jobs=[once, again, deaf], auth=AllowAnonymous(), concurrency=4)


async def waiting(request: Request) -> Response:
    """Tell how many waits are parked."""
    del request
    return Response(str(service.operations.waiting))


app = Starlette(routes=[Route("/waiting", waiting), Mount("/v1", app=service)], lifespan=service.lifespan)
