"""Whole processes, seen from outside: kill -9 and restart, SIGTERM under load."""

import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.servers import Server, get, run

Json = dict[str, Any]


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def state(operation: Json) -> str:
    return str(operation["metadata"]["value"]["state"])


def until_state(client: httpx2.Client, name: str, wanted: str) -> Json:
    for _ in range(500):
        operation: Json = client.post(f"{name}:wait", json={"timeout": "0.020s"}).json()
        if state(operation) == wanted:
            return operation
    raise AssertionError(f"{name} is {state(operation)}, never {wanted}")


def test_after_kill_9_every_acknowledged_create_and_cancel_is_honoured_at_once(tmp_path: Path) -> None:
    with Server("tests.apps.crash:app", tmp_path) as server, server.client() as client:
        once, again, flagged = run(client, "once"), run(client, "again"), run(client, "deaf")
        twice = run(client, "again")
        for name in (once, again, flagged, twice):
            until_state(client, name, "RUNNING")  # four slots: what comes now stays PENDING
        pending = [run(client, "once") for _ in range(3)]
        dropped = run(client, "once")
        assert client.post(f"{flagged}:cancel").json() == {}
        assert client.post(f"{dropped}:cancel").json() == {}
        assert state(get(client, flagged)) == "RUNNING"
        assert state(get(client, dropped)) == "CANCELLED"

        server.kill()
        (tmp_path / "go").touch()
        server.start()
        began = time.monotonic()
        for name in (again, twice, *pending):
            assert until_state(client, name, "SUCCEEDED")["response"]["value"] == "done"
        recovered = time.monotonic() - began

        lost = get(client, once)
        assert (state(lost), lost["error"]["code"]) == ("FAILED", 10)
        assert lost["error"]["details"][0]["reason"] == "WORKER_LOST"
        cancelled = get(client, flagged)
        assert (state(cancelled), cancelled["error"]["code"]) == ("CANCELLED", 1)
        assert cancelled["metadata"]["value"]["cancelOutcome"] == "WORKER_LOST"
        assert get(client, again)["metadata"]["value"]["attempt"] == 2
        assert recovered < 15, "recovery waited for a lease"

    starts = Counter((tmp_path / "starts").read_text().split())
    expected = {once: 1, flagged: 1, again: 2, twice: 2, **dict.fromkeys(pending, 1)}
    assert starts == expected


def test_killed_under_load_it_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    created: list[str] = []
    cancelled: list[str] = []
    (tmp_path / "go").touch()

    def load(client: httpx2.Client, index: int) -> None:
        try:
            while True:
                name = run(client, ("once", "again")[index % 2], requestId=f"{index}-{len(created)}")
                created.append(name)
                if index % 3 == 0 and client.post(f"{name}:cancel").status_code == 200:
                    cancelled.append(name)
        except httpx2.TransportError:
            return  # the server is dead

    with Server("tests.apps.crash:app", tmp_path) as server, server.client() as client:
        for _ in range(3):
            run(client, "once")
            count = len(created)
            threads = [threading.Thread(target=load, args=(client, index)) for index in range(6)]
            for thread in threads:
                thread.start()
            while len(created) < count + 100:
                time.sleep(0.01)  # the load runs in threads; any moment will do
            server.kill()
            for thread in threads:
                thread.join(20)
            server.start()
        assert cancelled
        starts = Counter((tmp_path / "starts").read_text().split())
        for name in created:
            operation = client.post(f"{name}:wait", json={"timeout": "8s"}).json()
            assert operation.get("done") is True, f"an acknowledged create is lost: {operation}"
            metadata = operation["metadata"]["value"]
            ended_first = state(operation) == "SUCCEEDED" and "cancelTime" not in metadata
            assert name not in cancelled or metadata["requestedCancellation"] or ended_first, operation
            assert starts[name] <= (1 if metadata["verb"] == "once" else 3)


def test_sigterm_with_waits_parked_and_jobs_running_ends_in_good_order(tmp_path: Path) -> None:
    with Server("tests.apps.crash:app", tmp_path) as server, server.client() as client:
        again = run(client, "again")
        until_state(client, again, "RUNNING")
        answers: list[httpx2.Response] = []

        def park() -> None:
            answers.append(client.post(f"{again}:wait", json={"timeout": "8s"}))

        threads = [threading.Thread(target=park) for _ in range(20)]
        for thread in threads:
            thread.start()
        while client.get(f"{server.url}/waiting").text != "20":
            time.sleep(0.01)
        began = time.monotonic()
        assert server.terminate(timeout=15) == -signal.SIGTERM, "uvicorn's own exit status"
        took = time.monotonic() - began
        for thread in threads:
            thread.join(10)

        assert took < 6, "a parked wait or a restartable job held the shutdown up"
        assert [answer.status_code for answer in answers] == [200] * 20
        assert all(answer.json()["done"] is False for answer in answers)

        (tmp_path / "go").touch()
        server.start()
        resumed = until_state(client, again, "SUCCEEDED")
        assert resumed["metadata"]["value"]["attempt"] == 1, "the shutdown gave the attempt back"
