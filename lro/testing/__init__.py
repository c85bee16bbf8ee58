"""For tests of jobs and services: run one job alone, a store in memory, the contract that every store passes.

`lro.testing.plugin` has fixtures for pytest.
"""

from lro.testing.memory import MemoryStore, VirtualClock
from lro.testing.trial import Run, run

__all__ = ["MemoryStore", "Run", "VirtualClock", "run"]
