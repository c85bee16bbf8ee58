"""Any history on every store, against a model of one, and on two stores at once.

LRO_TEST_EXAMPLES is how many histories each of these is told; by default a few.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from lro.clock import Clock
from lro.store import Store
from lro.store.engine import Engine
from lro.store.postgres import DISTRIBUTED, USUAL, PostgresStore
from lro.store.postgres.address import address_of
from lro.store.postgres.transaction import Profile
from lro.store.sqlite import SQLiteStore
from lro.store.sqlite.place import File
from lro.testing import memory
from lro.testing.memory import MemoryStore
from lro.testing.model import SETTINGS, Database, ModelContract, NewDatabase, PairContract
from tests.postgres import Databases


def examples(few: int) -> settings:
    return settings(SETTINGS, max_examples=int(os.environ.get("LRO_TEST_EXAMPLES", few)))


async def _sweep(store: Store) -> None:
    assert isinstance(store, Engine)
    await store._sweep_all()


@contextmanager
def in_a_file() -> Iterator[Database]:
    with TemporaryDirectory() as folder:

        def make_store(clock: Clock) -> Store:
            place = File(Path(folder) / "lro.db", durability="process", busy_timeout=timedelta(seconds=5))
            return SQLiteStore(place, clock=clock, sweeps=False)

        yield Database(make_store, _sweep)


@contextmanager
def in_memory() -> Iterator[Database]:
    shared: list[memory.Database] = []

    def make_store(clock: Clock) -> Store:
        if not shared:
            shared.append(memory.Database())  # on the thread that it will be used on
        return MemoryStore(shared[0], clock=clock, sweeps=False)

    yield Database(make_store, _sweep)


def in_postgres(databases: Databases, profile: Profile) -> NewDatabase:
    @contextmanager
    def new_database() -> Iterator[Database]:
        with databases.new(restless=profile is DISTRIBUTED) as url:
            address = address_of(url)

            def make_store(clock: Clock) -> Store:
                return PostgresStore(address, listen=address, profile=profile, clock=clock, sweeps=False)

            yield Database(make_store, _sweep)

    return new_database


class TestFile(ModelContract):
    settings = examples(20)

    @pytest.fixture
    def new_database(self) -> NewDatabase:
        return in_a_file


class TestMemory(ModelContract):
    settings = examples(40)

    @pytest.fixture
    def new_database(self) -> NewDatabase:
        return in_memory


class TestPostgres(ModelContract):
    settings = examples(4)

    @pytest.fixture
    def new_database(self, databases: Databases) -> NewDatabase:
        return in_postgres(databases, USUAL)


class TestDistributed(ModelContract):
    settings = examples(3)

    @pytest.fixture
    def new_database(self, databases: Databases) -> NewDatabase:
        return in_postgres(databases, DISTRIBUTED)


class TestFileAndPostgres(PairContract):
    settings = examples(3)

    @pytest.fixture
    def new_databases(self, databases: Databases) -> Sequence[NewDatabase]:
        return [in_a_file, in_postgres(databases, USUAL)]


class TestFileAndMemory(PairContract):
    settings = examples(15)

    @pytest.fixture
    def new_databases(self) -> Sequence[NewDatabase]:
        return [in_a_file, in_memory]
