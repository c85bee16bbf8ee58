"""Which processes have a database open: what Linux tells of them, without a word to the processes themselves.

Elsewhere, and of other users' processes, there is nothing to be seen: then the bells alone tell how many there are.
"""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Inode", "Process", "count_bells", "holder_of", "inode_of", "sharing"]

PROC = Path("/proc")
Inode = tuple[int, int]
"""Device and number: which file it is, whatever it is called."""


@dataclass(slots=True)
class Process:
    """A process that has something of a database open.

    Attributes:
        pid: Its id.
        name: Its program, for people.
        stopped: True if it stands still by SIGSTOP or a debugger.
        opened: By path, the files that it has open there, which need not be those that are there now.
    """

    pid: int
    name: str
    stopped: bool
    opened: dict[Path, set[Inode]] = field(default_factory=dict[Path, set[Inode]])

    def __str__(self) -> str:
        """Name it."""
        return f"{self.pid} ({self.name})"


def inode_of(path: Path) -> Inode | None:
    """Return which file is there, or None."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def sharing(paths: set[Path]) -> list[Process]:
    """Return the processes, but for this one, that have one of these open or had it before it was removed."""
    found: list[Process] = []
    for folder in PROC.iterdir() if PROC.is_dir() else ():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            opened: dict[Path, set[Inode]] = {}
            for path, inode in _opened(folder):
                if path in paths:
                    opened.setdefault(path, set()).add(inode)
            if opened and (process := _look(folder)) is not None:
                process.opened = opened
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def _opened(folder: Path) -> Iterator[tuple[Path, Inode]]:
    with suppress(OSError):  # another user's, or it has ended
        for descriptor in (folder / "fd").iterdir():
            with suppress(OSError):
                target = str(descriptor.readlink()).removesuffix(" (deleted)")
                inode = inode_of(descriptor)
                if target.startswith("/") and inode is not None:
                    yield Path(target), inode


def _look(folder: Path) -> Process | None:
    try:
        name, _, rest = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")
    except OSError:
        return None
    return Process(int(folder.name), name.partition("(")[2], stopped=rest[:1] in ("T", "t"))


def holder_of(lock: Path) -> int | None:
    """Return the process that holds a lock on a file, as far as can be seen, without trying to take it."""
    inode = inode_of(lock)
    try:
        held = (PROC / "locks").read_text(encoding="utf-8")
    except OSError:
        return None
    if inode is not None:
        device = f"{os.major(inode[0]):02x}:{os.minor(inode[0]):02x}:{inode[1]}"
        if found := re.search(rf"^\d+: FLOCK +ADVISORY +WRITE (\d+) {device} ", held, re.MULTILINE):
            return int(found[1])
    return None


def count_bells(directory: Path) -> int:
    """Return how many stores are open, by the bells that somebody still listens to; none of them is rung."""
    alive = 0
    for path in directory.glob("*.bell"):
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as probe, suppress(OSError):
            probe.connect(str(path))
            alive += 1
    return alive
