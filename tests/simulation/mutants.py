"""Mutants: the library broken on purpose, one guard at a time; the simulation must catch each of them.

A mutant replaces a piece of a module's source as it is imported, in a process of its own. What it replaces must stand
there exactly once: who changes that code learns here that its guard must still be shown to be needed.
"""

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import CodeType, ModuleType
from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant", "install"]


class Edit(NamedTuple):
    """A piece of a module's source, and what is put in its place."""

    module: str
    found: str
    put: str


class Mutant(NamedTuple):
    """A guard that is gone: which of the kinds that must be caught, and the edits that do it."""

    kind: str
    edits: tuple[Edit, ...]


RULES, ENGINE, SQLITE = "lro.lifecycle.transitions", "lro.store.engine", "lro.store.sqlite"

FENCE = "    if record.state is not State.RUNNING or record.token != lease.token:\n        msg = ("
NO_FENCE = "no fence"
NO_CANCEL_GUARD = "no cancel guard"
NO_RETRY_GUARD = "no retry guard"
NO_REREAD = "no re-read after an ambiguous commit"
STALE = "take-over from a stale read"
FOUND = "what the simulation itself has found"

MUTANTS = {
    "fence_by_state_alone": Mutant(
        NO_FENCE, (Edit(RULES, FENCE, FENCE.replace(" or record.token != lease.token", "")),)
    ),
    "fence_but_for_the_end": Mutant(
        NO_FENCE, (Edit(RULES, FENCE, FENCE.replace("is not State.RUNNING or record.token != lease.token", "is None")),)
    ),
    "cancel_of_a_pending_one_only_noted": Mutant(
        NO_CANCEL_GUARD,
        (
            Edit(
                RULES,
                "    if asked.cancel_due and record.state is State.PENDING:\n",
                "    if asked.cancel_due and record.state is None:\n",
            ),
        ),
    ),
    "orphan_resumes_despite_a_cancel": Mutant(
        NO_CANCEL_GUARD,
        (
            Edit(
                RULES,
                "    if record.cancel_due or _is_late(record, facts):\n        return",
                "    if _is_late(record, facts):\n        return",
            ),
        ),
    ),
    "shutdown_resumes_despite_a_cancel": Mutant(
        NO_CANCEL_GUARD,
        (
            Edit(
                RULES,
                "            if record.cancel_due or _is_late(record, facts):\n                return",
                "            if _is_late(record, facts):\n                return",
            ),
        ),
    ),
    "exception_retried_despite_a_cancel": Mutant(
        NO_RETRY_GUARD,
        (
            Edit(
                RULES,
                "            if record.cancel_due:\n                record = record._replace(last_error",
                "            if record.state is None:\n                record = record._replace(last_error",
            ),
        ),
    ),
    "orphans_always_run_again": Mutant(
        NO_RETRY_GUARD,
        (
            Edit(
                RULES,
                "    if record.restartable and record.attempt < record.attempt_limit and record.deleted_at is None:\n",
                "    if record.deleted_at is None:\n",
            ),
        ),
    ),
    "attempts_without_end": Mutant(
        NO_RETRY_GUARD,
        (Edit(RULES, "retry_in is None or record.attempt >= record.attempt_limit or", "retry_in is None or"),),
    ),
    "lost_claim_not_looked_for": Mutant(
        NO_REREAD,
        (
            Edit(
                "lro.worker",
                "        self._claim_lost = True  # until we",
                "        self._claim_lost = False  # until we",
            ),
        ),
    ),
    "outcome_written_once": Mutant(
        NO_REREAD,
        (
            Edit(
                "lro.attempt",
                "            if give_up is not None and give_up():\n",
                "            if give_up is None or give_up():\n",
            ),
        ),
    ),
    "request_id_not_looked_up": Mutant(
        NO_REREAD,
        (Edit("lro.store.batch", "        known = await transaction.read_requested(keys)\n", "        known = {}\n"),),
    ),
    "sweep_by_a_stale_read": Mutant(
        STALE,
        (
            Edit(
                ENGINE,
                "            changed = await self._write(Select(Overdue(SWEEP_LIMIT), lifecycle.sweep))\n",
                "            swept: dict[str, Record] = {}\n"
                "            def note(record, facts):\n"
                "                swept[record.name] = lifecycle.sweep(record, facts) or record\n"
                "                return record\n"
                "            await self._write(Select(Overdue(SWEEP_LIMIT), note))\n"
                "            changed = []\n"
                "            for name, new in swept.items():\n"
                "                put = lambda now, _, new=new: new._replace(version=now.version + 1)\n"
                "                changed.append(await self._write(Update(name, put)))\n",
            ),
        ),
    ),
    "claim_by_a_stale_read": Mutant(
        STALE,
        (
            Edit(
                SQLITE,
                "        if any(_finish(transaction.find(search.query)) for search in searches):\n",
                "        self._early = {id(one.query): _finish(transaction.find(one.query)) for one in searches}\n"
                "        if any(self._early.values()):\n",
            ),
            Edit(
                SQLITE,
                "                written = _finish(",
                "                early, find = self.__dict__.pop('_early', {}), transaction.find\n"
                "                async def find_early(query):\n"
                "                    return early[id(query)] if id(query) in early else await find(query)\n"
                "                transaction.find = find_early\n"
                "                written = _finish(",
            ),
            Edit(
                "lro.store.sqlite.statements", " WHERE name = ? AND version = ?", " WHERE name = ? AND version >= ? * 0"
            ),
        ),
    ),
    "beat_not_read_again": Mutant(
        STALE,
        (
            Edit(
                "lro.store.leases",
                "            if owner not in self._seen or seen != beat:\n",
                "            if owner not in self._seen:\n",
            ),
        ),
    ),
    "a_claim_is_no_sign_of_life": Mutant(FOUND, (Edit(ENGINE, ", beats=(owner, lease_time)", ""),)),
}


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module from its source with the replacement made."""

    edits: Sequence[Edit]

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        for edit in self.edits:
            found = source.count(edit.found)
            if found != 1:
                raise SystemExit(f"{fullname} has this {found} times, not once: {edit.found!r}")
            source = source.replace(edit.found, edit.put)
        return compile(source, path, "exec")


class _Finder(MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._edits: dict[str, list[Edit]] = {}
        for edit in mutant.edits:
            self._edits.setdefault(edit.module, []).append(edit)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._edits:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        loader = _Loader(fullname, spec.origin)
        loader.edits = self._edits[fullname]
        spec.loader = loader
        return spec


def install(name: str) -> None:
    """Have a mutant's modules imported in place of the library's, which must not be imported yet.

    Raises:
        SystemExit: There is no such mutant, or what it replaces does not stand there once.
    """
    if name not in MUTANTS:
        raise SystemExit(f"no mutant {name!r}: there are {', '.join(MUTANTS)}")
    mutant = MUTANTS[name]
    sys.meta_path.insert(0, _Finder(mutant))
    for edit in mutant.edits:
        assert edit.module not in sys.modules, f"{edit.module} is imported already"
    for edit in mutant.edits:
        importlib.import_module(edit.module)
