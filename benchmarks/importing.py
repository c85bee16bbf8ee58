"""Import times in fresh interpreters, in turn."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure, Plan, median

__all__ = ["measure"]

STATEMENTS = ("import anyio, aiosqlite", "import lro", "from lro import Operations, Worker", "from lro import Service")
TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def measure(plan: Plan, _directory: Path) -> Iterator[Figure]:
    """Measure each statement in interpreters of its own."""
    taken: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for turn in range(plan.imports + 1):
        for statement in STATEMENTS:
            command = [sys.executable, "-c", TIMED.format(statement)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if turn:  # the first one writes the bytecode and fills the page cache
                taken[statement].append(float(output) * 1000)
    base = taken[STATEMENTS[0]]
    for statement, times in taken.items():
        yield median(statement, times, "ms")
    for statement in STATEMENTS[1:]:
        ratios = [mine / other for mine, other in zip(taken[statement], base, strict=True)]
        yield median(f"{statement} / {STATEMENTS[0]}", ratios, "x")
