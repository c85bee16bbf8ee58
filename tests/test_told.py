"""What clients and the log are told of an end that is not a value: whole, so that nothing in it is left to chance.

Clients act on reasons and metadata and people on sentences; who looks into an error finds it by its id in the log.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import anyio
import pytest
import trio.testing
from pydantic import BaseModel, field_validator

from lro import Code, Context, Job, OperationError, RetryPolicy, job, lifecycle
from lro.attempt import Attempt, until_saved
from lro.errors import FailedPrecondition, LeaseLost, Unavailable, Unimplemented
from lro.lifecycle import CancelOutcome, Lease, Raised, Record, State, StopReason, Unwound
from lro.limits import Limits
from lro.operations import Operations
from lro.status import ERROR_INFO, Status, error_info
from lro.testing import MemoryStore, VirtualClock
from tests.jobs import Params, Progress
from tests.records import LEASE, NAME, NOW, SECOND, at, record, running

AnyJob = Job[Any, Any, Any]  # Any: a job of any types
Raise = Callable[[Context], Awaitable[Any]]  # Any: whatever it returns


# -- what the lifecycle says of its own accord


def finished(it: Record, *, reason: StopReason) -> Record:
    return lifecycle.finish(it, at(3), lease=LEASE, outcome=Unwound(reason))


def swept(it: Record, *, expired: bool = False) -> Record:
    after = lifecycle.sweep(it, at(3600, expired=expired))
    assert after is not None
    return after


ASKED = {"cancel_requested_at": NOW + 2 * SECOND, "cancel_reason": "no need"}
LATE = {"deadline_at": NOW + 2 * SECOND}
TOLD: dict[str, tuple[Callable[[], Record], Code, str, str, dict[str, str]]] = {
    "an orphan": (
        lambda: swept(running(attempt_limit=1), expired=True),
        Code.ABORTED,
        f"The worker that ran {NAME} was lost in attempt 1 of 1",
        "WORKER_LOST",
        {"name": NAME, "attempt": "1", "limit": "1"},
    ),
    "late": (
        lambda: swept(record(**LATE)),
        Code.DEADLINE_EXCEEDED,
        f"{NAME} did not end before its deadline",
        "DEADLINE_EXCEEDED",
        {"name": NAME},
    ),
    "shut down": (
        lambda: finished(running(), reason=StopReason.SHUTDOWN),
        Code.UNAVAILABLE,
        f"The worker that ran {NAME} was shut down, and job books.render is not restartable",
        "WORKER_SHUTDOWN",
        {"name": NAME, "job": "books.render"},
    ),
    "unwound by nobody": (
        lambda: finished(running(), reason=StopReason.CANCEL),
        Code.INTERNAL,
        f"{NAME} was stopped as if cancelled, but nobody had asked for that",
        "JOB_FAILED",
        {"name": NAME},
    ),
    "cancelled": (
        lambda: finished(running(**ASKED), reason=StopReason.CANCEL),
        Code.CANCELLED,
        f"{NAME} was cancelled: no need",
        "OPERATION_CANCELLED",
        {"name": NAME, "outcome": "ACKNOWLEDGED"},
    ),
    "cancelled without a word": (
        lambda: finished(running(cancel_requested_at=NOW), reason=StopReason.CANCEL),
        Code.CANCELLED,
        f"{NAME} was cancelled",
        "OPERATION_CANCELLED",
        {"name": NAME, "outcome": "ACKNOWLEDGED"},
    ),
}


@pytest.mark.parametrize("what", TOLD)
def test_an_end_by_the_librarys_own_doing_says_what_happened_to_whom(what: str) -> None:
    end, code, message, reason, metadata = TOLD[what]

    ended = end()

    assert ended.error is not None
    assert Status.from_json(ended.error) == Status(code, message, (error_info(reason, **metadata),))


def test_a_cancel_at_the_very_moment_of_the_deadline_is_a_cancel() -> None:
    both = running(**ASKED, deadline_at=NOW + 2 * SECOND)

    ended = finished(both, reason=StopReason.DEADLINE)

    assert (ended.state, ended.cancel_outcome) == (State.CANCELLED, CancelOutcome.FORCED)


def test_a_refused_write_says_who_holds_the_operation_now() -> None:
    message = f"{NAME} is RUNNING under token 1, not RUNNING under 7: another worker has it now, or it has ended; "
    with pytest.raises(LeaseLost) as raised:
        lifecycle.save_progress(running(), at(3), lease=Lease("worker-1", 7), progress="{}")
    assert raised.value.message == message + "nothing was written"
    assert raised.value.metadata == {"name": NAME}
    with pytest.raises(LeaseLost) as raised:
        finished(running(), reason=StopReason.LEASE_LOST)
    assert raised.value.metadata == {"name": NAME}


def test_a_refused_cancel_and_a_refused_delete_name_the_operation() -> None:
    with pytest.raises(Unimplemented) as unsupported:
        lifecycle.request_cancel(running(cancellable=False), at(3))
    assert unsupported.value.message == f"{NAME} can't be cancelled: job books.render does not support it"
    assert unsupported.value.reason == "CANCEL_UNSUPPORTED"
    assert unsupported.value.metadata == {"name": NAME, "job": "books.render"}
    with pytest.raises(FailedPrecondition) as refused:
        lifecycle.delete(running(), at(3), reject_running=True)
    assert refused.value.message == f"{NAME} is RUNNING: cancel it, or wait for its end, before deleting it"
    assert refused.value.reason == "OPERATION_RUNNING"
    assert refused.value.metadata == {"name": NAME, "state": "RUNNING"}


def test_a_policy_that_can_not_be_says_why() -> None:
    with pytest.raises(ValueError, match=r"^RetryPolicy\(attempts=0\): at least 1, the first attempt counts$"):
        RetryPolicy(attempts=0)
    wrong = "^RetryPolicy: delays are not negative and the multiplier is at least 1$"
    with pytest.raises(ValueError, match=wrong):
        RetryPolicy(multiplier=0.99)
    with pytest.raises(ValueError, match=wrong):
        RetryPolicy(initial_delay=-timedelta.resolution)
    with pytest.raises(ValueError, match=wrong):
        RetryPolicy(max_delay=-timedelta.resolution)
    RetryPolicy(attempts=1, multiplier=1, initial_delay=timedelta(0), max_delay=timedelta(0))


def test_a_policy_without_a_delay_has_none_however_steep_it_is() -> None:
    at_once = RetryPolicy(initial_delay=timedelta(0))

    assert [at_once.delay(attempt, 1.0) for attempt in (1, 2, 5000)] == [timedelta(0)] * 3
    assert RetryPolicy().delay(5000, 1.0) == timedelta(seconds=60)


# -- what an attempt says


async def attempt(
    this: AnyJob, params: Any = None, *, limits: Limits | None = None, stored: dict[str, Any] | None = None
) -> Raised:
    """Run one attempt that raises; `stored` is what its record has otherwise than it was started with."""
    bounds = limits or Limits()
    async with MemoryStore(sweeps=False) as store:
        name = (await Operations(store, limits=bounds, clock=VirtualClock()).start(this, params)).name
        await store.update(name, lambda it, _: it._replace(version=2, **(stored or {})))
        await store.join("w", 30 * SECOND)
        (claimed,) = await store.claim("w", [this.name], 1)
        claimed = claimed._replace(name=NAME)
        tried = Attempt(this, claimed, store, VirtualClock(), anyio.CapacityLimiter(1), limits=bounds)
        outcome = await tried.run()
    assert isinstance(outcome, Raised)
    return outcome


def raising(make: Callable[[], BaseException]) -> AnyJob:
    async def function(ctx: Context) -> None:
        raise make()

    return job("tests.told")(function)


def returning(value: Any) -> AnyJob:  # Any: the job's own
    async def function(ctx: Context) -> Any:  # Any: as above
        return value

    return job("tests.told", result=Any)(function)


def error_id_of(status: Status) -> str:
    error_id = str(status.details[0]["metadata"]["errorId"])
    assert len(error_id) == 16
    assert int(error_id, 16) >= 0
    return error_id


def logged(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (line,) = [line for line in caplog.records if line.name == "lro.attempt"]
    return line


@pytest.mark.parametrize(
    ("this", "reason", "what"),
    [
        (raising(lambda: ValueError("canary")), "JOB_FAILED", "its job raised an exception"),
        (returning(object()), "RESULT_NOT_JSON", "its result has no JSON form"),
    ],
    ids=["exception", "result"],
)
async def test_an_unexpected_error_is_told_by_an_id_that_the_log_has_with_its_traceback(
    caplog: pytest.LogCaptureFixture, this: AnyJob, reason: str, what: str
) -> None:
    status = (await attempt(this)).status

    error_id = error_id_of(status)
    message = f"{NAME} failed: {what}; the log has it under error id {error_id}"
    assert status == Status(Code.INTERNAL, message, (error_info(reason, name=NAME, errorId=error_id),))
    line = logged(caplog)
    assert line.getMessage() == f"{NAME}: attempt 1 failed, error id {error_id}"
    assert (line.levelname, line.__dict__["error_id"], line.__dict__["attempt"]) == ("ERROR", error_id, 1)
    assert line.exc_info is not None
    assert line.exc_info[1] is not None


async def test_an_error_that_is_too_deep_for_the_log_is_there_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    class Shallow(logging.Filter):
        def filter(self, line: logging.LogRecord) -> bool:
            if line.exc_info:
                raise RecursionError
            return True

    shallow = Shallow()
    logging.getLogger("lro.attempt").addFilter(shallow)
    try:
        error_id = error_id_of((await attempt(raising(ValueError))).status)
    finally:
        logging.getLogger("lro.attempt").removeFilter(shallow)

    line = logged(caplog)
    assert line.getMessage() == f"{NAME}: attempt 1 failed, error id {error_id}: too deep to tell"
    assert (line.levelname, line.__dict__["error_id"]) == ("ERROR", error_id)


async def test_a_cancellation_that_nobody_asked_for_is_told_as_such(caplog: pytest.LogCaptureFixture) -> None:
    status = (await attempt(raising(anyio.get_cancelled_exc_class()))).status

    message = f"{NAME} was stopped by a cancellation that nobody had asked for"
    assert status == Status(Code.INTERNAL, message, (error_info("JOB_FAILED", name=NAME),))
    line = logged(caplog)
    assert line.getMessage() == f"{NAME}: the job was cancelled by nobody that lro knows of"
    assert line.exc_info is not None
    assert isinstance(line.exc_info[1], BaseExceptionGroup), "where it came from"


async def test_a_retry_is_told_to_the_log_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    @job("tests.told", retry=RetryPolicy(attempts=2))
    async def flaky(ctx: Context) -> None:
        raise OperationError(Code.ABORTED, "no")

    with caplog.at_level(logging.INFO, "lro.attempt"):
        outcome = await attempt(flaky)

    assert outcome.retry_in is not None
    assert logged(caplog).getMessage() == f"{NAME}: attempt 1 raised OperationError"


async def test_an_error_that_has_no_json_form_is_told_to_the_log_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status = (await attempt(raising(lambda: OperationError(Code.ABORTED, "no", details=[{"x": object()}])))).status

    assert status.reason == "JOB_FAILED"
    first = next(line for line in caplog.records if line.name == "lro.attempt")
    assert first.getMessage() == f"{NAME}: an OperationError that has no JSON form is told as INTERNAL"
    assert first.exc_info is not None


class Notes(BaseModel):
    text: str = ""


def noting(text: str) -> AnyJob:
    @job("tests.told")
    async def function(ctx: Context[Notes]) -> None:
        await ctx.checkpoint(Notes(text=text))

    return function


PAYLOADS: dict[str, tuple[AnyJob, Code, str, str, dict[str, str]]] = {
    "result too large": (
        returning("x" * 39),
        Code.RESOURCE_EXHAUSTED,
        "the result of {name} is too large: it is 41 bytes of JSON, 40 are allowed",
        "RESULT_TOO_LARGE",
        {"limit": "40"},
    ),
    "progress too large": (
        noting("x" * 50),
        Code.RESOURCE_EXHAUSTED,
        "the progress of {name} is too large: it is 61 bytes of JSON, 50 are allowed",
        "PROGRESS_TOO_LARGE",
        {"limit": "50"},
    ),
    "result": (
        returning({"a": ["\0"]}),
        Code.INTERNAL,
        "the result of {name} can't be kept: it holds U+0000, which not every database keeps, in a[0]",
        "RESULT_NOT_JSON",
        {"field": "a[0]"},
    ),
    "progress": (
        noting("\0"),
        Code.INTERNAL,
        "the progress of {name} can't be kept: it holds U+0000, which not every database keeps, in text",
        "PROGRESS_NOT_JSON",
        {"field": "text"},
    ),
    "result without a place": (
        returning("\0"),
        Code.INTERNAL,
        "the result of {name} can't be kept: it holds U+0000, which not every database keeps",
        "RESULT_NOT_JSON",
        {},
    ),
}


@pytest.mark.parametrize("what", PAYLOADS)
async def test_what_can_not_be_kept_is_told_by_its_kind_its_place_and_its_limit(
    caplog: pytest.LogCaptureFixture, what: str
) -> None:
    this, code, message, reason, metadata = PAYLOADS[what]

    status = (await attempt(this, limits=Limits(result=40, progress=50))).status

    assert status == Status(code, message.format(name=NAME), (error_info(reason, name=NAME, **metadata),))
    kind, why = what.split(maxsplit=1)[0], status.message.partition(": it ")[2]
    assert logged(caplog).getMessage() == f"{NAME}: its {kind} can't be kept: it {why}"


class Broken(BaseModel):
    pages: int

    @field_validator("pages")
    @classmethod
    def look_up(cls, value: int) -> int:
        raise KeyError(value)


async def test_what_is_stored_and_no_longer_fits_is_told_by_its_model(caplog: pytest.LogCaptureFixture) -> None:
    @job("tests.told")
    async def stale(ctx: Context[Progress], params: Params) -> None:
        raise AssertionError

    status = (await attempt(stale, Params(pages=1), stored={"progress": '{"pages_done":"many"}'})).status

    message = f"{NAME} can't run: its stored params or progress no longer fit the model Progress"
    info = error_info("PAYLOAD_STALE", name=NAME, model="Progress")
    assert status == Status(Code.FAILED_PRECONDITION, message, (info,))
    line = logged(caplog)
    assert line.getMessage() == f"{NAME}: what is stored no longer fits Progress"
    assert line.exc_info is not None
    assert line.exc_info[1] is not None


async def test_a_model_that_breaks_when_it_reads_is_an_error_of_the_job(caplog: pytest.LogCaptureFixture) -> None:
    async def function(ctx: Context, params: Any) -> None:  # Any: see below
        raise AssertionError

    status = (await attempt(job("tests.told", params=Params)(function), Params(pages=1))).status
    assert status.reason == "JOB_FAILED"
    caplog.clear()

    broken = job("tests.told", params=Broken)(function)
    async with MemoryStore(sweeps=False) as store:
        started = await Operations(store, clock=VirtualClock()).start(
            job("tests.told", params=Params)(function), Params(pages=1)
        )
        await store.join("w", 30 * SECOND)
        (claimed,) = await store.claim("w", ["tests.told"], 1)
        assert claimed.name == started.name
        outcome = await Attempt(broken, claimed, store, VirtualClock(), anyio.CapacityLimiter(1), limits=Limits()).run()
    assert isinstance(outcome, Raised)
    assert (outcome.status.code, outcome.status.reason) == (Code.INTERNAL, "JOB_FAILED")
    line = logged(caplog)
    assert line.exc_info is not None
    assert isinstance(line.exc_info[1], KeyError)


def exactly(limit: int) -> dict[str, Any]:  # Any: JSON
    """Return a detail of so many bytes of JSON."""
    empty = len('{"@type":"a","b":""}')
    return {"@type": "a", "b": "x" * (limit - empty)}


@pytest.mark.parametrize(("size", "kept"), [(200, True), (201, False)])
async def test_a_detail_is_kept_that_just_fits(size: int, kept: bool) -> None:
    given = error_info("TORN")
    room = len('{"@type":"' + ERROR_INFO + '","reason":"TORN"}')

    def fail() -> BaseException:
        return OperationError(Code.ABORTED, "no", details=[exactly(size)], reason="TORN")

    status = (await attempt(raising(fail), limits=Limits(error=200 + room))).status

    assert status.details == ((given, exactly(size)) if kept else (given,))


async def test_an_error_info_is_kept_that_just_fits() -> None:
    given = error_info("TORN", page="9" * 50)
    room = len('{"@type":"' + ERROR_INFO + '","reason":"TORN","metadata":{"page":"' + "9" * 50 + '"}}')

    def fail() -> BaseException:
        return OperationError(Code.ABORTED, "no", reason="TORN", page="9" * 50)

    assert (await attempt(raising(fail), limits=Limits(error=room))).status.details == (given,)
    cut = (await attempt(raising(fail), limits=Limits(error=room - 1))).status.details
    assert cut == (error_info("TORN"),)


@pytest.mark.parametrize(("limit", "message"), [(5, "no…"), (4, "n…"), (3, "…"), (1, "…")])
async def test_a_message_is_cut_down_to_its_ellipsis(limit: int, message: str) -> None:
    status = (
        await attempt(raising(lambda: OperationError(Code.ABORTED, "nothing")), limits=Limits(error=limit))
    ).status

    assert (status.code, status.message) == (Code.ABORTED, message)


# -- writes that are repeated


@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}), id="virtual")]
)
async def test_a_write_is_repeated_ever_more_seldom_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    times: list[float] = []

    async def write() -> str:
        times.append(anyio.current_time())
        if len(times) < 12:
            raise Unavailable("away")
        return "saved"

    assert await until_saved(write) == "saved"

    waits = [after - before for before, after in pairwise(times)]
    longest = [min(0.05 * 2**number, 1.0) for number in range(len(waits))]
    assert all(most / 2 <= wait <= most + 1e-6 for wait, most in zip(waits, longest, strict=True)), waits
    assert len({round(wait / most, 6) for wait, most in zip(waits, longest, strict=True)}) > 1, "with jitter"
    said = [line.getMessage() for line in caplog.records]
    assert said == [f"away; the write is repeated in {most:.2f} s" for most in longest]


async def test_a_write_that_is_given_up_is_made_no_more() -> None:
    written: list[int] = []

    async def write() -> None:
        written.append(1)
        raise Unavailable

    await until_saved(write, lambda: len(written) == 2)

    assert len(written) == 2


async def test_a_write_that_is_refused_is_not_repeated() -> None:
    async def write() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        await until_saved(write, lambda: False)
