"""Coming from BackgroundTasks: the same endpoint, and work that survives a restart, tells how far it is, and can be
cancelled: `uvicorn examples.background_tasks:app`.

What it was:

    @app.post("/announcements", status_code=202)
    async def announce(announcement: Announcement, tasks: BackgroundTasks) -> None:
        tasks.add_task(deliver, announcement)        # lost with the process; nobody can ask, nobody can stop it

What changes: `deliver` becomes a job and notes where it is; the endpoint starts it and returns the operation.
"""

from datetime import timedelta

import httpx2
from fastapi import FastAPI
from pydantic import BaseModel

from lro import AllowAnonymous, Context, Operation, RetryPolicy, Service, job
from lro.routes import exception_handlers


class Announcement(BaseModel):
    text: str
    webhooks: list[str]


class Progress(BaseModel):
    delivered: int = 0


@job("announcements.deliver", retry=RetryPolicy(attempts=5, initial_delay=timedelta(seconds=0.2)))
async def deliver(ctx: Context[Progress], announcement: Announcement) -> Progress:
    async with httpx2.AsyncClient(timeout=10) as client:
        for index in range(ctx.progress.delivered, len(announcement.webhooks)):
            key = {"Idempotency-Key": f"{ctx.name}/{index}"}  # the same on every attempt
            response = await client.post(announcement.webhooks[index], json={"text": announcement.text}, headers=key)
            response.raise_for_status()  # fails this attempt: the next one goes on here
            await ctx.checkpoint(Progress(delivered=index + 1))
    return ctx.progress


service = Service("sqlite:///announcements.db", jobs=[deliver], auth=AllowAnonymous())
app = FastAPI(lifespan=service.lifespan, exception_handlers=exception_handlers)


@app.post("/announcements", status_code=202)
async def announce(announcement: Announcement) -> Operation:
    return await service.start(deliver, announcement)


app.mount("/v1", service)
