"""Runs many seeds: in forked children, a few stories each, and tells which of them failed and what was done in all.

A child is thrown away with all that its stories left, dead processes' coroutines among them, which nobody may
finalise. What a story must not get from the machine that it runs on, random numbers above all, it gets from its seed.
"""

import gc
import json
import logging
import os
import random
import selectors
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.simulation.loop import number_what_is_hashed
from tests.simulation.story import Story

__all__ = ["Result", "corpus", "keep", "run_here", "run_seeds"]

CHUNK = 20  # stories a child tells
LONGEST = 60  # seconds of one story, in real time
CORPUS = Path(__file__).with_name("corpus.txt")

LOGGED = ("failed; it starts again", "%s failed", "can't be stored")  # what the library must never have to say


class Result(NamedTuple):
    """What came of a seed."""

    seed: int
    violations: list[str]
    trace: int
    counts: dict[str, int]


class _Ear(logging.Handler):
    """Takes what the library logs that it must never have to: a loop of its own that failed."""

    def __init__(self, story: Story) -> None:
        super().__init__(logging.ERROR)
        self._story = story

    def emit(self, record: logging.LogRecord) -> None:
        if any(words in str(record.msg) for words in LOGGED):
            error = record.exc_info[1] if record.exc_info else None
            self._story.machine.fail(f"{record.name}: {record.getMessage()}: {error!r}")


def run_here(seed: int, *, says: bool = False) -> tuple[Result, list[str]]:
    """Tell one story in this process, which is of no use for anything else afterwards."""
    gc.disable()
    random.seed(seed)
    luck = random.Random(~seed)
    os.urandom = luck.randbytes
    random._urandom = luck.randbytes  # type: ignore[attr-defined]  # what `secrets` draws from
    number_what_is_hashed()
    story = Story(seed, says=says)
    _stories.append(story)
    log = logging.getLogger("lro")
    log.handlers, log.propagate = [_Ear(story)], False
    log.setLevel(logging.ERROR)
    story.run()
    machine = story.machine
    counts = {**machine.counts, "handles": machine.handles, "virtual milliseconds": int((machine.now - 1000) * 1000)}
    return Result(seed, machine.violations, machine.trace, counts), machine.log or []


_stories: list[Story] = []  # kept, so that nothing of them is finalised


def run_seeds(seeds: Sequence[int], processes: int) -> Iterator[Result]:
    """Tell the stories of these seeds, in so many processes at once, and yield what came of each."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    chunks.reverse()
    with selectors.DefaultSelector() as selector:
        children: dict[int, _Child] = {}
        try:
            while chunks or children:
                while chunks and len(children) < processes:
                    child = _Child(chunks.pop())
                    children[child.reads] = child
                    selector.register(child.reads, selectors.EVENT_READ)
                for key, _ in selector.select():
                    child = children[key.fd]
                    yield from child.read()
                    if child.is_over:
                        selector.unregister(key.fd)
                        yield from children.pop(key.fd).end()
        finally:
            for child in children.values():
                os.kill(child.pid, signal.SIGKILL)
                child.end()


class _Child:
    """A forked process that tells a few stories and writes a line for each into a pipe."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.is_over = False
        self._left = list(seeds)
        self._text = b""
        self.reads, writes = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for seed in seeds:
                    signal.alarm(LONGEST)
                    result, _ = run_here(seed)
                    os.write(writes, json.dumps(result).encode() + b"\n")
            except BaseException:  # noqa: BLE001, RUF100 -- told, then gone
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            finally:
                os._exit(0)
        os.close(writes)

    def read(self) -> Iterator[Result]:
        """Yield what has come."""
        got = os.read(self.reads, 65536)
        self.is_over = not got
        *lines, self._text = (self._text + got).split(b"\n")
        for line in lines:
            result = Result(*json.loads(line))
            self._left.remove(result.seed)
            yield result

    def end(self) -> list[Result]:
        """Bury it, and return what is to be said of the seed that it died of."""
        os.close(self.reads)
        _, status = os.waitpid(self.pid, 0)
        if not self._left:
            return []
        why = f"it did not end in {LONGEST} s" if os.WIFSIGNALED(status) else "its process failed, see above"
        return [Result(self._left[0], [why], 0, {})]


def corpus() -> list[int]:
    """Return the seeds that once failed: they are run first, always."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


def keep(seed: int, why: str) -> None:
    """Add a seed to the corpus, where that can be written."""
    if seed not in corpus():
        with suppress(OSError), CORPUS.open("a", encoding="utf-8") as file:
            file.write(f"{seed} {why.partition(':')[0][:100]}\n")


def total(results: Sequence[Result]) -> Counter[str]:
    """Add up what happened."""
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    return counts
