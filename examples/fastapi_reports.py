"""Endpoints of your own under FastAPI; a row and its operation in one commit: `uvicorn examples.fastapi_reports:app`.

    curl -X POST localhost:8000/v1/reports -H 'authorization: Bearer ada' \
        -H 'content-type: application/json' -d '{"folder": "."}'
"""

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel

from lro import Context, Operation, Principal, Service, job
from lro.principal import Scope
from lro.routes import exception_handlers, principal_of


class Folder(BaseModel):
    folder: str


class Progress(BaseModel):
    files_done: int = 0


@job("reports.count_words", restartable=True)
async def count_words(ctx: Context[Progress], params: Folder) -> dict[str, int]:
    words, files = Counter[str](), 0
    async for path in anyio.Path(params.folder).glob("*.txt"):
        words.update((await path.read_text(encoding="utf-8")).lower().split())
        files += 1
        await ctx.checkpoint(Progress(files_done=files))
    return dict(words.most_common(10))


class Tokens:
    """Who sends `Authorization: Bearer ada` is ada, and sees what ada started. Put your own check here."""

    def authenticate(self, request: Request) -> Principal | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return Principal(token) if scheme.lower() == "bearer" and token else None

    async def authorize(self, principal: Principal, permission: str, resource: str) -> Scope:
        return Scope(owner=principal.id)


auth = Tokens()
service = Service("sqlite:///reports.db", jobs=[count_words], auth=auth)
Caller = Annotated[Principal, Depends(principal_of(auth))]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with service:
        yield


app = FastAPI(lifespan=lifespan, exception_handlers=exception_handlers)


@app.post("/v1/reports")
async def create_report(folder: Folder, caller: Caller) -> Operation:
    def add_row(database: sqlite3.Connection) -> None:  # in the transaction that stores the operation
        database.execute("CREATE TABLE IF NOT EXISTS reports (folder TEXT, owner TEXT)")
        database.execute("INSERT INTO reports VALUES (?, ?)", (folder.folder, caller.id))

    return await service.start(count_words, folder, principal=caller, target=folder.folder, within=add_row)


app.mount("/v1", service)  # after the routes of your own
