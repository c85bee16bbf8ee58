"""Group commit: many callers' changes in one transaction.

Says what callers may ask for, and what a batch of it makes of the records. `apply` is written against the few
things that a transaction must offer, so that every store shares it; `queue` gathers the batch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lro.admission import NO_QUOTAS, Crowd, Quotas, admit
from lro.errors import InvalidArgument, LROError, NotFound
from lro.lifecycle import Facts, Record, Transition
from lro.store.base import Within
from lro.store.queue import Request

__all__ = [
    "HEAD",
    "AnyRequest",
    "Beat",
    "Changes",
    "Due",
    "Insert",
    "Leave",
    "Overdue",
    "Query",
    "RequestKey",
    "Select",
    "Transaction",
    "TransactionEnded",
    "Update",
    "apply",
    "request_key",
]


class Insert(Request[Record]):
    """Store a new record, or find the one that its request id stands for."""

    __slots__ = ("pending_limit", "record", "validate_only", "within")

    def __init__(
        self,
        record: Record,
        within: Within | None = None,
        *,
        pending_limit: int | None = None,
        validate_only: bool = False,
    ) -> None:
        super().__init__()
        self.record = record
        self.within = within
        self.pending_limit = pending_limit
        self.validate_only = validate_only


class Update(Request[Record]):
    """Apply a transition to the record of this name."""

    __slots__ = ("name", "transition", "within")

    def __init__(self, name: str, transition: Transition, within: Within | None = None) -> None:
        super().__init__()
        self.name = name
        self.transition = transition
        self.within = within


class RequestKey(NamedTuple):
    """By what a repeated request is known (AIP-155).

    The id is its client's own: what others of the tenant have used is no affair of its, nor can they use it up.
    """

    tenant: str
    owner: str
    job: str
    request_id: str


HEAD = 1000
"""Of how many records, and of how many targets, a claim looks for one whose target is not full."""


class Due(NamedTuple):
    """Query: operations of these jobs that may be claimed, by priority and then by age.

    Attributes:
        jobs: The jobs' names.
        limit: Records at most.
        quotas: Of those that have one, how many may run at once; see `admission`.
    """

    jobs: tuple[str, ...]
    limit: int
    quotas: Quotas = NO_QUOTAS


class Overdue(NamedTuple):
    """Query: records about which time has decided something.

    Attributes:
        limit: Records at most.
    """

    limit: int


Query = Due | Overdue


class Select(Request[Sequence[Record]]):
    """Apply a rule to the records that a query finds; the answer is those that it changed or removed.

    The rule returns None to have a record removed; that is answered as it was. If it changes any, that is a sign of
    life of the worker in `beats`, with its lease time: one that stood still until now must not lose at once what it
    claims.
    """

    __slots__ = ("beats", "query", "rule")

    def __init__(
        self,
        query: Query,
        rule: Callable[[Record, Facts], Record | None],
        *,
        beats: tuple[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.query = query
        self.rule = rule
        self.beats = beats


class Beat(Request[None]):
    """Make a worker known, or count up its beat."""

    __slots__ = ("lease_time", "owner")

    def __init__(self, owner: str, lease_time: int) -> None:
        super().__init__()
        self.owner = owner
        self.lease_time = lease_time


class Leave(Request[bool]):
    """Forget a worker that holds nothing; the answer is False if it does."""

    __slots__ = ("owner",)

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner


AnyRequest = Insert | Update | Select | Beat | Leave


class Transaction(Protocol):
    """What `apply` needs of an open transaction.

    Attributes:
        now: See Facts, as for the next.
        doubt: See Facts.
    """

    now: int
    doubt: int

    async def read(self, names: Iterable[str]) -> dict[str, Record]:
        """Return the records of these names."""
        ...

    async def read_requested(self, keys: Iterable[RequestKey]) -> dict[RequestKey, Record]:
        """Return the records that these stand for."""
        ...

    async def find_rival(self, record: Record) -> Record | None:
        """Return an exclusive record of the same job, target, tenant and parent that has not ended, or None."""
        ...

    async def count_pending(self, tenant: str, limit: int) -> int:
        """Return how many records of a tenant are PENDING, counted up to the limit."""
        ...

    async def find(self, query: Query) -> Sequence[Record]:
        """Return the records of a query; of a Due, those that `admission.choose` has chosen."""
        ...

    async def dead_owners(self, owners: Iterable[str]) -> set[str]:
        """Return those of these workers whose leases have expired."""
        ...

    async def write(self, changes: "Changes") -> None:
        """Write inserts, updates and removals, in this order."""
        ...

    async def beat(self, owner: str, lease_time: int) -> None:
        """Count up a worker's beat, for one that is not known from a number that it never had."""
        ...

    async def leave(self, owner: str) -> bool:
        """Forget a worker, unless it holds a lease; return whether it was known and is not any more."""
        ...

    async def run_within(self, within: Within) -> BaseException | None:
        """Call the function on this transaction's connection, in a savepoint.

        Returns what the function raised, its own writes undone; what this raises is the database's own error.

        Raises:
            TransactionEnded: It has ended the transaction: there is nothing left to go on with.
        """
        ...


class TransactionEnded(Exception):
    """A `within` function made the database roll the whole transaction back; its error is the cause."""


