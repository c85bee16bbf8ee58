"""Figures: what a benchmark hands back, how much it is to measure, and the machine that it ran on."""

import importlib.metadata
import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["FULL", "QUICK", "Figure", "Plan", "environment", "median", "percentiles"]

PACKAGES = ("anyio", "aiosqlite", "pydantic", "starlette", "uvicorn", "httptools", "uvloop", "h11")
FSYNCS = 300


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: What was measured.
        value: The median, if there were rounds.
        unit: Of the value and the rounds.
        note: How it was measured.
        rounds: The single results that it is the median of.
    """

    name: str
    value: float
    unit: str
    note: str = ""
    rounds: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: Rounds of everything that takes turns.
        operations: Operations of a round with many callers, and of the raw yardstick.
        sequential: Operations of a round with one caller, and of the naive yardstick.
        samples: Latencies of a kind.
        seconds: Length of one round of HTTP load.
        imports: Fresh interpreters for each import.
        stored: Operations in the table that is listed.
    """

    rounds: int
    operations: int
    sequential: int
    samples: int
    seconds: float
    imports: int
    stored: int


FULL = Plan(rounds=3, operations=10_000, sequential=2_500, samples=500, seconds=2.5, imports=5, stored=100_000)
QUICK = Plan(rounds=3, operations=800, sequential=200, samples=200, seconds=0.3, imports=3, stored=10_000)


def median(name: str, rounds: Sequence[float], unit: str, note: str = "") -> Figure:
    """Return the median of some rounds."""
    return Figure(name, statistics.median(rounds), unit, note, tuple(rounds))


def percentiles(name: str, seconds: Sequence[float], note: str = "") -> list[Figure]:
    """Return the p50 and p99 of some latencies, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    note = f"n={len(seconds)} {note}".strip()
    return [Figure(f"{name}, p{cut}", cuts[cut - 1] * 1000, "ms", note) for cut in (50, 99)]


def environment(directory: Path) -> dict[str, str]:
    """Return what the figures depend on.

    Args:
        directory: Where the databases will lie.
    """
    versions: list[str] = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "fsync p50": f"{_fsync(directory) * 1e6:.0f} us (4 KiB appended, {directory.parent})",
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "load average": f"{os.getloadavg()[0]:.2f}",
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": ", ".join(versions),
        "loop in process": "asyncio",
    }


def _fsync(directory: Path) -> float:
    taken: list[float] = []
    with (directory / "fsync").open("wb", buffering=0) as file:
        for _ in range(FSYNCS):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)
