"""The story: four operations over real HTTP, each checked from outside.

Starts the server as a process of its own, speaks to it as any client would, kills it and starts it again.
What it says has happened, it has seen; the first thing that did not happen ends it with a DemoFailed.
"""

import hashlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lro.demo.jobs import DIGEST, regular_files, sha256

__all__ = ["DemoFailed", "TreeTooSmall", "tell"]

LEAVE_OUT = frozenset({"__pycache__", "site-packages", "dist-packages"})
MIN_FILES, MIN_BYTES = 200, 2 * 1024 * 1024  # below, an operation ends before anybody could cancel it
STEP_SECONDS = 45.0  # no step takes longer

Json = dict[str, Any]  # Any: JSON


class DemoFailed(Exception):
    """Something that should have happened did not."""


class TreeTooSmall(ValueError):
    """The tree can't keep an operation busy long enough."""


def tell(path: Path | None, *, serve: bool, console: Console) -> None:
    """Tell the whole story.

    Args:
        path: The tree to archive; None for this Python's standard library.
        serve: Leave the server running afterwards, until Ctrl-C.
        console: Where it is told.

    Raises:
        TreeTooSmall: The tree is too small.
        DemoFailed: Something did not happen.
    """
    source = (path or Path(sysconfig.get_path("stdlib"))).resolve()
    tree = _Tree(source)
    with ExitStack() as exits:
        folder = Path(tempfile.mkdtemp(prefix="lro-demo-"))
        exits.callback(shutil.rmtree, folder, ignore_errors=True)
        console.print(f"[bold]lro demo[/] on {len(tree.digests):,} files, {tree.bytes / 1e6:,.1f} MB in {source}")
        console.print(f"(left out: {', '.join(sorted(LEAVE_OUT))})")
        console.print(f"A service in a process of its own, its operations in {folder / 'lro.db'}\n", soft_wrap=True)
        server = exits.enter_context(_Server(folder))
        client = exits.enter_context(httpx2.Client(timeout=STEP_SECONDS))
        story = _Story(tree, folder, server, client, console)
        story.archive_it()
        story.cancel_one()
        story.ignore_a_cancel()
        story.survive_a_kill()
        console.print("[bold green]All of it happened.[/]")
        if serve:
            console.print(f"\nThe service goes on at {server.url}/v1 until Ctrl-C: try the curl lines above.")
            server.wait()


class _Tree:
    """The source tree, as seen from outside: path -> SHA-256."""

    def __init__(self, source: Path) -> None:
        if not source.is_dir():
            msg = f"{source} is no directory"
            raise TreeTooSmall(msg)
        self.source = source
        paths = list(regular_files(source, LEAVE_OUT))
        self.bytes = sum((source / name).stat().st_size for name in paths)
        if len(paths) < MIN_FILES or self.bytes < MIN_BYTES:
            msg = (
                f"{source} holds {len(paths):,} files of {self.bytes / 1e6:.1f} MB: too small to be cancelled "
                f"half-way. Choose a tree of at least {MIN_FILES} files and {MIN_BYTES / 1e6:.0f} MB"
            )
            raise TreeTooSmall(msg)
        self.digests = {name: sha256(source / name) for name in paths}

    def whole_sha256(self) -> str:
        """Return the SHA-256 of all files' contents, one after the other in the order of their paths."""
        whole = hashlib.sha256()
        for name in sorted(self.digests):
            whole.update((self.source / name).read_bytes())
        return whole.hexdigest()


