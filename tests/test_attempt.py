"""The rule of `attempt`: what the end of a job's function means, through a real store and a worker.

Whatever a job raises or returns ends its own operation only, in a truthful way.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, NoReturn

import anyio
import pytest
from pydantic import BaseModel, Field, field_validator

from lro import (
    Code,
    Context,
    Job,
    Operation,
    OperationError,
    Operations,
    RetryPolicy,
    State,
    Stopped,
    StopReason,
    Worker,
    job,
    lifecycle,
)
from lro.lifecycle import Record, Transition
from lro.limits import Limits
from lro.status import ERROR_INFO
from lro.store import Store
from lro.store.base import Within
from tests.jobs import Params, Progress, Relay, Story, ended, is_call_of, stored, until

SECRET = "canary-5f3a"  # what clients must never read
AT_ONCE = timedelta(0)

AnyJob = Job[Any, Any, Any]  # Any: a job of any types
Function = Callable[[Context], Awaitable[Any]]  # Any: whatever it returns


async def end_beside_another(store: Store, bad: AnyJob, limits: Limits | None = None) -> Operation:
    """Run a job to its end beside another one, which must not notice."""
    story = Story()

    @job("tests.sibling")
    async def sibling(ctx: Context) -> str:
        story.tell("sibling runs")
        await story.heard("the bad one ended")
        await ctx.checkpoint()
        return "well"

    operations = Operations(store)
    async with Worker(store, [bad, sibling], limits=limits) as worker:
        other = await operations.start(sibling)
        await story.heard("sibling runs")
        operation = await ended(operations, (await operations.start(bad)).name)
        assert worker.ready
        story.tell("the bad one ended")
        assert (await ended(operations, other.name)).response == "well"
        await until(lambda: worker.running == ())
    assert SECRET not in str(operation)
    return operation


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError(SECRET)


class UnprintableInAll(BaseException):
    def __str__(self) -> str:
        raise SystemExit(SECRET)

    __repr__ = __str__


def raising(error: BaseException | type[BaseException]) -> Function:
    async def function(ctx: Context) -> NoReturn:
        raise error

    return function


async def awaits_a_cancelled_task(ctx: Context) -> None:
    task = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def cancels_itself(ctx: Context) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(3600)


async def raises_in_a_task_group(ctx: Context) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        raise ValueError(SECRET)


async def raises_after_a_checkpoint(ctx: Context) -> None:
    await ctx.checkpoint()
    await anyio.sleep(0.001)
    raise KeyboardInterrupt(SECRET)


async def runs_out_of_its_own_time(ctx: Context) -> None:
    with anyio.fail_after(0.001):
        await anyio.sleep_forever()


RAISES: dict[str, Function] = {
    "Exception": raising(ValueError(SECRET)),
    "BaseException": raising(BaseException(SECRET)),
    "SystemExit": raising(SystemExit(SECRET)),
    "KeyboardInterrupt": raising(KeyboardInterrupt(SECRET)),
    "KeyboardInterrupt later": raises_after_a_checkpoint,
    "GeneratorExit": raising(GeneratorExit(SECRET)),
    "StopIteration": raising(StopIteration(SECRET)),
    "StopAsyncIteration": raising(StopAsyncIteration(SECRET)),
    "MemoryError": raising(MemoryError(SECRET)),
    "RecursionError": raising(RecursionError(SECRET)),
    "TimeoutError of its own": runs_out_of_its_own_time,
    "CancelledError": raising(asyncio.CancelledError(SECRET)),
    "CancelledError of a task": awaits_a_cancelled_task,
    "CancelledError of its own task": cancels_itself,
    "Stopped": raising(Stopped(SECRET)),
    "__str__ raises": raising(Unprintable()),
    "__str__ exits": raising(UnprintableInAll()),
    "ExceptionGroup": raising(ExceptionGroup(SECRET, [ValueError(SECRET), TypeError(SECRET)])),
    "task group": raises_in_a_task_group,
    "BaseExceptionGroup": raising(BaseExceptionGroup(SECRET, [SystemExit(SECRET), ValueError(SECRET)])),
    "group with a cancellation": raising(BaseExceptionGroup(SECRET, [asyncio.CancelledError(), ValueError(SECRET)])),
    "group of cancellations": raising(BaseExceptionGroup(SECRET, [asyncio.CancelledError(), Stopped()])),
    "group with an OperationError": raising(
        ExceptionGroup(SECRET, [OperationError(Code.ABORTED, SECRET), ValueError(SECRET)])
    ),
}


@pytest.mark.parametrize("what", RAISES)
async def test_whatever_a_job_raises_ends_only_its_own_operation(store: Store, what: str) -> None:
    bad = job("tests.bad", result=int)(RAISES[what])

    operation = await end_beside_another(store, bad)

    assert operation.state is State.FAILED
    assert operation.error is not None
    assert (operation.error.code, operation.error.reason) == (Code.INTERNAL, "JOB_FAILED")
    assert operation.metadata["requestedCancellation"] is False


async def test_the_log_has_an_unexpected_exception_under_the_id_that_the_client_gets(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    operation = await end_beside_another(store, job("tests.bad", result=int)(raising(ValueError(SECRET))))

    assert operation.error is not None
    error_id = operation.error.details[0]["metadata"]["errorId"]
    (entry,) = [entry for entry in caplog.records if error_id in entry.getMessage()]
    assert entry.levelno == logging.ERROR
    assert entry.exc_info is not None
    assert str(entry.exc_info[1]) == SECRET
    assert error_id in operation.error.message


def nested_group(depth: int) -> ExceptionGroup[Exception]:
    group = ExceptionGroup[Exception]("level", [ValueError(SECRET)])
    for _ in range(depth):
        group = ExceptionGroup("level", [group, ValueError(SECRET)])
    return group


class BadStatus(OperationError):
    @property
    def status(self) -> NoReturn:
        raise KeyError(SECRET)


def details(*values: Any) -> OperationError:  # Any: what is no JSON object
    return OperationError(Code.DATA_LOSS, SECRET, details=values)


def message(text: Any) -> OperationError:  # Any: what is no text
    return OperationError(Code.DATA_LOSS, text)


STRANGE: dict[str, Callable[[], BaseException]] = {
    "details with a set": lambda: details({"@type": "x", "value": {1}}),
    "details with NaN": lambda: details({"@type": "x", "value": math.nan}),
    "details with a lone surrogate": lambda: details({"@type": "x", "value": "\ud800"}),
    "details of text": lambda: details(SECRET),
    "details of objects": lambda: details(object()),
    "details with U+0000": lambda: details({"@type": "x", "value": "\0"}),
    "message that is no text": lambda: message(5),
    "message with U+0000": lambda: message(f"{SECRET}\0"),
    "message with a lone surrogate": lambda: message(f"{SECRET}\ud800"),
    "status that raises": lambda: BadStatus(Code.DATA_LOSS, SECRET),
    "group nested 500 times": lambda: nested_group(500),
    "group nested 3,000 times": lambda: nested_group(3000),
}


@pytest.mark.parametrize("what", STRANGE)
async def test_an_error_that_cannot_be_told_is_an_internal_one(store: Store, what: str) -> None:
    async def bad(ctx: Context) -> None:
        error = STRANGE[what]()
        raise error

    operation = await end_beside_another(store, job("tests.bad")(bad))

    assert operation.error is not None
    assert (operation.error.code, operation.error.reason) == (Code.INTERNAL, "JOB_FAILED")


async def test_an_operation_error_is_what_clients_see(store: Store) -> None:
    async def bad(ctx: Context) -> None:
        more = {"@type": "type.googleapis.com/google.rpc.Help", "links": []}
        raise OperationError(Code.NOT_FOUND, "no such book", reason="BOOK_GONE", details=[more], book="b")

    operation = await end_beside_another(store, job("tests.bad")(bad))

    assert operation.error is not None
    assert (operation.error.code, operation.error.message) == (Code.NOT_FOUND, "no such book")
    assert operation.error.reason == "BOOK_GONE"
    assert operation.error.details[0]["metadata"] == {"book": "b"}
    assert operation.error.details[1]["links"] == []


async def test_so_it_is_when_it_comes_alone_out_of_task_groups(store: Store) -> None:
    async def bad(ctx: Context) -> None:
        async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
            outer.start_soon(anyio.sleep_forever)
            inner.start_soon(anyio.sleep_forever)
            raise OperationError(Code.OUT_OF_RANGE, "page 9 of 3")

    operation = await end_beside_another(store, job("tests.bad")(bad))

    assert operation.error is not None
    assert (operation.error.code, operation.error.message) == (Code.OUT_OF_RANGE, "page 9 of 3")


LONG = 60  # bytes
HELP = "type.googleapis.com/google.rpc.Help"


def info(**metadata: str) -> dict[str, Any]:  # Any: JSON
    return {"@type": ERROR_INFO, "reason": "TORN", "metadata": metadata, "domain": "lro"}


TOO_LONG: dict[str, tuple[OperationError, str, list[str]]] = {
    "as long as it may be": (OperationError(Code.ABORTED, "x" * LONG), "x" * LONG, ["JOB_FAILED"]),
    "one more": (OperationError(Code.ABORTED, "x" * (LONG + 1)), "x" * (LONG - 3) + "…", ["JOB_FAILED"]),
    "far too long": (OperationError(Code.ABORTED, "x" * 50_000_000), "x" * (LONG - 3) + "…", ["JOB_FAILED"]),
    "cut between two bytes": (OperationError(Code.ABORTED, "é" * LONG), "é" * (LONG // 2 - 2) + "…", ["JOB_FAILED"]),
    "details that fit in part": (
        OperationError(Code.ABORTED, "no", details=[{"@type": "a", "b": "x" * 99}, {"@type": "b"}, {"@type": "c"}]),
        "no",
        ["JOB_FAILED"],
    ),
    "metadata": (OperationError(Code.ABORTED, "no", reason="TORN", page="9" * 999), "no", ["TORN"]),
    "a reason": (OperationError(Code.ABORTED, "no", reason="T" * 50_000), "no", ["T" * 63]),
    "an ErrorInfo behind others": (
        OperationError(Code.ABORTED, "no", details=[{"@type": HELP, "x": "y" * LONG}, info(page="9" * 999)]),
        "no",
        ["TORN"],
    ),
}


@pytest.mark.parametrize("what", TOO_LONG)
async def test_an_error_that_is_too_long_is_cut_and_still_the_error(store: Store, what: str) -> None:
    error, message, reasons = TOO_LONG[what]

    async def bad(ctx: Context) -> None:
        raise error

    operation = await end_beside_another(store, job("tests.bad")(bad), Limits(error=LONG))

    assert operation.error is not None
    assert (operation.error.code, operation.error.message) == (Code.ABORTED, message)
    assert len(operation.error.message.encode()) <= LONG
    infos = [detail for detail in operation.error.details if detail["@type"] == ERROR_INFO]
    assert [detail["reason"] for detail in infos] == reasons
    assert len(operation.to_json()) < 2000


async def test_details_that_fit_are_kept_whole(store: Store) -> None:
    helped = {"@type": HELP, "links": [{"url": "https://books.example/" + "x" * 3000}]}

    async def bad(ctx: Context) -> None:
        raise OperationError(Code.ABORTED, "no", details=[helped, helped, {"@type": "small"}], page="9")

    operation = await end_beside_another(store, job("tests.bad")(bad))

    assert operation.error is not None
    assert [detail["@type"] for detail in operation.error.details] == [ERROR_INFO, HELP, "small"]
    assert operation.error.details[0]["metadata"] == {"page": "9"}
    assert operation.error.details[1] == helped


def cycle() -> list[Any]:  # Any: itself
    value: list[Any] = []
    value.append(value)
    return value


async def nothing() -> None:
    """Never awaited."""


RETURNS: dict[str, tuple[Any, Callable[[], Any]]] = {  # Any: the declared type, and a value that does not fit
    "set": (Any, lambda: {1, 2}),
    "set in a dict": (dict, lambda: {"a": {1}}),
    "NaN": (float, lambda: math.nan),
    "nested NaN": (Any, lambda: {"a": [math.nan]}),
    "NaN in a model": (Progress, lambda: Progress.model_construct(pages_done=math.nan)),
    "cycle": (Any, cycle),
    "bytes": (Any, SECRET.encode),
    "text for a number": (int, lambda: SECRET),
    "dict for a model": (Progress, lambda: {"pages_done": 1}),
    "model for nothing": (type(None), Progress),
    "lone surrogate": (str, lambda: SECRET + "\ud800"),
    "U+0000": (dict, lambda: {"a": [SECRET + "\0"]}),
    "U+0000 as a key": (dict, lambda: {"\0": SECRET}),
    "integer of 65 bits": (int, lambda: 2**64),
    "object": (Any, object),
    "exception": (Any, lambda: ValueError(SECRET)),
}


@pytest.mark.parametrize("what", RETURNS)
async def test_what_is_no_json_of_the_declared_type_ends_only_its_own_operation(store: Store, what: str) -> None:
    annotation, make = RETURNS[what]
    runs: list[int] = []

    async def bad(ctx: Context) -> Any:  # Any: see above
        runs.append(ctx.attempt)
        return make()

    policy = RetryPolicy(attempts=3, initial_delay=AT_ONCE)
    operation = await end_beside_another(store, job("tests.bad", result=annotation, retry=policy)(bad))

    assert operation.error is not None
    assert (operation.error.code, operation.error.reason) == (Code.INTERNAL, "RESULT_NOT_JSON")
    assert runs == [1]  # the work was done, so it is not done again


async def test_a_coroutine_is_no_result(store: Store) -> None:
    forgotten = nothing()

    async def bad(ctx: Context) -> Any:  # Any: a coroutine
        return forgotten

    operation = await end_beside_another(store, job("tests.bad", result=Any)(bad))
    forgotten.close()

    assert operation.error is not None
    assert operation.error.reason == "RESULT_NOT_JSON"


async def test_a_result_that_cannot_be_kept_is_told_by_its_place(store: Store) -> None:
    async def bad(ctx: Context) -> dict[str, Any]:  # Any: JSON
        return {"pages": ["one", {"title": SECRET + "\0"}]}

    operation = await end_beside_another(store, job("tests.bad")(bad))

    assert operation.error is not None
    assert operation.error.message.endswith(
        "can't be kept: it holds U+0000, which not every database keeps, in pages[1].title"
    )
    assert operation.error.details[0]["metadata"]["field"] == "pages[1].title"


@pytest.mark.parametrize(("size", "reason"), [(100, None), (101, "RESULT_TOO_LARGE"), (50_000_000, "RESULT_TOO_LARGE")])
async def test_a_result_that_is_too_large_is_said_to_be(store: Store, size: int, reason: str | None) -> None:
    async def bad(ctx: Context) -> str:
        return "x" * (size - 2)

    operation = await end_beside_another(store, job("tests.bad")(bad), Limits(result=100))

    if reason is None:
        assert operation.response == "x" * (size - 2)
        return
    assert operation.error is not None
    assert (operation.error.code, operation.error.reason) == (Code.RESOURCE_EXHAUSTED, reason)
    assert f"{size:,} bytes of JSON, 100 are allowed" in operation.error.message
    assert operation.response is None


class Notes(BaseModel):
    text: str = ""


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("x" * 9, None, None),
        ("x" * 10, Code.RESOURCE_EXHAUSTED, "PROGRESS_TOO_LARGE"),
        ("x" * 5_000_000, Code.RESOURCE_EXHAUSTED, "PROGRESS_TOO_LARGE"),
        ("\0", Code.INTERNAL, "PROGRESS_NOT_JSON"),
    ],
    ids=lambda value: str(value).replace("\0", "U+0000")[:12],
)
async def test_progress_that_cannot_be_kept_ends_a_job_that_lets_it(
    store: Store, text: str, code: Code | None, reason: str | None
) -> None:
    async def bad(ctx: Context[Notes]) -> str:
        await ctx.checkpoint(Notes(text="first"))
        await ctx.checkpoint(Notes(text=text))
        return "well"

    operation = await end_beside_another(store, job("tests.bad", progress=Notes)(bad), Limits(progress=20))

    if code is None:
        assert (operation.response, operation.metadata["progress"]) == ("well", {"text": text})
        return
    assert operation.error is not None
    assert (operation.error.code, operation.error.reason) == (code, reason)
    assert operation.metadata["progress"] == {"text": "first"}


async def test_reported_progress_that_cannot_be_kept_is_left_out(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async def bad(ctx: Context[Notes]) -> str:
        ctx.report(Notes(text=SECRET * 100))
        return "well"

    operation = await end_beside_another(store, job("tests.bad", progress=Notes)(bad), Limits(progress=20))

    assert operation.response == "well"
    assert "progress" not in operation.metadata
    assert SECRET not in caplog.text


async def test_a_job_that_cancels_its_own_task_and_returns_has_its_natural_end(store: Store) -> None:
    async def odd(ctx: Context) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "done"

    operation = await end_beside_another(store, job("tests.bad")(odd))

    assert (operation.state, operation.response) == (State.SUCCEEDED, "done")


# -- cancels


class Cancelled:
    """Starts one job, cancels it once it says "runs", and shows how it ended."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.story = Story()

    async def end(self, function: Function, **options: Any) -> Operation:  # Any: options of job
        operations = Operations(self.store)
        asked = job("tests.cancelled", result=Any, **options)(function)
        async with Worker(self.store, [asked]):
            name = (await operations.start(asked)).name
            await self.story.heard("runs")
            await operations.cancel(name, reason="wrong book")
            self.story.tell("cancelled")
            operation = await ended(operations, name)
        assert operation.metadata["requestedCancellation"] is True
        return operation


