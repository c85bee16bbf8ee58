"""An app that is killed at any moment: its jobs note each attempt that begins, when and in which process, in a file."""

import os
import time

from starlette.applications import Starlette
from starlette.routing import Mount

from lro import AllowAnonymous, Context, Service, job

_log = os.open("begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(ctx: Context) -> None:
    os.write(_log, f"{ctx.name} {ctx.attempt} {time.monotonic()} {os.getpid()}\n".encode())


@job("once")
async def once(ctx: Context) -> str:
    note(ctx)
    await ctx.sleep(0.05)
    return "done"


@job("again", restartable=True)
async def again(ctx: Context) -> str:
    note(ctx)
    for _ in range(20):
        await ctx.sleep(0.02)
    return "done"


service = Service("sqlite:///life.db", jobs=[once, again], auth=AllowAnonymous(), concurrency=20)
app = Starlette(routes=[Mount("/v1", app=service)], lifespan=service.lifespan)
