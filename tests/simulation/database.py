"""The database of a simulation: one SQLite in memory that all processes share, and what goes wrong with it.

Calls never overlap, but between two statements that are in no transaction others may write, as they may while one
waits for the write lock. What fails, and at which statement, is drawn; what is committed is told.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from lro.store.sqlite.setup import set_up_writer
from lro.store.sqlite.within import LendingConnection
from tests.simulation.machine import Machine, Process

__all__ = ["QUICK", "Caller", "Database", "Killed", "Watcher"]

T = TypeVar("T")

QUICK = 0.001  # seconds: the latency of a call on an ordinary day, at most

COMMIT_LOST, KILLED_BEFORE, KILLED_AFTER = "commit lost", "killed before COMMIT", "killed after COMMIT"
UNSAVED, KILLED_WITHIN, BROKEN, LOCKED = "COMMIT failed", "killed in transaction", "statement failed", "locked"
FAULTS = (COMMIT_LOST, COMMIT_LOST, COMMIT_LOST, UNSAVED, BROKEN, LOCKED, KILLED_BEFORE, KILLED_AFTER, KILLED_WITHIN)


class Caller(Protocol):
    """One connection of a process."""

    process: Process

    @property
    def can_write_now(self) -> bool:
        """Whether a call waits that may be carried out at any moment."""
        ...

    def carry_out_now(self) -> None:
        """Carry out the next call, in the middle of another process's."""
        ...


class Watcher(Protocol):
    """Who is told of every row that is committed."""

    columns: Sequence[str]

    def committed(self, writes: Sequence[tuple[Any, ...]], lane: "Caller | None") -> None:
        """Take what one transaction has written: (table, then the columns); for a removed row (table, name)."""
        ...


class Killed(BaseException):
    """The process died in the middle of a call."""


class _Connection(LendingConnection):
    """The one connection, which lets every statement of a call meet its fate."""

    database: "Database"

    def execute(self, *arguments: Any) -> Any:  # Any: as sqlite3 declares it, here and below
        database = self.database
        if database.lane is None or self._opened is not None:
            return super().execute(*arguments)
        statement = arguments[0]
        if not self.in_transaction:
            database.let_others_write()
            database.draw_fault(writes=statement == "BEGIN IMMEDIATE")
        if database.fault is not None and statement != "ROLLBACK":
            database.strike(statement)
        if statement == "COMMIT":
            super().execute(*arguments)
            database.publish()
            if database.fault is not None:
                database.strike_after_commit()
        elif statement == "ROLLBACK":
            super().execute(*arguments)
            database.writes.clear()
        else:
            return super().execute(*arguments)  # kept in no variable: the traceback of a later error might keep it open
        return None  # nobody looks at what these return

    def executemany(self, *arguments: Any) -> Any:
        if self.database.fault is not None and self._opened is None:
            self.database.strike(str(arguments[0]))
        return super().executemany(*arguments)


_templates: list[sqlite3.Connection] = []


def _template() -> sqlite3.Connection:
    """Return a migrated database to copy: a migration takes longer than many a simulation."""
    if not _templates:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        set_up_writer(connection, "template", "OFF", 0)
        connection.execute("UPDATE settings SET value = ? WHERE name = 'secret'", ("5e" * 32,))
        connection.execute("CREATE TABLE ledger (key TEXT PRIMARY KEY)")  # rows of the clients' own
        _templates.append(connection)
    return _templates[0]


