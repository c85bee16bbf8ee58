"""Background loops that must live."""

import logging
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from lro import supervisor as room
from lro.supervisor import Supervisor

log = logging.getLogger("lro.test")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_FIRST_WAIT", 0.001)


def _failing(times: int, then: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    left = times

    async def loop() -> None:
        nonlocal left
        if left:
            left -= 1
            raise ZeroDivisionError(left)
        await then()

    return loop


async def test_a_loop_that_fails_is_logged_counted_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    runs = anyio.Event()

    async def then() -> None:
        runs.set()
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with Supervisor(log) as supervisor:
            supervisor.start("sweeper", _failing(3, then))
            await runs.wait()
            assert supervisor.failures == 3
            assert supervisor.healthy
    messages = [record.getMessage() for record in caplog.records if record.name == log.name]
    assert messages == ["sweeper failed; it starts again in 0.00 s"] * 3
    assert all(record.exc_info for record in caplog.records if record.name == log.name)


async def test_it_waits_longer_each_time_and_not_longer_than_the_longest(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(room, "_LONGEST_WAIT", 0.03)
    done = anyio.Event()

    async def then() -> None:
        done.set()

    with anyio.fail_after(5):
        async with Supervisor(log) as supervisor:
            supervisor.start("x", _failing(4, then))
            await done.wait()
    waits = [record.args[1] for record in caplog.records if isinstance(record.args, tuple) and record.name == log.name]
    assert waits == [0.01, 0.02, 0.03, 0.03]


async def test_a_loop_that_ran_steadily_is_started_again_soon(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_STEADY", 0.02)
    runs = 0
    done = anyio.Event()

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            await anyio.sleep(0.05)
        if runs == 4:
            done.set()
            return
        raise ZeroDivisionError

    with anyio.fail_after(5):
        async with Supervisor(log) as supervisor:
            supervisor.start("x", loop)
            await done.wait()
    waits = [record.args[1] for record in caplog.records if isinstance(record.args, tuple) and record.name == log.name]
    assert waits == [0.001, 0.002, 0.001]


async def test_it_is_unhealthy_while_a_loop_waits_for_its_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_FIRST_WAIT", 60)
    supervisor = Supervisor(log)
    assert not supervisor.healthy
    with anyio.fail_after(5):
        async with supervisor:
            seen = [supervisor.healthy]
            supervisor.start("x", _failing(1, anyio.sleep_forever))
            while not supervisor.failures:
                await anyio.lowlevel.checkpoint()
            seen.append(supervisor.healthy)
    assert seen == [True, False]
    assert not supervisor.healthy


async def test_a_loop_that_returns_is_over() -> None:
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1

    with anyio.fail_after(5):
        async with Supervisor(log) as supervisor:
            supervisor.start("x", loop)
            await anyio.sleep(0.01)
            assert supervisor.healthy
    assert runs == 1


async def test_leaving_ends_all_loops() -> None:
    ended: list[int] = []

    async def loop(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(number)

    with anyio.fail_after(5):
        async with Supervisor(log) as supervisor:
            for number in range(3):
                supervisor.start(f"{number}", lambda number=number: loop(number))  # type: ignore[misc]  # a default
            await anyio.sleep(0.01)
    assert sorted(ended) == [0, 1, 2]


async def test_leaving_ends_a_loop_that_has_not_begun() -> None:
    by_itself = False

    async def loop() -> None:
        nonlocal by_itself
        await anyio.sleep(1)
        by_itself = True

    with anyio.fail_after(5):
        async with Supervisor(log) as supervisor:
            supervisor.start("x", loop)
    assert not by_itself


async def test_a_cancelled_host_does_not_end_its_loops() -> None:
    turns = 0
    order: list[str] = []

    async def loop() -> None:
        nonlocal turns
        try:
            while True:
                await anyio.sleep(0.001)
                turns += 1
        finally:
            order.append("loop ended")

    with anyio.fail_after(5), anyio.CancelScope() as scope:
        async with Supervisor(log) as supervisor:
            supervisor.start("x", loop)
            await anyio.sleep(0.005)
            try:
                scope.cancel()
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    before = turns
                    while turns < before + 3:
                        await anyio.sleep(0.001)
                order.append("host ends")
    assert order == ["host ends", "loop ended"]
    assert scope.cancelled_caught


async def test_the_bodys_own_exception_comes_out_unwrapped() -> None:
    async def host() -> None:
        async with Supervisor(log) as supervisor:
            supervisor.start("x", anyio.sleep_forever)
            await anyio.lowlevel.checkpoint()
            raise LookupError

    with anyio.fail_after(5), pytest.raises(LookupError):
        await host()


async def test_what_is_spawned_runs_to_its_own_end() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        await anyio.sleep(0.01)
        ended = True

    with anyio.fail_after(5):
        async with Supervisor(log) as supervisor:
            supervisor.spawn("operations/x", work)
    assert ended


async def test_a_failure_of_what_is_spawned_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with anyio.fail_after(5):
        async with Supervisor(log) as supervisor:
            supervisor.spawn("operations/x", _failing(1, anyio.sleep_forever))
            await anyio.sleep(0.01)
            assert supervisor.failures == 1
            assert supervisor.healthy
    assert "operations/x failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_nothing_is_started_outside_the_block() -> None:
    supervisor = Supervisor(log)
    for start in (supervisor.start, supervisor.spawn):
        with pytest.raises(RuntimeError, match="x can't be started: the supervisor is not entered"):
            start("x", anyio.sleep_forever)
    async with supervisor:
        pass
    with pytest.raises(RuntimeError, match="not entered"):
        supervisor.start("x", anyio.sleep_forever)
    await supervisor.__aexit__(None, None, None)  # left already: nothing to do
