"""Several processes on one file, seen from outside: real commands, real HTTP, real signals.

Every job notes what happens to it, when and in which process, in the file `told`; the clock is the machine's own
monotonic one, so that times of different processes can be compared.
"""

import fcntl
import json
import os
import signal
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx2
import pytest

from tests.commands import Command
from tests.servers import eventually

Json = dict[str, Any]  # Any: JSON, here and below
T = TypeVar("T")

PATIENCE = 15.0  # seconds: the bound of every wait
POLL = 1.0  # seconds between two looks of whoever got no hint
SOON = 0.25  # seconds: a median that looking once a second does not reach
AT_ONCE = 5.0  # seconds: several looks, and far below a lease
HASTY_LEASE = 2.0
DRAIN = 1.0
NARROW = 2  # operations at once, in each process


class Told(NamedTuple):
    """What a job has noted."""

    at: float
    pid: int
    what: str
    name: str
    attempt: int


Wait = Future[tuple[Json, float]]  # the operation as it was answered, and when


class House:
    """A folder that processes share, and what is seen of them there."""

    def __init__(self, folder: Path, threads: ThreadPoolExecutor) -> None:
        self.folder = folder
        self.threads = threads

    def told(self) -> list[Told]:
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        fields = map(str.split, lines)
        return [Told(float(at), int(pid), what, name, int(attempt)) for at, pid, what, name, attempt in fields]

    def heard(self, what: str, name: str, *, of: Command | None = None) -> Told:
        """Wait until a job has noted this, in that process."""

        def find() -> list[Told]:
            return [
                told
                for told in self.told()
                if (told.what, told.name) == (what, name) and (of is None or told.pid == of.process.pid)
            ]

        return eventually(find, f"{what} {name}")[0]

    def let_end(self, name: str) -> None:
        (self.folder / name.replace("/", "-")).touch()

    def let_all_end(self) -> None:
        (self.folder / "go").touch()

    def forbid_to_end(self) -> None:
        (self.folder / "go").unlink()

    def park(self, client: httpx2.Client, *names: str, asking: httpx2.Client | None = None) -> list[Wait]:
        """Wait for operations in threads; returns once the process that is asked says that it holds these waits."""

        def wait(name: str) -> tuple[Json, float]:
            response = client.post(f"{name}:wait", json={"timeout": "8s"})
            assert response.status_code == 200, response.text
            return response.json(), time.monotonic()

        asking = asking or client
        before = here(asking)["waiting"]
        waits = [self.threads.submit(wait, name) for name in names]
        eventually(lambda: here(asking)["waiting"] == before + len(names), "the waits are parked")
        return waits

    def freeze(self, command: Command) -> float:
        """Freeze a process, though not in its turn at writing, and return when."""
        with (self.folder / "shared.db.workers" / "write.turn").open() as turn:
            while True:
                command.process.send_signal(signal.SIGSTOP)
                os.waitpid(command.process.pid, os.WUNTRACED)
                try:
                    fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    command.process.send_signal(signal.SIGCONT)
                else:
                    return time.monotonic()

    def rows(self) -> dict[str, sqlite3.Row]:
        """What is stored, by the operations' names."""
        with closing(sqlite3.connect(self.folder / "shared.db")) as connection:
            connection.row_factory = sqlite3.Row
            return {row["name"]: row for row in connection.execute("SELECT * FROM operations")}

    def leavings(self) -> list[str]:
        """The files that processes leave behind that are killed: their locks and bells."""
        beside = self.folder / "shared.db.workers"
        return sorted(path.name for path in beside.iterdir() if path.name not in ("write.turn", "made"))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with ThreadPoolExecutor(32) as threads:
        yield House(tmp_path, threads)


def serve(target: str, folder: Path, *options: str) -> Command:
    options = ("--port", "0", "--no-access-log", *options)
    return Command("uvicorn", f"tests.apps.shared:{target}", *options, folder=folder)


def work(target: str, folder: Path, *options: str) -> Command:
    return Command("lro", "worker", f"tests.apps.shared:{target}", *options, folder=folder)


def works(worker: Command) -> None:
    worker.until("runs up to 10 operations")


