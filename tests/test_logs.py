"""Log lines about an operation carry it as fields, so that a structured log can be asked for one operation."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest
from pythonjsonlogger.json import JsonFormatter

from lro import Context, Operations, State, SyncContext, Worker, job
from lro.store import Store
from tests.jobs import ended


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a service with a JSON formatter writes."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter(["levelname", "name", "message"]))
    logger = logging.getLogger("lro")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(before)


def parsed(lines: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


async def test_a_jobs_own_lines_and_its_end_name_the_operation(store: Store, lines: io.StringIO) -> None:
    @job("books.render")
    async def render(ctx: Context) -> None:
        ctx.log.info("page %d", 3, extra={"page": 3})

    @job("books.bind")
    def bind(ctx: SyncContext) -> None:
        ctx.log.warning("thin paper")

    operations = Operations(store)
    async with Worker(store, [render, bind]):
        one = (await operations.start(render)).name
        await ended(operations, one)
        two = (await operations.start(bind)).name
        await ended(operations, two)

    about_one = [line for line in parsed(lines) if line.get("operation") == one]
    assert [(line["name"], line["message"]) for line in about_one][:1] == [("lro.job", f"{one}: page 3")]
    assert about_one[0] == {
        "levelname": "INFO", "name": "lro.job", "message": f"{one}: page 3",
        "operation": one, "job": "books.render", "attempt": 1, "page": 3,
    }  # fmt: skip
    (end,) = [line for line in about_one if "state" in line]
    assert (end["name"], end["state"], end["attempt"]) == ("lro.worker", "SUCCEEDED", 1)
    assert isinstance(end["seconds"], float)
    about_two = [line for line in parsed(lines) if line.get("operation") == two]
    assert about_two[0]["message"] == f"{two}: thin paper"
    assert about_two[0]["job"] == "books.bind"


async def test_a_failure_is_found_by_the_error_id_that_the_client_has(store: Store, lines: io.StringIO) -> None:
    @job("books.render")
    async def render(ctx: Context) -> None:
        raise ValueError("the secret ingredient")

    operations = Operations(store)
    async with Worker(store, [render]):
        operation = await ended(operations, (await operations.start(render)).name)

    assert operation.error is not None
    error_id = operation.error.details[0]["metadata"]["errorId"]
    (line,) = [line for line in parsed(lines) if line.get("error_id") == error_id]
    assert line["operation"] == operation.name
    assert "the secret ingredient" in str(line["exc_info"])
    assert "secret" not in str(operation.to_dict())


async def test_what_the_worker_says_of_an_attempt_names_it(store: Store, lines: io.StringIO) -> None:
    @job("books.render")
    async def render(ctx: Context) -> None:
        await ctx.sleep(3600)

    operations = Operations(store)
    async with Worker(store, [render], drain=timedelta(0)) as worker:
        name = (await operations.start(render)).name
        while not worker.running:
            await operations.wait(name, timedelta(milliseconds=2))

    (warning,) = [line for line in parsed(lines) if "drain time" in str(line["message"])]
    assert warning["operation"] == name
    (end,) = [line for line in parsed(lines) if "state" in line]
    assert end["state"] == State.FAILED.value


async def test_without_handlers_of_the_host_the_library_is_silent(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    @job("books.render")
    async def render(ctx: Context) -> None:
        ctx.log.info("not heard")

    operations = Operations(store)
    async with Worker(store, [render]):
        await ended(operations, (await operations.start(render)).name)

    assert capsys.readouterr() == ("", "")
    for name in ("lro", "lro.job", "lro.worker"):
        assert logging.getLogger(name).handlers == []