@pytest.fixture
def cancelled(store: Store) -> Cancelled:
    return Cancelled(store)


async def test_a_job_that_unwinds_is_cancelled(cancelled: Cancelled) -> None:
    async def unwinds(ctx: Context) -> None:
        cancelled.story.tell("runs")
        await ctx.sleep(3600)

    operation = await cancelled.end(unwinds)

    assert (operation.state, operation.metadata["cancelOutcome"]) == (State.CANCELLED, "ACKNOWLEDGED")
    assert operation.error is not None
    assert operation.error.code is Code.CANCELLED
    assert operation.error.message == f"{operation.name} was cancelled: wrong book"


async def test_a_job_that_swallows_the_cancel_and_returns_has_its_natural_end(cancelled: Cancelled) -> None:
    async def swallows(ctx: Context) -> str:
        cancelled.story.tell("runs")
        try:
            await ctx.sleep(3600)
        except anyio.get_cancelled_exc_class():
            pass
        return "anyway"

    operation = await cancelled.end(swallows)

    assert (operation.state, operation.response) == (State.SUCCEEDED, "anyway")
    assert operation.metadata["cancelOutcome"] == "COMPLETED_ANYWAY"


async def test_a_job_that_never_looks_has_its_natural_end(cancelled: Cancelled) -> None:
    async def never_looks(ctx: Context) -> str:
        cancelled.story.tell("runs")
        await cancelled.story.heard("cancelled")
        await anyio.sleep(0.001)
        return "anyway"

    operation = await cancelled.end(never_looks)

    assert (operation.state, operation.response) == (State.SUCCEEDED, "anyway")
    assert operation.metadata["cancelOutcome"] == "COMPLETED_ANYWAY"