def url_of(parent: Command) -> str:
    """Wait until a process answers whose parent has bound the socket, and return the URL below which it does."""
    with parent.client() as client:

        def answers() -> bool:
            with suppress(httpx2.ConnectError):  # nobody listens yet
                return client.get("healthz").status_code == 200
            return False

        eventually(answers, "an answer")
        return str(client.base_url)


def clients_of_each(parent: Command, exits: ExitStack) -> dict[int, list[httpx2.Client]]:
    """Return two clients, of one connection each, for each of two processes that accept from one socket."""
    url = url_of(parent)
    one, two = [int(parent.until(r"Started server process \[(\d+)\]")[1]) for _ in range(2)]

    def connect(pid: int) -> httpx2.Client | None:
        client = httpx2.Client(base_url=url, timeout=20, limits=httpx2.Limits(max_connections=1))
        exits.enter_context(client)
        return client if here(client)["pid"] == pid else None

    found: dict[int, list[httpx2.Client]] = {}
    for pid, other in ((one, two), (two, one)):
        os.kill(other, signal.SIGSTOP)  # who accepts is the kernel's choice, and may always be the same one
        found[pid] = [eventually(partial(connect, pid), f"a connection to {pid}") for _ in range(2)]
        os.kill(other, signal.SIGCONT)
    return found


def here(client: httpx2.Client) -> Json:
    return dict(client.get(str(client.base_url.join("/here"))).json())


def run(client: httpx2.Client, job: str, **body: Any) -> str:
    response = client.post(f"jobs/{job}:run", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["name"])


def cancel(client: httpx2.Client, name: str) -> None:
    response = client.post(f"{name}:cancel")
    assert (response.status_code, response.json()) == (200, {})


def get(client: httpx2.Client, name: str) -> Json:
    response = client.get(name)
    assert response.status_code == 200, response.text
    return dict(response.json())


def ended(client: httpx2.Client, name: str) -> Json:
    """Wait, within bounds, for an operation's end."""
    operation: Json = client.post(f"{name}:wait", json={"timeout": "8s"}).json()
    assert operation.get("done") is True, operation
    return operation


def state(operation: Json) -> str:
    return str(operation["metadata"]["value"]["state"])


def reason(operation: Json) -> str:
    return str(operation["error"]["details"][0]["reason"])


# -- starts, cancels and ends


class Delays(NamedTuple):
    """Seconds from the request to the job's first line, from a cancel to its stop, from an end to a wait's answer."""

    starts: list[float]
    stops: list[float]
    ends: list[float]


def see(house: House, client: httpx2.Client, worker: Command, delays: Delays) -> None:
    """Start two operations here; cancel one, let the other one end, and see all of it happen in the worker."""
    asked = time.monotonic()
    names = [run(client, "once"), run(client, "again")]
    begun = [house.heard("begun", name) for name in names]
    waits = house.park(client, *names)
    requested = time.monotonic()
    cancel(client, names[0])
    house.let_end(names[1])
    ends = [house.heard("stopped:CANCEL", names[0]), house.heard("returned", names[1])]
    for number, (wait, begin, end) in enumerate(zip(waits, begun, ends, strict=True)):
        operation, answered = wait.result(PATIENCE)
        assert asked < begin.at < requested < end.at < answered
        assert begin.pid == end.pid == worker.process.pid
        assert state(operation) == ("CANCELLED", "SUCCEEDED")[number]
        delays.starts.append(begin.at - asked)
        delays.ends.append(answered - end.at)
    delays.stops.append(ends[0].at - requested)


def test_what_one_process_starts_cancels_and_ends_the_other_one_notices_at_once(house: House) -> None:
    delays = Delays([], [], [])
    api, worker = serve("answering", house.folder), work("working", house.folder, "--log-json")
    with api, worker, api.client() as client:
        works(worker)
        assert len([name for name in house.leavings() if name.endswith(".bell")]) == 2
        for _ in range(5):
            see(house, client, worker, delays)
        assert worker.terminate() == 0
    for kind, found in delays._asdict().items():
        assert statistics.median(found) < SOON, f"{kind} were noticed after {found}: by looking once a second?"

    lines = [json.loads(line) for line in worker.log.splitlines()]
    ends = [(line["job"], line["attempt"], line["state"]) for line in lines if "state" in line]
    assert Counter(ends) == {("once", 1, "CANCELLED"): 5, ("again", 1, "SUCCEEDED"): 5}


