"""Thousands of operations in one process leave nothing behind: memory, descriptors, threads and files stay flat.

By default a share of them; with LRO_TEST_SOAK=1 fifty thousand. Bounds are per operation, and well below what the
smallest leak of each kind would cost: an object of a kilobyte, a descriptor, a thread.
"""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.servers import REPOSITORY

Seen = dict[str, Any]  # Any: numbers, by what was counted

SOAK = os.environ.get("LRO_TEST_SOAK") == "1"
MEGABYTE = 1024 * 1024


class Soak:
    """What a process saw of itself: before, after each round, and after the end."""

    def __init__(self, folder: Path, what: str, rounds: int, a_round: int, *options: str) -> None:
        module = [sys.executable, "-m", "tests.apps.soak_operations"]
        command = [*module, str(folder), what, str(rounds), str(a_round), *options]
        alone = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        finished = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=alone,  # coverage keeps something for each thread that there ever was
            timeout=900 if SOAK else 120,
            check=True,
            stdout=subprocess.PIPE,
        )
        seen = json.loads(finished.stdout)
        self.before: Seen = seen["before"]
        self.rounds: list[Seen] = seen["rounds"]
        self.after: Seen = seen["after"]
        self._a_round = a_round
        for one in [self.before, *self.rounds, self.after]:
            sys.stdout.write(f"{one}\n")  # for `pytest -rP`, and for whoever looks into a failure

    def growth(self, what: str) -> float:
        """Return by how much something has grown for each operation, from the end of the first round to the last."""
        first, *_, last = self.rounds
        return float(last[what] - first[what]) / (self._a_round * (len(self.rounds) - 1))


def test_operations_leave_nothing_behind(tmp_path: Path) -> None:
    rounds, a_round = (11, 5_000) if SOAK else (5, 600)
    soak = Soak(tmp_path, "operations", rounds, a_round)
    first, last = soak.rounds[0], soak.rounds[-1]
    for one in soak.rounds:
        assert sum(one["ends"].values()) == a_round
        assert one["ends"]["FAILED"] == one["ends"]["refused"] == one["ends"]["deleted"] == a_round // 10
        assert one["left"] == first["left"]
    assert first["left"] | {"tasks": 0} == {
        "waiting": 0, "watches": 0, "listeners": 1, "running": 0, "tasks": 0, "failures": 0,
    }  # fmt: skip

    assert soak.growth("objects") < 0.5
    assert soak.growth("threads") * a_round < 1, "a thread is left in every round"
    assert max(one["threads"] for one in soak.rounds) < 40
    assert soak.after["threads"] == soak.before["threads"]
    if "memory" in first:
        assert soak.growth("memory") < (250 if SOAK else 600), "bytes an operation"
        assert last["descriptors"] == first["descriptors"]
        assert soak.after["descriptors"] == soak.before["descriptors"]
    assert max(one["log"] for one in soak.rounds) < 16 * MEGABYTE
    assert last["log"] < first["log"] + 4 * MEGABYTE
    assert last["file"] < 2 * first["file"] + MEGABYTE


def test_operations_leave_no_memory_of_the_librarys_own(tmp_path: Path) -> None:
    rounds, a_round = (6, 2_000) if SOAK else (3, 300)
    soak = Soak(tmp_path, "operations", rounds, a_round, "traced")
    assert soak.growth("library") < 500, "bytes an operation that lro's own lines have allocated"
    assert soak.growth("traced") < 800, "bytes an operation in all"


def test_stores_and_workers_that_are_opened_and_closed_leave_nothing_behind(tmp_path: Path) -> None:
    rounds, a_round = (6, 100) if SOAK else (4, 20)
    soak = Soak(tmp_path, "openings", rounds, a_round)
    first = soak.rounds[0]
    for one in soak.rounds:
        assert one["left"] == first["left"]
        assert one["threads"] == first["threads"]
        assert one.get("descriptors") == first.get("descriptors")
        assert one["log"] == 0, "closed, the file is whole without its log"
        assert one["file"] <= 2 * first["file"]
    assert soak.growth("objects") < 1
    assert soak.after.get("descriptors") == soak.before.get("descriptors")
    assert not list(tmp_path.glob("*.workers/*.lock")), "lock files of workers that are gone"
    with closing(sqlite3.connect(tmp_path / "soak.db")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM workers").fetchone() == (0,)
