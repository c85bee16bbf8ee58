"""The HTTP server under load, a process of its own: `python -m benchmarks.server DATABASE`.

One app with a bare Starlette route and the library's. It prints a line of JSON about itself once it serves.
"""

import importlib.util
import json
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from lro import AllowAnonymous, Context, Service, job

__all__ = ["serve"]

BODY = b'{"name":"operations/0123456789abcdefghjkmnpqrs","metadata":{"state":"SUCCEEDED"},"done":true}'


@job("benchmarks.quick")
async def quick(_ctx: Context) -> dict[str, str]:
    """Return a small result."""
    return {"uri": "s3://bucket/key"}


@job("benchmarks.endless", restartable=True)
async def endless(ctx: Context) -> None:
    """Run for as long as the server."""
    await ctx.sleep(24 * 3600)


async def _plain(_request: Request) -> Response:
    return Response(BODY, media_type="application/json")


def serve(database: str) -> None:
    """Serve on a free port of the loopback until SIGTERM."""
    is_fast = all(importlib.util.find_spec(name) for name in ("httptools", "uvloop"))
    service = Service(f"sqlite:///{database}", jobs=[quick, endless], auth=AllowAnonymous(), drain=timedelta(seconds=0))
    # Asyncio sets TCP_NODELAY only on a socket that says it is TCP: without it every answer waits 40 ms for an ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        async with service:
            done = await service.start(quick)
            await service.operations.result(quick, done.name)
            running = await service.start(endless)
            about = {
                "port": listener.getsockname()[1],
                "server": "httptools+uvloop" if is_fast else "h11+asyncio",
                "done": f"/v1/{done.name}",
                "running": f"/v1/{running.name}",
            }
            print(json.dumps(about), flush=True)
            yield

    app = Starlette(routes=[Route("/plain", _plain), Mount("/v1", app=service)], lifespan=lifespan)
    config = uvicorn.Config(
        app,
        loop="uvloop" if is_fast else "asyncio",
        http="httptools" if is_fast else "h11",
        access_log=False,
        log_level="warning",
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(sys.argv[1])
