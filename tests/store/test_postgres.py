"""The PostgreSQL store: the contract under both profiles, and what is PostgreSQL's own."""

import pytest

from lro.clock import Clock
from lro.store import engine
from lro.store.postgres import DISTRIBUTED, USUAL, PostgresStore
from lro.store.postgres.address import address_of
from lro.store.postgres.transaction import Profile
from lro.testing.contract import OpenStore, StoreContract


def make_store(
    url: str, *, clock: Clock | None = None, profile: Profile = USUAL, patience: float = 5.0, sweeps: bool = True
) -> PostgresStore:
    address = address_of(url)
    return PostgresStore(address, listen=address, profile=profile, patience=patience, clock=clock, sweeps=sweeps)


class TestPostgresStore(StoreContract):
    """The contract."""

    @pytest.fixture
    def open_store(self, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
        monkeypatch.setattr(engine, "SWEEP_EVERY", 0.2)
        return lambda clock=None: make_store(postgres_url, clock=clock)


class TestDistributedStore(StoreContract):
    """The contract, without what distributed engines lack, and with their demands to repeat a transaction."""

    @pytest.fixture
    def open_store(self, restless_url: str, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
        monkeypatch.setattr(engine, "SWEEP_EVERY", 0.2)
        return lambda clock=None: make_store(restless_url, clock=clock, profile=DISTRIBUTED)
