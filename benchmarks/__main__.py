"""`python -m benchmarks`: measure, print a table, and write the figures as JSON if asked."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import importing, latency, listing, processes, serving, throughput
from benchmarks.figure import FULL, QUICK, Figure, Plan, environment

BENCHMARKS: dict[str, Callable[[Plan, Path], Iterator[Figure]]] = {
    "throughput": throughput.measure,
    "latency": latency.measure,
    "listing": listing.measure,
    "processes": processes.measure,
    "http": serving.measure,
    "import": importing.measure,
}


def main() -> None:
    """Run the benchmarks that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure lro beside its yardsticks.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: about 15 s")
    parser.add_argument("--only", choices=BENCHMARKS, metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="where the databases lie, instead of the temporary files"
    )
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    plan = QUICK if arguments.quick else FULL
    began = time.monotonic()
    figures: dict[str, list[Figure]] = {}
    with tempfile.TemporaryDirectory(prefix="lro-benchmarks-", dir=arguments.dir) as directory:
        about = environment(Path(directory))
        for key, value in about.items():
            console.print(f"{key:>16}  {value}", soft_wrap=True)
        for name, measure in BENCHMARKS.items():
            if arguments.only in (None, name):
                figures[name] = list(measure(plan, Path(directory)))
                console.print(_table(name, figures[name]))
    console.print(f"{time.monotonic() - began:.0f} s in all")
    if arguments.json is not None:
        report = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": arguments.quick,
            "environment": about,
            "figures": {name: [figure.to_dict() for figure in found] for name, found in figures.items()},
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _table(title: str, figures: list[Figure]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_column("unit")
    table.add_column("rounds", justify="right")
    table.add_column("note")
    for figure in figures:
        rounds = "  ".join(_number(value) for value in figure.rounds)
        table.add_row(figure.name, _number(figure.value), figure.unit, rounds, figure.note)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value < 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()
