"""Commands as a user types them: started in a folder, read as they log, ended by their id."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from tests.servers import REPOSITORY


class Command:
    """Runs `python -m ...` from a folder and reads what it logs.

    Args:
        arguments: What follows `python -m`.
        folder: Where it runs; the repository and this folder are on its path.
    """

    def __init__(self, *arguments: str, folder: Path) -> None:
        self._arguments = [sys.executable, "-m", *arguments]
        self._folder = folder
        self._environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}", "PYTHONUNBUFFERED": "1"}
        self.log = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            self._arguments,
            cwd=self._folder,
            env=self._environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process, self._lines))
        self._reader.start()

    @staticmethod
    def _read(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]") -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                lines.put(line)
        lines.put(None)

    def until(self, pattern: str, timeout: float = 20.0) -> "re.Match[str]":
        """Read on until a line matches."""
        end = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{pattern!r} was not logged in {timeout} s:\n{self.log}") from None
            if line is None:
                raise AssertionError(f"the process ended without logging {pattern!r}:\n{self.log}")
            self.log += line
            if found := re.search(pattern, line):
                return found

    def client(self) -> httpx2.Client:
        """Wait until it serves, and return a client for its paths below /v1/."""
        url = self.until(r"running on (http://127\.0\.0\.1:\d+)")[1]
        return httpx2.Client(base_url=f"{url}/v1/", timeout=20)

    def kill(self) -> None:
        """End it as the kernel would, without a chance to tidy up, and the processes that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self._reader.join(10)

    def terminate(self, timeout: float = 20.0) -> int:
        """Ask it to end, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended(timeout)

    def ended(self, timeout: float = 20.0) -> int:
        """Wait for its end, and return its exit status."""
        status = self.process.wait(timeout)
        self._reader.join(10)
        while (line := self._lines.get()) is not None:
            self.log += line
        return status