class _Server:
    """The server's process, which can be killed and started again on the same file and port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "server.log"
        self._port = 0
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._process:  # closes its pipe
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if isinstance(exc, DemoFailed):
            exc.add_note("The server's log ends with:\n" + self._log.read_text(encoding="utf-8")[-2000:])

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        command = [sys.executable, "-m", "lro.demo.server", str(self._folder / "lro.db"), str(self._port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("listening on "):
            msg = "the server did not start"
            raise DemoFailed(msg)
        self._port = int(line.split()[-1])
        self.url = f"http://127.0.0.1:{self._port}"

    def kill(self) -> int:
        """Kill it as the kernel does when memory runs out; returns its process id."""
        with self._process:
            self._process.send_signal(signal.SIGKILL)
        return self._process.pid

    def wait(self) -> None:
        """Wait for its end, or for Ctrl-C."""
        try:
            self._process.wait()
        except KeyboardInterrupt:
            return


class _Story:
    def __init__(self, tree: _Tree, folder: Path, server: _Server, client: httpx2.Client, console: Console) -> None:
        self._tree = tree
        self._folder = folder
        self._server = server
        self._client = client
        self._console = console

    def archive_it(self) -> None:
        """An operation that is left alone ends in its response."""
        self._title("1. Start an operation, and watch it")
        target, operation = self._start_archive("one.tar")
        self._follow(operation, "archiving", lambda seen: seen["done"])
        operation = self._call("GET", operation["name"], show=True)
        self._expect(_state(operation) == "SUCCEEDED", "it ended in its response")
        self._verify(target)

    def cancel_one(self) -> None:
        """A cancelled operation stops at its next checkpoint and leaves nothing behind."""
        self._title("2. Cancel one half-way")
        target, operation = self._start_archive("two.tar")
        operation = self._follow(operation, "archiving", _is_half_done)
        partial = target.with_name(target.name + ".partial")
        size = partial.stat().st_size if partial.exists() else 0
        self._expect(not operation["done"] and size > 0, f"half-way, {size / 1e6:,.1f} MB are written")
        asked = time.monotonic()
        answer = self._call("POST", f"{operation['name']}:cancel", show=True)
        self._expect(answer == {}, "the request is acknowledged: it is durable now")
        operation = self._call("GET", operation["name"], show=True)
        flagged = operation["metadata"]["value"]["requestedCancellation"]
        self._expect(flagged is True, f"requestedCancellation is true, state {_state(operation)}")
        self._wait(operation)
        took = time.monotonic() - asked
        operation = self._call("GET", operation["name"], show=True)
        self._expect(
            operation.get("error", {}).get("code") == 1, f"CANCELLED, error code 1, after {took * 1000:.0f} ms"
        )
        self._expect("response" not in operation, "and it has no response")
        self._expect(not partial.exists() and not target.exists(), "the half-written archive is gone")

    def ignore_a_cancel(self) -> None:
        """An operation whose job never looks ends naturally, and says so."""
        self._title("3. Cancel one that does not listen")
        params = {"source": str(self._tree.source), "leaveOut": sorted(LEAVE_OUT)}
        operation = self._call("POST", "jobs/demo.digest:run", {"params": params}, show=True)
        operation = self._follow(operation, "hashing", lambda seen: seen["done"] or _state(seen) == "RUNNING")
        self._expect(_state(operation) == "RUNNING", "it is running")
        self._call("POST", f"{operation['name']}:cancel", show=True)
        operation = self._call("GET", operation["name"], show=True)
        requested = operation["metadata"]["value"]["requestedCancellation"]
        self._expect(requested and not operation["done"], "cancel requested, and still running: not called cancelled")
        self._wait(operation)
        operation = self._call("GET", operation["name"], show=True)
        outcome = operation["metadata"]["value"].get("cancelOutcome")
        self._expect(outcome == "COMPLETED_ANYWAY", "it completed anyway, and its result is kept")
        digests = operation["response"]["value"]
        self._expect(digests["sha256"] == self._tree.whole_sha256(), "its SHA-256 of the tree is right")

    def survive_a_kill(self) -> None:
        """A restartable operation goes on where it was when its process was killed."""
        self._title("4. Kill the server in the middle of one")
        target, operation = self._start_archive("three.tar")
        operation = self._follow(operation, "archiving", _is_half_done)
        self._expect(not operation["done"], "half-way")
        seen = operation["metadata"]["value"]["progress"]["filesDone"]
        pid = self._server.kill()
        self._line(f"kill -9 {pid}", f"the server is dead, {seen:,} files were done")
        restarted = time.monotonic()
        self._server.start()
        operation = self._follow(
            operation, "resumed", lambda now: now["done"] or now["metadata"]["value"]["attempt"] > 1
        )
        took = time.monotonic() - restarted
        self._expect(operation["metadata"]["value"]["attempt"] == 2, f"attempt 2 began {took:.2f} s after the restart")
        self._follow(operation, "archiving", lambda now: now["done"])
        operation = self._call("GET", operation["name"], show=True)
        resumed = operation["metadata"]["value"]["progress"]["resumedFrom"]
        self._expect(_state(operation) == "SUCCEEDED", "it ended in its response")
        self._expect(resumed >= seen, f"and it had gone on behind file {resumed:,}, not at the beginning")
        self._verify(target)

    def _start_archive(self, name: str) -> tuple[Path, Json]:
        target = self._folder / name
        params = {"source": str(self._tree.source), "archive": str(target), "leaveOut": sorted(LEAVE_OUT)}
        return target, self._call("POST", "jobs/demo.archive:run", {"params": params}, show=True)

    def _call(self, method: str, path: str, body: Json | None = None, *, show: bool = False) -> Json:
        url = f"{self._server.url}/v1/{path}"
        if show:
            self._show_call(method, url, body)
        response = self._client.request(method, url, json=body)
        if response.status_code != 200:
            msg = f"{method} {url} answered {response.status_code}: {response.text}"
            raise DemoFailed(msg)
        value: Json = response.json()
        if show:
            self._console.print(escape(json.dumps(value)), soft_wrap=True, style="dim", highlight=False)
        return value

    def _show_call(self, method: str, url: str, body: Json | None, *, note: str = "") -> None:
        words = ["curl", *(["-X", method] if method != "GET" else []), url]
        if body is not None:
            words += ["-H", "content-type: application/json", "-d", json.dumps(body)]
        self._console.print(f"[cyan]$ {escape(shlex.join(words))}[/]{note}", soft_wrap=True, highlight=False)

    def _follow(self, operation: Json, what: str, until: Callable[[Json], bool]) -> Json:
        """Look at the operation until the condition holds, with live progress."""
        deadline = time.monotonic() + STEP_SECONDS
        path, body = f"{operation['name']}:wait", {"timeout": "0.020s"}
        self._show_call("POST", f"{self._server.url}/v1/{path}", body, note="  # again and again")
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("files"))
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(what, total=len(self._tree.digests))
            operation = self._call("POST", path, body)
            while not until(operation):
                if operation["done"] or time.monotonic() > deadline:
                    msg = f"what was waited for did not come: {json.dumps(operation)}"
                    raise DemoFailed(msg)
                bar.update(task, completed=_files_done(operation))
                operation = self._call("POST", path, body)
        count = f"{_files_done(operation):,} of {len(self._tree.digests):,} files"
        self._console.print(f"  {what}: {count}, {_state(operation)}", highlight=False)
        return operation

    def _wait(self, operation: Json) -> Json:
        """Wait for the operation's end on the server."""
        deadline = time.monotonic() + STEP_SECONDS
        while not operation["done"]:
            if time.monotonic() > deadline:
                msg = f"{operation['name']} did not end"
                raise DemoFailed(msg)
            operation = self._call("POST", f"{operation['name']}:wait", {"timeout": "5s"})
        return operation

    def _verify(self, target: Path) -> None:
        """Read the archive again and compare every file with the tree it came from."""
        found: dict[str, str] = {}
        with tarfile.open(target) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                digest = hashlib.sha256(content.read()).hexdigest()
                if digest != member.pax_headers[DIGEST]:
                    msg = f"{target}: {member.name} is not what its checksum says"
                    raise DemoFailed(msg)
                found[member.name] = digest
        same = found == self._tree.digests
        self._expect(same, f"{target.name} read again: all {len(found):,} SHA-256 equal those of the tree")

    def _expect(self, happened: bool, what: str) -> None:
        if not happened:
            self._console.print(f"  [red]✗[/] {what}", highlight=False)
            msg = f"this did not happen: {what}"
            raise DemoFailed(msg)
        self._console.print(f"  [green]✓[/] {what}", highlight=False)

    def _title(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/]")

    def _line(self, command: str, what: str) -> None:
        self._console.print(f"[cyan]$ {command}[/]", highlight=False)
        self._console.print(f"  {what}", highlight=False)


def _state(operation: Json) -> str:
    return str(operation["metadata"]["value"]["state"])


def _files_done(operation: Json) -> int:
    return int(operation["metadata"]["value"].get("progress", {}).get("filesDone", 0))


def _is_half_done(operation: Json) -> bool:
    progress = operation["metadata"]["value"].get("progress", {})
    return bool(operation["done"]) or (progress.get("filesDone", 0) * 2 >= progress.get("files", 1) > 0)