@dataclass(slots=True)
class Changes:
    """What is to be written.

    Attributes:
        inserted: New records by name.
        updated: By name, the record as it was read and as it is to be.
        removed: Records to remove, by name.
    """

    inserted: dict[str, Record] = field(default_factory=dict[str, Record])
    updated: dict[str, tuple[Record, Record]] = field(default_factory=dict[str, tuple[Record, Record]])
    removed: dict[str, Record] = field(default_factory=dict[str, Record])

    def put(self, old: Record, new: Record) -> None:
        """Note that a record has become another."""
        if new is old:
            return
        if old.name in self.inserted:
            self.inserted[old.name] = new
        else:
            first, _ = self.updated.get(old.name, (old, old))
            self.updated[old.name] = (first, new)

    @property
    def records(self) -> list[Record]:
        """The records as they are after the commit."""
        return [*self.inserted.values(), *(new for _, new in self.updated.values())]


async def apply(requests: Sequence[AnyRequest], transaction: Transaction) -> list[Record]:
    """Carry out a batch in an open transaction, answer each request, and return the records it wrote.

    Changes of the same record compose in the order of the requests. Queries see what the changes by name
    have made. A request whose transition or `within` raises is refused alone. An error of the database
    itself comes out here: then the transaction is to be rolled back, and no answer counts.
    """
    changes = Changes()
    await _insert([request for request in requests if isinstance(request, Insert)], transaction, changes)
    await _update([request for request in requests if isinstance(request, Update)], transaction, changes)
    await transaction.write(changes)
    written = {record.name: record for record in changes.records}
    for request in requests:
        if isinstance(request, Select):
            selected = await _select(request, transaction)
            written.update((record.name, record) for record in selected)
            if selected and request.beats is not None:
                await transaction.beat(*request.beats)
        elif isinstance(request, Beat):
            await transaction.beat(request.owner, request.lease_time)
            request.answer(None)
        elif isinstance(request, Leave):
            request.answer(await transaction.leave(request.owner))
    return list(written.values())


async def _insert(requests: Sequence[Insert], transaction: Transaction, changes: Changes) -> None:
    known: dict[RequestKey, Record] = {}
    if keys := {key for request in requests if (key := request_key(request.record)) is not None}:
        known = await transaction.read_requested(keys)
    crowds = _Crowds(transaction)
    for request in requests:
        key = request_key(request.record)
        if key is not None and key in known:
            request.answer(known[key])
            continue
        if request.record.name in changes.inserted:
            request.refuse(InvalidArgument(f"{request.record.name} is taken", reason="NAME_TAKEN"))
            continue
        try:
            admit(request.record, await crowds.around(request.record, request.pending_limit))
        except LROError as error:
            request.refuse(error)
            continue
        if request.validate_only:
            request.answer(request.record)
            continue
        if not await _run_within(request, transaction):
            continue
        crowds.add(request.record)
        changes.inserted[request.record.name] = request.record
        if key is not None:
            known[key] = request.record
        request.answer(request.record)


class _Crowds:
    """What has not ended beside the records of a batch: read once, then counted along with each insert."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._rivals: dict[tuple[str, ...], Record | None] = {}
        self._counted: dict[str, int] = {}
        self._added: Counter[str] = Counter()

    async def around(self, record: Record, pending_limit: int | None) -> Crowd:
        rival: Record | None = None
        if record.exclusive:
            key = _place(record)
            if key not in self._rivals:
                self._rivals[key] = await self._transaction.find_rival(record)
            rival = self._rivals[key]
        if pending_limit is None:
            return Crowd(rival)
        tenant = record.tenant
        if tenant not in self._counted:
            self._counted[tenant] = await self._transaction.count_pending(tenant, pending_limit)
        return Crowd(rival, self._counted[tenant] + self._added[tenant], pending_limit)

    def add(self, record: Record) -> None:
        if record.exclusive:
            self._rivals[_place(record)] = record
        self._added[record.tenant] += 1


def _place(record: Record) -> tuple[str, ...]:
    return record.job, record.target, record.tenant, record.parent


async def _update(requests: Sequence[Update], transaction: Transaction, changes: Changes) -> None:
    wanted = {request.name for request in requests} - changes.inserted.keys()
    current = {**(await transaction.read(wanted) if wanted else {}), **changes.inserted}
    owners = {owner for request in requests if (record := current.get(request.name)) and (owner := record.lease_owner)}
    dead = await transaction.dead_owners(owners)
    alive, orphaned = (Facts(transaction.now, gone, transaction.doubt) for gone in (False, True))
    for request in requests:
        record = current.get(request.name)
        if record is None:
            request.refuse(NotFound(f"There is no operation {request.name}", name=request.name))
            continue
        try:
            new = request.transition(record, orphaned if record.lease_owner in dead else alive)
        except Exception as error:
            request.refuse(error)
            continue
        if not await _run_within(request, transaction):
            continue
        changes.put(record, new)
        current[request.name] = new
        request.answer(new)


async def _run_within(request: Insert | Update, transaction: Transaction) -> bool:
    """Call the caller's function, if there is one; False if it failed, and its caller with it."""
    if request.within is None:
        return True
    error = await transaction.run_within(request.within)
    if error is not None:
        request.refuse(error)
    return error is None


async def _select(request: Select, transaction: Transaction) -> Sequence[Record]:
    found = await transaction.find(request.query)
    dead = await transaction.dead_owners({record.lease_owner for record in found if record.lease_owner})
    changes = Changes()
    for record in found:
        new = request.rule(record, Facts(transaction.now, record.lease_owner in dead, transaction.doubt))
        if new is None:
            changes.removed[record.name] = record
        else:
            changes.put(record, new)
    await transaction.write(changes)
    request.answer([*changes.records, *changes.removed.values()])
    return changes.records


def request_key(record: Record) -> RequestKey | None:
    """Return what a repeated request is known by, or None for one that is not to be."""
    if record.request_id is None:
        return None
    return RequestKey(record.tenant, record.owner, record.job, record.request_id)