async def test_an_error_after_a_cancel_is_the_natural_end(cancelled: Cancelled) -> None:
    async def raises(ctx: Context) -> None:
        cancelled.story.tell("runs")
        await cancelled.story.heard("cancelled")
        raise OperationError(Code.DATA_LOSS, "the disk is gone")

    operation = await cancelled.end(raises)

    assert operation.error is not None
    assert (operation.state, operation.error.code) == (State.FAILED, Code.DATA_LOSS)
    assert operation.metadata["cancelOutcome"] == "FAILED_ANYWAY"


async def test_an_error_that_would_lead_to_another_attempt_gives_way_to_the_cancel(cancelled: Cancelled) -> None:
    async def raises(ctx: Context) -> None:
        cancelled.story.tell("runs")
        await cancelled.story.heard("cancelled")
        raise OperationError(Code.UNAVAILABLE, "the printer is busy")

    operation = await cancelled.end(raises, retry=RetryPolicy(initial_delay=AT_ONCE))

    assert (operation.state, operation.metadata["cancelOutcome"]) == (State.CANCELLED, "RETRY_SUPPRESSED")
    assert operation.metadata["lastError"]["message"] == "the printer is busy"
    assert operation.metadata["attempt"] == 1


async def test_an_error_in_the_last_attempt_is_its_end_cancel_or_not(cancelled: Cancelled) -> None:
    async def raises(ctx: Context) -> None:
        cancelled.story.tell("runs")
        await cancelled.story.heard("cancelled")
        raise ValueError(SECRET)

    operation = await cancelled.end(raises, retry=RetryPolicy(attempts=1))

    assert (operation.state, operation.metadata["cancelOutcome"]) == (State.FAILED, "FAILED_ANYWAY")


