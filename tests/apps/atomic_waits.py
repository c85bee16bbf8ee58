"""An app whose waits are watched from outside: how many there are, and what each costs the process."""

import asyncio
import threading
from datetime import timedelta
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from lro import AllowAnonymous, Context, Service, job
from lro.limits import Limits
from lro.store.sqlite import SQLiteStore

GO = Path("go")
DESCRIPTORS = Path("/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd")


@job("park")
async def park(ctx: Context) -> str:
    while not GO.exists():
        await ctx.sleep(0.02)
    return "done"


limits = Limits(wait=timedelta(hours=1))  # no wait of these tests ends by itself
service = Service("sqlite:///waits.db", jobs=[park], auth=AllowAnonymous(), limits=limits)


async def waiting(request: Request) -> Response:
    """Tell what the waits hold now."""
    del request
    store = service.operations.store
    assert isinstance(store, SQLiteStore)
    held = {
        "waiting": service.operations.waiting,
        "watches": sum(map(len, store._hub._watches.values())),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "descriptors": sum(1 for _ in DESCRIPTORS.iterdir()),
    }
    return JSONResponse(held)


app = Starlette(routes=[Route("/waiting", waiting), Mount("/v1", app=service)], lifespan=service.lifespan)