def test_where_no_hint_can_be_given_looking_is_enough(house: House) -> None:
    house.folder /= "d" * 100  # too long a path for a socket
    house.folder.mkdir()
    delays = Delays([], [], [])
    api, worker = serve("answering", house.folder), work("working", house.folder)
    with api, worker, api.client() as client:
        worker.until("no hints from other processes")
        works(worker)
        assert [name for name in house.leavings() if not name.endswith(".lock")] == [], "a bell hangs after all"
        see(house, client, worker, delays)
        assert worker.terminate() == 0
    for kind, found in delays._asdict().items():
        assert max(found) < 2 * POLL + 1, f"{kind} were noticed after {found}"


# -- workers that die, and such as stand still


def test_what_a_killed_worker_held_is_settled_at_once(house: House) -> None:
    api, one, two = serve("answering", house.folder), work("working", house.folder), work("working", house.folder)
    with api, one, api.client() as client:
        works(one)
        again, thread, once, flagged = names = [run(client, job) for job in ("again", "thread.again", "once", "deaf")]
        for name in names:
            house.heard("begun", name, of=one)
        cancel(client, flagged)
        assert state(get(client, flagged)) == "RUNNING"
        with two:
            works(two)
            waits = house.park(client, once, flagged)
            killed = time.monotonic()
            one.kill()
            for name in (again, thread):
                assert house.heard("begun", name, of=two).at - killed < AT_ONCE
            (lost, lost_at), (cancelled, cancelled_at) = [wait.result(PATIENCE) for wait in waits]
            assert (state(lost), lost["error"]["code"], reason(lost)) == ("FAILED", 10, "WORKER_LOST")
            assert (state(cancelled), cancelled["metadata"]["value"]["cancelOutcome"]) == ("CANCELLED", "WORKER_LOST")
            assert max(lost_at, cancelled_at) - killed < AT_ONCE

            house.let_all_end()
            for name in (again, thread):
                assert ended(client, name)["response"]["value"] == f"attempt 2 in {two.process.pid}"
            assert two.terminate() == 0
    starts = Counter(told.name for told in house.told() if told.what == "begun")
    assert starts == {again: 2, thread: 2, once: 1, flagged: 1}


def test_a_second_signal_ends_a_worker_at_once_and_what_it_held_is_settled_by_who_only_answers(house: House) -> None:
    api, worker = serve("answering", house.folder), work("working", house.folder)
    with api, worker, api.client() as client:
        works(worker)
        again, once = run(client, "again"), run(client, "once")
        for name in (again, once):
            house.heard("begun", name, of=worker)
        (wait,) = house.park(client, once)
        worker.process.send_signal(signal.SIGTERM)
        worker.until("SIGTERM: shutting down")
        house.heard("stopped:SHUTDOWN", again)
        signalled = time.monotonic()
        assert worker.terminate() == -signal.SIGTERM
        lost, lost_at = wait.result(PATIENCE)
        assert reason(lost) == "WORKER_LOST"
        assert lost_at - signalled < AT_ONCE
        assert state(get(client, again)) == "PENDING", "it waits for another worker"


def test_what_a_worker_held_that_stands_still_goes_on_after_its_lease_and_its_late_results_are_dropped(
    house: House,
) -> None:
    api, one, two = serve("answering", house.folder), work("hasty", house.folder), work("hasty", house.folder)
    with api, one, api.client() as client:
        works(one)
        again, thread, deaf, once = names = [run(client, job) for job in ("again", "thread.again", "deaf", "once")]
        for name in names:
            house.heard("begun", name, of=one)
        with two:
            works(two)
            frozen = house.freeze(one)
            for name in (again, thread, deaf):
                waited = house.heard("begun", name, of=two).at - frozen
                assert HASTY_LEASE / 2 < waited < HASTY_LEASE + AT_ONCE  # a beat may be a third of a lease old
            house.let_all_end()
            found = [ended(client, name) for name in names]
            assert reason(found.pop()) == "WORKER_LOST"
            assert {one["response"]["value"] for one in found} == {f"attempt 2 in {two.process.pid}"}
            before = [client.get(name) for name in names]

            house.forbid_to_end()
            one.process.send_signal(signal.SIGCONT)
            for name in (again, thread, once):
                house.heard("stopped:LEASE_LOST", name, of=one)
            house.let_all_end()
            house.heard("returned", deaf, of=one)
            one.until(f"{deaf}: the lease was lost")
            after = [client.get(name) for name in names]
            assert [one.content for one in after] == [one.content for one in before]
            assert two.terminate() == 0
        assert ended(client, run(client, "quick"))["response"]["value"] == f"attempt 1 in {one.process.pid}"
        assert one.terminate() == 0


