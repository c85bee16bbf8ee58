"""A service that several processes share; its jobs note in the file `told` what happens to them, when and where.

A job that holds goes on until there is a file `go`, or one that is named after its operation.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from lro import AllowAnonymous, Context, Job, Service, Stopped, SyncContext, job
from lro.context import AnyContext

TOLD, GO = Path("told"), Path("go")


def tell(what: str, ctx: AnyContext) -> None:
    with TOLD.open("a") as told:
        told.write(f"{time.monotonic()!r} {os.getpid()} {what} {ctx.name} {ctx.attempt}\n")


def may_end(ctx: AnyContext) -> bool:
    return GO.exists() or Path(ctx.name.replace("/", "-")).exists()


def end(ctx: AnyContext) -> str:
    tell("returned", ctx)
    return f"attempt {ctx.attempt} in {os.getpid()}"


async def hold(ctx: Context) -> str:
    tell("begun", ctx)
    try:
        while not may_end(ctx):
            await ctx.sleep(0.01)
    except anyio.get_cancelled_exc_class():
        tell(f"stopped:{ctx.stop_reason}", ctx)
        raise
    return end(ctx)


def hold_thread(ctx: SyncContext) -> str:
    tell("begun", ctx)
    try:
        while not may_end(ctx):
            ctx.sleep(0.01)
    except Stopped:
        tell(f"stopped:{ctx.stop_reason}", ctx)
        raise
    return end(ctx)


once = job("once")(hold)
again = job("again", restartable=True)(hold)
thread_once = job("thread.once")(hold_thread)
thread_again = job("thread.again", restartable=True)(hold_thread)


@job("deaf", restartable=True)
async def deaf(ctx: Context) -> str:
    """Hold, and take no notice of a stop."""
    tell("begun", ctx)
    with anyio.CancelScope(shield=True):
        while not may_end(ctx):
            await anyio.sleep(0.01)
    return end(ctx)


@job("quick")
async def quick(ctx: Context) -> str:
    tell("begun", ctx)
    return end(ctx)


JOBS: list[Job[Any, Any, Any]] = [once, again, thread_once, thread_again, deaf, quick]  # Any: jobs of any types


def make(**options: Any) -> Service:  # Any: Service's own
    return Service("sqlite:///shared.db", jobs=JOBS, auth=AllowAnonymous(), **options)


def serve(service: Service) -> Starlette:
    async def here(request: Request) -> JSONResponse:
        """Tell which process answers, and how many waits are parked in it."""
        del request
        return JSONResponse({"pid": os.getpid(), "waiting": service.operations.waiting})

    return Starlette(routes=[Route("/here", here), Mount("/v1", app=service)], lifespan=service.lifespan)


working = make()
hasty = make(lease=timedelta(seconds=2))
answering = serve(make(worker=False))
narrow = serve(make(concurrency=2))
draining = serve(make(drain=timedelta(seconds=1)))
