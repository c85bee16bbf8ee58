"""A service whose storage fails: its jobs save a count at every checkpoint, until there is a file GO.

What it needs to know stands in its environment, since its working directory may be a disk that is full.
"""

import os
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import anyio
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from lro import AllowAnonymous, Context, Service, job
from lro.store import open_store

FILE = "lro.db"
GO, TOLD = Path(os.environ.get("GO", "go")), Path(os.environ.get("TOLD", "told"))


class Count(BaseModel):
    counted: int = 0


async def count(ctx: Context[Count]) -> int:
    tell("begun", ctx)
    counted = ctx.progress.counted
    try:
        while not GO.exists():
            counted += 1
            await ctx.checkpoint(Count(counted=counted))
            await ctx.sleep(0.05)
    except anyio.get_cancelled_exc_class():
        tell(f"stopped:{ctx.stop_reason}", ctx)
        raise
    tell("returned", ctx)
    return counted


def tell(what: str, ctx: Context[Count]) -> None:
    with TOLD.open("a") as told:
        told.write(f"{os.getpid()} {what} {ctx.name} {ctx.attempt}\n")


once = job("once")(count)
again = job("again", restartable=True)(count)

service = Service(
    open_store(
        f"sqlite:///{FILE}",
        durability="process" if os.environ.get("DURABILITY") == "process" else "power",
        busy_timeout=timedelta(seconds=float(os.environ.get("PATIENCE", "5"))),
    ),
    jobs=[once, again],
    auth=AllowAnonymous(),
    concurrency=6,
    lease=timedelta(seconds=float(os.environ.get("LEASE", "30"))),
)


def integrity(request: Request) -> JSONResponse:
    """Look at the file through a connection of its own, which only reads."""
    del request
    with closing(sqlite3.connect(f"file:{FILE}?mode=ro", uri=True)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        names = [name for (name,) in connection.execute("SELECT name FROM operations")]
    return JSONResponse({"verdict": verdict, "names": names})


app = Starlette(routes=[Route("/integrity", integrity), Mount("/v1", app=service)], lifespan=service.lifespan)
