"""Storage that fails under running services: what is refused, what waits, and that all goes on by itself.

Real processes on a real file system. With LRO_TEST_SOAK=1 the faults last longer and there are more of them.
"""

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest

from tests import disks
from tests.servers import REPOSITORY, Server, eventually, get, run

SOAK = os.environ.get("LRO_TEST_SOAK") == "1"
Json = dict[str, Any]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside that of the service: on another disk, where its own may be full."""
    outside = tmp_path / "outside"
    outside.mkdir()
    return outside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "inside"
    folder.mkdir()
    return folder


def serve(
    folder: Path,
    outside: Path,
    more: Mapping[str, str] | None = None,
    *,
    inside: Sequence[str] = (),
    lease: float = 30,
    patience: float = 5,
) -> Server:
    """Serve tests.apps.faults from one directory, with what tests and jobs tell each other in another."""
    environment = {"GO": f"{outside}/go", "TOLD": f"{outside}/told", "LEASE": str(lease), "PATIENCE": str(patience)}
    return Server("tests.apps.faults:app", folder, {**environment, **(more or {})}, inside)


def about(operation: Json) -> Json:
    return dict(operation["metadata"]["value"])


def counted(client: httpx2.Client, name: str) -> int:
    return int(about(get(client, name)).get("progress", {}).get("counted", 0))


def gone_on(client: httpx2.Client, before: dict[str, int]) -> bool:
    return all(counted(client, name) > count for name, count in before.items())


def figure(text: str) -> None:
    sys.stdout.write(f"{text}\n")  # for `pytest -rP`


def ended(client: httpx2.Client, name: str) -> Json:
    eventually(lambda: client.post(f"{name}:wait", json={"timeout": "8s"}).json().get("done"), f"{name} ends")
    return get(client, name)


def refused(answer: httpx2.Response, *reasons: str) -> None:
    """Make sure that nothing is acknowledged and that the client is told to try again."""
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert error["status"] == "UNAVAILABLE"
    assert error["details"][0]["reason"] in (reasons or {"STORE_UNAVAILABLE"})
    assert "retry-after" in answer.headers


def timed(call: Callable[[], httpx2.Response]) -> tuple[httpx2.Response, float]:
    began = time.monotonic()
    return call(), time.monotonic() - began


# A full disk


@pytest.mark.needs("tmpfs")
def test_a_full_disk_refuses_what_it_can_not_keep_and_everything_ends_once_there_is_space(
    folder: Path, outside: Path
) -> None:
    with (
        serve(folder, outside, inside=disks.private_tmpfs(folder, "3m")) as server,
        server.client() as client,
    ):
        running = [run(client, ("once", "again")[number % 2]) for number in range(6)]
        eventually(partial(gone_on, client, dict.fromkeys(running, 0)), "all have saved something")
        pending = [run(client, "once") for _ in range(3)]
        filler = Path(f"/proc/{server.pid}/root{folder}/filler")
        refusals = 0
        for _ in range(4 if SOAK else 2):
            disks.fill(filler)
            while (answer := client.post("jobs/once:run")).status_code == 200:
                pending.append(answer.json()["name"])  # there was some space left in the log
            before = {name: counted(client, name) for name in running}
            for _ in range(100 if SOAK else 20):
                for call in ("jobs/once:run", f"{pending[0]}:cancel", f"{running[0]}:cancel"):
                    body = {"requestId": "one"} if ":run" in call else {}
                    refused(client.post(call, json=body), "STORE_UNAVAILABLE", "OUTCOME_UNKNOWN")
                    refusals += 1
            assert "cancelTime" not in about(get(client, pending[0]))
            assert len(client.get("operations").json()["operations"]) == len(running) + len(pending)
            assert {name: counted(client, name) for name in running} == before, "checkpoints wait"
            assert client.get("healthz").status_code == 200
            filler.unlink()
            eventually(partial(gone_on, client, before), "checkpoints go on")
        assert client.post(f"{pending[0]}:cancel").json() == {}
        late = run(client, "once", requestId="one")
        (outside / "go").touch()

        ends = {name: about(ended(client, name)) for name in [*running, *pending, late]}
        assert {name for name, end in ends.items() if end["state"] != "SUCCEEDED"} == {pending[0]}
        assert all(end["attempt"] <= 1 for end in ends.values()), "none was started twice"
        looked = client.get(f"{server.url}/integrity").json()
        assert looked["verdict"] == "ok"
        assert sorted(looked["names"]) == sorted(ends), "no more and no fewer than were acknowledged"
        assert server.terminate(timeout=15) == -signal.SIGTERM
    figure(f"full disk: {refusals} refused")


OPENING = """
    import json, os, pathlib, subprocess, sys
    import anyio
    from lro.errors import Unavailable
    from lro.store import PageQuery, open_store
    from lro.testing.contract import sample_record
    from tests.disks import fill

    async def count() -> object:
        try:
            async with open_store("sqlite:///lro.db") as store:
                return len((await store.list(PageQuery())).records)
        except Unavailable as error:
            return str(error)

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", "."], check=True)

    said = []

    async def story() -> None:
        async with open_store("sqlite:///lro.db") as store:
            for _ in range(3):
                await store.insert(sample_record())
        filler = pathlib.Path("filler")
        for spoil, mend in [
            (lambda: fill(filler), filler.unlink),
            (lambda: remount("ro"), lambda: remount("rw")),
        ]:
            spoil()
            said.append(await count())
            mend()
            said.append(await count())

    anyio.run(story)
    print(json.dumps(said))
