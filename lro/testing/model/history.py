"""What a history stands on: the sides it is told to, the model of them, and what must hold after every step."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from lro.clock import WaryClock
from lro.errors import NotFound
from lro.lifecycle import Facts, Lease, Record, Transition
from lro.operations import Operations
from lro.resource import Operation
from lro.store import PageQuery
from lro.testing.contract.tools import LEASE, ManualClock, at_once, sample_record, unchanged
from lro.testing.model.records import Model, check_record, check_step
from lro.testing.model.sides import LEASE_LOST, NOT_FOUND, NewDatabase, Side, answer_of, refused, told

__all__ = ["FRONT", "FRONTS", "WHICH", "WORKER", "WORKERS", "Teller", "Walk"]

T = TypeVar("T")

FRONTS, WORKERS = ("front 1", "front 2"), ("worker 1", "worker 2")
WHICH = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 6, 7, 8])
FRONT, WORKER = st.sampled_from(FRONTS), st.sampled_from(WORKERS)


@dataclass
class Walk:
    """A listing that goes on from page to page while other things happen."""

    query: PageQuery
    matches: Callable[[Record], bool]
    lasting: set[str]  # what was to be listed at the beginning, and is still
    met: list[str] = field(default_factory=list[str])


class Teller(RuleBasedStateMachine):
    """Tells each step to every side and to the model, and compares what they say."""

    def __init__(self, databases: Sequence[NewDatabase]) -> None:
        super().__init__()
        self._exits = ExitStack()
        self.clock = ManualClock()
        self.model = Model()
        self.count = 0
        self.seen: dict[str, Record] = {}
        self.walks: list[Walk] = []
        self.owners: dict[str, str] = {}  # by worker, the id under which it has joined
        self.wary: dict[str, WaryClock] = {}  # by store, how far it believes the clock
        self.frozen: dict[str, float] = {}  # by id, since when nobody has seen it renew
        with ExitStack() as undo:
            undo.callback(self._exits.close)
            self._portal = self._exits.enter_context(start_blocking_portal())
            self.sides: list[Side] = []
            for new_database in databases:
                side = Side(self._portal, self._exits.enter_context(new_database()), self.clock)
                self._exits.callback(side.close_all)
                self.sides.append(side)
            for who in FRONTS:
                self._open(who)
            for who in WORKERS:
                self._begin_work(who)
            undo.pop_all()

    def teardown(self) -> None:
        """Close all stores, and remove the databases."""
        self._exits.close()

    # what must hold after every step

    @invariant()
    def every_record_is_as_the_model_has_it(self) -> None:
        """On every side, and nothing that is forbidden has happened to any since the last look."""
        names = sorted({*self.model.records, *self.model.gone, *self.seen})
        front = FRONTS[self.count % 2]

        async def read(side: Side) -> list[object]:
            return list(await at_once(*(partial(side.store(front).get, name) for name in names)))

        found = self._ask(read)
        assert isinstance(found, list)
        for name, record, expected in zip(names, found, self.model.standing(names), strict=True):
            assert record == expected, name
        for name, before in self.seen.items():
            check_step(before, self.model.records.get(name), self.clock.now())
        for record in self.model.records.values():
            check_record(record)
        self.seen = dict(self.model.records)
        for walk in self.walks:
            listed = self.model.listed(replace(walk.query, after=None), walk.matches)
            walk.lasting &= {record.name for record in listed}

    # how the sides are asked

    def _ask(self, call: Callable[[Side], Awaitable[T]]) -> T:
        """Ask every side the same, and return the answer, which must be one."""

        async def ask(side: Side) -> T:
            with anyio.fail_after(30):
                return await call(side)

        first, *others = [self._portal.call(ask, side) for side in self.sides]
        for other in others:
            assert other == first, "two stores answer differently"
        return first

    def _decide(self, who: str, name: str, transition: Transition) -> object:
        """Change the model, and return what the store must answer."""
        record = self.model.records.get(name)
        is_dead = record is not None and who in FRONTS and record.lease_owner in self._dead()
        return refused(partial(self.model.update, name, transition, self._facts(who, is_dead)))

    def _change(self, who: str, name: str, transition: Transition) -> object:
        """Change a record; return it, or how that was refused."""
        expected = self._decide(who, name, transition)
        found = self._ask(lambda side: answer_of(side.store(who).update(name, transition)))
        assert found == expected
        return found

    def _operate(
        self,
        front: str,
        name: str,
        transition: Transition,
        call: Callable[[Operations], Coroutine[Any, Any, Operation]],  # Any: as awaited
    ) -> None:
        """Change a record as a client does."""
        expected = self._decide(front, name, transition)
        found = self._ask(lambda side: answer_of(call(Operations(side.store(front)))))
        assert found == (Operation.of(expected) if isinstance(expected, Record) else expected)

    def _write(self, which: int, age: int, write: Callable[..., Record]) -> bool:
        """Write as a worker, under the last lease of an operation or an older one; False if that was refused."""
        name = self._pick_claimed(which, age)
        leases = self.model.leases.get(name, [])
        if age >= len(leases):
            return False
        lease = leases[-1 - age]
        before = self.model.records.get(name)
        found = self._change(self._home_of(lease), name, partial(write, lease=lease))
        holds = before is not None and before.lease == lease
        if holds:
            assert isinstance(found, Record), "who holds the lease may write"
        elif not (age == 0 and found is not None and found == before):  # the finish that it was, once more
            assert found == (NOT_FOUND if before is None else LEASE_LOST), "R9: written without the lease"
            assert self.model.records.get(name) is before
        return holds

    def _visible(self, transition: Transition) -> Transition:
        """Return a transition that finds nothing that is deleted."""

        def visible(record: Record, facts: Facts) -> Record:
            if record.deleted_at is not None:
                raise NotFound(name=record.name)
            return transition(record, facts)

        return visible

    def _pick(self, which: int) -> str:
        """Choose an operation: one that has not ended, of those the youngest; from 6 on one that has, or is gone."""
        records = self.model.records
        names = sorted(records, reverse=True)
        ended = [name for name in names if records[name].state.is_terminal]
        ended += sorted(self.model.gone)[:1] or ["operations/none"]
        live = [name for name in names if not records[name].state.is_terminal] or ended
        return ended[(which - 6) % len(ended)] if which >= 6 else live[which % len(live)]

    def _pick_claimed(self, which: int, age: int = 0) -> str:
        """Choose an operation that was claimed more than so many times, more often one that runs."""
        records = self.model.records
        names = [name for name, leases in self.model.leases.items() if len(leases) > age]
        names.sort(key=lambda name: (name in records and records[name].lease is not None, name), reverse=True)
        return names[which % len(names)] if names else self._pick(which)

    # who lives

    def _open(self, who: str) -> None:
        self.wary[who] = WaryClock(self.clock)
        self.model.sweep(self._facts(who), ())
        for side in self.sides:
            side.open(who)
            self._portal.call(side.sweep, who)

    def _close(self, who: str) -> None:
        del self.wary[who]
        for side in self.sides:
            side.close(who)

    def _begin_work(self, worker: str) -> None:
        self.count += 1
        owner = self.owners[worker] = f"{worker.replace(' ', '-')}-{self.count}"
        self._open(worker)
        self._ask(lambda side: side.store(worker).join(owner, LEASE))

    def _home_of(self, lease: Lease) -> str:
        """Return where the worker of a lease writes: in its own store, or another's if it is gone."""
        return next((worker for worker, owner in self.owners.items() if owner == lease.owner), FRONTS[0])

    def _dead(self) -> list[str]:
        """Return who has not renewed for its lease time."""
        now = self.clock.monotonic()
        return [owner for owner, since in self.frozen.items() if now - since >= LEASE / 1_000_000]

    def _facts(self, who: str, is_dead: bool = False) -> Facts:
        """Return the facts that a store would give a transition now."""
        return Facts(self.clock.now(), is_dead, self.wary[who].doubt())

    def _observe(self) -> None:
        """Have all look at the clock, and those that serve clients at the beats of all that hold something."""
        for clock in self.wary.values():
            clock.doubt()
        held = [record.name for record in self.model.records.values() if record.lease is not None]

        async def observe(side: Side) -> None:
            for front in FRONTS:
                for name in held:
                    await side.store(front).update(name, unchanged)
            for who in self.wary:
                await answer_of(side.store(who).update("operations/none", unchanged))

        self._ask(observe)

    # what every rule may do

    def _create(
        self,
        front: str = FRONTS[0],
        times: int = 1,
        *,
        pending_limit: int | None = None,
        validate_only: bool = False,
        **fields: Any,  # Any: one type per field of Record
    ) -> None:
        now, records = self.clock.now(), list[Record]()
        for _ in range(times):
            self.count += 1
            name = f"{fields.get('parent', '')}/operations/{self.count:026}".removeprefix("/")
            given: dict[str, Any] = {"job": "a", "due_at": now, **fields}  # Any: as above
            records.append(sample_record(name=name, created_at=now, updated_at=now, **given))
        expected = [
            refused(partial(self.model.insert, record, pending_limit, validate_only=validate_only))
            for record in records
        ]

        async def insert(side: Side) -> list[object]:
            options: dict[str, Any] = {"pending_limit": pending_limit, "validate_only": validate_only}  # Any: of each
            calls = [partial(side.store(front).insert, record, **options) for record in records]
            return [told(answer) for answer in await at_once(*calls)]

        assert self._ask(insert) == expected