@pytest.mark.parametrize("error", [ValueError(SECRET), SystemExit(SECRET), GeneratorExit(SECRET)], ids=repr)
async def test_an_error_during_the_cleanup_after_a_cancel_is_the_natural_end(
    cancelled: Cancelled, error: BaseException
) -> None:
    async def raises(ctx: Context) -> None:
        cancelled.story.tell("runs")
        try:
            await ctx.sleep(3600)
        finally:
            with ctx.cleanup(seconds=1):
                await anyio.sleep(0.001)
                raise error

    operation = await cancelled.end(raises)

    assert operation.error is not None
    assert (operation.state, operation.error.reason) == (State.FAILED, "JOB_FAILED")
    assert operation.metadata["cancelOutcome"] == "FAILED_ANYWAY"
    assert SECRET not in str(operation)


async def test_an_error_of_a_child_during_a_cancel_is_the_natural_end(cancelled: Cancelled) -> None:
    async def raises(ctx: Context) -> None:
        async def child() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise OperationError(Code.DATA_LOSS, "half a page")

        async with anyio.create_task_group() as group:
            group.start_soon(child)
            await anyio.lowlevel.checkpoint()
            cancelled.story.tell("runs")
            await ctx.sleep(3600)

    operation = await cancelled.end(raises)

    assert operation.error is not None
    assert (operation.state, operation.error.message) == (State.FAILED, "half a page")


