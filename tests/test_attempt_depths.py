"""Attempts whose exceptions or reports can hardly be told."""

import logging

import pytest

from lro import Context, Operations, Worker, job
from lro.lifecycle import State
from lro.store import Store
from lro.worker import POLL_EVERY
from tests.jobs import Progress, Story, ended


@pytest.mark.parametrize("depth", [1, 50, 150, 250, 320, 400, 500, 900, 3000])
async def test_a_group_of_any_depth_ends_only_its_own_operation(store: Store, depth: int) -> None:
    @job("deep")
    async def deep(ctx: Context) -> None:
        error: Exception = ValueError("canary")
        for _ in range(depth):
            error = ExceptionGroup("", [error])
        raise error

    operations = Operations(store)
    async with Worker(store, jobs=[deep]) as worker:
        operation = await ended(operations, (await operations.start(deep)).name)
        assert worker.ready

    assert operation.error is not None
    assert operation.error.reason == "JOB_FAILED"
    assert "canary" not in operation.error.message


async def test_an_error_whose_log_can_not_be_written_is_told_by_its_id(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Shallow(logging.Formatter):
        def formatException(self, ei: object) -> str:  # noqa: N802 -- logging's own name
            raise RecursionError

    @job("fails")
    async def fails(ctx: Context) -> None:
        raise ValueError

    handler = logging.StreamHandler()
    handler.setFormatter(Shallow())
    logging.getLogger("lro.attempt").addHandler(handler)
    try:
        operations = Operations(store)
        async with Worker(store, jobs=[fails]):
            operation = await ended(operations, (await operations.start(fails)).name)
    finally:
        logging.getLogger("lro.attempt").removeHandler(handler)

    assert operation.error is not None
    assert str(operation.error.details[0]["metadata"]["errorId"]) in caplog.text
    assert "too deep to tell" in caplog.text


async def test_a_report_that_is_no_progress_is_logged_and_left_out(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story()

    @job("reports")
    async def reports(ctx: Context[Progress]) -> None:
        ctx.report(Progress.model_construct(pages_done="many"))
        story.tell("reported")
        await ctx.sleep(POLL_EVERY * 1.5)  # the keeper comes round once

    operations = Operations(store)
    async with Worker(store, jobs=[reports]):
        name = (await operations.start(reports)).name
        await story.heard("reported")
        operation = await ended(operations, name)

    assert operation.state is State.SUCCEEDED
    assert "progress" not in operation.metadata
    assert "the reported progress can't be saved" in caplog.text
