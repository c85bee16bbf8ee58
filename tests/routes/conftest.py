"""A started Service behind the ASGI transport, with jobs whose every step the tests decide."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from lro import AllowAnonymous, Context, Job, Service, job


class CountParams(BaseModel):
    to: int


class CountProgress(BaseModel):
    counted: int = 0


@job("count")
async def count(ctx: Context[CountProgress], params: CountParams) -> dict[str, int]:
    """Count, saving every number."""
    for number in range(ctx.progress.counted, params.to):
        await ctx.checkpoint(CountProgress(counted=number + 1))
    return {"counted": params.to}


class Stage:
    """Where the jobs of a test meet the test."""

    def __init__(self) -> None:
        self.running = anyio.Event()
        self.go_on = anyio.Event()


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
async def service(url: str, stage: Stage) -> AsyncIterator[Service]:
    @job("patient")
    async def patient(ctx: Context) -> str:
        """Wait until it is stopped or told to go on, looking at checkpoints."""
        stage.running.set()
        while not stage.go_on.is_set():
            await ctx.sleep(0.005)
        return "natural end"

    @job("deaf")
    async def deaf(ctx: Context) -> str:
        """Never look."""
        del ctx
        stage.running.set()
        await stage.go_on.wait()
        return "natural end"

    @job("stubborn")
    async def stubborn(ctx: Context) -> str:
        """Catch the cancellation and return all the same."""
        stage.running.set()
        try:
            await ctx.sleep(60)
        except anyio.get_cancelled_exc_class():
            return "natural end"
        return "too late"

    @job("nothing")
    async def nothing(ctx: Context) -> None:
        """Return nothing."""
        del ctx

    @job("uncancellable", cancellable=False)
    async def uncancellable(ctx: Context) -> None:
        """Refuse to be cancelled."""
        del ctx
        stage.running.set()
        await stage.go_on.wait()

    @job("alone", parallel="reject")
    async def alone(ctx: Context) -> None:
        """Be the only one on its target."""
        del ctx
        stage.running.set()
        await stage.go_on.wait()

    jobs: list[Job[Any, Any, Any]] = [count, patient, deaf, stubborn, nothing, uncancellable, alone]
    async with Service(url, jobs=jobs, auth=AllowAnonymous(), handle_signals=False) as started:
        yield started
        stage.go_on.set()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    app = Starlette(routes=[Mount("/v1", app=service)])
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url="http://host/v1/") as opened:
        yield opened
