"""What does not give way is named, with its line, in the log, to the observer and in the metadata; others go on."""

import hashlib
import inspect
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from lro import Context, Job, Operations, Service, State, SyncContext, Worker, job, lifecycle
from lro.errors import Unavailable
from lro.lifecycle import Record, Transition
from lro.principal import AllowAnonymous
from lro.store import Store
from lro.store.base import Within
from lro.telemetry import Observer
from lro.testing import MemoryStore
from tests.jobs import Relay, Story, ended, is_call_of, stored, until

BLOCKED, DEAF = 0.2, 0.4  # seconds
Stuck = tuple[float, str, str, str, float, str]  # when, and what the observer was told


class Notes(Observer):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.started: list[Record] = []
        self.ended: list[Record] = []
        self.stuck_ones: list[Stuck] = []

    def attempt_started(self, record: Record) -> None:
        self.started.append(record)

    def attempt_ended(self, record: Record, seconds: float) -> None:
        assert seconds >= 0
        self.ended.append(record)

    def stuck(self, name: str, job: str, line: str, seconds: float, why: str) -> None:
        self.stuck_ones.append((time.monotonic(), name, job, line, seconds, why))


def work(store: Store, *jobs: Job[Any, Any, Any], observer: Observer, **options: Any) -> Worker:  # Any: any jobs
    times: dict[str, Any] = {"blocked_after": timedelta(seconds=BLOCKED), "deaf_after": timedelta(seconds=DEAF)}
    return Worker(store, jobs, observer=observer, **times | options)


