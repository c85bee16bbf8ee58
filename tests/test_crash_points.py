"""A service is killed at each named point of each of its writes, and at random under load; others judge by SQL alone.

Nothing here is the library's: what a client was told is in a log, what became of it is in the file. A hit for each
point by default, three in CI or with LRO_TEST_KILLS.
"""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

import httpx2
import pytest

from tests.servers import REPOSITORY, Server, eventually

KILLS = int(os.environ.get("LRO_TEST_KILLS", "12"))
log = logging.getLogger(__name__)  # the figures: pytest --log-cli-level=info
HITS = 3 if os.environ.get("CI") == "true" or "LRO_TEST_KILLS" in os.environ else 1
KINDS = {"start", "claim", "save progress", "cancel", "finish", "delete", "take-over and expiry", "renewal", "leave"}
MOMENTS = {"before BEGIN", "before a write", "before COMMIT", "after COMMIT"}
TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
TIDY = 5 * 60  # seconds until the slowest run of all is given up


class Row(NamedTuple):
    """An operation in the file."""

    state: str
    token: int
    attempt: int
    restartable: int
    cancel_requested_at: int | None
    response: str | None
    error: str | None
    deleted_at: int | None


class Told(NamedTuple):
    """What clients were told, and what jobs did, up to some moment."""

    started: list[str]
    cancelled: list[str]
    deleted: list[str]
    expiring: list[str]
    ended: dict[str, str]
    begun: Counter[tuple[str, str]]
    stuck: list[str]


def told(log: Path) -> Told:
    lines = [line.split() for line in log.read_text().splitlines()]

    def acknowledged(what: str) -> list[str]:
        return [line[2] for line in lines if line[:2] == ["ack", what]]

    return Told(
        acknowledged("start"),
        acknowledged("cancel"),
        acknowledged("delete"),
        [line[1] for line in lines if line[0] == "expired"],
        {line[1]: line[2] for line in lines if line[0] == "ended"},
        Counter((line[1], line[2]) for line in lines if line[0] == "begin")
        - Counter((line[1], line[2]) for line in lines if line[0] == "back"),
        [line[1] for line in lines if line[0] == "stuck"],
    )


def rows(file: Path) -> dict[str, Row]:
    columns = ", ".join(Row._fields)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {name: Row(*row) for name, *row in connection.execute(f"SELECT name, {columns} FROM operations")}


def judge(there: dict[str, Row], by: Told) -> None:
    """What must hold of a file, whenever its process was killed."""
    for name in by.started:
        assert name in there or by.ended.get(name), f"R17: an acknowledged start is lost: {name}"
    for name in by.cancelled:
        if name in there:
            row = there[name]
            assert row.cancel_requested_at is not None or row.state in TERMINAL, f"R17: a cancel is lost: {name}"
    for name in by.deleted:
        assert name not in there or there[name].deleted_at is not None, f"R19: a deleted one is back: {name}"
    for name, state in by.ended.items():
        assert name not in there or there[name].state == state, f"R1: an end has changed: {name}"
    for name, row in there.items():
        results = (row.response is not None) + (row.error is not None)
        assert results == (row.state in TERMINAL and row.deleted_at is None), f"R2: {name} {row}"
        assert row.state != "CANCELLED" or row.cancel_requested_at is not None, f"R15: {name} {row}"
    twice = [attempt for attempt, times in by.begun.items() if times > 1]
    assert not twice, f"R12: attempts that began twice: {twice}"
    attempts = Counter(name for name, _ in by.begun)
    for name, times in attempts.items():
        assert name not in there or there[name].restartable or times == 1, f"R12: started again: {name}"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, "-m", "tests.apps.crash_points", str(folder), str(HITS)]
    subprocess.run(command, cwd=REPOSITORY, timeout=TIDY, check=True, stderr=subprocess.DEVNULL)
    return folder


