"""Pages of 50 of a long list: how long one takes with filters and scopes that it likes, and that it does not."""

import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio

from benchmarks.figure import Figure, Plan, percentiles
from lro import Operations, lifecycle
from lro.principal import Scope
from lro.resource import new_name
from lro.store import open_store
from lro.store.sqlite import statements as sql
from lro.store.sqlite.transaction import _to_row

__all__ = ["measure"]

START = 1_795_378_500_000_000
RARE = 10  # operations of the one caller who has few

PAGES = {
    "without a filter": ("", Scope()),
    "done = false, which all are": ("done = false", Scope()),
    "a target that no operation has": ("metadata.target = none", Scope()),
    "progress that no operation has": ("metadata.progress.pages < 0", Scope()),
    f"of an owner who has {RARE}": ("", Scope(owner="ann")),
}


def measure(plan: Plan, directory: Path) -> Iterator[Figure]:
    """Measure the first page of each kind."""
    yield from anyio.run(_measure, plan, directory / "listing.db")


async def _measure(plan: Plan, path: Path) -> list[Figure]:
    async with open_store(f"sqlite:///{path}", durability="process") as store:
        await anyio.to_thread.run_sync(partial(_fill, path, plan.stored))
        operations = Operations(store)
        figures: list[Figure] = []
        for name, (text, scope) in PAGES.items():
            taken: list[float] = []
            for _ in range(plan.samples // 5):
                began = time.perf_counter()
                await operations.list(filter=text, scope=scope)
                taken.append(time.perf_counter() - began)
            figures += percentiles(f"page, {name}", taken, f"of {plan.stored:,} operations")
        return figures


def _fill(path: Path, number: int) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    for at in range(number):
        now = START + at * 1000
        record = lifecycle.start(
            now,
            name=new_name("", now),
            job="books.render",
            retention=0,
            owner="ann" if at % (number // RARE) == 0 else f"owner-{at % 997}",
            tenant=f"tenant-{at % 97}",
            target=f"books/{at % 1000}",
        )
        connection.execute(sql.INSERT, _to_row(record._replace(progress=f'{{"pages": {at}}}')))
    connection.execute("COMMIT")
    connection.close()