def line_of(function: Callable[..., object], text: str) -> str:
    """Return where a line of a function of this file stands, as the log has it."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + offset for offset, line in enumerate(lines) if text in line]
    return f"{__file__}:{number} in {function.__qualname__}"


class Blocker:
    """When a job began to hold the event loop up."""

    def __init__(self) -> None:
        self.began = 0.0

    def block(self, seconds: float = 3 * BLOCKED) -> None:
        self.began = time.monotonic()
        time.sleep(seconds)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def blocker() -> Blocker:
    return Blocker()


async def own(blocker: Blocker) -> None:
    await anyio.sleep(0.01)
    blocker.block()


async def in_a_child(blocker: Blocker) -> None:
    async def child() -> None:
        await anyio.sleep(0.01)
        blocker.block()

    async with anyio.create_task_group() as outer, anyio.create_task_group() as group:
        outer.start_soon(anyio.sleep, 0)
        group.start_soon(child)
        group.start_soon(anyio.sleep, 0.01)


async def in_a_child_at_once(blocker: Blocker) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(own, blocker)


@pytest.mark.parametrize("body", [own, in_a_child, in_a_child_at_once])
async def test_an_operation_that_holds_the_event_loop_up_is_named_with_its_line(
    store: Store, notes: Notes, blocker: Blocker, caplog: pytest.LogCaptureFixture, body: Callable[..., Awaitable[None]]
) -> None:
    @job("tests.block")
    async def block(ctx: Context) -> None:
        await body(blocker)
        await anyio.sleep(0.1)

    @job("tests.other")
    async def other(ctx: Context) -> None:
        await anyio.sleep(3 * BLOCKED)

    line = line_of(Blocker.block, "time.sleep(seconds)")
    operations = Operations(store)
    async with work(store, block, other, observer=notes):
        await operations.start(other)
        name = (await operations.start(block)).name
        await until(lambda: bool(notes.stuck_ones))
        message = (await ended(operations, name)).metadata["statusMessage"]

    ((told_at, told_name, told_job, told_line, seconds, why),) = notes.stuck_ones
    assert told_at - blocker.began < 2 * BLOCKED
    assert (told_name, told_job, told_line, why) == (name, "tests.block", line, "BLOCKED")
    assert BLOCKED <= seconds < 2 * BLOCKED
    (logged,) = [one for one in caplog.records if one.name == "lro.watchdog"]
    assert logged.levelno == logging.WARNING
    assert logged.getMessage().startswith(f"{name}: it holds the event loop up, for 0.")
    assert f"s so far, at {line};" in logged.getMessage()
    assert vars(logged)["line"] == line
    assert vars(logged)["operation"] == name
    assert message == f"Held the event loop up for more than 0.2 s at {line.removeprefix(__file__[: -len(FILE)])}"


FILE = "test_watchdog.py"


async def test_what_held_the_event_loop_up_is_written_while_it_goes_on_and_once_for_one_line(
    store: Store, notes: Notes, blocker: Blocker
) -> None:
    story = Story()

    @job("tests.block")
    async def block(ctx: Context) -> None:
        for _ in range(2):
            blocker.block(2 * BLOCKED)
            await anyio.sleep(0.1)
        story.tell("goes on")
        await story.heard("end")

    operations = Operations(store)
    async with work(store, block, observer=notes):
        name = (await operations.start(block)).name
        await story.heard("goes on")
        await anyio.sleep(0.05)
        record = await stored(store, name)
        story.tell("end")
        await ended(operations, name)
    assert len(notes.stuck_ones) == 2
    assert record.state is State.RUNNING
    assert record.status_message is not None
    assert record.version == 3, "started, claimed, and one message"


async def test_code_that_is_no_operations_is_told_apart(
    store: Store, notes: Notes, blocker: Blocker, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story()

    @job("tests.innocent")
    async def innocent(ctx: Context) -> None:
        story.tell("runs")
        await story.heard("end")

    async def host() -> None:
        blocker.block()

    operations = Operations(store)
    async with work(store, innocent, observer=notes):
        name = (await operations.start(innocent)).name
        await story.heard("runs")
        async with anyio.create_task_group() as group:
            group.start_soon(host)
        story.tell("end")
        operation = await ended(operations, name)
    ((_, *told),) = notes.stuck_ones
    assert (told[:3], told[4]) == (["", "", line_of(Blocker.block, "time.sleep(seconds)")], "BLOCKED")
    assert f"by none of the operations as far as can be told; running: {name}" in caplog.text
    assert "statusMessage" not in operation.metadata


async def test_a_loop_that_is_busy_but_goes_round_is_not_held_up(store: Store, notes: Notes) -> None:
    @job("tests.busy")
    async def busy(ctx: Context) -> None:
        end = time.monotonic() + 4 * BLOCKED
        while time.monotonic() < end:
            hashlib.sha256(bytes(100_000)).digest()
            await ctx.checkpoint()

    operations = Operations(store)
    async with work(store, busy, observer=notes):
        await ended(operations, (await operations.start(busy)).name)
    assert notes.stuck_ones == []


class Silenced(Relay):
    """Lets nothing be said."""

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        if is_call_of(transition, lifecycle.say):
            raise Unavailable
        return await super().update(name, transition, within)


async def test_what_can_not_be_said_at_once_is_said_with_the_end(
    store: Store, notes: Notes, blocker: Blocker, caplog: pytest.LogCaptureFixture
) -> None:
    @job("tests.block")
    async def block(ctx: Context) -> None:
        await own(blocker)
        while "could not be saved" not in caplog.text:
            await anyio.sleep(0.005)

    operations = Operations(store)
    async with work(Silenced(store), block, observer=notes):
        operation = await ended(operations, (await operations.start(block)).name)
    assert operation.metadata["statusMessage"].startswith("Held the event loop up")


# -- jobs that were told to stop


class Deaf(Story):
    """Jobs that take no notice of a stop until they hear "end"."""

    async def shielded(self, ctx: Context) -> str:
        self.tell("runs")
        with anyio.CancelScope(shield=True):
            await self.ending()
        return "done"

    async def swallowing(self, ctx: Context) -> str:
        self.tell("runs")
        while "end" not in self.told:
            try:
                await anyio.sleep(0.05)
            except anyio.get_cancelled_exc_class():
                self.tell("swallowed")
        return "done"

    async def swallowing_at_checkpoints(self, ctx: Context) -> str:
        self.tell("runs")
        while "end" not in self.told:
            try:
                await ctx.checkpoint()
            except anyio.get_cancelled_exc_class():
                self.tell("swallowed")
        return "done"

    def in_a_thread(self, ctx: SyncContext) -> str:
        self.told.append("runs")
        while "end" not in self.told:
            time.sleep(0.001)
        return "done"

    async def ending(self) -> None:
        while "end" not in self.told:
            await anyio.sleep(0.005)


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("shielded", "while|await anyio.sleep(0.005)"),
        ("swallowing", "await anyio.sleep(0.05)"),
        ("swallowing_at_checkpoints", "await ctx.checkpoint()"),
        ("in_a_thread", "while|time.sleep(0.001)"),
    ],
)
async def test_a_job_that_was_told_to_stop_and_does_not_is_named_with_its_line(
    store: Store, notes: Notes, caplog: pytest.LogCaptureFixture, way: str, text: str
) -> None:
    story = Deaf()
    function = getattr(story, way)
    deaf: Job[None, None, str] = job("tests.deaf", grace=None if way == "in_a_thread" else timedelta(0))(function)
    operations = Operations(store)
    async with work(store, deaf, observer=notes):
        name = (await operations.start(deaf)).name
        await until(lambda: "runs" in story.told)
        asked_at = time.monotonic()
        await operations.cancel(name)
        await until(lambda: bool(notes.stuck_ones))

        async def noted() -> bool:
            return (await stored(store, name)).status_message is not None

        while not await noted():
            await anyio.sleep(0.005)
        record = await stored(store, name)
        story.told.append("end")
        operation = await ended(operations, name)

    (told_at, *told), *more = notes.stuck_ones
    assert not [one for one in more if one[-1] == "DEAF"]
    assert DEAF <= told_at - asked_at < 2 * DEAF
    assert (told[:2], told[4]) == ([name, "tests.deaf"], "DEAF")
    function = Deaf.ending if way == "shielded" else function
    lines = [line_of(function, part) for part in text.split("|") if part != "while"]
    lines += [re.sub(r":(\d+) ", lambda found: f":{int(found[1]) - 1} ", line) for line in lines]
    assert told[2] in lines
    assert f"{name}: it was told to stop (CANCEL) and has passed no checkpoint for 0." in caplog.text
    assert record.state is State.RUNNING
    start = "Was told to stop and passed no checkpoint for more than 0.4 s at test_watchdog.py:"
    assert str(record.status_message).startswith(start)
    assert operation.metadata["statusMessage"] == record.status_message
    assert (operation.state, operation.metadata["cancelOutcome"]) == (State.SUCCEEDED, "COMPLETED_ANYWAY")


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_job_that_cleans_up_and_passes_checkpoints_is_not_deaf(
    store: Store, notes: Notes, in_thread: bool
) -> None:
    story = Story()

    @job("tests.clean")
    async def clean(ctx: Context) -> None:
        story.tell("runs")
        try:
            await ctx.sleep(60)
        finally:
            with ctx.cleanup(seconds=10):
                for _ in range(8):
                    await anyio.sleep(DEAF / 4)
                    await ctx.checkpoint()

    @job("tests.clean")
    def clean_in_thread(ctx: SyncContext) -> None:
        story.told.append("runs")
        try:
            ctx.sleep(60)
        finally:
            with ctx.cleanup(seconds=10):
                for _ in range(8):
                    time.sleep(DEAF / 4)
                    ctx.checkpoint()

    one = clean_in_thread if in_thread else clean
    operations = Operations(store)
    async with work(store, one, observer=notes):
        name = (await operations.start(one)).name
        await until(lambda: "runs" in story.told)
        await operations.cancel(name)
        operation = await ended(operations, name)
    assert operation.state is State.CANCELLED
    assert notes.stuck_ones == []


async def test_who_falls_silent_again_is_named_again(store: Store, notes: Notes) -> None:
    story = Story()

    @job("tests.clean")
    async def clean(ctx: Context) -> None:
        story.tell("runs")
        try:
            await ctx.sleep(60)
        finally:
            with ctx.cleanup(seconds=10):
                for _ in range(2):
                    await anyio.sleep(1.5 * DEAF)
                    await ctx.checkpoint()

    operations = Operations(store)
    async with work(store, clean, observer=notes):
        name = (await operations.start(clean)).name
        await story.heard("runs")
        await operations.cancel(name)
        await ended(operations, name)
    assert [told[5] for told in notes.stuck_ones] == ["DEAF", "DEAF"]


@pytest.mark.parametrize("way", ["swallowing", "swallowing_at_checkpoints"])
async def test_a_job_that_swallows_its_cancel_for_ever_stops_no_others(
    store: Store, notes: Notes, way: str, record_property: Callable[[str, object], None]
) -> None:
    """All beside it end, and what is cancelled beside it stops as it would."""
    story, others = Deaf(), Story()
    swallow: Job[None, None, str] = job("tests.swallow", grace=timedelta(0))(getattr(story, way))
    stopped_at: dict[str, float] = {}

    @job("tests.quick")
    async def quick(ctx: Context) -> str:
        for _ in range(5):
            await anyio.sleep(0.002)
            await ctx.checkpoint()
        return "quick"

    @job("tests.sleep")
    async def sleep(ctx: Context) -> None:
        others.tell(ctx.name)
        try:
            await ctx.sleep(60)
        finally:
            stopped_at[ctx.name] = time.monotonic()

    operations = Operations(store)
    async with work(store, swallow, quick, sleep, observer=notes, concurrency=20):
        name = (await operations.start(swallow)).name
        await story.heard("runs")
        await operations.cancel(name)
        await until(lambda: story.told.count("swallowed") > 200)
        turns, since = story.told.count("swallowed"), time.monotonic()
        names = [(await operations.start(quick)).name for _ in range(10)]
        for one in names:
            assert (await ended(operations, one)).response == "quick"
        delays: list[float] = []
        for _ in range(10):
            other = (await operations.start(sleep)).name
            await others.heard(other)
            asked_at = time.monotonic()
            await operations.cancel(other)
            assert (await ended(operations, other)).state is State.CANCELLED
            delays.append(stopped_at[other] - asked_at)
        rate = (story.told.count("swallowed") - turns) / (time.monotonic() - since)
        await until(lambda: bool(notes.stuck_ones))
        story.told.append("end")
        assert (await ended(operations, name)).response == "done"
    record_property("cancel delays", delays)
    record_property("deliveries a second", rate)
    assert max(delays) < 0.5
    assert notes.stuck_ones[0][1] == name
    if way == "swallowing_at_checkpoints":
        assert rate < 150, "it is slowed down"


# -- observers, and the watchdog's own life


class Failing(Observer):
    """Raises whenever it is told something."""

    def attempt_started(self, record: Record) -> None:
        raise ZeroDivisionError

    def attempt_ended(self, record: Record, seconds: float) -> None:
        raise ZeroDivisionError

    def stuck(self, name: str, job: str, line: str, seconds: float, why: str) -> None:
        raise ZeroDivisionError


async def test_an_observer_hears_of_attempts_and_one_that_fails_harms_nothing(
    store: Store, notes: Notes, caplog: pytest.LogCaptureFixture
) -> None:
    @job("tests.block")
    async def block(ctx: Context) -> str:
        Blocker().block()
        return "blocked"

    operations = Operations(store)
    for observer in (Failing(), notes, Observer()):
        async with work(store, block, observer=observer):
            assert (await ended(operations, (await operations.start(block)).name)).response == "blocked"
    assert [(one.state, one.attempt) for one in notes.started] == [(State.RUNNING, 1)]
    assert [one.state for one in notes.ended] == [State.SUCCEEDED]
    failures = [one.getMessage() for one in caplog.records if one.name == "lro.telemetry"]
    assert failures == [f"the observer failed at {event}" for event in ("attempt_started", "stuck", "attempt_ended")]


async def test_the_watchdog_rests_while_nothing_runs_and_ends_with_its_worker(store: Store, notes: Notes) -> None:
    @job("tests.quick")
    async def quick(ctx: Context) -> None:
        """Do nothing."""

    def watchdogs() -> Sequence[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "lro: watchdog"]

    operations = Operations(store)
    async with work(store, quick, observer=notes, blocked_after=timedelta(seconds=0.04)) as worker:
        await ended(operations, (await operations.start(quick)).name)
        assert len(watchdogs()) == 1
        await until(lambda: worker._watchdog is not None and not worker._watchdog._works.is_set())
        Blocker().block(0.1)  # what nothing of the worker's holds up is no affair of its
        await ended(operations, (await operations.start(quick)).name)
    assert watchdogs() == []
    assert notes.stuck_ones == []
    async with work(store, quick, observer=notes, blocked_after=None):
        await ended(operations, (await operations.start(quick)).name)
        assert watchdogs() == []


@pytest.mark.parametrize("options", [{"blocked_after": timedelta(0)}, {"deaf_after": timedelta(0)}], ids=str)
async def test_times_that_are_none_are_refused(store: Store, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="blocked_after and deaf_after are positive"):
        Worker(store, [], **options)


async def test_a_service_hands_them_on(url: str, notes: Notes, blocker: Blocker) -> None:
    @job("tests.block")
    async def block(ctx: Context) -> None:
        await own(blocker)

    short = timedelta(seconds=BLOCKED)
    jobs, auth = [block], AllowAnonymous()
    async with Service(url, jobs=jobs, auth=auth, observer=notes, blocked_after=short, deaf_after=short) as service:
        name = (await service.start(block)).name
        assert "statusMessage" in (await ended(service.operations, name)).metadata
    assert notes.stuck_ones[0][1] == name


def test_it_watches_under_trio_too(notes: Notes, blocker: Blocker) -> None:
    @job("tests.block")
    async def block(ctx: Context) -> None:
        await own(blocker)
        await anyio.to_thread.run_sync(partial(time.sleep, 0.01))

    async def run() -> str:
        async with MemoryStore() as store, work(store, block, observer=notes):
            operations = Operations(store)
            name = (await operations.start(block)).name
            assert "statusMessage" in (await ended(operations, name)).metadata
            return name

    name = anyio.run(run, backend="trio")
    ((_, *told),) = notes.stuck_ones
    assert (told[0], told[4]) == (name, "BLOCKED")