async def test_grace_stops_a_job_that_reaches_no_checkpoint(cancelled: Cancelled) -> None:
    async def never_looks(ctx: Context) -> None:
        cancelled.story.tell("runs")
        await anyio.sleep_forever()

    operation = await cancelled.end(never_looks, grace=timedelta(milliseconds=10))

    assert (operation.state, operation.metadata["cancelOutcome"]) == (State.CANCELLED, "FORCED")


async def test_a_checkpoint_within_the_grace_is_an_acknowledgement(cancelled: Cancelled) -> None:
    async def looks(ctx: Context) -> None:
        cancelled.story.tell("runs")
        await cancelled.story.heard("cancelled")
        await ctx.checkpoint()

    operation = await cancelled.end(looks, grace=timedelta(seconds=60))

    assert (operation.state, operation.metadata["cancelOutcome"]) == (State.CANCELLED, "ACKNOWLEDGED")


# -- deadlines


async def test_a_deadline_stops_a_job_wherever_it_awaits(store: Store) -> None:
    @job("tests.late", timeout=timedelta(milliseconds=30), retry=RetryPolicy(initial_delay=AT_ONCE))
    async def late(ctx: Context) -> None:
        await anyio.sleep_forever()

    operation = await end_beside_another(store, late)

    assert operation.error is not None
    assert (operation.state, operation.error.code) == (State.FAILED, Code.DEADLINE_EXCEEDED)
    assert "cancelOutcome" not in operation.metadata


