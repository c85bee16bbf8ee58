"""Disks that fail on purpose: small ones that fill up, slow ones, and ones that lose what was not flushed."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

MOUNT = 'mount -t tmpfs -o "size=$1" tmpfs "$0" && cd "$0" && shift && exec "$@"'
SHIM = Path(__file__).with_name("disk.c")


def private_tmpfs(folder: Path, size: str) -> list[str]:
    """Return the command that runs another one with a small disk of its own mounted over a directory.

    Nobody else sees the disk, but through `/proc/PID/root`, and it is gone with the process.
    """
    become_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *become_root, "--mount", "sh", "-c", MOUNT, str(folder), size]


@cache
def can_mount() -> bool:
    """Return whether this machine lets us."""
    if not all(map(shutil.which, ("unshare", "mount"))):
        return False
    command = [*private_tmpfs(Path("/tmp"), "64k"), "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def fill(file: Path) -> None:
    """Write to a file until its disk is full to the last byte."""
    with file.open("ab", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError:
                continue


def flushes(folder: Path, *, slow: Path | None = None, image: Path | None = None) -> dict[str, str]:
    """Return the environment in which a process's flushes are slow while a file says so, or are kept as an image."""
    library = folder / "disk.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    environment = {"LD_PRELOAD": str(library)}
    if slow is not None:
        environment["DISK_SLOW"] = str(slow)
    if image is not None:
        environment["DISK_IMAGE"] = str(image)
    return environment
