"""Operations that do not give way: found, and named with the line that they stand at.

Two kinds: one that holds the event loop up, and one that was told to stop and passes no checkpoint. A thread looks
from outside, since who is held up can't look. Nothing is decided about them here: no library can end them.
"""

import logging
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import CodeType, CoroutineType, FrameType, GeneratorType
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from lro.attempt import Attempt
from lro.logs import about
from lro.telemetry import Observer, tell
from lro.threads import frame_of

__all__ = ["Place", "Watchdog", "place_of"]

log = logging.getLogger(__name__)

LOOKS = 4  # at the loop, within the time that it may stand still
HEARS_EVERY = 1.0  # seconds between two looks at who was told to stop
LIBRARIES = tuple(
    {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        str(Path(__file__).parent),
        "<frozen",
    }
)

BLOCKED = (
    "it holds the event loop up, for %.1f s so far, at %s; nothing else runs meanwhile: what blocks belongs into a job "
    "that is a plain def, or into anyio.to_thread"
)
HELD_UP = (
    "the event loop is held up, for %.1f s so far, at %s, by none of the operations as far as can be told; running: %s"
)
DEAF = "it was told to stop (%s) and has passed no checkpoint for %.1f s; it stands at %s"


class Place(NamedTuple):
    """A line of code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """As the log has it."""
        return f"{self.file}:{self.line} in {self.function}"

    @property
    def briefly(self) -> str:
        """As clients see it: of the file its name alone."""
        return f"{Path(self.file).name}:{self.line} in {self.function}"


class Watchdog:
    """Watches over the attempts of one worker.

    Args:
        attempts: Returns those that run now.
        blocked_after: How many seconds the event loop may stand still.
        deaf_after: How many seconds a job that was told to stop may pass no checkpoint.
        observer: Hears of who does.
    """

    def __init__(
        self,
        attempts: Callable[[], Collection[Attempt]],
        *,
        blocked_after: float,
        deaf_after: float,
        observer: Observer,
    ) -> None:
        self._attempts = attempts
        self._blocked_after = blocked_after
        self._deaf_after = deaf_after
        self._observer = observer
        self._tick = blocked_after / LOOKS
        self._beat: float | None = None  # when the loop went round last; None while nothing runs
        self._begun = anyio.Event()
        self._works = threading.Event()
        self._over = threading.Event()
        self._unsaid: deque[Attempt] = deque()
        self._heard: dict[Attempt, tuple[int, float]] = {}  # how often one has passed a checkpoint, and since when
        self._deaf: set[Attempt] = set()

    def begin(self) -> None:
        """Wake up: an attempt begins."""
        self._begun.set()

    async def watch(self) -> None:
        """Watch for as long as it is let."""
        self._over.clear()
        thread = threading.Thread(target=self._look, args=(threading.get_ident(),), name="lro: watchdog", daemon=True)
        thread.start()
        try:
            async with anyio.create_task_group() as group:
                await self._go_round(group)
        finally:
            self._over.set()
            self._works.set()
            thread.join(1.0)  # it ends at once, unless an observer holds it

    async def _go_round(self, group: TaskGroup) -> None:
        heard_at = 0.0
        while True:
            if not self._attempts():
                self._beat = None
                self._begun = anyio.Event()
                await self._begun.wait()
            now = self._beat = time.monotonic()
            self._works.set()
            if now - heard_at >= min(HEARS_EVERY, self._deaf_after / LOOKS):
                heard_at = now
                self._hear(now)
            while self._unsaid:
                group.start_soon(self._unsaid.popleft().say)
            await anyio.sleep(self._tick)

    def _hear(self, now: float) -> None:
        """Look for attempts that were told to stop and pass no checkpoint."""
        told = [one for one in self._attempts() if not one.over and one.stop.reason is not None]
        self._deaf &= set(told)
        before, self._heard = self._heard, {}
        for attempt in told:
            passed = attempt.stop.passed
            count, since = before.get(attempt, (passed, now))
            if count != passed:
                since = now
                self._deaf.discard(attempt)
            self._heard[attempt] = (passed, since)
            if now - since >= self._deaf_after and attempt not in self._deaf:
                self._deaf.add(attempt)
                self._tell_of_deaf(attempt, now - since)

    def _tell_of_deaf(self, attempt: Attempt, seconds: float) -> None:
        record, place = attempt.record, _stands_at(attempt)
        why = attempt.stop.reason
        extra = {"line": str(place or ""), "seconds": round(seconds, 3)}
        about(log, record).warning(DEAF, why, seconds, place or "a line that can't be told", extra=extra)
        tell(self._observer.stuck, record.name, record.job, str(place or ""), seconds, "DEAF")
        where = f" at {place.briefly}" if place else ""
        attempt.message = f"Was told to stop and passed no checkpoint for more than {self._deaf_after:g} s{where}"
        self._unsaid.append(attempt)

    def _look(self, loop: int) -> None:
        """Look, on a thread, whether the event loop goes round."""
        told_of: float | None = None
        while True:
            self._works.wait()
            slept_at, cpu_at = time.monotonic(), time.process_time()
            if self._over.wait(self._tick):
                return
            now, beat = time.monotonic(), self._beat
            overslept = now - slept_at - self._tick
            if beat is None:
                self._works.clear()
                if self._beat is not None:
                    self._works.set()
            elif overslept > self._tick and time.process_time() - cpu_at < overslept / 2:
                continue  # the whole process stood still
            elif now - beat >= self._blocked_after + self._tick and beat != told_of:
                told_of = beat
                try:
                    self._tell_of_blocked(loop, beat, now - beat)
                except Exception:
                    log.exception("the event loop is held up; by whom could not be found out")

    def _tell_of_blocked(self, loop: int, beat: float, seconds: float) -> None:
        stack = list(_outwards(frame_of(loop)))
        place = place_of(stack)
        if place is None or self._beat != beat:
            return  # it has gone on meanwhile
        attempt = _attempt_of(stack, attempts := list(self._attempts()))
        extra = {"line": str(place), "seconds": round(seconds, 3)}
        if attempt is None:
            running = ", ".join(one.record.name for one in attempts if not one.job.in_thread) or "none"
            log.warning(HELD_UP, seconds, place, running, extra=extra)
            tell(self._observer.stuck, "", "", str(place), seconds, "BLOCKED")
            return
        record = attempt.record
        about(log, record).warning(BLOCKED, seconds, place, extra=extra)
        tell(self._observer.stuck, record.name, record.job, str(place), seconds, "BLOCKED")
        attempt.message = f"Held the event loop up for more than {self._blocked_after:g} s at {place.briefly}"
        self._unsaid.append(attempt)  # it is written once the loop goes round again, or with the end


def place_of(stack: list[FrameType]) -> Place | None:
    """Return where a stack stands, innermost first, as its user sees it: in the innermost code that is no library's."""
    if not stack:
        return None
    inner = stack[: next((depth for depth, frame in enumerate(stack) if frame.f_code in OURS), None)] or stack
    own = next((frame for frame in inner if not frame.f_code.co_filename.startswith(LIBRARIES)), inner[-1])
    return Place(own.f_code.co_filename, own.f_lineno or own.f_code.co_firstlineno, own.f_code.co_qualname)


