"""One attempt by itself, without a worker around it: who may stop it, and when its time is up."""

from datetime import timedelta

import anyio
import pytest
import trio.testing

from lro import Context, job
from lro.attempt import Attempt
from lro.lifecycle import Raised, Returned, State
from lro.limits import Limits
from lro.operations import Operations
from lro.testing import MemoryStore, VirtualClock, run
from tests.jobs import Params, Progress


async def test_a_cancelled_host_does_not_stop_an_attempt() -> None:
    @job("tests.alone")
    async def patient(ctx: Context) -> str:
        await anyio.sleep(0.001)
        return "well"

    async with MemoryStore(sweeps=False) as store:
        await Operations(store, clock=VirtualClock()).start(patient)
        await store.join("w", 30_000_000)
        (claimed,) = await store.claim("w", ["tests.alone"], 1)
        attempt = Attempt(patient, claimed, store, VirtualClock(), anyio.CapacityLimiter(1), limits=Limits())
        with anyio.CancelScope() as host:
            host.cancel()
            outcome = await attempt.run()

    assert outcome == Returned('"well"'), "only its worker stops it, in good order"


async def test_a_job_without_progress_finds_none() -> None:
    @job("tests.alone")
    async def bare(ctx: Context) -> bool:
        return ctx.progress is None

    assert (await run(bare)).result is True


async def test_what_was_started_without_params_is_run_by_a_job_whose_params_all_have_defaults() -> None:
    async def old(ctx: Context) -> None:
        raise AssertionError

    async def new(ctx: Context, params: Params) -> int:
        return params.pages

    async with MemoryStore(sweeps=False) as store:
        await Operations(store, clock=VirtualClock()).start(job("tests.alone")(old))
        await store.join("w", 30_000_000)
        (claimed,) = await store.claim("w", ["tests.alone"], 1)
        assert claimed.params is None
        threads = anyio.CapacityLimiter(1)
        attempt = Attempt(job("tests.alone")(new), claimed, store, VirtualClock(), threads, limits=Limits())
        assert await attempt.run() == Returned("3")


async def test_an_attempt_that_can_not_begin_is_over_like_any_other() -> None:
    @job("tests.alone")
    async def stale(ctx: Context[Progress]) -> None:
        raise AssertionError

    async with MemoryStore(sweeps=False) as store:
        await Operations(store, clock=VirtualClock()).start(stale)
        await store.join("w", 30_000_000)
        (claimed,) = await store.claim("w", ["tests.alone"], 1)
        unreadable = claimed._replace(progress='{"pages_done":"many"}')
        attempt = Attempt(stale, unreadable, store, VirtualClock(), anyio.CapacityLimiter(1), limits=Limits())
        assert attempt.over is False
        outcome = await attempt.run()

    assert isinstance(outcome, Raised)
    assert attempt.over is True, "nothing can be stopped any more"


@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}), id="virtual")]
)
async def test_a_deadline_far_away_is_kept_to_the_second() -> None:
    @job("tests.alone")
    async def endless(ctx: Context) -> None:
        await anyio.sleep_forever()

    began = anyio.current_time()
    outcome = await run(endless, timeout=timedelta(days=100))

    assert outcome.state is State.FAILED
    assert anyio.current_time() - began == pytest.approx(100 * 86400, abs=1)
