"""Hints: who wants to know of a change, and how they are told.

Nothing depends on a hint. Whoever waits for one also looks by itself from time to time, since a change
may have been made where nobody could tell us.
"""

import logging
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import anyio

from lro.lifecycle import Record

__all__ = ["Hub", "Listener", "Watch"]

log = logging.getLogger(__name__)

Listener = Callable[[Record | None], None]


class Watch:
    """Waits for changes of one record; used as a context manager."""

    def __init__(self, watches: dict[str, set["Watch"]], name: str) -> None:
        self._watches = watches
        self._name = name
        self._event = anyio.Event()
        self._record: Record | None = None

    def __enter__(self) -> Self:
        self._watches.setdefault(self._name, set()).add(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        watching = self._watches[self._name]
        watching.discard(self)
        if not watching:
            del self._watches[self._name]

    async def changed(self, seconds: float) -> Record | None:
        """Wait for the next hint, or until that many seconds have passed.

        Returns the record as it was committed; None if it is not known what changed, or whether.
        """
        with anyio.move_on_after(seconds):
            await self._event.wait()
        self._event = anyio.Event()
        record, self._record = self._record, None
        return record

    def notice(self, record: Record | None) -> None:
        """Wake who waits; None means: look for yourself."""
        self._record = record
        self._event.set()


class Hub:
    """Passes on what one store noticed, on its event loop."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._listeners: dict[object, Listener] = {}

    def watch(self, name: str) -> Watch:
        """Return a watch on one record."""
        return Watch(self._watches, name)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call the listener on every change until the returned function is called."""
        key = object()  # the same function may listen twice
        self._listeners[key] = listener

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    def concerned(self, urgent: Iterable[str], others: Iterable[str]) -> list[str]:
        """Return the names that somebody here wants to know of: what is watched, and what is urgent for workers."""
        listened = set(urgent) if self._listeners else set[str]()
        return list(listened | (self._watches.keys() & {*urgent, *others}))

    def publish(self, records: Iterable[Record]) -> None:
        """Tell of records that were committed."""
        for record in records:
            self._tell(record)
            if record.name in self._watches:
                for watch in tuple(self._watches[record.name]):
                    watch.notice(record)

    def publish_unknown(self) -> None:
        """Tell that something changed."""
        self._tell(None)
        for watching in tuple(self._watches.values()):
            for watch in tuple(watching):
                watch.notice(None)

    def _tell(self, record: Record | None) -> None:
        for listener in tuple(self._listeners.values()):
            try:
                listener(record)
            except Exception:
                log.exception("a listener failed; others are told all the same")