async def test_a_value_returned_after_the_deadline_is_kept(store: Store) -> None:
    @job("tests.late", timeout=timedelta(milliseconds=30))
    async def late(ctx: Context) -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass
        return "late"

    operation = await end_beside_another(store, late)

    assert (operation.state, operation.response) == (State.SUCCEEDED, "late")


async def test_a_cancel_before_the_deadline_decides(cancelled: Cancelled) -> None:
    async def never_looks(ctx: Context) -> None:
        cancelled.story.tell("runs")
        await anyio.sleep_forever()

    operation = await cancelled.end(never_looks, timeout=timedelta(milliseconds=150))

    assert (operation.state, operation.metadata["cancelOutcome"]) == (State.CANCELLED, "FORCED")


async def test_a_deadline_before_the_cancel_decides(cancelled: Cancelled) -> None:
    async def late(ctx: Context) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with ctx.cleanup(seconds=3):
                assert ctx.stop_reason is StopReason.DEADLINE
                cancelled.story.tell("runs")
                await cancelled.story.heard("cancelled")
                assert ctx.stop_reason is StopReason.DEADLINE

    operation = await cancelled.end(late, timeout=timedelta(milliseconds=20))

    assert operation.error is not None
    assert (operation.state, operation.error.code) == (State.FAILED, Code.DEADLINE_EXCEEDED)
    assert operation.metadata["cancelOutcome"] == "FAILED_ANYWAY"


