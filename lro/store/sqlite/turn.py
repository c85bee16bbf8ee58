"""Turns: the processes that share a file write one after the other.

SQLite's own lock would do for correctness, were it not for two things. Before 3.51.3 a checkpoint that meets
another connection's commit may damage the file (sqlite.org/wal.html#walresetbug); both happen within a turn.
And whoever waits for SQLite's lock sleeps up to 100 ms between two tries, while here it is a fraction of one.
"""

import fcntl
import os
import sqlite3
import time
from pathlib import Path
from types import TracebackType

__all__ = ["Turn"]

FIRST_WAIT, LONGEST_WAIT = 0.0001, 0.002  # seconds between two tries
LONG_TURN = 0.005  # seconds after which the next turn is left to others, who would else hardly hit the gap
COURTESY = 0.003  # seconds that they have for it


class Turn:
    """The right to write, as `with turn:` on the writer's thread.

    Args:
        path: A file for the lock, made if need be.
        patience: Seconds to wait for it.

    Attributes:
        shared: Whether other processes have the file open, as far as is known.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self._path = path
        self._patience = patience
        self._descriptor = -1
        self._taken = self._lasted = 0.0
        self.shared = False

    def open(self) -> None:
        """Open the lock file."""
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        if self.shared and self._lasted > LONG_TURN:
            time.sleep(COURTESY)
        self._lasted = 0.0
        wait, until = FIRST_WAIT, time.monotonic() + self._patience
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    msg = f"another process has been writing for {self._patience:g} s"
                    raise sqlite3.OperationalError(msg) from None
                time.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT)
            else:
                self._taken = time.monotonic()
                return

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._lasted = time.monotonic() - self._taken

    def close(self) -> None:
        """Give the lock file back; in a forked child, whose copy would outlive a parent that dies in its turn."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
