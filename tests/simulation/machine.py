"""The machine: the time that all processes share, what happens when, and which process goes on next.

One seed decides everything. Time stands still while a handle runs, goes on a little after it, and jumps to the next
event once nobody has anything to do. A process can be frozen, as by SIGSTOP, and killed: then it is never stepped
again, and none of its `finally` blocks ever runs.
"""

from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random
from zlib import crc32

from tests.simulation.loop import VirtualLoop

__all__ = ["Machine", "MachineClock", "Process"]

START = 1_735_689_600_000_000  # 2025-01-01, in microseconds
STEP = 0.000_2  # seconds: what a handle takes at most
BURST = 3  # handles that a process runs in its turn, at most
MOST_HANDLES = 200_000  # of one story; most have one or two thousand


class Process:
    """Something that runs on a loop of its own: a service, or the clients' machine.

    Attributes:
        name: What reports call it.
        loop: Its event loop.
        is_alive: False once it was killed or is gone.
        is_over: True once it has nothing more to do.
        faults: How often it was hurt: a process without is healthy, and must never lose a lease.
    """

    def __init__(self, machine: "Machine", name: str, *, shuffled: bool) -> None:
        self.machine = machine
        self.name = name
        self.is_alive = True
        self.is_over = False
        self.faults = 0
        self.loop = VirtualLoop(machine, shuffled=shuffled, failed=self._failed)
        machine.processes.append(self)

    def _failed(self, what: str) -> None:
        self.machine.fail(f"{self.name}: {what}")

    @property
    def stopped_until(self) -> float:
        """It is frozen until then."""
        return self.loop.stopped_until

    def freeze(self, seconds: float) -> None:
        """Stop it, threads and all, as SIGSTOP does, and let it go on later."""
        self.faults += 1
        self.loop.stopped_until = max(self.loop.stopped_until, self.machine.now + seconds)

    def end(self) -> None:
        """Never step it again: it was killed, or is over."""
        self.is_alive = False
        self.machine.processes.remove(self)
        self.machine.graveyard.append(self)


class Machine:
    """See the module.

    Args:
        seed: Decides everything.

    Attributes:
        now: Seconds that have passed; every process's monotonic clock.
        wall_offset: Microseconds by which the wall clock is ahead of that.
        latest_wall: The latest time that the wall clock has ever shown.
        jumped_back: By how many microseconds it has jumped back in all.
        random: Where all luck comes from.
        processes: Those alive.
        graveyard: The others: kept, so that nothing of theirs is finalised.
        counts: What happened how often.
        handles: How many callbacks of event loops have run.
        violations: What must never be and was.
        trace: A number that depends on every step so far.
        log: What happened when, if it is to be told.
    """

    def __init__(self, seed: int, *, says: bool = False) -> None:
        self.now = 1000.0
        self.wall_offset = START
        self.latest_wall = 0
        self.jumped_back = 0
        self.random = Random(seed)
        self.processes: list[Process] = []
        self.graveyard: list[Process] = []
        self.counts: Counter[str] = Counter()
        self.handles = 0
        self.violations: list[str] = []
        self.trace = seed
        self.log: list[str] | None = [] if says else None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def close(self) -> None:
        """Close all event loops, whose tasks have ended."""
        for process in [*self.processes, *self.graveyard]:
            process.loop.close()

    def wall(self) -> int:
        """Return the wall clock's time, in microseconds since 1970."""
        time = self.wall_offset + int(self.now * 1_000_000)
        self.latest_wall = max(self.latest_wall, time)
        return time

    def jump(self, seconds: float) -> None:
        """Move the wall clock, and nothing else."""
        self.wall_offset += int(seconds * 1_000_000)
        self.jumped_back += max(0, int(-seconds * 1_000_000))

    @property
    def latest_possible(self) -> int:
        """What the wall clock would show at most, had it never jumped back: what a stretch of time has ended by."""
        self.wall()
        return self.latest_wall + self.jumped_back

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function later: outside all loops, as the network, a disk or an operator acts."""
        heappush(self._events, (self.now + seconds, next(self._numbers), function))

    def chance(self, probability: float) -> bool:
        """Draw whether something happens."""
        return probability > 0 and self.random.random() < probability

    def fail(self, what: str) -> None:
        """Note that something is that must never be."""
        self.violations.append(f"at {self.now - 1000:.6f} s: {what}")
        self.say(f"VIOLATION {what}")

    def say(self, what: str) -> None:
        """Note what happens, if anybody wants to know."""
        if self.log is not None:
            self.log.append(f"{self.now - 1000:10.6f} {what}")

    def note(self, *what: object) -> None:
        """Mix something that happened into the trace."""
        self.trace = crc32(repr(what).encode(), self.trace & 0xFFFF_FFFF)

    def run(self, is_over: Callable[[], bool], seconds: float) -> bool:
        """Go on until something is so, or a violation, or for so long; return whether it came to be so."""
        until = self.now + seconds
        while not is_over():
            if self.violations or self.now > until:
                return False
            if not self._step():
                self.fail("nobody will ever do anything again")
            if self.handles > MOST_HANDLES:
                self.fail(f"{MOST_HANDLES} handles have run, and it is not over: something spins")
        return True

    def _step(self) -> bool:
        """Do what is next; return whether there was anything."""
        now, events, random = self.now, self._events, self.random
        if events and events[0][0] <= now:
            heappop(events)[2]()
            self.counts["events"] += 1
            return True
        awake: list[Process] = []
        next_at = events[0][0] if events else inf
        for process in self.processes:
            at = process.loop.next_at
            if at <= now:
                awake.append(process)
            elif at < next_at:
                next_at = at
        if not awake:
            if next_at == inf:
                return False
            self.now = next_at
            return True
        loop = awake[int(random.random() * len(awake))].loop if len(awake) > 1 else awake[0].loop
        until = events[0][0] if events else now + 1.0
        for _ in range(BURST):
            loop.step()
            self.handles += 1
            self.trace = self.trace * 31 + int(self.now * 1_000_000) & 0xFFFF_FFFF_FFFF
            self.now += random.random() * STEP
            if self.now >= until or not loop.is_ready:
                break
        return True


class MachineClock:
    """The Clock of all processes of a machine: they share its wall clock, which may jump."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def now(self) -> int:
        """Return the time in microseconds since 1970, UTC."""
        return self._machine.wall()

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""
        return self._machine.now