# -- retries


async def run_retried(store: Store, policy: RetryPolicy, error: BaseException, wins_at: int) -> Operation:
    @job("tests.retried", retry=policy)
    async def retried(ctx: Context) -> int:
        if ctx.attempt < wins_at:
            raise error
        return ctx.attempt

    return await end_beside_another(store, retried)


async def test_a_job_is_retried_to_its_success(store: Store) -> None:
    policy = RetryPolicy(attempts=5, initial_delay=timedelta(milliseconds=4))

    operation = await run_retried(store, policy, ValueError(SECRET), wins_at=4)

    assert (operation.state, operation.response, operation.metadata["attempt"]) == (State.SUCCEEDED, 4, 4)
    assert operation.metadata["lastError"]["code"] == Code.INTERNAL


async def test_a_job_is_retried_until_its_attempts_are_used_up(store: Store) -> None:
    policy = RetryPolicy(attempts=3, initial_delay=AT_ONCE)

    operation = await run_retried(store, policy, ValueError(SECRET), wins_at=9)

    assert operation.error is not None
    assert (operation.state, operation.error.reason, operation.metadata["attempt"]) == (State.FAILED, "JOB_FAILED", 3)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (KeyError(SECRET), 2),
        (ExceptionGroup("", [KeyError(SECRET), ExceptionGroup("", [KeyError(SECRET)])]), 2),
        (ExceptionGroup("", [KeyError(SECRET), ValueError(SECRET)]), 1),
        (ValueError(SECRET), 1),
        (SystemExit(SECRET), 1),
        (OperationError(Code.ABORTED), 1),
    ],
)
async def test_only_what_the_policy_covers_is_retried(store: Store, error: BaseException, attempts: int) -> None:
    policy = RetryPolicy(attempts=2, initial_delay=AT_ONCE, retry_on=(KeyError,))

    operation = await run_retried(store, policy, error, wins_at=9)

    assert (operation.state, operation.metadata["attempt"]) == (State.FAILED, attempts)


async def test_a_steep_policy_is_retried_too(store: Store) -> None:
    policy = RetryPolicy(attempts=5, initial_delay=AT_ONCE, multiplier=1e200)

    operation = await run_retried(store, policy, ValueError(SECRET), wins_at=5)

    assert (operation.state, operation.response) == (State.SUCCEEDED, 5)


# -- stored payloads


class Narrower(BaseModel):
    pages: int = Field(lt=3)


class Breaking(BaseModel):
    pages: int

    @field_validator("pages")
    @classmethod
    def look_up(cls, value: int) -> int:
        raise KeyError(value)


def change_progress(record: Record, facts: lifecycle.Facts) -> Record:
    return record._replace(progress='{"pages_done": "many"}')


