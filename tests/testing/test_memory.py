"""The store in memory passes the contract of stores, on both event loops."""

import pytest

from lro.clock import Clock
from lro.store import engine
from lro.testing.contract import OpenStore, StoreContract
from lro.testing.memory import Database, MemoryStore


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestMemoryStore(StoreContract):
    """The contract."""

    @pytest.fixture
    def open_store(self, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
        monkeypatch.setattr(engine, "SWEEP_EVERY", 0.2)
        database = Database()

        def make(clock: Clock | None = None) -> MemoryStore:
            return MemoryStore(database, clock=clock)

        return make
