"""Any history that clients, workers, zombies and time can write, told to a store and to the model of one.

A history told to several stores at once must get the same answers from all of them. An author of a store writes

    class TestMyStore(ModelContract):
        @pytest.fixture
        def new_database(self) -> NewDatabase:
            return my_database

beside the contract's own class. Needs Hypothesis, which is no dependency of lro's: install it beside pytest.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, cast

from hypothesis import HealthCheck
from hypothesis import settings as Settings  # noqa: N812 -- a class, whatever its name
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from lro.principal import ANYTHING
from lro.testing.contract.tools import HOUR
from lro.testing.model.clients import FILTERS, Clients
from lro.testing.model.history import WORKERS
from lro.testing.model.sides import Database, NewDatabase
from lro.testing.model.times import Times

__all__ = ["SETTINGS", "Database", "ModelContract", "NewDatabase", "PairContract"]

SETTINGS = Settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


class ModelContract:
    """A store does as the model says; inherit it and give the fixture `new_database`.

    Attributes:
        settings: How many histories, and how long.
    """

    settings: ClassVar[Settings] = SETTINGS

    def test_any_history_goes_as_the_model_says(self, new_database: NewDatabase) -> None:
        """Every answer, and every record after every step."""
        _run([new_database], self.settings)


class PairContract:
    """Stores answer alike; inherit it and give the fixture `new_databases`, one for each of them.

    Attributes:
        settings: How many histories, and how long.
    """

    settings: ClassVar[Settings] = SETTINGS

    def test_one_history_gets_the_same_answers_of_all_stores(self, new_databases: Sequence[NewDatabase]) -> None:
        """Record by record, page by page, refusal by refusal."""
        assert len(new_databases) > 1
        _run(new_databases, self.settings)


class History(Clients, Times):
    """All the rules by which a history goes on."""

    @initialize(restartable=st.booleans(), request_id=st.sampled_from([None, "1"]), text=st.sampled_from(list(FILTERS)))
    def begin(self, restartable: bool, request_id: str | None, text: str) -> None:
        """Begin with something to do, and something to list."""
        self._create(restartable=restartable, attempt_limit=3, request_id=request_id, retention=2 * HOUR)
        self._create(restartable=True, attempt_limit=3)
        self._create(owner="ann", tenant="acme", request_id="1", retention=2 * HOUR, restartable=True, attempt_limit=2)
        self._create(owner="cat", tenant="zoo", priority=5, restartable=True, attempt_limit=3)
        self.claim(WORKERS[0], ("a",), 2)
        self.claim(WORKERS[1], ("a",), 1)
        self.begin_to_list("", ANYTHING, text, 1)


def _run(databases: Sequence[NewDatabase], how: Settings) -> None:
    make = cast("type[History]", partial(History, databases))  # called without arguments, as a class would be
    run_state_machine_as_test(make, settings=how)