async def test_stored_params_that_no_longer_fit_fail_the_operation(store: Store) -> None:
    async def old(ctx: Context, params: Params) -> None:
        raise NotImplementedError

    operations = Operations(store)
    name = (await operations.start(job("tests.stale")(old), Params(pages=3))).name
    async with Worker(store, [job("tests.stale", params=Narrower)(old)]) as worker:
        operation = await ended(operations, name)
        assert worker.ready

    assert operation.error is not None
    assert (operation.error.code, operation.error.reason) == (Code.FAILED_PRECONDITION, "PAYLOAD_STALE")
    assert "Narrower" in operation.error.message


async def test_stored_progress_that_no_longer_fits_fails_the_operation(store: Store) -> None:
    @job("tests.stale")
    async def stale(ctx: Context[Progress]) -> None:
        raise NotImplementedError

    operations = Operations(store)
    name = (await operations.start(stale)).name
    await store.update(name, change_progress)
    async with Worker(store, [stale]):
        operation = await ended(operations, name)

    assert operation.error is not None
    assert (operation.error.code, operation.error.reason) == (Code.FAILED_PRECONDITION, "PAYLOAD_STALE")


async def test_a_validator_that_breaks_ends_only_its_own_operation(store: Store) -> None:
    async def old(ctx: Context, params: Params) -> None:
        raise NotImplementedError

    operations = Operations(store)
    name = (await operations.start(job("tests.stale")(old), Params(pages=3))).name
    async with Worker(store, [job("tests.stale", params=Breaking)(old)]):
        operation = await ended(operations, name)

    assert operation.state is State.FAILED


# -- progress that can't be saved


async def test_a_report_that_cannot_be_written_is_logged_and_spoils_nothing(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    @job("tests.report")
    async def report(ctx: Context[Progress]) -> str:
        ctx.report(Progress.model_construct(pages_done="many"))
        return "done"

    operation = await end_beside_another(store, report)

    assert (operation.state, operation.response) == (State.SUCCEEDED, "done")
    assert "progress" not in operation.metadata
    assert "the reported progress can't be saved: " in caplog.text


async def test_progress_that_cannot_be_written_is_the_jobs_own_error(store: Store) -> None:
    @job("tests.save")
    async def save(ctx: Context[Progress]) -> str:
        with pytest.raises(ValueError, match="serialized value may not be as expected"):
            await ctx.checkpoint(Progress.model_construct(pages_done="many"))
        return "done"

    assert (await end_beside_another(store, save)).response == "done"


def taken_over(record: Record, facts: lifecycle.Facts) -> Record:
    """Do what another worker's claim after an expired lease would have done."""
    orphan = record._replace(state=State.PENDING, due_at=0)
    return lifecycle.claim(orphan, facts, owner="another", lease_time=30_000_000)


class TakenOverFirst(Relay):
    """Loses the lease just before progress is saved, with no hint to the worker."""

    def listen(self, listener: Any) -> Any:  # Any: see Store
        return lambda: None

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        if is_call_of(transition, lifecycle.save_progress):
            await super().update(name, taken_over)
        return await super().update(name, transition, within)


@pytest.mark.parametrize("cleaning", [False, True])
async def test_a_checkpoint_whose_write_is_refused_stops_the_attempt(store: Store, cleaning: bool) -> None:
    story = Story()

    @job("tests.save")
    async def save(ctx: Context[Progress]) -> None:
        try:
            if cleaning:
                with ctx.cleanup(seconds=1):
                    await ctx.checkpoint(Progress(pages_done=1))
            else:
                await ctx.checkpoint(Progress(pages_done=1))
        finally:
            assert ctx.stop_reason is StopReason.LEASE_LOST
            story.tell("stopped")

    operations = Operations(store)
    async with Worker(TakenOverFirst(store), [save]) as worker:
        name = (await operations.start(save)).name
        await story.heard("stopped")
        await until(lambda: worker.running == ())

    record = await stored(store, name)
    assert (record.state, record.lease_owner, record.token, record.progress) == (State.RUNNING, "another", 2, None)
