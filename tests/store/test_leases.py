"""Leases and lock files, where the contract of the stores does not reach."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lro.store.leases import Leases, LockFiles
from lro.testing.contract import ManualClock

LEASE = 30_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "lro.db.workers"


@pytest.fixture
def mine(folder: Path) -> Iterator[LockFiles]:
    locks = LockFiles(folder)
    yield locks
    locks.close()


@pytest.fixture
def others(folder: Path) -> Iterator[LockFiles]:
    locks = LockFiles(folder)
    yield locks
    locks.close()


def test_a_beat_that_stands_still_for_one_lease_time_is_a_death(clock: ManualClock) -> None:
    leases = Leases(clock.monotonic)
    assert not leases.is_dead("w", 1, LEASE)
    clock.advance(LEASE - 1)
    assert not leases.is_dead("w", 1, LEASE)
    clock.advance(1)
    assert leases.is_dead("w", 1, LEASE)
    assert leases.is_dead("w", 1, LEASE)


def test_a_beat_that_moves_again_is_life(clock: ManualClock) -> None:
    leases = Leases(clock.monotonic)
    leases.is_dead("w", 1, LEASE)
    clock.advance(2 * LEASE)
    assert leases.is_dead("w", 1, LEASE)
    assert not leases.is_dead("w", 2, LEASE)
    clock.advance(LEASE - 1)
    assert not leases.is_dead("w", 2, LEASE)


def test_time_before_the_first_look_does_not_count(clock: ManualClock) -> None:
    leases = Leases(clock.monotonic)
    clock.advance(100 * LEASE)
    assert not leases.is_dead("w", 1, LEASE)


def test_a_worker_without_a_row_is_dead_after_a_lease_time_too(clock: ManualClock) -> None:
    leases = Leases(clock.monotonic)
    assert not leases.is_dead("w", None, LEASE)
    clock.advance(LEASE)
    assert leases.is_dead("w", None, LEASE)
    assert not leases.is_dead("w", 1, LEASE)


def test_workers_are_judged_one_by_one(clock: ManualClock) -> None:
    leases = Leases(clock.monotonic)
    leases.is_dead("w", 1, LEASE)
    leases.is_dead("v", 1, LEASE)
    clock.advance(LEASE)
    assert leases.is_dead("w", 1, LEASE)
    assert not leases.is_dead("v", 2, LEASE)
    assert leases.is_dead("v", 2, 0)


def test_a_forgotten_worker_is_seen_anew(clock: ManualClock) -> None:
    leases = Leases(clock.monotonic)
    leases.is_dead("w", 1, LEASE)
    clock.advance(LEASE)
    leases.forget("w")
    leases.forget("w")
    assert not leases.is_dead("w", 1, LEASE)


def test_a_worker_of_this_process_never_dies(clock: ManualClock, mine: LockFiles) -> None:
    leases = Leases(clock.monotonic, mine)
    mine.acquire("w")
    leases.is_dead("w", 1, LEASE)
    clock.advance(2 * LEASE)
    assert not leases.is_dead("w", 1, LEASE)


def test_a_lock_that_nobody_holds_is_a_death_at_once(clock: ManualClock, mine: LockFiles, others: LockFiles) -> None:
    leases = Leases(clock.monotonic, mine)
    others.acquire("w")
    assert not leases.is_dead("w", 1, LEASE)
    others.close()
    assert leases.is_dead("w", 1, LEASE)
    assert leases.is_dead("w", 2, LEASE)


def test_a_held_lock_is_no_proof_of_life(clock: ManualClock, mine: LockFiles, others: LockFiles) -> None:
    leases = Leases(clock.monotonic, mine)
    others.acquire("w")
    leases.is_dead("w", 1, LEASE)
    clock.advance(LEASE)
    assert leases.is_dead("w", 1, LEASE)


def test_a_lock_that_is_not_there_says_nothing(mine: LockFiles) -> None:
    assert not mine.is_abandoned("w")
    mine.release("w")


def test_looking_at_a_lock_does_not_take_it(mine: LockFiles, others: LockFiles) -> None:
    others.acquire("w")
    others.close()
    assert mine.is_abandoned("w")
    assert others.is_abandoned("w")
    assert not mine.holds("w")


def test_a_released_lock_leaves_no_file(folder: Path, mine: LockFiles, others: LockFiles) -> None:
    mine.acquire("w")
    mine.acquire("v")
    mine.release("w")
    assert not mine.holds("w")
    assert not others.is_abandoned("w")
    assert [file.name for file in folder.iterdir()] == ["v.lock"]
    mine.acquire("w")
    others_see = others.is_abandoned("w")
    assert not others_see


def test_a_lock_that_is_held_elsewhere_is_refused_and_nothing_leaks(mine: LockFiles, others: LockFiles) -> None:
    others.acquire("w")
    before = _descriptors()
    for _ in range(5):
        with pytest.raises(BlockingIOError):
            mine.acquire("w")
    after = _descriptors()
    assert after == before
    assert not mine.holds("w")


def _descriptors() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/dev/fd").iterdir()))  # on Linux and macOS
