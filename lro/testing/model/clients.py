"""What clients do, on one store or another: create, repeat, cancel, delete, read, wait, list."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from lro import lifecycle
from lro.filter import parse
from lro.lifecycle import Record, Transition
from lro.operations import Operations
from lro.principal import ANYTHING, Scope
from lro.resource import Operation
from lro.store import Page, PageQuery
from lro.testing.contract.tools import HOUR, at_once, note
from lro.testing.model.history import FRONT, FRONTS, WHICH, Teller, Walk
from lro.testing.model.records import key_of
from lro.testing.model.sides import NOT_FOUND, Side, answer_of, told

__all__ = ["FILTERS", "Clients"]

FILTERS: dict[str, Callable[[Record], bool]] = {
    "": lambda record: True,
    "done = true": lambda record: record.state.is_terminal,
    "metadata.verb = a": lambda record: record.job == "a",
    "metadata.attempt > 1": lambda record: record.attempt > 1,
}
WHO = st.sampled_from([("", ""), ("", ""), ("ann", "acme"), ("bob", "acme"), ("cat", "zoo")])


class Clients(Teller):
    """What clients do."""

    @precondition(lambda self: len(self.model.records) < 12)
    @rule(
        front=FRONT,
        request_id=st.sampled_from([None, "1", "2"]),
        who=WHO,
        job=st.sampled_from(["a", "a", "b"]),
        parent=st.sampled_from(["", "", "", "projects/p"]),
        exclusive=st.sampled_from([False, False, True]),
        restartable=st.booleans(),
        limit=st.integers(1, 3),
        time_out=st.sampled_from([None, None, 2, 5]),
        delay=st.sampled_from([0, 0, 0, 2]),
        priority=st.sampled_from([0, 0, 5]),
        cancellable=st.sampled_from([True, True, True, False]),
        retention=st.sampled_from([2, 40]),
        pending_limit=st.sampled_from([None, None, None, 2]),
        validate_only=st.sampled_from([False, False, False, True]),
        times=st.sampled_from([1, 1, 1, 3]),
    )
    def create(
        self,
        *,
        front: str,
        request_id: str | None,
        who: tuple[str, str],
        job: str,
        parent: str,
        exclusive: bool,
        restartable: bool,
        limit: int,
        time_out: int | None,
        delay: int,
        priority: int,
        cancellable: bool,
        retention: int,
        pending_limit: int | None,
        validate_only: bool,
        times: int,
    ) -> None:
        """Start an operation, perhaps several times at once."""
        owner, tenant = who
        now, hours = self.clock.now(), HOUR
        self._create(
            front,
            times,
            job=job,
            parent=parent,
            owner=owner,
            tenant=tenant,
            request_id=request_id,
            exclusive=exclusive,
            target="t" if exclusive else "",
            restartable=restartable,
            attempt_limit=limit,
            priority=priority,
            cancellable=cancellable,
            due_at=now + delay * hours,
            deadline_at=None if time_out is None else now + (delay + time_out) * hours + hours // 2,
            retention=retention * hours + hours // 2,
            pending_limit=pending_limit,
            validate_only=validate_only,
        )

    @rule(front=FRONT, which=WHICH, same_job=st.sampled_from([True, True, False]), times=st.integers(1, 2))
    def repeat_a_request(self, front: str, which: int, same_job: bool, times: int) -> None:
        """Start with the request id of an operation that there is, or was."""
        names = sorted(name for name, record in self.model.records.items() if record.request_id is not None)
        if names:
            first = self.model.records[names[which % len(names)]]
            fields = ("parent", "owner", "tenant", "request_id")
            same = {field: getattr(first, field) for field in fields}
            self._create(front, times, job=first.job if same_job else "c", **same)

    @rule(front=FRONT, which=WHICH, reason=st.sampled_from([None, "first", "second"]))
    def cancel(self, front: str, which: int, reason: str | None) -> None:
        """Ask for an operation to be cancelled; of one that has ended nothing changes."""
        name = self._pick(which)
        before = self.model.records.get(name)
        transition = self._visible(partial(lifecycle.request_cancel, reason=reason, requester="ann"))
        self._operate(front, name, transition, lambda it: it.cancel(name, reason=reason, requester="ann"))
        if before is not None and before.state.is_terminal:
            assert self.model.records[name] == before, "R7: a cancel changed what had ended"

    @rule(front=FRONT, which=WHICH, reject_running=st.booleans())
    def delete(self, front: str, which: int, reject_running: bool) -> None:
        """Delete an operation; from now on it is not to be found."""
        name = self._pick(which)
        transition = self._visible(partial(lifecycle.delete, reject_running=reject_running))

        async def delete(it: Operations) -> None:
            await Operations(it.store, delete_running="reject" if reject_running else "hide").delete(name)

        expected = self._decide(front, name, transition)
        found = self._ask(lambda side: answer_of(delete(Operations(side.store(front)))))
        assert found == (None if isinstance(expected, Record) else expected)
        if found is None:
            self.get(front=front, which=which, waits=False)

    @rule(front=FRONT, which=WHICH, waits=st.booleans())
    def get(self, front: str, which: int, waits: bool) -> None:
        """Read an operation, or wait for no time at all."""
        name = self._pick(which)
        record = self.model.records.get(name)
        expected: object = NOT_FOUND
        if record is not None and record.deleted_at is None:
            expected = Operation.of(record)

        def read(it: Operations) -> Coroutine[Any, Any, Operation]:  # Any: as awaited
            return it.wait(name, timedelta(0)) if waits else it.get(name)

        assert self._ask(lambda side: answer_of(read(Operations(side.store(front))))) == expected

    @precondition(lambda self: len(self.walks) < 3)
    @rule(
        parent=st.sampled_from(["", "", "projects/p"]),
        scope=st.sampled_from([ANYTHING, ANYTHING, Scope(owner="ann"), Scope(tenant="acme"), Scope(owner="")]),
        text=st.sampled_from(list(FILTERS)),
        limit=st.integers(1, 3),
    )
    def begin_to_list(self, parent: str, scope: Scope, text: str, limit: int) -> None:
        """Begin a walk through a listing, which other things will happen during."""
        query = PageQuery(parent, scope, limit, None, parse(text))
        listed = self.model.listed(query, FILTERS[text])
        self.walks.append(Walk(query, FILTERS[text], {record.name for record in listed}))
        self.list_on(FRONTS[0], len(self.walks) - 1)

    @precondition(lambda self: self.walks)
    @rule(front=FRONT, which=st.integers(0, 2))
    def list_on(self, front: str, which: int) -> None:
        """Read the next page of a walk."""
        walk = self.walks[which % len(self.walks)]
        expected = self.model.listed(walk.query, walk.matches)
        page = self._ask(lambda side: side.store(front).list(walk.query))
        assert isinstance(page, Page)
        found = list(page.records)
        walk.met += [record.name for record in found]
        assert found == expected[: len(found)], "R21: a page is what comes next"
        assert len(found) <= walk.query.limit
        if page.after is None:
            assert len(found) == len(expected), "R21: the end came too early"
            self.walks.remove(walk)
            assert len(walk.met) == len(set(walk.met)), "R21: met twice"
            assert walk.lasting <= set(walk.met), "R21: not met though it was there throughout"
        else:
            assert walk.query.after is None or page.after < walk.query.after, "a walk gets on"
            assert len(expected) > len(found), "the end says that it is the end"
            assert not found or page.after <= key_of(found[-1])
            walk.query = replace(walk.query, after=page.after)

    @rule(front=FRONT, which=st.lists(WHICH, min_size=2, max_size=4), what=st.lists(st.integers(0, 2), min_size=4))
    def change_at_once(self, front: str, which: list[int], what: list[int]) -> None:
        """Have one store asked for several changes at once: they compose in their order."""
        transitions: list[Transition] = [note("x"), lifecycle.request_cancel, lifecycle.delete]
        changes = [(self._pick(one), transitions[kind]) for one, kind in zip(which, what, strict=False)]
        expected = [self._decide(front, name, transition) for name, transition in changes]

        async def change(side: Side) -> list[object]:
            calls = [partial(side.store(front).update, name, transition) for name, transition in changes]
            return [told(answer) for answer in await at_once(*calls)]

        assert self._ask(change) == expected