OURS: frozenset[CodeType] = frozenset({Attempt.call.__code__})  # what calls a job's function


def _stands_at(attempt: Attempt) -> Place | None:
    """Return where the job of an attempt stands that waits for something, or runs in its thread."""
    if attempt.job.in_thread:
        return place_of(list(_outwards(frame_of(attempt.thread_name))))
    return place_of(list(_awaited(attempt.coroutine))[::-1])


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _awaited(awaitable: object) -> Iterator[FrameType]:
    """Return the frames of a coroutine that waits, and of those that it waits for, outermost first."""
    kinds: dict[type, tuple[str, str]] = {
        CoroutineType: ("cr_frame", "cr_await"),
        GeneratorType: ("gi_frame", "gi_yieldfrom"),
    }
    while (names := kinds.get(type(awaitable))) is not None:
        frame, awaitable = (getattr(awaitable, name) for name in names)
        if frame is not None:
            yield frame


def _attempt_of(stack: list[FrameType], attempts: list[Attempt]) -> Attempt | None:
    """Return whose code a stack of the event loop's thread runs: its own, or that of a task which it has started."""
    for frame in stack:
        if frame.f_code in OURS:
            return next((one for one in attempts if one is frame.f_locals["self"]), None)
    scopes = {id(one.scope): one for one in attempts}
    for frame in stack:
        if not str(frame.f_globals.get("__name__")).startswith("anyio."):
            continue  # nothing of anybody else's is touched
        caller = frame.f_locals.get("self")  # what calls a child task: a TaskHandle, before anyio 4.14 a TaskGroup
        scope: object = getattr(caller, "_cancel_scope", None) or getattr(caller, "cancel_scope", None)
        while scope is not None:
            if (found := scopes.get(id(scope))) is not None:
                return found
            scope = getattr(scope, "_parent_scope", None)  # no public way leads from a task to who has started it
    return None
