"""The Store: the only meeting point of those who start operations and those who run them.

Says what every store offers. It keeps records and finds them; what becomes of one is decided by the
transition that the caller hands in. Notices are hints: they hasten things and may be lost.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from lro.admission import NO_QUOTAS, Quotas
from lro.filter import EVERYTHING, Filter
from lro.lifecycle import Record, Transition
from lro.principal import ANYTHING, Scope
from lro.store.hints import Listener, Watch

__all__ = ["OpenTransaction", "Page", "PageQuery", "Store", "Within"]

Within = Callable[[Any], None]
"""The caller's own writes, in the transaction of the store's. Any: the database's connection."""


class OpenTransaction(Protocol):
    """The caller's own connection, in a transaction of its own: a psycopg AsyncConnection, on PostgreSQL."""

    @property
    def info(self) -> Any:  # Any: what the driver tells of a connection
        """What is known of the connection."""
        ...

    async def commit(self) -> None:
        """Commit; only the caller does."""
        ...


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which records a page of a listing holds, newest first.

    Attributes:
        parent: The resource that the operations belong to; "" for none.
        scope: What the caller may see.
        limit: Records at most, from 1.
        after: Where the page before ended, its own `after`; None for the first page.
        filter: Which of them.
    """

    parent: str = ""
    scope: Scope = ANYTHING
    limit: int = 50
    after: tuple[int, str] | None = None
    filter: Filter = EVERYTHING


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing.

    Attributes:
        records: Newest first by (created_at, name); fewer than were asked for, or none, where much was left out.
        after: Where the next page begins, the (created_at, name) of what was looked at last, which the caller may
            not be allowed to see; None at the end, and only there.
    """

    records: Sequence[Record]
    after: tuple[int, str] | None = None


class Store(Protocol):
    """Keeps operations; see `lro.testing.contract` for all that a store must do.

    Used as `async with store:`, once. Every write is one transaction, committed before the call returns.
    A call raises Unavailable if the database can't be reached, for a write with its outcome unknown, and
    StoreClosed outside the `async with`. A caller that is cancelled leaves nothing half done.
    """

    async def __aenter__(self) -> Self:
        """Connect, bring the schema up to date or refuse it, and settle what dead workers left."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is queued, and disconnect."""
        ...

    @property
    def ready(self) -> bool:
        """True while it is open and all its background loops run."""
        ...

    async def insert(
        self,
        record: Record,
        within: Within | OpenTransaction | None = None,
        *,
        pending_limit: int | None = None,
        validate_only: bool = False,
    ) -> Record:
        """Store a new record; return it, or the earlier one with the same tenant, owner, job and request id.

        Args:
            record: The record to store.
            within: Called in the same transaction before the insert, but not for a repeated request; what it
                raises undoes both and comes out here. Or the caller's own transaction, with which the insert comes
                about or not; on PostgreSQL.
            pending_limit: How many of its tenant may be PENDING already; None for any number.
            validate_only: True to do all of it but the writing (AIP-163); `within` is not called.

        Raises:
            Aborted, ResourceExhausted: As `admission.admit` decides; a repeated request is not refused.
            FailedPrecondition: The caller's connection is in no transaction, or on another database.
        """
        ...

    async def get(self, name: str) -> Record | None:
        """Return the record of this name, or None."""
        ...

    async def list(self, query: PageQuery) -> Page:
        """Return a page of the records that are not deleted, at a cost that is bounded whatever is left out."""
        ...

    async def update(self, name: str, transition: Transition, within: Within | None = None) -> Record:
        """Read the record, apply the transition and write what it returns, as one transaction.

        Raises:
            NotFound: There is no record of this name.
            Exception: What the transition or `within` raises; then nothing is written.
        """
        ...

    async def claim(self, owner: str, jobs: Iterable[str], limit: int, quotas: Quotas = NO_QUOTAS) -> Sequence[Record]:
        """Claim due operations of these jobs, by priority and then by age.

        Fewer may come than there are: none only if there is nothing that may run now.

        Args:
            owner: A worker that has joined.
            jobs: Names of jobs.
            limit: Records at most.
            quotas: How many of a job may run at once, counting those of all workers.
        """
        ...

    async def join(self, owner: str, lease_time: int) -> None:
        """Make a worker known, alive from now on; its lease time is in microseconds."""
        ...

    async def renew(self, owner: str) -> Sequence[Record]:
        """Renew all leases of a worker with one write, and return all records that it holds."""
        ...

    async def held(self, owner: str) -> Sequence[Record]:
        """Return all records that a worker holds a lease on."""
        ...

    async def leave(self, owner: str) -> None:
        """Forget a worker that holds nothing any more; one that still does stays known, and alive."""
        ...

    async def secret(self) -> bytes:
        """Return the key that all processes of this database share, 32 random bytes."""
        ...

    def watch(self, name: str) -> Watch:
        """Wait for changes of one record, as `with store.watch(name) as watch: await watch.changed(1.0)`."""
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(record)` on each change that is noticed, `listener(None)` if it is not known what changed.

        It is called on the event loop and must be quick. Returns the function that ends it.
        """
        ...
