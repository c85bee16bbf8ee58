"""The time: where it is read, and how it is written.

Wall-clock time says when something happened; how long something takes is measured on a monotonic clock. What is
lost for good once its time has come, goes by a clock that does not believe every jump.
"""

import re
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

__all__ = [
    "Clock",
    "SystemClock",
    "WaryClock",
    "format_duration",
    "format_time",
    "micros",
    "moment",
    "parse_duration",
    "parse_time",
]

LAST_TIME = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z, in microseconds
NO_JUMP = 5_000_000  # microseconds: what a wall clock may gain at once and still be believed
BELIEVED_AFTER = 600.0  # seconds that a jump ahead must last
LONGEST = 315_576_000_000 * 1_000_000  # 10,000 years in microseconds: google.protobuf.Duration holds no more

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """Where the library reads the time; tests give their own."""

    def now(self) -> int:
        """Return the time in microseconds since 1970, UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> int:
        """Return the time in microseconds since 1970, UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""
        return time.monotonic()


class WaryClock:
    """A clock that believes a jump ahead only once it has lasted ten minutes; safe to use from several threads.

    Deadlines at rest and expiry go by it, so that a clock that is wrong for a moment ends and removes nothing. Until
    it believes, it goes on from the time before the jump. A jump back is believed at once: it only puts off.
    Ask it every few seconds, or a jump counts from when it was asked.

    Args:
        clock: The clock that may jump.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._trusted = self._offset = self._read()[0]
        self._since = clock.monotonic()
        self._guard = threading.Lock()

    def _read(self) -> tuple[int, float]:
        """Return by how much the wall clock is ahead of the monotonic one, in microseconds, and the latter."""
        monotonic = self._clock.monotonic()
        return self._clock.now() - round(monotonic * 1_000_000), monotonic

    def doubt(self) -> int:
        """Return by how much the wall clock is ahead of what this one believes, in microseconds."""
        with self._guard:
            offset, monotonic = self._read()
            if abs(offset - self._offset) > NO_JUMP:
                self._since = monotonic
            self._offset = offset
            ahead = offset - self._trusted
            if ahead > NO_JUMP and monotonic - self._since < BELIEVED_AFTER:
                return ahead
            self._trusted = offset
            return 0

    def now(self) -> int:
        """Return the time in microseconds since 1970, UTC, as far as it is believed."""
        return self._clock.now() - self.doubt()

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""
        return self._clock.monotonic()


def micros(value: datetime | timedelta) -> int:
    """Return a point in time as microseconds since 1970, or a duration in microseconds, 10,000 years at most.

    Raises:
        ValueError: The datetime is naive.
    """
    if isinstance(value, timedelta):
        return min(value // _MICROSECOND, LONGEST)
    if value.tzinfo is None:
        msg = f"{value!r} names no time zone: use an aware datetime, as datetime.now(UTC) returns"
        raise ValueError(msg)
    return (value - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """Return microseconds since 1970 as an aware datetime in UTC, in the year 9999 at the latest."""
    return _EPOCH + timedelta(microseconds=min(value, LAST_TIME))


def format_time(value: int) -> str:
    """Write microseconds since 1970 as protobuf's JSON does: `2026-11-22T20:15:00.250Z`, 0, 3 or 6 digits.

    What comes after the year 9999 is written as its end, the last time that a Timestamp can say.
    """
    second, rest = divmod(min(value, LAST_TIME), 1_000_000)
    text = _format_second(second)
    return f"{text}Z" if not rest else f"{text}.{f'{rest:06}'.removesuffix('000')}Z"


@lru_cache(maxsize=1024)  # most times of one answer fall in the same second
def _format_second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})")


def parse_time(text: str) -> int:
    """Read an RFC 3339 time as microseconds since 1970; digits beyond them are dropped.

    Raises:
        ValueError: It is written otherwise, or is no time.
    """
    if _TIME.fullmatch(text.upper()) is None:
        msg = f"{text!r} is no RFC 3339 time: write one with its zone, as in 2026-11-22T20:15:00Z"
        raise ValueError(msg)
    return micros(datetime.fromisoformat(text.upper()))


def format_duration(value: int) -> str:
    """Write microseconds as protobuf's JSON does: `1.500s`."""
    seconds, rest = divmod(abs(value), 1_000_000)
    text = f"{seconds}" if not rest else f"{seconds}.{rest:06}".removesuffix("000")
    return f"{'-' if value < 0 else ''}{text}s"


_DURATION = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s")


def parse_duration(text: str) -> timedelta:
    """Read protobuf's JSON form of a duration: `8s`, `1.500s`.

    Raises:
        ValueError: It is written otherwise, or longer than 10,000 years.
    """
    found = _DURATION.fullmatch(text)
    if found is None or int(found[2]) * 1_000_000 > LONGEST:
        msg = f"{text!r} is no duration: write seconds with a final s, as in 8s or 1.500s"
        raise ValueError(msg)
    value = timedelta(seconds=int(found[2]), microseconds=int((found[3] or "0").ljust(9, "0")) // 1000)
    return -value if found[1] else value
