"""GET over HTTP: an operation's route against a bare Starlette route on the same server, in turn."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure, Plan, median

__all__ = ["measure"]

CONNECTIONS = 32
PATIENCE = 20.0  # seconds
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}

Load = dict[str, float]


def measure(plan: Plan, directory: Path) -> Iterator[Figure]:
    """Load each path in turn, and compare the rounds."""
    wrk = shutil.which("wrk")
    with _server(directory / "http.db") as about:
        paths = {"bare route": "/plain", "GET done": str(about["done"]), "GET running": str(about["running"])}
        loads: dict[str, list[Load]] = {name: [] for name in paths}
        for turn in range(plan.rounds + 1):
            for name, path in paths.items():
                seconds = plan.seconds if turn else 0.3
                load = _wrk(wrk, about["port"], path, seconds) if wrk else _own(about["port"], path, seconds)
                if turn:  # the first one is the warm-up
                    loads[name].append(load)
        note = f"{about['server']}, {'wrk' if wrk else 'benchmarks.load'}, {CONNECTIONS} connections"
    for name, rounds in loads.items():
        yield median(name, [load["rate"] for load in rounds], "req/s", note)
        for cut in ("p50", "p99"):
            yield median(f"{name}, {cut}", [load[cut] for load in rounds], "ms")
    for name in ("GET done", "GET running"):
        for what, label in (("rate", "req/s"), ("p99", "p99")):
            pairs = zip(loads[name], loads["bare route"], strict=True)
            yield median(f"{name} / bare route, {label}", [ours[what] / bare[what] for ours, bare in pairs], "x")


@contextmanager
def _server(database: Path) -> Iterator[dict[str, Any]]:  # Any: JSON
    """Run the server, and yield what it says of itself."""
    command = [sys.executable, "-m", "benchmarks.server", str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline() or "null")
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _output(command: list[str], seconds: float) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + PATIENCE)
    return done.stdout


def _own(port: int, path: str, seconds: float) -> Load:
    command = [sys.executable, "-m", "benchmarks.load", str(port), path, str(seconds), str(CONNECTIONS)]
    load: Load = json.loads(_output(command, seconds))
    return load


def _wrk(wrk: str, port: int, path: str, seconds: float) -> Load:
    whole = max(1, round(seconds))  # it knows no others
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{whole}s", "--latency", f"http://127.0.0.1:{port}{path}"]
    output = _output(command, whole)
    if "Non-2xx" in output:
        msg = f"{path} was not answered with 200:\n{output}"
        raise RuntimeError(msg)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    cuts = {cut: re.search(rf"{cut}%\s+([\d.]+)(us|ms|s)", output) for cut in (50, 99)}
    assert rate is not None, output
    load = {f"p{cut}": float(found[1]) * MILLISECONDS[found[2]] for cut, found in cuts.items() if found}
    return {"rate": float(rate[1]), **load}