# -- uvicorn's own ways to run several processes


def test_workers_of_uvicorn_all_work_and_answer_for_each_other(house: House) -> None:
    with serve("narrow", house.folder, "--workers", "2", "--timeout-keep-alive", "60") as parent, ExitStack() as exits:
        clients = clients_of_each(parent, exits)
        (at_one, also_one), (at_two, also_two) = clients.values()
        held = [run(at_one, "again") for _ in range(2 * NARROW)]
        by_process: dict[int, list[str]] = {pid: [] for pid in clients}
        for name in held:
            by_process[house.heard("begun", name).pid].append(name)
        first, second = by_process.values()
        assert len(first) == len(second) == NARROW

        queued = run(at_two, "quick")
        for name in (*held, queued):
            assert get(at_one, name) == get(at_two, name)
        listed = [client.get("operations").json()["operations"] for client in (at_one, at_two)]
        assert listed[0] == listed[1]
        assert {operation["name"] for operation in listed[0]} == {*held, queued}

        (wait,) = house.park(also_one, second[0], asking=at_one)
        cancel(at_one, second[0])
        cancelled, _ = wait.result(PATIENCE)
        assert state(cancelled) == "CANCELLED"
        assert ended(at_one, queued)["response"]["value"] == f"attempt 1 in {list(clients)[1]}", "there a slot is free"

        waits = [*house.park(also_one, second[1], asking=at_one), *house.park(also_two, first[0], asking=at_two)]
        parent.process.send_signal(signal.SIGTERM)
        assert parent.ended() == 0
        assert [wait.result(PATIENCE)[0]["done"] for wait in waits] == [False, False]
    left = {name: (row["state"], row["attempt"]) for name, row in house.rows().items()}
    assert left == {**dict.fromkeys(held, ("PENDING", 0)), second[0]: ("CANCELLED", 1), queued: ("SUCCEEDED", 1)}
    for pid in clients:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert house.leavings() == []


RELOADED = """
from pydantic import BaseModel
from lro import AllowAnonymous, Context, Service, job
from tests.apps.shared import may_end, tell

VERSION = 1

class Progress(BaseModel):
    steps: int = 0

@job("count", restartable=True)
async def count(ctx: Context[Progress]) -> list[int]:
    tell("begun", ctx)
    begun_at = ctx.progress.steps
    while not may_end(ctx):
        await ctx.checkpoint(Progress(steps=ctx.progress.steps + 1))
        await ctx.sleep(0.01)
    return [VERSION, begun_at]

service = Service("sqlite:///shared.db", jobs=[count], auth=AllowAnonymous(), concurrency=1)
app = service.app()
"""


def test_a_reload_goes_on_with_new_code_where_the_old_one_stood(house: House) -> None:
    file = house.folder / "reloaded.py"
    file.write_text(RELOADED)
    with Command("uvicorn", "reloaded:app", "--reload", "--port", "0", folder=house.folder) as parent:
        url = url_of(parent)
        with httpx2.Client(base_url=url, timeout=20) as client:
            names = [run(client, "count") for _ in range(3)]
            house.heard("begun", names[0])
            eventually(lambda: get(client, names[0])["metadata"]["value"].get("progress", {}).get("steps"), "progress")
        new = house.folder / "new"
        new.write_text(RELOADED.replace("VERSION = 1", "VERSION = 20"))  # longer: Python tells files by second and size
        new.replace(file)
        parent.until("detected changes")
        parent.until("Application startup complete")
        with httpx2.Client(base_url=url, timeout=20) as client:
            house.let_all_end()
            versions, begun_at = zip(*[ended(client, name)["response"]["value"] for name in names], strict=True)
        assert set(versions) == {20}
        assert begun_at[0] > 0
        assert begun_at[1:] == (0, 0), "they waited their turn"
        assert parent.terminate() == 0
    attempts = [(told.pid, told.attempt) for told in house.told() if (told.what, told.name) == ("begun", names[0])]
    assert [attempt for _, attempt in attempts] == [1, 1], "a shutdown gives the attempt back"
    assert len({pid for pid, _ in attempts}) == 2
    assert house.leavings() == []


