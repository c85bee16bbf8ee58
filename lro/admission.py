"""Admission: whether one more operation may be started, or run, beside the others.

The rules that need more than one record, pure: the store looks around in the transaction of the insert or the claim,
this room decides by what it saw. What a single record may become is left to `lifecycle`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from lro.errors import Aborted, ResourceExhausted
from lro.lifecycle import Record

__all__ = ["NO_QUOTAS", "Crowd", "Opening", "Quota", "Quotas", "admit", "choose", "openings"]


class Crowd(NamedTuple):
    """What a store saw beside a record that is to be started.

    Attributes:
        rival: For an exclusive record, one that has not ended of the same job, target, tenant and parent; or None.
            Other tenants and parents don't count: nobody is to notice what others do.
        pending: How many of its tenant are PENDING, counted up to the limit.
        pending_limit: How many may be; None for any number, then nobody has counted.
    """

    rival: Record | None = None
    pending: int = 0
    pending_limit: int | None = None


def admit(record: Record, crowd: Crowd) -> None:
    """Let a record be started, or refuse it.

    Raises:
        Aborted: It is exclusive, and another operation works on its target (AIP-151, *Parallel operations*).
        ResourceExhausted: Its tenant has too many operations that wait to be run.
    """
    rival = crowd.rival if record.exclusive else None
    if rival is not None:
        visible = rival.owner == record.owner and rival.deleted_at is None
        who = rival.name if visible else "another operation"
        where = f"target {record.target!r}" if record.target else "it, without a target"
        msg = f"job {record.job} takes one operation at a time on {where}: wait for the end of {who}, or cancel it"
        raise Aborted(msg, reason="TARGET_BUSY", job=record.job, target=record.target, rival=who)
    if crowd.pending_limit is not None and crowd.pending >= crowd.pending_limit:
        limit = str(crowd.pending_limit)
        msg = f"{limit} operations wait to be run already, no more may: try again when some have begun"
        raise ResourceExhausted(msg, reason="TOO_MANY_PENDING", limit=limit)


class Quota(NamedTuple):
    """How many operations of a job may run at once, on all machines together; None for any number.

    Attributes:
        total: Of the job.
        per_target: Of the job on one target; operations without a target are not counted.
    """

    total: int | None = None
    per_target: int | None = None


Quotas = Mapping[str, Quota]
"""The quotas of the jobs that have one, by the jobs' names."""

NO_QUOTAS: Quotas = MappingProxyType({})


class Opening(NamedTuple):
    """What may be claimed of one job.

    Attributes:
        job: The job.
        room: Records at most.
        full: The targets of which none may be.
    """

    job: str
    room: int
    full: tuple[str, ...] = ()


Running = Mapping[tuple[str, str], int]
"""By job and target, how many run now; of jobs with a quota. What a dead worker has left counts until it is settled."""


def openings(jobs: Iterable[str], limit: int, quotas: Quotas, running: Running) -> Sequence[Opening]:
    """Return what may be claimed of each job, without those of which nothing may.

    Args:
        jobs: The jobs in question.
        limit: Records at most.
        quotas: Those of the jobs that have one.
        running: What runs now.
    """
    found: list[Opening] = []
    for job in jobs:
        quota = quotas.get(job)
        if quota is None:
            found.append(Opening(job, limit))
            continue
        counts = {target: count for (one, target), count in running.items() if one == job}
        room = limit if quota.total is None else min(limit, quota.total - sum(counts.values()))
        if room > 0:
            most = quota.per_target
            full = () if most is None else tuple(sorted(it for it, count in counts.items() if it and count >= most))
            found.append(Opening(job, room, full))
    return found


def choose(records: Iterable[Record], quotas: Quotas, running: Running) -> list[Record]:
    """Return those of these due records that may run beside each other and what runs now; who comes first is first.

    Args:
        records: Due, by priority and age.
        quotas: As for `openings`.
        running: What runs now.
    """
    chosen: list[Record] = []
    of_target = Counter(dict(running))
    of_job: Counter[str] = Counter()
    for (job, _), count in running.items():
        of_job[job] += count
    for record in records:
        total, per_target = quotas.get(record.job, Quota())
        place = (record.job, record.target)
        if total is not None and of_job[record.job] >= total:
            continue
        if per_target is not None and record.target and of_target[place] >= per_target:
            continue
        of_job[record.job] += 1
        of_target[place] += 1
        chosen.append(record)
    return chosen
