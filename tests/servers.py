"""Real servers for tests: uvicorn in a process of its own, on a free loopback port, ended by its id."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

T = TypeVar("T")

REPOSITORY = Path(__file__).parents[1]
_RUN = """
import importlib, socket, sys, uvicorn
sys.path.insert(0, {path!r})
module, _, name = {app!r}.partition(":")
app = getattr(importlib.import_module(module), name)
listener = socket.socket(fileno={descriptor})
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
"""


class Server:
    """Serves `module:app` from a directory; the port stays the same when it is started again.

    Args:
        app: What it serves.
        folder: Where it runs.
        environment: What it finds in its environment besides.
        inside: A command that runs the one that follows it, such as `disks.private_tmpfs`.
    """

    def __init__(
        self, app: str, folder: Path, environment: Mapping[str, str] | None = None, inside: Sequence[str] = ()
    ) -> None:
        self._app = app
        self._inside = inside
        self._folder = folder
        self._environment = {**os.environ, **(environment or {})}
        self._listener = socket.create_server(("127.0.0.1", 0))  # connections wait in its backlog until it is served
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()
        self._listener.close()

    def start(self) -> None:
        descriptor = self._listener.fileno()
        code = _RUN.format(path=str(REPOSITORY), app=self._app, descriptor=descriptor)
        self._process = subprocess.Popen(
            [*self._inside, sys.executable, "-c", code], cwd=self._folder, pass_fds=[descriptor], env=self._environment
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it as the kernel would, without a chance to tidy up."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)
        self._process = None

    def terminate(self, timeout: float) -> int:
        """Ask it to end, and return its exit status."""
        assert self._process is not None
        self._process.terminate()
        status = self._process.wait(timeout)
        self._process = None
        return status

    def client(self, timeout: float = 20.0) -> httpx2.Client:
        return httpx2.Client(base_url=f"{self.url}/v1/", timeout=timeout)


def run(client: httpx2.Client, job: str, **body: Any) -> str:  # Any: JSON
    """Start an operation and return its name."""
    response = client.post(f"jobs/{job}:run", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["name"])


def get(client: httpx2.Client, name: str) -> dict[str, Any]:  # Any: JSON
    """Return an operation."""
    response = client.get(name)
    assert response.status_code == 200, response.text
    return dict(response.json())


def eventually(look: Callable[[], T | None], what: str, seconds: float = 20.0) -> T:
    """Look, within bounds, until there is something to see: another process sets no event here."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not seen in {seconds:g} s: {what}"
        time.sleep(0.002)
    return found
