"""Bells: hints between the processes that share a file.

Each open store binds a datagram socket in a directory beside the database, and rings the others' after a
commit. Idle, it costs nothing. A ring says that something changed, never what, and may be lost: whoever waits
also looks by itself. (Reading `PRAGMA data_version` every few milliseconds was tried: it took 2 to 5 % of a
core while nothing happened, since every wake-up of an idle process is dear on a virtual machine.)
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

__all__ = ["Bell"]

log = logging.getLogger(__name__)

SUFFIX = ".bell"
QUIET = 0.002  # seconds from one telling to the next: rings in between are one


class Bell:
    """This process's bell, and the others'.

    Args:
        directory: Where the bells are.
        tell: Called on the event loop when another process has rung.
    """

    def __init__(self, directory: Path, tell: Callable[[], None]) -> None:
        self._directory = directory
        self._path = directory
        self._tell = tell
        self._socket: socket.socket | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._rung_again = False

    def open(self) -> None:
        """Hang it up; without one, as where the path is too long for a socket, changes are found by looking."""
        self._path = self._directory / f"{uuid.uuid4().hex[:12]}{SUFFIX}"
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            bell.bind(str(self._path))
        except OSError as error:
            bell.close()
            log.info("no hints from other processes at %s (%s): they are noticed within a second", self._path, error)
            return
        self._socket = bell
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bell, self._heard)

    def close(self) -> None:
        """Take it down."""
        if self._socket is None:
            return
        self._loop.remove_reader(self._socket)
        if self._telling is not None:
            self._telling.cancel()
        self._path.unlink(missing_ok=True)
        self._socket.close()
        self._socket = None

    def let_go(self) -> None:
        """Close it in a child process, and leave it hanging: it is the parent's."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ring(self) -> int:
        """Ring all others and return how many there are; a bell whose process is gone is taken down."""
        if self._socket is None:
            return 0
        rung = 0
        for name in os.listdir(self._directory):  # noqa: PTH208 -- after every commit: a Path for each costs more
            if not name.endswith(SUFFIX) or name == self._path.name:
                continue
            try:
                rung += self._socket.sendto(b"!", f"{self._directory}/{name}")
            except (ConnectionRefusedError, FileNotFoundError):
                (self._directory / name).unlink(missing_ok=True)
            except OSError:  # its queue is full: it will hear of something anyway
                rung += 1
        return rung

    def _heard(self) -> None:
        assert self._socket is not None
        try:
            while True:
                self._socket.recv(1)
        except BlockingIOError:
            pass
        if self._telling is None:
            self._tell_others_wait()
        else:
            self._rung_again = True

    def _end_quiet(self) -> None:
        self._telling = None
        if self._rung_again:
            self._tell_others_wait()

    def _tell_others_wait(self) -> None:
        self._rung_again = False
        self._telling = self._loop.call_later(QUIET, self._end_quiet)
        self._tell()
