"""Places that stand for what one machine has not: stores that don't see each other's lock files."""

from datetime import timedelta
from pathlib import Path

from lro.store.leases import LockFiles
from lro.store.sqlite.place import File


class Apart(File):
    """A file on which each store has its lock files where no other looks: they know each other by their beats alone.

    Args:
        folder: Where the file is, shared.db.
        name: Whose lock files these are.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder / "shared.db", durability="power", busy_timeout=timedelta(seconds=5))
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self.locks = LockFiles(folder / f"workers.{name}")