def points(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    found = json.loads((folder / "points").read_text())
    return found["passed"], found["kills"]


def test_every_kind_of_write_was_killed_at_each_of_its_moments(killed: Path) -> None:
    passed, kills = points(killed)
    wanted = {f"{kind}, {moment}" for kind in KINDS for moment in MOMENTS}
    assert wanted <= passed.keys(), "a life passes not each point"
    hit = {kill.rpartition(", ")[0] for kill in kills.values()}
    assert wanted <= hit, "a point had no kill"
    assert len(kills) >= len(wanted) * (1 if HITS == 1 else 2)


def test_nothing_is_lost_doubled_or_half_done_wherever_it_was_killed(killed: Path) -> None:
    _, kills = points(killed)
    lost: dict[str, str] = {}
    acknowledged = 0
    for run, kill in kills.items():
        log = killed / run / "left" / "log"
        acknowledged += len(told(log).started) + len(told(log).cancelled)
        try:
            judge(rows(killed / run / "left" / "life.db"), told(log))
        except AssertionError as error:
            lost[kill] = str(error)
    assert not lost
    assert acknowledged > len(kills), "hardly anything was acknowledged before the kills"


def test_its_next_life_brings_everything_to_its_end(killed: Path) -> None:
    _, kills = points(killed)
    for run, kill in kills.items():
        by, there = told(killed / run / "log"), rows(killed / run / "life.db")
        judge(there, by)
        assert not by.stuck, kill
        open_ones = {name: row.state for name, row in there.items() if row.state not in TERMINAL and not row.deleted_at}
        assert not open_ones, f"{kill}: {open_ones}"
        left = {name: row for name, row in there.items() if name in by.expiring}
        assert not left, f"{kill}: R32 what has had its time is still there: {left}"


def test_what_the_killed_process_before_it_held_is_settled_once(killed: Path) -> None:
    """Its operations: one that was cancelled ends so without running again, the others run again."""
    _, kills = points(killed)
    orphans = told(killed / "base" / "log").started
    (cancelled,) = told(killed / "base" / "log").cancelled
    for run, kill in kills.items():
        there, begun = rows(killed / run / "life.db"), told(killed / run / "log").begun
        assert there[cancelled].state == "CANCELLED", kill
        assert begun[cancelled, "2"] == 0, f"{kill}: R4 flagged, and started again"
        for name in orphans:
            assert there[name].state in TERMINAL, kill


# Kills at random


class Clients:
    """Clients of one server, in threads: they start and cancel, and note what they are told."""

    def __init__(self, url: str, number: int) -> None:
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._live, args=(which,)) for which in range(number)]
        self.failed: list[BaseException] = []
        self.started: list[str] = []
        self.cancelled: list[str] = []

    @contextmanager
    def at_work(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()
        assert not self.failed

    def _live(self, which: int) -> None:
        try:
            with httpx2.Client(base_url=f"{self._url}/v1/", timeout=20) as client:
                for turn in count():
                    if self._over.is_set():
                        return
                    self._do(client, f"{which}-{turn}", turn)
        except BaseException as error:
            self.failed.append(error)

    def _do(self, client: httpx2.Client, key: str, turn: int) -> None:
        job = "again" if turn % 2 else "once"
        answer = self._post(client, f"jobs/{job}:run", {"requestId": key})
        if answer is None or turn % 3 == 0:  # nobody knows whether it was started: the same request again finds out
            again = self._post(client, f"jobs/{job}:run", {"requestId": key})
            if answer is not None and again is not None:
                assert again["name"] == answer["name"], "R18: started twice"
            answer = answer or again
        if answer is None:
            return
        name = answer["name"]
        self.started.append(name)
        if turn % 4 == 0 and self._post(client, f"{name}:cancel", {}) is not None:
            self.cancelled.append(name)

    def _post(self, client: httpx2.Client, path: str, body: dict[str, str]) -> dict[str, str] | None:
        try:
            answer = client.post(path, json=body)
        except httpx2.TransportError:
            return None
        if answer.status_code == 503:
            return None
        assert answer.status_code == 200, answer.text
        found: dict[str, str] = answer.json()
        return found


class Begun(NamedTuple):
    """An attempt that began, when and in which process."""

    name: str
    attempt: str
    at: float
    pid: int


def begun(folder: Path) -> list[Begun]:
    lines = [line.split() for line in (folder / "begun").read_text().splitlines()]
    return [Begun(name, attempt, float(at), int(pid)) for name, attempt, at, pid in lines]


def held_by(folder: Path, pid: int) -> set[str]:
    """Return what a process that was killed held and is to be begun again, by what it has left."""
    its = {one.name for one in begun(folder) if one.pid == pid}
    return {name for name in resumable(folder) if name in its}


def resumable(folder: Path) -> list[str]:
    """Return what has not ended and is to run (again); read so that nothing of what a kill left is changed."""
    open_ones = """SELECT name FROM operations
    WHERE restartable = 1 AND state IN ('PENDING', 'RUNNING') AND cancel_requested_at IS NULL"""
    with closing(sqlite3.connect(f"{(folder / 'life.db').as_uri()}?mode=ro", uri=True)) as connection:
        return [name for (name,) in connection.execute(open_ones)]


def until_begun_again(folder: Path, held: set[str], killed_at: float) -> float | None:
    """Wait until something that was held has begun again, and return after how long; None if all was cancelled."""

    def look() -> tuple[float | None] | None:
        times = [one.at for one in begun(folder) if one.name in held and one.at > killed_at]
        if times:
            return (min(times) - killed_at,)
        return None if held & set(resumable(folder)) else (None,)

    return eventually(look, "what the killed one held has begun again")[0]


def until_over(server: Server, names: list[str]) -> dict[str, str]:
    """Wait for the end of operations, and return how each ended."""
    ended: dict[str, str] = {}
    with server.client() as client:
        for name in names:
            answer = client.post(f"{name}:wait", json={"timeout": "8s"}).json()
            assert answer.get("done"), f"stuck: {answer}"
            ended[name] = answer["metadata"]["value"]["state"]
    return ended


def test_killed_at_random_under_load_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    seeded = Random(5)
    times: list[float] = []
    with Server("tests.apps.killed:app", tmp_path) as server:
        clients = Clients(server.url, 6)
        with clients.at_work():
            for _ in range(KILLS):
                before = len(clients.started)
                time.sleep(seeded.uniform(0.05, 0.4))  # at any moment: this is what is drawn
                eventually(lambda: len(clients.started) > before, "something happens in each life")  # noqa: B023 -- called at once
                pid, killed_at = server.pid, time.monotonic()
                server.kill()
                held = held_by(tmp_path, pid)
                server.start()
                if held and (back := until_begun_again(tmp_path, held, killed_at)) is not None:
                    times.append(back)
        ended = until_over(server, clients.started)
    there = rows(tmp_path / "life.db")
    attempts = Counter((one.name, one.attempt) for one in begun(tmp_path))
    judge(there, Told(clients.started, clients.cancelled, [], [], ended, attempts, []))
    assert not [name for name, row in there.items() if row.state not in TERMINAL]
    assert times, "no kill met an operation that goes on"
    acknowledged = len(clients.started) + len(clients.cancelled)
    assert acknowledged > KILLS
    log.info("%d kills, %d acknowledgements", KILLS, acknowledged)
    log.info("back after %.2f s, %.2f at most", median(times), max(times))


def test_of_two_that_work_the_one_that_is_killed_is_replaced_at_once(tmp_path: Path) -> None:
    times: list[float] = []
    with Server("tests.apps.killed:app", tmp_path) as one, Server("tests.apps.killed:app", tmp_path) as other:
        with one.client() as client:
            client.get("healthz")
        clients = Clients(other.url, 4)
        with clients.at_work():
            for _ in range(max(3, KILLS // 20)):
                wanted = len(clients.started) + 20
                eventually(lambda: len(clients.started) >= wanted, "both work")  # noqa: B023 -- called at once
                pid, killed_at = one.pid, time.monotonic()
                one.kill()
                held = held_by(tmp_path, pid)
                if held and (back := until_begun_again(tmp_path, held, killed_at)) is not None:
                    times.append(back)
                one.start()
                with one.client() as client:
                    client.get("healthz")
        until_over(other, clients.started)
    attempts = Counter((one.name, one.attempt) for one in begun(tmp_path))
    judge(rows(tmp_path / "life.db"), Told(clients.started, clients.cancelled, [], [], {}, attempts, []))
    assert times, "no kill met an operation that goes on"
    assert max(times) < 10, "it was not its lock file that told, but its lease of 30 s"
    log.info("%d take-overs, after %.2f s, %.2f at most", len(times), median(times), max(times))
