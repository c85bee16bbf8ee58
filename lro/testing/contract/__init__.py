"""The contract that every store passes unchanged, as a class of tests to inherit.

An author of a store writes

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path: Path) -> OpenStore:
            return lambda clock=None: MyStore(tmp_path / "x", clock=clock)

in a test module, with `anyio_mode = "auto"` in pytest's options. Nothing here decides how a store works; it
says what callers may rely on. pytest itself is not imported.
"""

from lro.testing.contract.admissions import Admissions
from lro.testing.contract.claims import Claims
from lro.testing.contract.lists import Lists
from lro.testing.contract.records import Records
from lro.testing.contract.rows import Rows
from lro.testing.contract.times import Times
from lro.testing.contract.tools import START, ManualClock, OpenStore, eventually, sample_record

__all__ = ["START", "ManualClock", "OpenStore", "StoreContract", "eventually", "sample_record"]


class StoreContract(Records, Lists, Admissions, Claims, Rows, Times):
    """All that a store must do; each method is one promise.

    A subclass gives the fixture `open_store`. The tests of `within` write into a table `notes` of their own;
    where the database's SQL differs, override `create_notes`.
    """
