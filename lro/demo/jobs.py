"""The two jobs of the demo: one that can be stopped and resumed, one that never looks whether it should stop."""

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from lro.context import Context
from lro.jobs import job

__all__ = ["DIGEST", "archive", "digest", "regular_files", "sha256"]

DIGEST = "lro.sha256"  # the pax header that carries a member's SHA-256
ALGORITHMS = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class ArchiveParams(_Model):
    """Which tree goes into which archive."""

    source: Path
    archive: Path
    leave_out: frozenset[str] = frozenset()


class ArchiveProgress(_Model):
    """How far the archive is: where the next attempt goes on."""

    files: int = 0
    files_done: int = 0
    bytes_done: int = 0
    offset: int = 0
    resumed_from: int = 0


class Archived(_Model):
    """The finished archive."""

    archive: Path
    files: int
    bytes: int


class DigestParams(_Model):
    """Which tree to hash."""

    source: Path
    leave_out: frozenset[str] = frozenset()


class DigestProgress(_Model):
    """How many files are hashed."""

    files: int = 0
    files_done: int = 0


@job("demo.archive", restartable=True)
async def archive(ctx: Context[ArchiveProgress], params: ArchiveParams) -> Archived:
    """Write a tar archive of a directory tree, each file with its SHA-256.

    Every file is a checkpoint. Killed, it goes on behind the last one; cancelled, it leaves nothing behind.
    """
    partial = params.archive.with_name(params.archive.name + ".partial")
    files = await anyio.to_thread.run_sync(sorted_files, params.source, params.leave_out)
    start = ctx.progress
    progress = start.model_copy(update={"files": len(files), "resumed_from": start.files_done})
    try:
        if not (start.files_done == len(files) and params.archive.exists()):
            with _Tar(partial, start.offset) as tar:
                for path in files[start.files_done :]:
                    size = await anyio.to_thread.run_sync(tar.add, params.source, path)
                    progress.files_done += 1
                    progress.bytes_done += size
                    progress.offset = tar.offset
                    await ctx.checkpoint(progress)
                await anyio.to_thread.run_sync(tar.finish)
            partial.replace(params.archive)
    except anyio.get_cancelled_exc_class():
        if not ctx.will_resume:
            with ctx.cleanup(seconds=10):
                await anyio.Path(partial).unlink(missing_ok=True)
        raise
    return Archived(archive=params.archive, files=progress.files_done, bytes=progress.bytes_done)


@job("demo.digest")
async def digest(ctx: Context[DigestProgress], params: DigestParams) -> dict[str, str]:
    """Hash a directory tree with every algorithm that Python guarantees.

    It reports how far it is and never reaches a checkpoint, so a cancel request can't stop it.
    """
    files = await anyio.to_thread.run_sync(sorted_files, params.source, params.leave_out)
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in ALGORITHMS}
    for index, path in enumerate(files):
        content = await anyio.Path(params.source, path).read_bytes()
        for one in digests.values():
            await anyio.to_thread.run_sync(one.update, content)
        ctx.report(DigestProgress(files=len(files), files_done=index + 1))
    return {name: one.hexdigest() for name, one in digests.items()}


class _Tar:
    """A tar archive that is written from an offset on."""

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("r+b" if offset else "wb")
        self._file.truncate(offset)  # what came after the last checkpoint counts for nothing
        self._file.seek(offset)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 -- see exit

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()  # not the archive: that would end it with its final blocks

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._tar.offset

    def add(self, source: Path, path: str) -> int:
        """Append a file with its SHA-256 and return its size; it is with the kernel when this returns."""
        member = self._tar.gettarinfo(source / path, arcname=path)
        member.pax_headers = {DIGEST: sha256(source / path)}
        with (source / path).open("rb") as content:
            self._tar.addfile(member, content)
        self._file.flush()
        return member.size

    def finish(self) -> None:
        """Write the end of the archive."""
        self._tar.close()
        self._file.flush()


def sorted_files(source: Path, leave_out: frozenset[str]) -> list[str]:
    """Return the relative paths of the regular files of a tree, sorted."""
    return sorted(regular_files(source, leave_out))


def regular_files(source: Path, leave_out: frozenset[str]) -> Iterator[str]:
    """Yield the relative paths of the readable regular files of a tree, but for directories of these names."""
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name not in leave_out]
        for name in names:
            path = Path(folder, name)
            if stat.S_ISREG(path.lstat().st_mode) and os.access(path, os.R_OK):
                yield path.relative_to(source).as_posix()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
