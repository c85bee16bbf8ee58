"""Admission: whether one more operation may be started beside those that have not ended.

The rules that need more than one record, pure: the store looks around in the transaction of the insert, this room
decides by what it saw. What a single record may become is left to `lifecycle`.
"""

from typing import NamedTuple

from lro.errors import Aborted, ResourceExhausted
from lro.lifecycle import Record

__all__ = ["Crowd", "admit"]


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