class Database:
    """What the processes share, as they would share a file and the directory beside it.

    Attributes:
        fault_rate: The probability that a transaction fails, or its process in it.
        latency: Seconds a call takes about.
        locked_until: Somebody who is no process of ours holds the write lock until then.
        lanes: All connections.
        lane: Whose call is being carried out.
        fault: What is to happen to it.
        writes: What the open transaction has written so far.
        lock_files: Which process holds whose; a process that is dead holds nothing.
        ears: Who is to hear that something was written.
    """

    def __init__(self, machine: Machine, watcher: Watcher) -> None:
        self.machine = machine
        self.fault_rate = 0.0
        self.latency = QUICK
        self.locked_until = 0.0
        self.lanes: list[Caller] = []
        self.lane: Caller | None = None
        self.fault: str | None = None
        self._strike_in = 0
        self._depth = 0  # of calls in the middle of others
        self.writes: list[tuple[Any, ...]] = []
        self.lock_files: dict[str, Process | None] = {}
        self.ears: list[tuple[Process, Callable[[], None]]] = []
        self._watcher = watcher
        self.connection = sqlite3.connect(":memory:", isolation_level=None, factory=_Connection, cached_statements=512)
        self.connection.database = self
        _template().backup(self.connection)
        self._watch()

    def _watch(self) -> None:
        """Have every written row told, whichever statement wrote it."""
        columns = self._watcher.columns
        self.connection.create_function("seen", -1, self._see)
        after = "CREATE TEMP TRIGGER seen_{0}_{1} AFTER {1} ON {0} BEGIN SELECT seen('{0}', {2}); END"
        fields = ", ".join(f"new.{column}" for column in columns)
        for table, event, values in (
            ("operations", "INSERT", fields),
            ("operations", "UPDATE", fields),
            ("operations", "DELETE", "old.name"),
            ("workers", "INSERT", "new.id, new.lease_time"),
            ("workers", "UPDATE", "new.id, new.lease_time"),
            ("workers", "DELETE", "old.id"),
        ):
            self.connection.execute(after.format(table, event, values))

    def _see(self, *values: Any) -> None:  # Any: a column
        self.writes.append(values)

    def publish(self) -> None:
        """Tell what was committed."""
        if self.writes:
            writes, self.writes = self.writes, []
            self._watcher.committed(writes, self.lane)

    @contextmanager
    def _on_behalf(self, lane: "Caller") -> Iterator[None]:
        before = self.lane, self.fault, self._strike_in
        self.lane, self.fault = lane, None
        self._depth += 1
        try:
            yield
        finally:
            self.lane, self.fault, self._strike_in = before
            self._depth -= 1

    def draw_fault(self, *, writes: bool) -> None:
        """Draw what is to happen to the call: to its transaction, if one begins now, or else to what it reads."""
        machine = self.machine
        if writes and machine.now < self.locked_until:
            self.fault = LOCKED
        elif writes and machine.chance(self.fault_rate):
            self.fault = machine.random.choice(FAULTS)
            self._strike_in = 1 + int(machine.random.random() * 4)
        elif self.fault is None and machine.chance(self.fault_rate / 20):
            self.fault, self._strike_in = BROKEN, 1

    def forget(self, process: Process) -> None:
        """Drop what a process had here that is dead."""
        self.lanes = [lane for lane in self.lanes if lane.process is not process]
        self.ears = [ear for ear in self.ears if ear[0] is not process]

    def carry_out(self, lane: "Caller", function: Callable[[LendingConnection], T]) -> T:
        """Carry out a call, if its fate lets it."""
        with self._on_behalf(lane):
            try:
                return function(self.connection)
            finally:
                self.lane = None
                if self.connection.in_transaction:  # the database rolls back what a dead process has begun
                    self.connection.execute("ROLLBACK")
                self.writes.clear()

    def let_others_write(self) -> None:
        """Carry out, perhaps, what others have just handed in."""
        machine = self.machine
        if self.lane is None or self._depth > 1 or not machine.chance(0.15):
            return
        others = [lane for lane in self.lanes if lane.process is not self.lane.process and lane.can_write_now]
        if others:
            machine.counts["overtaken"] += 1
            machine.random.choice(others).carry_out_now()

    def strike(self, statement: str) -> None:
        """Let the fault happen, if this is the statement that it waits for."""
        fault, in_transaction = self.fault, self.connection.in_transaction
        if fault == LOCKED:
            if statement == "BEGIN IMMEDIATE":
                self._happens(fault)
                raise _error("database is locked", "SQLITE_BUSY")
        elif fault in (UNSAVED, KILLED_BEFORE):
            if statement == "COMMIT":
                self._happens(fault)
                if fault == KILLED_BEFORE:
                    raise Killed
                self._roll_back_perhaps()
                raise _error("disk I/O error", "SQLITE_IOERR_WRITE")
        elif fault in (BROKEN, KILLED_WITHIN):
            self._strike_in -= 1
            if self._strike_in == 0 and (fault == BROKEN or in_transaction):
                self._happens(fault)
                if fault == KILLED_WITHIN:
                    raise Killed
                self._roll_back_perhaps()
                raise _error("database or disk is full", "SQLITE_FULL")

    def strike_after_commit(self) -> None:
        """Let a fault happen that comes after a commit."""
        if self.fault in (COMMIT_LOST, KILLED_AFTER):
            fault = self.fault
            self._happens(fault)
            if fault == KILLED_AFTER:
                raise Killed
            raise _error("disk I/O error", "SQLITE_IOERR_FSYNC")

    def _happens(self, fault: str) -> None:
        assert self.lane is not None
        self.fault = None
        self.lane.process.faults += 1
        self.machine.counts[f"fault: {fault}"] += 1
        self.machine.say(f"{self.lane.process.name}: {fault}")

    def _roll_back_perhaps(self) -> None:
        """Do what SQLite does after some errors, and after others not."""
        if self.connection.in_transaction and self.machine.chance(0.5):
            self.connection.execute("ROLLBACK")


def _error(message: str, name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorname = name
    return error
