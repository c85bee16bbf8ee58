"""The jobs of a simulation: each acts out the script that it is given, and tells the checks what it does."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import timedelta
from random import Random
from typing import Any, NamedTuple

import anyio
from pydantic import BaseModel

from lro import Context, OperationError, RetryPolicy, job
from lro.attempt import Attempt
from lro.jobs import Job
from lro.status import Code
from tests.simulation.checks import Checks, Run
from tests.simulation.machine import Process

__all__ = ["JOBS", "Scene", "Script", "again", "draw_script", "retried", "scene"]


class Scene(NamedTuple):
    """Where a job runs, and who watches."""

    checks: Checks
    process: Process


scene: ContextVar[Scene] = ContextVar("scene")


class Script(BaseModel):
    """What to do, act by act: its name and a size, seconds or a count."""

    acts: list[tuple[str, float]]


class Done(BaseModel):
    """How many acts are done."""

    done: int = 0


ACTS = ("work", "step", "step", "step", "look", "nap", "report", "deaf", "tidy", "late", "raise", "raise", "both")
RARE = ("refuse", "cancel itself", "loop")


def draw_script(random: Random) -> Script:
    """Return a script."""
    acts: list[tuple[str, float]] = []
    if random.random() < 0.3:
        acts.append(("tidy", round(random.random() * 2, 3)))  # much may come between a stop and the end
    for _ in range(random.randint(1, 7)):
        act = random.choice(RARE if random.random() < 0.05 else ACTS)
        acts.append((act, random.randint(1, 3) if act == "raise" else round(random.random() ** 2 * 2, 3)))
    return Script(acts=acts)


async def _play(ctx: Context[Done], script: Script) -> dict[str, Any]:  # Any: JSON
    checks, process = scene.get()
    attempt = ctx._save.__self__  # type: ignore[attr-defined]  # which lease it runs under is not for jobs to know
    assert isinstance(attempt, Attempt)
    run = checks.started(process, ctx.name, attempt.lease, attempt.stop, ctx.progress.done)
    try:
        await _act(ctx, script, run)
    except BaseException as error:
        run.raised = error
        raise
    else:
        run.returned = {"attempt": ctx.attempt, "token": attempt.lease.token}
        return run.returned  # type: ignore[no-any-return]  # it was just set
    finally:
        run.leave()


async def _act(ctx: Context[Done], script: Script, run: Run) -> None:
    late = tidy = 0.0
    try:
        for number in range(ctx.progress.done, len(script.acts)):
            act, size = script.acts[number]
            if act == "late":
                late = size + 0.001
            elif act == "tidy":
                tidy = size + 0.001
            elif act == "step":
                await anyio.sleep(size / 2)
                await ctx.checkpoint(Done(done=number + 1))
                run.saved(number + 1)
            else:
                await _ACTS[act](ctx, size, number)
    except anyio.get_cancelled_exc_class():
        if tidy:
            with ctx.cleanup(seconds=tidy):
                await anyio.sleep(tidy * 0.9)
                await ctx.checkpoint(Done(done=ctx.progress.done))
        if not late:
            raise
        with anyio.CancelScope(shield=True):  # it swallows its cancellation, and returns a value after all
            await anyio.sleep(late)


async def _work(ctx: Context[Done], size: float, number: int) -> None:
    del ctx, number
    await anyio.sleep(size)


async def _look(ctx: Context[Done], size: float, number: int) -> None:
    del number
    await anyio.sleep(size / 4)
    await ctx.checkpoint()


async def _nap(ctx: Context[Done], size: float, number: int) -> None:
    del number
    await ctx.sleep(size)


async def _report(ctx: Context[Done], size: float, number: int) -> None:
    del size
    ctx.report(Done(done=number + 1))


async def _be_deaf(ctx: Context[Done], size: float, number: int) -> None:
    del ctx, number
    with anyio.CancelScope(shield=True):
        await anyio.sleep(size)


async def _raise(ctx: Context[Done], size: float, number: int) -> None:
    if ctx.attempt <= size:
        await anyio.sleep(size / 3)
        raise ValueError(f"act {number} fails in attempt {ctx.attempt}")


async def _refuse(ctx: Context[Done], size: float, number: int) -> None:
    del size
    raise OperationError(Code.FAILED_PRECONDITION, f"act {number} of {ctx.name} is refused")


async def _both(ctx: Context[Done], size: float, number: int) -> None:
    """Work in two tasks, one of which looks whether it is to stop."""

    async def look() -> None:
        await anyio.sleep(size / 2)
        await ctx.checkpoint(Done(done=number + 1))

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, size)
        group.start_soon(look)


async def _cancel_itself(ctx: Context[Done], size: float, number: int) -> None:
    """End as if cancelled, though nobody has asked."""
    del ctx, size, number
    raise anyio.get_cancelled_exc_class()


async def _loop(ctx: Context[Done], size: float, number: int) -> None:
    """Compute, and pass one checkpoint after the other, with no other await between them."""
    del number
    machine = scene.get().process.machine
    for _ in range(int(size * 20)):
        machine.now += 0.001  # what it computes takes time, and holds up the event loop
        await ctx.checkpoint()


_ACTS: dict[str, Callable[[Context[Done], float, int], Awaitable[None]]] = {
    "work": _work,
    "look": _look,
    "nap": _nap,
    "report": _report,
    "deaf": _be_deaf,
    "raise": _raise,
    "refuse": _refuse,
    "both": _both,
    "cancel itself": _cancel_itself,
    "loop": _loop,
}

_POLICY = RetryPolicy(attempts=3, initial_delay=timedelta(seconds=0.5), retry_on=(ValueError,))


@job("sim.once")
async def once(ctx: Context[Done], script: Script) -> dict[str, Any]:
    return await _play(ctx, script)


@job("sim.again", restartable=True)
async def again(ctx: Context[Done], script: Script) -> dict[str, Any]:
    return await _play(ctx, script)


@job("sim.retried", retry=_POLICY)
async def retried(ctx: Context[Done], script: Script) -> dict[str, Any]:
    return await _play(ctx, script)


@job("sim.graceful", grace=timedelta(seconds=0.7))
async def graceful(ctx: Context[Done], script: Script) -> dict[str, Any]:
    return await _play(ctx, script)


JOBS: tuple[Job[Script, Done, dict[str, Any]], ...] = (once, again, retried, graceful)
