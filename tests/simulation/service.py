"""The processes of the service in a story, and how a request reaches one of them and its answer comes back."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, Protocol

from lro.errors import LROError
from lro.operations import Operations
from lro.store.sqlite import SQLiteStore
from lro.worker import Worker
from tests.simulation.checks import Checks
from tests.simulation.database import Database
from tests.simulation.jobs import JOBS, Scene, scene
from tests.simulation.machine import Machine, MachineClock, Process
from tests.simulation.place import SimulatedPlace

__all__ = ["GOODBYE", "NoAnswer", "Plan", "Request", "Service", "World"]

GOODBYE = 20.0  # seconds for a shutdown, drain and all


class NoAnswer(Exception):
    """The request or its answer was lost, or nobody is there."""


class Plan(NamedTuple):
    """What kind of story it is."""

    processes: int
    workers: int  # how many of them run jobs
    shuffled: bool
    has_locks: bool
    hears: float
    lease: float
    drain: float
    concurrency: int
    loses: float  # the share of messages that the network loses
    fault_rate: float
    troubles: int

    @classmethod
    def draw(cls, machine: Machine) -> "Plan":
        random = machine.random
        processes = random.choice((1, 2, 2, 3, 3, 3))
        return cls(
            processes=processes,
            workers=processes if random.random() < 0.8 else 1,
            shuffled=random.random() < 0.7,
            has_locks=random.random() < 0.6,
            hears=random.choice((0.0, 0.9, 0.9)),
            lease=random.choice((0.9, 1.5, 3.0)),
            drain=random.choice((0.3, 2.0)),
            concurrency=random.choice((1, 2, 4)),
            loses=random.choice((0.0, 0.05, 0.2)),
            fault_rate=random.choice((0.0, 0.02, 0.1)),
            troubles=random.randint(0, 9),
        )


class World(Protocol):
    """What a process finds around it."""

    machine: Machine
    plan: Plan
    checks: Checks
    database: Database

    @property
    def is_calm(self) -> bool:
        """Whether the database answers as fast as ever."""
        ...

    def gone(self, service: "Service") -> None:
        """Take leave of a process that is no more."""
        ...


class Service:
    """One process of the service, from its start to its end."""

    def __init__(self, world: World, number: int) -> None:
        self.number = number
        self._world = world
        self.process = Process(world.machine, f"process {number}", shuffled=world.plan.shuffled)
        self.process.faults = 0 if world.is_calm else 1
        self.operations: Operations | None = None  # once it serves
        self._stop = asyncio.Event()
        self.stopping = False
        self._main = self.process.loop.create_task(self._run())
        self._main.add_done_callback(self._ended)

    async def _run(self) -> None:
        world, plan = self._world, self._world.plan
        scene.set(Scene(world.checks, self.process))
        place = SimulatedPlace(world.database, self.process, self.die, has_locks=plan.has_locks, hears=plan.hears)
        clock = MachineClock(world.machine)
        async with SQLiteStore(place, clock=clock) as store:
            operations = Operations(store, clock=clock)
            if self.number >= plan.workers:
                self.operations = operations
                await self._stop.wait()
                operations.begin_shutdown()
                return
            options: dict[str, Any] = {"concurrency": plan.concurrency, "clock": clock}  # Any: the worker's own
            lease, drain = timedelta(seconds=plan.lease), timedelta(seconds=plan.drain)
            async with Worker(store, JOBS, lease=lease, drain=drain, **options):
                self.operations = operations
                await self._stop.wait()
                operations.begin_shutdown()

    def stop(self) -> None:
        """Shut it down, as SIGTERM does."""
        if not self.stopping:
            self.stopping = True
            self.process.loop.call_soon(self._stop.set)
            frozen = max(0.0, self.process.stopped_until - self._world.machine.now)
            self._world.machine.after(GOODBYE + frozen, self._check_gone)

    def _check_gone(self) -> None:
        if self.process.is_alive and self.process.stopped_until <= self._world.machine.now:
            self._world.machine.fail(f"R24 {self.process.name} is still there {GOODBYE} s after it was to stop")

    def die(self) -> None:
        """Die at once, as by SIGKILL."""
        if self.process.is_alive:
            self._world.machine.say(f"{self.process.name} dies")
            self.process.end()
            self._world.gone(self)

    def _ended(self, main: "asyncio.Task[None]") -> None:
        error = main.exception()
        if error is not None and not isinstance(error, LROError):
            self._world.machine.fail(f"{self.process.name} has ended by {error!r}")
        self.operations = None
        self.process.is_over = True
        if error is None and not self.process.faults:
            self._world.checks.check_left_nothing(self.process)
        self._world.machine.after(2.0, self._leave)

    def _leave(self) -> None:
        """Be gone, with nothing left behind."""
        if not self.process.is_alive:
            return
        if self.process.stopped_until > self._world.machine.now:
            self._world.machine.after(self.process.stopped_until - self._world.machine.now, self._leave)
            return
        left = [task for task in self.process.loop.tasks if not task.done()]
        if left:
            self._world.machine.fail(f"R24 {self.process.name} leaves tasks behind: {left}")
        self.process.end()
        self._world.gone(self)


class Request:
    """One request on its way to a process, through its handler, and back."""

    def __init__(
        self,
        world: World,
        service: Service,
        function: Callable[[Operations], Awaitable[Any]],  # Any: its answer
        answer: "asyncio.Future[Any]",
        *,
        is_answered: bool,
    ) -> None:
        self._world = world
        self._service = service
        self._function = function
        self._answer = answer
        self._is_answered = is_answered
        self._handler: asyncio.Task[None] | None = None

    def arrive(self) -> None:
        """Reach the process, if it listens."""
        service = self._service
        if not service.process.is_alive or service.operations is None or service.stopping:
            self._send(None, NoAnswer())
            return
        service.process.loop.call_soon(self._begin, service.operations)

    def _begin(self, operations: Operations) -> None:
        self._handler = asyncio.get_running_loop().create_task(self._handle(operations))

    async def _handle(self, operations: Operations) -> None:
        value, error = None, None
        try:
            value = await self._function(operations)
        except Exception as failure:
            error = failure
        self._send(value, error)

    def disconnect(self) -> None:
        """Have the handler cancelled, as a server does when its client goes away."""
        if self._handler is not None and self._service.process.is_alive and not self._handler.done():
            self._world.machine.counts["handlers cancelled"] += 1
            self._service.process.loop.call_soon(self._handler.cancel)

    def _send(self, value: Any, error: Exception | None) -> None:  # Any: its answer
        machine = self._world.machine
        if self._is_answered:
            machine.after(machine.random.random() * 0.003, partial(self._deliver, value, error))
        else:
            machine.counts["answers lost"] += 1

    def _deliver(self, value: Any, error: Exception | None) -> None:  # Any: its answer
        if self._answer.done():
            return
        if error is None:
            self._answer.set_result(value)
        else:
            self._answer.set_exception(error)
