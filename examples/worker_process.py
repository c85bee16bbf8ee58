"""A web process that only answers, and as many working processes as you like, on one SQLite file.

    lro serve examples.worker_process:service
    lro worker examples.worker_process:service
    curl -X POST localhost:8000/v1/jobs/texts.search:run \
        -H 'content-type: application/json' -d '{"params": {"folder": ".", "pattern": "T[O0]DO"}}'
"""

import re

import anyio
from pydantic import BaseModel

from lro import AllowAnonymous, Context, Service, job


class Search(BaseModel):
    folder: str
    pattern: str


class Progress(BaseModel):
    files_done: int = 0


@job("texts.search", restartable=True)
async def search(ctx: Context[Progress], params: Search) -> list[str]:
    pattern = re.compile(params.pattern)
    found: list[str] = []
    files = 0
    async for path in anyio.Path(params.folder).rglob("*.txt"):
        text = await path.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        found += [f"{path}:{number}: {line}" for number, line in enumerate(lines, 1) if pattern.search(line)]
        files += 1
        await ctx.checkpoint(Progress(files_done=files))
    return found


service = Service("sqlite:///lro.db", jobs=[search], auth=AllowAnonymous(), worker=False)