# -- SIGTERM under load


class Load:
    """Clients that start and cancel as fast as they are answered, until nobody answers any more."""

    def __init__(self, url: str, threads: ThreadPoolExecutor, clients: int) -> None:
        self._url = url
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self._ends = [threads.submit(self._call, number) for number in range(clients)]

    def _call(self, number: int) -> None:
        with httpx2.Client(base_url=self._url, timeout=20) as client, suppress(httpx2.TransportError):
            for turn in count():
                name = run(client, ("again", "quick", "quick")[turn % 3], requestId=f"{number}-{turn}")
                self.started.append(name)
                if turn % 3 < 2:
                    cancel(client, name)
                    self.cancelled.append(name)

    def join(self) -> None:
        for end in self._ends:
            end.result(PATIENCE)


def test_sigterm_under_load_ends_in_time_and_accounts_for_everything(house: House) -> None:
    with Command("tests.apps.last_look", folder=house.folder) as server, server.client() as client:
        kinds = ("again", "thread.again", "once", "thread.once")
        held = {kind: [run(client, kind) for _ in range(2)] for kind in kinds}
        names = [name for of_kind in held.values() for name in of_kind]
        for name in names:
            house.heard("begun", name)
        waits = house.park(client, *names)
        load = Load(str(client.base_url), house.threads, 6)
        eventually(lambda: len(load.cancelled) > 50, "the load")

        signalled = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for kind in ("again", "thread.again"):
            for name in held[kind]:
                house.heard("stopped:SHUTDOWN", name)
        for kind in ("once", "thread.once"):
            house.let_end(held[kind][0])  # within the drain time
        status = server.ended()
        took = time.monotonic() - signalled
        load.join()

        assert took < DRAIN + 2
        assert status == 128 + signal.SIGTERM, "uvicorn raised the signal again, when it was through"
        for wait in waits:
            operation, answered = wait.result(PATIENCE)
            assert operation["done"] is False
            assert answered - signalled < took
        threads = dict(map(json.loads, (house.folder / "threads").read_text().splitlines()))
        assert set(threads["served"]) <= {"MainThread", "AnyIO worker thread"}, "the store and the jobs have none left"
        assert threads["ended"] == ["MainThread"]

    rows = house.rows()
    assert {*names, *load.started} <= rows.keys()
    for kind in ("again", "thread.again"):
        assert {(rows[name]["state"], rows[name]["attempt"]) for name in held[kind]} == {("PENDING", 0)}
    for kind in ("once", "thread.once"):
        in_time, late = (rows[name] for name in held[kind])
        assert in_time["state"] == "SUCCEEDED"
        assert late["state"] == "FAILED"
        assert "WORKER_SHUTDOWN" in late["error"]
    assert "RUNNING" not in {row["state"] for row in rows.values()}
    for name in load.cancelled:
        assert rows[name]["cancel_requested_at"] is not None or rows[name]["state"] == "SUCCEEDED"
        assert rows[name]["state"] in ("CANCELLED", "SUCCEEDED")
    assert house.leavings() == []

    house.let_all_end()
    with work("working", house.folder) as worker:
        works(worker)
        eventually(lambda: all(row["ended_at"] for row in house.rows().values()), "the ends of what was left")
        assert worker.terminate() == 0
    starts = Counter(told.name for told in house.told() if told.what == "begun")
    for name, row in house.rows().items():
        was_late = name in (held["once"][1], held["thread.once"][1])
        assert row["state"] in (("FAILED",) if was_late else ("SUCCEEDED", "CANCELLED"))
        assert starts[name] <= (2 if row["restartable"] else 1)
