"""A whole service in one object: `uvicorn examples.quickstart:app`."""

import hashlib

import anyio
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from lro import AllowAnonymous, Context, Service, job


class File(BaseModel):
    path: str


class Progress(BaseModel):
    bytes_done: int = 0


@job("files.sha256")
async def sha256(ctx: Context[Progress], params: File) -> dict[str, str]:
    digest = hashlib.sha256()
    async with await anyio.open_file(params.path, "rb") as file:
        while chunk := await file.read(1 << 20):
            digest.update(chunk)
            await ctx.checkpoint(Progress(bytes_done=await file.tell()))  # saved; may stop here
    return {"sha256": digest.hexdigest()}


service = Service("sqlite:///lro.db", jobs=[sha256], auth=AllowAnonymous())
app = Starlette(routes=[Mount("/v1", app=service)], lifespan=service.lifespan)
