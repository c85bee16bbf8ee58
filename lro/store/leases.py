"""Who is alive: leases judged without comparing clocks of two processes.

A worker counts up its beat at each renewal. Whoever sees the same beat for one lease time, on its own
monotonic clock, knows the worker dead or frozen. On one machine a lock file tells a death at once: the
kernel drops a dead process's lock, and who obtains it knows. A held lock proves nothing, since a stopped
process holds its lock too; then the beats decide.
"""

import fcntl
import os
import threading
from collections.abc import Callable
from math import inf
from pathlib import Path

__all__ = ["UNKNOWN_LEASE", "Leases", "LockFiles"]

UNKNOWN_LEASE = 30_000_000  # the lease time of a worker whose row is gone, in microseconds


class Leases:
    """What one store has seen of the workers' beats; safe to use from several threads.

    Args:
        monotonic: Seconds on a clock that never jumps.
        locks: The workers' lock files, or None where there are none.
    """

    def __init__(self, monotonic: Callable[[], float], locks: "LockFiles | None" = None) -> None:
        self._monotonic = monotonic
        self._locks = locks
        self._seen: dict[str, tuple[int | None, float]] = {}
        self._guard = threading.Lock()

    def is_ours(self, owner: str) -> bool:
        """Return whether the worker lives in this process."""
        return self._locks is not None and self._locks.holds(owner)

    def is_dead(self, owner: str, beat: int | None, lease_time: int, *, at: float = inf) -> bool:
        """Note a worker's beat and return whether its leases have expired.

        Args:
            owner: The worker.
            beat: Its beat now; None if its row is gone.
            lease_time: Its lease time in microseconds.
            at: When, if that is not now: the beginning of a transaction, since which nobody else could beat.
        """
        if self.is_ours(owner):
            return False
        if self._locks is not None and self._locks.is_abandoned(owner):
            return True
        now = min(self._monotonic(), at)
        with self._guard:
            seen, since = self._seen.get(owner, (None, now))
            if owner not in self._seen or seen != beat:
                self._seen[owner] = (beat, now)
                return False
            return now - since >= lease_time / 1_000_000

    def excuse(self, seconds: float = inf) -> None:
        """Leave time out of account in which nobody could write here, and so nobody could beat.

        Args:
            seconds: How long it was; all that has passed by default.
        """
        now = self._monotonic()
        with self._guard:
            self._seen = {owner: (beat, min(now, since + seconds)) for owner, (beat, since) in self._seen.items()}

    def forget(self, owner: str) -> None:
        """Drop what is known of a worker that is gone."""
        with self._guard:
            self._seen.pop(owner, None)


class LockFiles:
    """One lock file a worker, in a directory beside the database; safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._held: dict[str, int] = {}

    def _path(self, owner: str) -> Path:
        return self.directory / f"{owner}.lock"

    def holds(self, owner: str) -> bool:
        """Return whether this process holds the worker's lock."""
        return owner in self._held

    def is_there(self, owner: str) -> bool:
        """Return whether the worker has a lock file, held or not."""
        return self._path(owner).exists()

    def acquire(self, owner: str) -> None:
        """Create and hold a worker's lock until `release`, or the end of the process.

        Raises:
            BlockingIOError: Another process holds it.
        """
        if self.holds(owner):
            return
        self.directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._path(owner), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        self._held[owner] = descriptor

    def is_abandoned(self, owner: str) -> bool:
        """Return whether the worker's lock file is there and nobody holds it."""
        try:
            descriptor = os.open(self._path(owner), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            return True
        finally:
            os.close(descriptor)

    def release(self, owner: str) -> None:
        """Remove a worker's lock file, unless another process holds it: a frozen worker may come back."""
        if self.holds(owner) or self.is_abandoned(owner):
            self._path(owner).unlink(missing_ok=True)
        descriptor = self._held.pop(owner, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Drop the locks that are still held, leaving their files: who finds one knows its worker dead."""
        while self._held:
            _, descriptor = self._held.popitem()
            os.close(descriptor)
