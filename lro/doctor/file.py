"""What surrounds a database: its mode, its directory, its disk, and the processes that have it open.

Looks at names, sizes and inodes only; the file itself is opened by SQLite alone, in `contents`.
"""

import shutil
import sqlite3
import stat
import time
from pathlib import Path

from lro.doctor.finding import Examination
from lro.doctor.process import Process, count_bells, holder_of, inode_of, sharing
from lro.store.sqlite.damage import MARK
from lro.store.sqlite.place import SAFE_TO_SHARE

__all__ = ["examine_file"]

LITTLE_SPACE = 100_000_000  # bytes
LARGE_LOG = 64_000_000  # bytes; SQLite begins it anew at some 4 million, unless a reader keeps it from that
NETWORKS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.s3fs"}
)
LOOKS, BETWEEN = 5, 0.1  # how often to look for one who holds the right to write, and seconds between


def examine_file(path: Path, examination: Examination) -> bool:
    """Look at everything but what is in it; return whether there is anything to open.

    Args:
        path: The database.
        examination: Where what is found is noted.
    """
    directory, log = path.with_name(f"{path.name}.workers"), path.with_name(f"{path.name}-wal")
    _examine_sharing(path, directory, log, examination)
    if path.is_file() and path.stat().st_size:
        _examine_modes(path, examination)
        _examine_disk(path, log, examination)
        return True
    how = "is empty" if path.is_file() else "is no file" if path.exists() else "is not there"
    if (directory / MARK).exists() or (log.exists() and log.stat().st_size):
        advice = f"put a backup there; or, to begin with an empty one, remove {directory} and what is left beside it"
        examination.fail("file", f"a database was here, and it {how}", advice)
    else:
        examination.fail("file", f"it {how}", "check the path; a store makes it at its first start")
    return False


def _examine_modes(path: Path, examination: Examination) -> None:
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        if file.exists() and (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
            what = f"{file.name} has mode {mode:04o}: others than its owner may read or write it"
            examination.warn("file-mode", what, f"chmod 600 {file}")
    mode = path.parent.stat().st_mode
    if mode & stat.S_IWOTH:
        what = f"everybody may put files into {path.parent}, a log or a database of their own among them"
        examination.warn("directory", what, "move it into a directory that only the service's user may write to")


def _examine_disk(path: Path, log: Path, examination: Examination) -> None:
    free = shutil.disk_usage(path.parent).free
    length = log.stat().st_size if log.exists() else 0
    examination.facts |= {"bytes": path.stat().st_size, "log_bytes": length, "free_bytes": free}
    if free < LITTLE_SPACE:
        advice = "make space: on a full disk starts and cancels are refused, and checkpoints wait"
        examination.warn("space", f"{free:,} bytes are left on its disk", advice)
    if length > LARGE_LOG:
        what = f"its log {log.name} has grown to {length:,} bytes"
        advice = "look for a connection that reads for ever: it keeps the log from being begun anew"
        examination.warn("log", what, advice)
    if (kind := _file_system(path)) in NETWORKS:
        advice = "move it to a local disk: a network has neither the locks nor the shared memory that SQLite needs"
        examination.fail("file-system", f"it is on a network file system ({kind})", advice)


def _file_system(path: Path) -> str:
    """Return the kind of file system that a path is on, as far as it can be seen."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    fields = [line.split(" - ") for line in mounts.splitlines()]
    kinds = {left.split()[4]: right.split()[0] for left, right in fields}  # what is mounted later comes later
    nearest = [str(parent) for parent in path.resolve().parents if str(parent) in kinds]
    return kinds[nearest[0]] if nearest else ""


def _examine_sharing(path: Path, directory: Path, log: Path, examination: Examination) -> None:
    path, turn = path.resolve(), directory.resolve() / "write.turn"
    log = path.with_name(log.name)
    processes = sharing({path, log, turn})
    stores = count_bells(directory)
    examination.facts |= {"processes": [process.pid for process in processes], "stores": stores}
    _examine_sqlite(max(stores, len(processes)), examination)
    _examine_opened(path, log, turn, processes, examination)
    for process in processes:
        if turn not in process.opened and path in process.opened:
            what = f"process {process} has it open and is none of lro's"
            advice = "let nothing else write to it: your own rows go through within=, and backups through VACUUM INTO"
            examination.warn("foreign", what, advice)
    holder = _find_holder(turn)
    for process in processes:
        if process.stopped:
            writes = " in the middle of a write: nobody can write until it goes on or ends" * (process.pid == holder)
            what, advice = f"process {process} stands still{writes}", f"kill -CONT {process.pid}, or end it"
            examination.warn("frozen", what, advice)
        elif process.pid == holder:
            what = f"process {process} has been writing for {LOOKS * BETWEEN:g} s"
            examination.warn("writing", what, "look at its disk, and at functions in within= that take long")


def _examine_sqlite(sharing_it: int, examination: Examination) -> None:
    version = sqlite3.sqlite_version
    examination.facts["sqlite"] = version
    if sqlite3.sqlite_version_info < SAFE_TO_SHARE:
        what = f"SQLite {version} has the WAL-reset bug, which can damage a file that several connections write"
        shared = "; several processes share this one, whose writes take turns and so avoid it" * (sharing_it > 1)
        advice = "let nothing else write to it, or use a Python whose sqlite3 has SQLite 3.51.3 or newer"
        examination.note("sqlite", what + shared, advice)


def _examine_opened(path: Path, log: Path, turn: Path, processes: list[Process], examination: Examination) -> None:
    for what, file in (("the database", path), ("the log", log)):
        there = inode_of(file)
        astray = [process for process in processes if process.opened.get(file, set()) - {there}]
        if file == path:  # one of ours that has another was left with what was moved away
            astray += [process for process in processes if turn in process.opened and path not in process.opened]
        if astray:
            who = ", ".join(map(str, astray))
            examination.fail(
                "replaced" if file == path else "log-lost",
                f"{what} that these processes have open is not {file.name}, which was removed or replaced: {who}",
                "end them all before anything else is opened there; what they have open can be read in /proc/PID/fd "
                "until then. Never copy, replace or open the file of a running service but through SQLite",
            )


def _find_holder(turn: Path) -> int | None:
    """Return who holds the right to write at every look, or None."""
    holders: set[int | None] = set()
    for look in range(LOOKS):
        if look:
            time.sleep(BETWEEN)
        holders.add(holder_of(turn))
        if len(holders) > 1 or None in holders:
            return None
    return holders.pop()
