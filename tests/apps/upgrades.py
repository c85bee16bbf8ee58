"""The next version of the library, with migrations that this one does not have; and what becomes of killed ones.

Run as `python -m tests.apps.upgrades kill FILE`: forks open a copy of the file each, and kill themselves at the n-th
statement on the writing connection, until one runs through; each time the next start goes on. As `open FILE KIND` it
opens the file when a line comes in, starts an operation, and stays until the next line.
"""

import json
import os
import shutil
import signal
import sqlite3
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import anyio

from lro.errors import LROError
from lro.store import PageQuery, open_store
from lro.store.migrations import Migration, shipped
from lro.store.sqlite import setup
from lro.testing.contract import sample_record

STEPS = """\
ALTER TABLE operations ADD COLUMN colour TEXT;
UPDATE operations SET colour = 'red' WHERE state = 'PENDING';
CREATE INDEX operations_colour ON operations (colour);
CREATE TABLE colours (name TEXT PRIMARY KEY, uses INTEGER NOT NULL) STRICT;
INSERT INTO colours SELECT colour, count(*) FROM operations WHERE colour IS NOT NULL GROUP BY colour;
"""
KINDS = {"compatible": f"-- compatible\n{STEPS}", "incompatible": STEPS}
MORE = "-- compatible\nCREATE TABLE more (name TEXT);\nINSERT INTO more SELECT name FROM colours;\n"


@contextmanager
def next_version(*steps: str) -> Iterator[list[Migration]]:
    """Ship these migrations behind those that there are."""
    known = shipped("sqlite")
    known += [Migration(len(known) + number, f"next_{number}", sql) for number, sql in enumerate(steps, 1)]
    kept = setup.shipped  # type: ignore[attr-defined]  # where it is looked up
    setup.shipped = lambda dialect: list(known)  # type: ignore[attr-defined]
    try:
        yield known
    finally:
        setup.shipped = kept  # type: ignore[attr-defined]


class Fatal(sqlite3.Connection):
    """A connection that kills its process at its n-th statement."""

    left = 0

    def execute(self, *arguments: object) -> sqlite3.Cursor:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(*arguments)  # type: ignore[arg-type]


def migrate(path: Path, fatal: int = 0) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, factory=Fatal)) as connection:
        connection.left = fatal
        setup.set_up_writer(connection, str(path), "FULL", 1)


def look(path: Path) -> dict[str, object]:
    """Return what there is of the migrations, and whether all of it is there or none."""
    with closing(sqlite3.connect(path)) as connection:
        applied = [number for (number,) in connection.execute("SELECT number FROM schema_migrations ORDER BY number")]
        made = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        columns = {row[1] for row in connection.execute("PRAGMA table_info(operations)")}
        signs = ["colour" in columns, "operations_colour" in made, "colours" in made]
        if "colours" in made:
            signs.append(connection.execute("SELECT * FROM colours").fetchall() == [("red", 7)])
        more = "more" in made and connection.execute("SELECT * FROM more").fetchall() == [("red",)]
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        whole = all(signs) if 2 in applied else not any(signs)
        return {"applied": applied, "whole": whole and ("more" in made) is more is (3 in applied), "verdict": verdict}


def kill(path: Path) -> None:
    seen = []
    with next_version(STEPS, MORE):
        for number in count(1):
            copy = path.with_name(f"{number}.db")
            shutil.copy(path, copy)
            child = os.fork()
            if child == 0:
                migrate(copy, fatal=number)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            after = look(copy)
            migrate(copy)
            seen.append({"killed": os.WIFSIGNALED(status), "after": after, "at_last": look(copy)})
            if not os.WIFSIGNALED(status):
                break
    sys.stdout.write(json.dumps(seen))


async def open_it(path: str, kind: str) -> None:
    with next_version(KINDS[kind]):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.readline)
        try:
            async with open_store(f"sqlite:///{path}") as store:
                await store.insert(sample_record(name=f"operations/{uuid.uuid4().hex[:26]}"))
                count = len((await store.list(PageQuery(limit=1000))).records)
                sys.stdout.write(f"{count}\n")
                sys.stdout.flush()
                await anyio.to_thread.run_sync(sys.stdin.readline)
        except LROError as error:
            sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(Path(sys.argv[2]))
    else:
        anyio.run(open_it, sys.argv[2], sys.argv[3])
