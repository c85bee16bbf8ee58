"""What happens in a worker, told to whoever counts it: the seam for metrics and traces.

Says which events there are, and that an observer's own errors harm nobody. What becomes of the events is its affair.
"""

import logging
from collections.abc import Callable
from typing import TypeVarTuple, Unpack

from lro.lifecycle import Record

__all__ = ["Observer", "tell"]

log = logging.getLogger(__name__)

ArgsT = TypeVarTuple("ArgsT")


class Observer:
    """Hears of what happens in a worker. Subclass it and override what you count; the others do nothing.

    It is called in the middle of things, so it must be quick: count, and return. What it raises is logged.
    """

    def attempt_started(self, record: Record) -> None:
        """Hear that an attempt begins, on the event loop; the record is as it was claimed."""

    def attempt_ended(self, record: Record, seconds: float) -> None:
        """Hear what became of an attempt, on the event loop.

        Args:
            record: As it was written: PENDING if it goes on later. As it was claimed, RUNNING, if nothing was written
                since the lease was lost.
            seconds: How long the attempt took.
        """

    def stuck(self, name: str, job: str, line: str, seconds: float, why: str) -> None:
        """Hear of an operation that does not give way; called on a thread of the watchdog's or on the event loop.

        Args:
            name: The operation; "" where it can't be told, or is no operation at all.
            job: Its job; "" as above.
            line: Where it stands, "/app/render.py:42 in draw"; "" where that can't be told.
            seconds: For how long so far.
            why: "BLOCKED" holds the event loop up; "DEAF" was told to stop and passes no checkpoint.
        """


def tell(event: Callable[[Unpack[ArgsT]], None], *args: *ArgsT) -> None:
    """Call a method of an observer's; what it raises is logged."""
    try:
        event(*args)
    except Exception:
        log.exception("the observer failed at %s", getattr(event, "__name__", event))