"""


@pytest.mark.needs("tmpfs")
def test_a_store_does_not_open_on_a_disk_that_is_full_or_read_only_and_does_once_it_is_not(folder: Path) -> None:
    command = [*disks.private_tmpfs(folder, "1m"), sys.executable, "-c", textwrap.dedent(OPENING)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=30)
    full, after_full, read_only, after_read_only = json.loads(done.stdout)
    assert "the store can't be opened" in full, done.stderr
    assert f"{folder}/lro.db: " in full
    assert "read-only" in read_only.lower()
    assert after_full == after_read_only == 3


# A file that another process keeps locked

LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""
WRITE = """
import sys
import anyio
from lro.store import open_store
from lro.testing.contract import sample_record

def stay(connection):
    print("held", flush=True)
    sys.stdin.readline()

async def main():
    async with open_store(f"sqlite:///{sys.argv[1]}") as store:
        await store.insert(sample_record(job="unknown"), within=stay)

anyio.run(main)
"""


@contextmanager
def holder(script: str, file: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that is in the middle of a write."""
    command = [sys.executable, "-c", script, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    process.wait(10)


def test_who_keeps_the_file_locked_is_waited_for_so_long_and_no_longer(folder: Path, outside: Path) -> None:
    patience = 5.0 if SOAK else 0.6
    with serve(folder, outside, patience=patience) as server, server.client() as client:
        running = [run(client, "once") for _ in range(3)]
        eventually(partial(gone_on, client, dict.fromkeys(running, 0)), "all have saved something")
        with holder(LOCK, folder / "lro.db") as process:
            answers: list[tuple[httpx2.Response, float]] = []

            def ask(number: int) -> None:
                time.sleep(number * patience / 8)  # they come one after the other, some of them into a full queue
                call = f"{running[0]}:cancel" if number % 2 else "jobs/once:run"
                answers.append(timed(lambda: client.post(call)))

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            eventually(lambda: len(answers) == len(threads), "all are answered")
            for thread in threads:
                thread.join()
            for answer, took in answers:
                refused(answer)
                assert took < patience * 1.3 + 0.5, "who comes while others wait does not wait for longer"
            assert max(took for _, took in answers) > patience * 0.8
            for _ in range(10):
                _, took = timed(lambda: client.get(running[0]))
                assert took < 0.5, "reads go on"
            assert client.get("readyz").status_code == 200
            go_on(process)
        late, took = timed(partial(client.post, "jobs/once:run"))
        assert (late.status_code, took < 2) == (200, True)
        (outside / "go").touch()
        for one in [*running, late.json()["name"]]:
            end = about(ended(client, one))
            assert (end["state"], end["attempt"]) == ("SUCCEEDED", 1)
    figure(f"locked: answers after {min(took for _, took in answers):.2f} to {max(took for _, took in answers):.2f} s")


def test_a_process_that_is_frozen_in_the_middle_of_a_write_costs_the_others_nothing_but_time(
    folder: Path, outside: Path
) -> None:
    """Nor their leases: while nobody can write, nobody can beat, and nobody is taken for dead."""
    lease, patience = (8.0, 2.0) if SOAK else (2.0, 0.4)
    with (
        serve(folder, outside, lease=lease, patience=patience) as server,
        serve(folder, outside, lease=lease, patience=patience) as other,
        server.client() as client,
        other.client() as second,
    ):
        running: list[str] = []
        eventually(lambda: second.get("readyz").status_code == 200, "the other one serves")
        for end, frozen in (("continued", 1.5 * lease), ("killed", 0.3 * lease)):
            fresh = [run(client, "once") for _ in range(5)]
            eventually(partial(gone_on, client, dict.fromkeys(fresh, 0)), "all have saved something")
            running += fresh
            with holder(WRITE, folder / "lro.db") as process:
                process.send_signal(signal.SIGSTOP)
                thaw = time.monotonic() + frozen
                while time.monotonic() < thaw:
                    answer, took = timed(lambda: client.post("jobs/once:run"))
                    refused(answer)
                    assert took < patience + 0.7
                    answer, took = timed(partial(client.get, running[0]))
                    assert (answer.status_code, took < 0.5) == (200, True)
                if end == "killed":
                    process.kill()
                    process.wait()
                else:
                    go_on(process)
            _, took = timed(lambda: client.post("jobs/again:run"))
            assert took < patience + 0.7
        (outside / "go").touch()
        for name in running:
            operation = about(ended(client, name))
            assert (operation["state"], operation["attempt"]) == ("SUCCEEDED", 1), operation
    workers = {line.split()[0] for line in (outside / "told").read_text().splitlines() if " begun " in line}
    assert len(workers) == 2, "both of them worked"


# A disk that is slow to flush


@pytest.mark.needs("cc")
def test_a_disk_that_is_slow_to_flush_blocks_no_event_loop_and_every_wait_ends(folder: Path, outside: Path) -> None:
    flush = 2.0 if SOAK else 0.5
    slow = outside / "slow"
    shim = disks.flushes(outside, slow=slow)
    with (
        serve(folder, outside, shim, lease=flush * 2) as server,
        serve(folder, outside, shim, lease=flush * 2) as other,
        server.client() as client,
        other.client() as second,
    ):
        running = [run(client, ("once", "again")[number % 2]) for number in range(6)]
        eventually(partial(gone_on, client, dict.fromkeys(running, 0)), "all have saved something")
        slow.write_text(str(int(flush * 1_000_000)))
        lags: list[float] = []
        done = threading.Event()

        def ping() -> None:
            with server.client() as pinging:
                while not done.wait(0.02):
                    lags.append(timed(lambda: pinging.get("healthz"))[1])

        pinging = threading.Thread(target=ping)
        pinging.start()
        took = []
        for _ in range(6 if SOAK else 2):
            answer, seconds = timed(lambda: client.post("jobs/again:run"))
            assert answer.status_code == 200
            running.append(answer.json()["name"])
            answer, more = timed(lambda: second.post(f"{running[-1]}:cancel"))
            assert answer.status_code == 200, answer.text
            took += [seconds, more]
        done.set()
        pinging.join()
        slow.unlink()
        (outside / "go").touch()
        assert max(took) > flush * 0.9, "the disk is not slow: the shim is not in place"
        assert max(took) < 12 * flush, took
        late = sorted(lags)[len(lags) * 95 // 100]
        assert late < 0.25, "the event loop waits for the disk"
        ends = [(about(operation), operation) for operation in (ended(client, name) for name in running)]
        for end, operation in ends:
            lost = end["state"] == "FAILED" and operation["error"]["details"][0]["reason"] == "WORKER_LOST"
            cancelled = end["state"] == "CANCELLED" and end["requestedCancellation"]
            assert end["state"] == "SUCCEEDED" or (lost and end["verb"] == "once") or cancelled, operation
    told = [line.split() for line in (outside / "told").read_text().splitlines()]
    for name in running:
        began = {(line[0], line[3]) for line in told if line[1:3] == ["begun", name]}
        over = {(line[0], line[3]) for line in told if line[1] != "begun" and line[2] == name}
        assert began == over, "an attempt that lost its lease is stopped, and every other one ends"
    figure(f"slow disk: calls took {min(took):.1f} to {max(took):.1f} s, a ping at p95 {late:.3f} s")


# A loss of power


@pytest.mark.needs("cc")
@pytest.mark.parametrize("durability", ["power", "process"])
def test_after_a_loss_of_power_what_was_flushed_holds_every_acknowledgement(
    folder: Path, outside: Path, tmp_path: Path, durability: Literal["power", "process"]
) -> None:
    """The power fails at any moment; what is left is what the process had flushed by then, and nothing else."""
    image = tmp_path / "image"
    image.mkdir()
    shim = disks.flushes(outside, image=image)
    (outside / "go").touch()
    started: set[str] = set()
    cancelled: set[str] = set()
    finished: dict[str, str] = {}
    losses = 0
    for cut in range(25 if SOAK else 3):
        with serve(folder, outside, {"DURABILITY": durability, **shim}) as server, server.client() as client:
            threads = [
                threading.Thread(target=load, args=(server, number + cut * 10, started, cancelled, finished))
                for number in range(3)
            ]
            eventually(lambda: client.get("healthz").status_code == 200, "it serves")
            for thread in threads:
                thread.start()
            eventually(partial(enough, started, len(started) + (100 if SOAK else 40)), "it has acknowledged much", 60)
            server.kill()
            for thread in threads:
                thread.join()
        left = tmp_path / f"left-{cut}"
        left.mkdir()
        for file in image.glob("lro.db*"):
            (left / file.name).write_bytes(file.read_bytes())
        states = read(left / "lro.db")
        missing = {name for name in started if name not in states}
        missing |= {name for name in cancelled if name in states and not states[name][1]}
        missing |= {name for name, state in finished.items() if name in states and states[name][0] != state}
        losses += len(missing)
        if durability == "power":
            assert not missing, f"{len(missing)} acknowledged of {len(started)} are lost"
    assert cancelled
    assert finished
    if durability == "process":
        assert losses, "nothing is lost without a flush: the image shows nothing"
    figure(f"{durability}: {len(started)} starts, {len(cancelled)} cancels, {len(finished)} ends; lost {losses}")


def enough(started: set[str], number: int) -> bool:
    return len(started) >= number


def load(server: Server, seed: int, started: set[str], cancelled: set[str], finished: dict[str, str]) -> None:
    """Start operations, cancel some, watch some end, and note what was acknowledged, until the power fails."""
    with suppress(httpx2.TransportError), server.client() as client:
        for number in itertools.count(seed):
            name = run(client, ("once", "again")[number % 2])
            started.add(name)
            if number % 3 == 0:
                assert client.post(f"{name}:cancel").status_code == 200
                cancelled.add(name)
            elif number % 3 == 1:
                operation = client.post(f"{name}:wait", json={"timeout": "8s"}).json()
                if operation.get("done"):
                    finished[name] = about(operation)["state"]


def read(file: Path) -> dict[str, tuple[str, bool]]:
    """Return what a file holds: by name, the state, and whether a cancel is on record or came too late."""
    if not file.exists():
        return {}
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'operations'").fetchone():
            return {}
        rows = connection.execute("SELECT name, state, cancel_requested_at IS NOT NULL FROM operations")
        return {name: (state, bool(flagged) or state == "SUCCEEDED") for name, state, flagged in rows}
