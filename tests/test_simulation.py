"""Simulated stories of processes, clients and faults: none may break a rule, and each broken library must be caught.

A thousand seeds by default; LRO_TEST_SEEDS=100000 for more. `tests/simulation` says what is simulated, and how a seed
that fails is told again.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from tests.servers import REPOSITORY
from tests.simulation import runner
from tests.simulation.machine import Machine, Process
from tests.simulation.mutants import MUTANTS

SEEDS = int(os.environ.get("LRO_TEST_SEEDS", "1000"))
CAUGHT_WITHIN = 1000  # seeds; most need fewer than 20

Finished = subprocess.CompletedProcess[str]


def simulate(*arguments: str, hash_seed: str = "random") -> Finished:
    """Run simulations in processes of their own, without coverage, which would take most of the time."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=REPOSITORY,
        env={**alone, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_no_story_breaks_a_rule() -> None:
    finished = simulate("--corpus", "--seeds", str(SEEDS))
    sys.stdout.write(finished.stdout)  # for `pytest -rP`: what was done
    assert finished.returncode == 0, finished.stdout


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    traces: list[list[str]] = []
    for hash_seed in ("1", "2"):
        finished = simulate("--seeds", "12", "--trace", "--processes", "1", hash_seed=hash_seed)
        traces.append([line for line in finished.stdout.splitlines() if line.startswith("trace of ")])
    assert len(set(traces[0])) == 12
    assert traces[0] == traces[1]


@pytest.fixture(scope="module")
def hunts() -> Iterator[dict[str, "Future[Finished]"]]:
    """Hunt all mutants, two at a time."""
    bound = ("--seeds", str(CAUGHT_WITHIN), "--until-caught", "--processes", "1")
    with ThreadPoolExecutor(2) as executor:
        yield {name: executor.submit(simulate, "--mutant", name, *bound) for name in MUTANTS}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_library_without_this_guard_is_caught(name: str, hunts: dict[str, "Future[Finished]"]) -> None:
    finished = hunts[name].result()
    sys.stdout.write(finished.stdout)
    assert finished.returncode == 1, f"not caught within {CAUGHT_WITHIN} seeds"
    assert f"--say --mutant {name}\n  at " in finished.stdout, finished.stdout


def test_each_kind_of_guard_has_its_mutants() -> None:
    assert {
        "no fence",
        "no cancel guard",
        "no retry guard",
        "no re-read after an ambiguous commit",
        "take-over from a stale read",
    } <= {mutant.kind for mutant in MUTANTS.values()}


def test_a_mutant_of_code_that_has_changed_is_refused() -> None:
    program = (
        "from tests.simulation import mutants\n"
        "mutants.MUTANTS['old'] = mutants.Mutant('', (mutants.Edit('lro.lookup', 'no such text', ''),))\n"
        "mutants.install('old')\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, check=False
    )
    assert finished.returncode == 1
    assert "lro.lookup has this 0 times, not once: 'no such text'" in finished.stderr


def test_a_seed_that_fails_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "CORPUS", tmp_path / "corpus.txt")
    (tmp_path / "corpus.txt").write_text("# what failed\n")
    for seed in (17, 4, 17):
        runner.keep(seed, "R1 terminal is final: and so on")
    assert runner.corpus() == [17, 4]


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with nothing on it."""
    with closing(Machine(1)) as made:
        yield made


def test_time_passes_at_once_where_all_wait(machine: Machine) -> None:
    process = Process(machine, "one", shuffled=True)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        await anyio.sleep(seconds)
        slept.append(machine.now - 1000)

    for hours in (3, 1, 2):
        process.loop.create_task(sleep(hours * 3600))
    assert machine.run(lambda: len(slept) == 3, 4 * 3600)
    assert [int(seconds) for seconds in slept] == [3600, 7200, 10800]
    assert machine.violations == []


def test_a_frozen_process_does_nothing_and_goes_on_late(machine: Machine) -> None:
    frozen, other = (Process(machine, name, shuffled=False) for name in ("frozen", "other"))
    woken: dict[str, float] = {}

    async def sleep(name: str) -> None:
        await anyio.sleep(1)
        woken[name] = machine.now - 1000

    for process in (frozen, other):
        process.loop.create_task(sleep(process.name))
    machine.after(0.5, lambda: frozen.freeze(60))
    assert machine.run(lambda: len(woken) == 2, 100)
    assert int(woken["other"]) == 1
    assert int(woken["frozen"]) == 60


def test_what_spins_without_end_is_a_violation(machine: Machine) -> None:
    process = Process(machine, "one", shuffled=True)

    def spin() -> None:
        process.loop.call_soon(spin)

    process.loop.call_soon(spin)
    assert not machine.run(lambda: False, 3600)
    assert "something spins" in machine.violations[0]


def test_nobody_left_to_do_anything_is_a_violation(machine: Machine) -> None:
    process = Process(machine, "one", shuffled=True)
    event = asyncio.Event()

    async def wait() -> None:
        await event.wait()

    task = process.loop.create_task(wait())
    assert not machine.run(task.done, 3600)
    assert "nobody will ever do anything again" in machine.violations[0]
    machine.violations.clear()
    event.set()
    assert machine.run(task.done, 1)
