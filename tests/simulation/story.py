"""A story: a few processes, eight clients, and what goes wrong for a while; then all must come to its end.

The processes run the shipped store, worker and operations. Clients reach them over a network that loses requests
and answers, ask again elsewhere with the same request id, and note what they were told.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import anyio

from lro.clock import moment
from lro.errors import InvalidArgument, NotFound, StoreClosed, Unavailable
from lro.operations import OperationPage, Operations
from lro.resource import Operation
from tests.simulation.checks import Checks
from tests.simulation.database import QUICK, Database
from tests.simulation.jobs import JOBS, again, draw_script, retried
from tests.simulation.machine import Machine, Process
from tests.simulation.service import GOODBYE, NoAnswer, Plan, Request, Service

__all__ = ["Story"]

T = TypeVar("T")

TROUBLE = 6.0  # seconds for which things go wrong
RECOVERY = 90.0  # seconds after which all must have come to its end
CLIENTS = 8


class Story:
    """See the module.

    Args:
        seed: Which story it is.
        says: Whether the machine is to note what happens.
    """

    def __init__(self, seed: int, *, says: bool = False) -> None:
        self.machine = Machine(seed, says=says)
        self.plan = Plan.draw(self.machine)
        self.checks = Checks(self.machine)
        self.database = Database(self.machine, self.checks)
        self.in_trouble = True
        self._over = False
        self._names: list[str] = []
        self._requests: dict[str, str] = {}
        self._within: set[str] = set()
        self._unfinished = CLIENTS
        self._services: dict[int, Service] = {}
        self.machine.say(f"{self.plan}")

    def run(self) -> None:
        """Tell it to its end; the machine has the violations."""
        machine = self.machine
        for number in range(self.plan.processes):
            self._services[number] = Service(self, number)
        self._clients = clients = Process(machine, "clients", shuffled=self.plan.shuffled)
        for number in range(CLIENTS):
            clients.loop.create_task(self._live(number)).add_done_callback(self._client_left)
        self.database.fault_rate = self.plan.fault_rate
        for _ in range(self.plan.troubles):
            machine.after(machine.random.random() * TROUBLE, self._make_trouble)
        machine.after(TROUBLE, self._end_trouble)
        machine.run(lambda: not self.in_trouble, TROUBLE + 1)
        began = machine.now
        if not machine.violations and not machine.run(self._is_quiet, RECOVERY) and not machine.violations:
            self._fail_unfinished()
        machine.counts["microseconds of recovery"] = int((machine.now - began) * 1_000_000)
        self._over = True
        for service in tuple(self._services.values()):
            service.stop()
        if not machine.run(lambda: not self._services, GOODBYE + 5) and not machine.violations:
            machine.fail("R24 the processes do not end")
        if not machine.violations:
            self._check_all()

    # Processes.

    def gone(self, service: Service) -> None:
        """Take leave of a process, and start it again after a while."""
        machine = self.machine
        self.database.forget(service.process)
        del self._services[service.number]
        if not self._over:
            machine.after(0.02 + machine.random.random() ** 2 * 3, partial(self._start_again, service.number))

    def _start_again(self, number: int) -> None:
        if not self._over and number not in self._services:
            self.machine.counts["restarts"] += 1
            self._services[number] = Service(self, number)

    # What goes wrong.

    def _make_trouble(self) -> None:
        machine, random, services = self.machine, self.machine.random, list(self._services.values())
        if not services or not self.in_trouble:
            return
        running = self.checks.running()
        if not running and random.random() < 0.8:
            machine.after(0.3, self._make_trouble)  # it would hit nobody who works
            return
        kinds = (
            "kill",
            "freeze",
            "freeze",
            "freeze",
            "freeze",
            "freeze",
            "stop",
            "stop",
            "power",
            "lock",
            "slow",
            "jump",
        )
        kind = random.choice(kinds)
        rows = self.checks.rows
        resumable = [run for run in running if run.name in rows and rows[run.name].restartable]  # may meet a successor
        busy = {run.process for run in resumable or running}
        victim = random.choice([service for service in services if service.process in busy] or services)
        for run in running:
            if run.process is victim.process and random.random() < (0.8 if kind == "stop" else 0.4):  # no patience left
                machine.after(random.random() ** 2 * 2, partial(self._begin_to_cancel, run.name))
        machine.counts[f"trouble: {kind}"] += 1
        machine.say(f"trouble: {kind} {victim.process.name}")
        match kind:
            case "kill":
                victim.die()
            case "freeze":
                lease, share = self.plan.lease, random.random()
                lengths = (lease * share, lease + 0.3 + 2 * share, lease + 0.3 + 3 * share, lease * 3 * share)
                victim.process.freeze(random.choice(lengths))
            case "stop":
                victim.stop()
            case "power":
                for service in services:
                    service.die()
            case "lock":
                self._hurt_all()
                self.database.locked_until = machine.now + random.random() * random.choice((0.5, 7))
            case "slow":
                self._hurt_all()
                self.database.latency = random.choice((0.02, 0.2))
                machine.after(random.random() * 3, self._be_quick)
            case _:
                machine.jump(random.choice((random.uniform(-3, 3), -20, 20, -3600, 3600)))

    def _begin_to_cancel(self, name: str) -> None:
        self._unfinished += 1
        self._clients.loop.create_task(self._cancel(name)).add_done_callback(self._client_left)

    def _hurt_all(self) -> None:
        for service in self._services.values():
            service.process.faults += 1

    @property
    def _hurt(self) -> int:
        """Grows with everything that goes wrong."""
        processes = [*self.machine.processes, *self.machine.graveyard]
        return len(processes) + sum(process.faults for process in processes)

    @property
    def is_calm(self) -> bool:
        """Whether the database answers as fast as ever."""
        return self.database.latency <= QUICK and self.database.locked_until <= self.machine.now

    def _be_quick(self) -> None:
        self.database.latency = QUICK

    def _end_trouble(self) -> None:
        self.in_trouble = False
        self.database.fault_rate = 0.0
        self.database.locked_until = 0.0
        self._be_quick()
        behind = self.machine.latest_wall - self.machine.wall()
        self.machine.jump(behind / 1_000_000)  # or what was scheduled by a clock that was ahead would wait for it

    def _is_quiet(self) -> bool:
        return not (self._unfinished or self.checks.unfinished or self.checks.running())

    def _fail_unfinished(self) -> None:
        rows = [row for row in self.checks.rows.values() if not row.is_done]
        running = [run.name for run in self.checks.running()]
        what = f"{self._unfinished} clients, operations {rows}, functions {running}"
        self.machine.fail(f"R8 not over {RECOVERY} s after the last fault: {what}")

    # The network.

    async def _ask(self, function: Callable[[Operations], Awaitable[T]], patience: float = 4.0) -> T:
        """Ask some process until there is an answer."""
        random = self.machine.random
        while True:
            try:
                return await self._ask_once(function, patience)
            except (NoAnswer, Unavailable, StoreClosed):
                await anyio.sleep(0.05 + random.random() * 0.7)

    async def _ask_once(self, function: Callable[[Operations], Awaitable[T]], patience: float) -> T:
        machine, random = self.machine, self.machine.random
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        machine.counts["requests"] += 1
        loses = self.plan.loses if self.in_trouble else 0.0
        if self._services and not machine.chance(loses):
            service = self._services[random.choice(sorted(self._services))]
            request = Request(self, service, function, answer, is_answered=not machine.chance(loses))
            machine.after(random.random() * 0.003, request.arrive)
        else:
            machine.counts["requests lost"] += 1
            request = None
        with anyio.move_on_after(patience):
            return await answer
        if request is not None and machine.chance(0.5):
            request.disconnect()
        raise NoAnswer

    # The clients.

    def _client_left(self, client: "asyncio.Task[None]") -> None:
        self._unfinished -= 1
        if client.exception() is not None:
            self.machine.fail(f"a client met {client.exception()!r}")

    async def _live(self, number: int) -> None:
        """Start an operation, and do this and that with it, or another's."""
        random = self.machine.random
        await anyio.sleep(random.random() ** 2 * TROUBLE * 0.8)
        name = await self._start(number)
        for _ in range(random.randint(1, 4)):
            await anyio.sleep(random.random() ** 2 * 3)
            known = self._names
            target = random.choice(known) if known and (name is None or random.random() < 0.3) else name
            if target is None:
                continue
            act = random.choice(
                (self._cancel, self._cancel, self._wait, self._wait, self._get, self._walk, self._delete)
            )
            await act(target)

    async def _start(self, number: int) -> str | None:
        random, machine = self.machine.random, self.machine
        job, script = random.choice((*JOBS, again, retried)), draw_script(random)  # what may run again is at risk
        key = f"request {number}" if random.random() < 0.7 else None
        options: dict[str, Any] = {"request_id": key}  # Any: the arguments of start
        if random.random() < 0.1:
            options["schedule_at"] = moment(machine.wall() + int(random.random() * 3_000_000))
        if random.random() < 0.15:
            options["timeout"] = timedelta(seconds=0.3 + random.random() * 6)
        if random.random() < 0.1:
            options["ttl"] = timedelta(seconds=random.random() * 5)
        if key is not None and random.random() < 0.2:
            self._within.add(key)
            options["within"] = lambda connection: connection.execute("INSERT INTO ledger VALUES (?)", (key,))

        async def start(operations: Operations) -> Operation:
            operation = await operations.start(job, script, **options)
            self.checks.told(operation.name)
            return operation

        try:
            operation = await (self._ask(start) if key is not None else self._ask_once(start, 4.0))
        except InvalidArgument as error:
            if error.reason == "REQUEST_ID_DELETED" and key is not None:
                return None  # it was started, its answer was lost, and somebody has deleted it
            raise
        except (NoAnswer, Unavailable, StoreClosed):
            return None  # it is there or it is not: nobody knows
        self._names.append(operation.name)
        if key is not None and self._requests.setdefault(key, operation.name) != operation.name:
            machine.fail(f"R18 {key} stands for two operations")
        machine.counts["operations"] += 1
        return operation.name

    async def _cancel(self, name: str) -> None:
        async def cancel(operations: Operations) -> Operation:
            self.checks.asks_to_cancel(name)
            operation = await operations.cancel(name, reason="enough")
            self.checks.told(name, cancelled=True)
            return operation

        await self._see(name, cancel)
        self.machine.counts["cancels"] += 1

    async def _get(self, name: str) -> None:
        await self._see(name, lambda operations: operations.get(name))

    async def _wait(self, name: str) -> None:
        seconds = self.machine.random.random() * 5

        async def wait(operations: Operations) -> Operation:
            began, hurt = self.machine.now, self._hurt
            operation = await operations.wait(name, timedelta(seconds=seconds))
            late = self.machine.now - began - seconds
            if late > 1 and hurt == self._hurt and self.is_calm:
                self.machine.fail(f"R23 a wait for {name} took {late:.3f} s longer than it was to take")
            return operation

        await self._see(name, wait, seconds + 3)

    async def _see(
        self, name: str, function: Callable[[Operations], Awaitable[Operation]], patience: float = 4.0
    ) -> None:
        """Ask for an operation and check what is shown."""
        deleted, before = self.checks.is_deleted(name), self.checks.version_before(name)
        try:
            operation = await self._ask(function, patience)
        except NotFound:
            if not self.checks.is_gone(name):
                self.machine.fail(f"R3 {name} is not found")
            return
        if deleted:
            self.machine.fail(f"R19 {name} was deleted, and is shown")
        self.checks.saw(name, int(operation.etag.strip('"')), before, done=operation.done)

    async def _delete(self, name: str) -> None:
        async def delete(operations: Operations) -> None:
            await operations.delete(name)
            self.checks.told(name, deleted=True)

        try:
            await self._ask(delete)
        except NotFound:
            if not self.checks.is_gone(name):
                self.machine.fail(f"R3 {name} is not found")

    async def _walk(self, name: str) -> None:
        """List all, page by page: what was there throughout comes once (R21)."""
        del name
        checks = self.checks
        there = {name for name, row in checks.rows.items() if row.deleted_at is None and not row.is_done}
        shown: list[str] = []
        token = ""
        while True:
            page = await self._ask(partial(_list, token=token))
            shown += [operation.name for operation in page.operations]
            token = page.next_page_token
            if not token:
                break
        there &= {name for name, row in checks.rows.items() if row.deleted_at is None}
        if len(set(shown)) < len(shown):
            self.machine.fail(f"R21 a walk shows something twice: {shown}")
        if missing := there - set(shown):
            self.machine.fail(f"R21 a walk has missed {missing}")

    # At the end.

    def _check_all(self) -> None:
        connection = self.database.connection
        columns = ", ".join(self.checks.columns)
        self.checks.check_all(lambda: connection.execute(f"SELECT {columns} FROM operations").fetchall())
        ledger = {key for (key,) in connection.execute("SELECT key FROM ledger")}
        rows = [*self.checks.rows.values(), *self.checks.removed.values()]
        started = {row.request_id for row in rows} & self._within
        if ledger != started:
            self.machine.fail(f"a start and its caller's row are not one: {ledger ^ started}")
        if self.database.connection.in_transaction:
            self.machine.fail("R17 a transaction is left open")
        for name in self._requests.values():
            if name not in self.checks.rows and name not in self.checks.removed:
                self.machine.fail(f"R3 {name} was acknowledged, and is lost")


async def _list(operations: Operations, token: str) -> OperationPage:
    return await operations.list(page_size=3, page_token=token)
