"""Operations: start, get, list, cancel, delete, wait: the API side, in process.

The routes call the same methods. Nothing here knows who runs what: it writes requests into the store and
reads what became of them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from math import inf
from typing import Any, TypeVar, overload

import anyio

from lro import lifecycle
from lro.clock import Clock, SystemClock, micros
from lro.errors import (
    InvalidArgument,
    NotFound,
    OperationCancelled,
    OperationFailed,
    Unavailable,
    invalid,
)
from lro.filter import parse
from lro.jobs import Job
from lro.lifecycle import Record
from lro.limits import Limits
from lro.lookup import Conceal, Lookup
from lro.paging import PageTokens
from lro.payload import is_text
from lro.principal import ANYTHING, Permission, Principal, Scope
from lro.resource import Operation, is_parent, new_name
from lro.status import Code
from lro.store import PageQuery, Store
from lro.store.base import OpenTransaction, Within
from lro.waits import Waits

__all__ = ["OperationPage", "Operations"]

ParamsT = TypeVar("ParamsT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class OperationPage:
    """One page of a listing.

    Attributes:
        operations: Newest first; fewer than asked for, or none, where a filter leaves many out.
        next_page_token: Hand it to the next call; "" at the end, and only there.
    """

    operations: Sequence[Operation]
    next_page_token: str


class Operations:
    """Starts operations of jobs and looks after them; all calls need an open store.

    Every method raises Unavailable if the store can't be reached and StoreClosed outside its `async with`.
    Those that take a `scope` treat an operation that it does not cover like one that is not there: with a
    limited scope PermissionDenied for both, else NotFound (AIP-211). Without one they are for code of the service's
    own, which may see everything.

    Args:
        store: Where operations are kept.
        domain: Whose errors these are: the ErrorInfo's `domain` (AIP-193), such as "books.example.com".
        limits: How large what clients send may be, how much a page holds, how many wait.
        conceal: As what a caller with a limited scope is refused an operation that it does not cover, or that is not
            there: "permission_denied" or "not_found".
        delete_running: "hide" to delete operations that have not ended as the proto says: hidden, not cancelled.
            "reject" to refuse that.
    """

    def __init__(
        self,
        store: Store,
        *,
        domain: str = "lro",
        limits: Limits | None = None,
        conceal: Conceal = "permission_denied",
        delete_running: str = "hide",
        clock: Clock | None = None,
    ) -> None:
        if delete_running not in ("hide", "reject"):
            msg = f"delete_running={delete_running!r}: use 'hide' or 'reject'"
            raise ValueError(msg)
        self.store = store
        self.domain = domain
        self.limits = limits or Limits()
        self._reject_running = delete_running == "reject"
        self._clock = clock or SystemClock()
        self._lookup = Lookup(store, conceal)
        self._waits = Waits(self._lookup, self.limits)
        self.refusal = self._lookup.refusal

    @property
    def waiting(self) -> int:
        """How many calls of `wait` and `result` are waiting now."""
        return len(self._waits)

    @overload
    async def start(
        self,
        job: Job[None, Any, Any],
        params: None = None,
        *,
        request_id: str | None = None,
        parent: str = "",
        target: str = "",
        priority: int = 0,
        schedule_at: datetime | None = None,
        timeout: timedelta | None = None,
        grace: timedelta | None = None,
        ttl: timedelta | None = None,
        principal: Principal | None = None,
        within: Within | OpenTransaction | None = None,
        validate_only: bool = False,
    ) -> Operation: ...
    @overload
    async def start(
        self,
        job: Job[ParamsT, Any, Any],
        params: ParamsT,
        *,
        request_id: str | None = None,
        parent: str = "",
        target: str = "",
        priority: int = 0,
        schedule_at: datetime | None = None,
        timeout: timedelta | None = None,
        grace: timedelta | None = None,
        ttl: timedelta | None = None,
        principal: Principal | None = None,
        within: Within | OpenTransaction | None = None,
        validate_only: bool = False,
    ) -> Operation: ...
    async def start(
        self,
        job: Job[Any, Any, Any],  # Any: a job of any types
        params: Any = None,  # Any: the job's own
        *,
        request_id: str | None = None,
        parent: str = "",
        target: str = "",
        priority: int = 0,
        schedule_at: datetime | None = None,
        timeout: timedelta | None = None,
        grace: timedelta | None = None,
        ttl: timedelta | None = None,
        principal: Principal | None = None,
        within: Within | OpenTransaction | None = None,
        validate_only: bool = False,
    ) -> Operation:
        """Start an operation; it is stored when this returns, and a worker runs it.

        Args:
            job: What to run.
            params: Its params: the model, or JSON values that fit it.
            request_id: The principal's key for this request: repeating the call with it within 24 h returns the
                same operation (AIP-155).
            parent: The resource that it belongs to, such as `projects/p`; its name begins with that.
            target: The resource that it works on, for the metadata.
            priority: Higher runs first; from -2**31 to 2**31 - 1.
            schedule_at: Not to be run before; aware.
            timeout: From now, or from `schedule_at`, to its deadline; the job's own by default.
            grace: From a cancel request until the job is stopped at any await; the job's own by default.
            ttl: How long it is kept after its end; the job's own retention by default.
            principal: Who starts it: stamped on it as owner and tenant.
            within: Writes of your own in the same transaction: called with the database's connection; what
                it raises undoes both and comes out here.
            validate_only: Check all of it and start nothing (AIP-163): the answer is an operation without a name
                that is done, or the error of the real call. `within` is not called.

        Raises:
            InvalidArgument: The params or another argument are not valid, or the request id was used for
                another request, or for an operation that was deleted.
            Aborted: The job takes one operation at a time on a target, and another has not ended on this one.
            ResourceExhausted: Too many of the tenant's operations wait to be run.
        """
        now = self._clock.now()
        who = principal or Principal()
        text = job.params_text(params, self.limits)
        asked = [job.name, text, parent, target]
        duration = job.timeout if timeout is None else timeout
        stop_after = job.grace if grace is None else grace
        retention = job.retention if ttl is None else ttl
        for field, value in (("timeout", duration), ("grace", stop_after), ("ttl", retention)):
            if value is not None and value < timedelta(0):
                raise invalid(field, "must not be negative")
        if grace is not None and job.in_thread:
            raise invalid("grace", f"job {job.name} runs in a thread, which stops at checkpoints only")
        _check_text("requestId", request_id, self.limits.request_id)
        _check_text("target", target, self.limits.target)
        if request_id == "":
            request_id = None  # as in proto3: empty is not set
        if not -(2**31) <= priority < 2**31:
            raise invalid("priority", "must be a 32-bit integer")
        if not is_parent(parent):
            raise invalid("parent", "must be a resource name such as projects/p, or empty")
        record = lifecycle.start(
            now,
            name=new_name(parent, now),
            job=job.name,
            parent=parent,
            owner=who.id,
            tenant=who.tenant,
            request_id=request_id,
            request_digest=None if request_id is None else _digest(asked),
            target=target,
            priority=priority,
            schedule_at=None if schedule_at is None else micros(schedule_at),
            timeout=None if duration is None else micros(duration),
            grace=None if stop_after is None else micros(stop_after),
            retention=micros(retention),
            restartable=job.restartable,
            attempt_limit=job.attempt_limit,
            cancellable=job.cancellable,
            exclusive=job.parallel == "reject",
            params=text,
            progress=job.first_progress(),
            response_type=job.response_type,
            metadata_type=job.metadata_type,
        )
        stored = await self._insert(record, within, validate_only=validate_only)
        return Operation.validated(record, self.domain) if validate_only else Operation.of(stored, self.domain)

    async def _insert(self, record: Record, within: Within | OpenTransaction | None, *, validate_only: bool) -> Record:
        try:
            limit = self.limits.pending_per_tenant
            stored = await self.store.insert(record, within, pending_limit=limit, validate_only=validate_only)
        except Unavailable as error:
            if record.request_id is not None or validate_only:
                raise  # the client repeats it under its own key
            try:
                return await self._lookup.find(record.name, "operations.get", ANYTHING)  # the outcome is unknown: look
            except NotFound:
                raise error from None
        if stored.name == record.name:
            return stored
        if stored.request_digest != record.request_digest:
            msg = f"requestId {record.request_id!r} was used for another request: use a new one"
            raise InvalidArgument(msg, reason="REQUEST_ID_REUSED", requestId=record.request_id or "")
        if stored.deleted_at is not None:
            msg = f"requestId {record.request_id!r} started an operation that was deleted: use a new one"
            raise InvalidArgument(msg, reason="REQUEST_ID_DELETED", requestId=record.request_id or "")
        return stored

    async def get(self, name: str, *, scope: Scope = ANYTHING) -> Operation:
        """Return an operation as it is now.

        Raises:
            NotFound: There is none of this name, or it was deleted.
        """
        return Operation.of(await self.get_record(name, scope=scope), self.domain)

    async def get_record(
        self, name: str, *, scope: Scope = ANYTHING, permission: Permission = "operations.get"
    ) -> Record:
        """Return the record behind `get`, for routes: a refusal names the permission."""
        return await self._lookup.find(name, permission, scope)

    async def list(
        self,
        parent: str = "",
        filter: str = "",  # noqa: A002 -- the field's name in ListOperationsRequest
        page_size: int = 0,
        page_token: str = "",
        *,
        scope: Scope = ANYTHING,
        principal: Principal | None = None,
    ) -> OperationPage:
        """Return a page of the operations of a parent, newest first.

        Each page looks at a bounded number of operations, so that one with a filter, or a scope, may be short or
        empty before the end.

        Args:
            parent: The resource that they belong to; "" for those without one.
            filter: Which of them, in the language of AIP-160, as in `done = true AND error:*`; "" for all.
            page_size: At most so many; 0 for 50; more than 1000 counts as 1000.
            page_token: From the page before; the other arguments but for page_size must be the same.
            scope: What the caller may see.
            principal: Who asks: a token is good for who got it only.

        Raises:
            InvalidArgument: page_size is negative, the filter is none, or page_token is not one of ours, expired,
                or another listing's.
        """
        if not -(2**31) <= page_size < 2**31 or page_size < 0:
            raise invalid("pageSize", "must be a 32-bit integer that is not negative")
        if not is_parent(parent):
            raise invalid("name", "must be the parent's resource name, as in projects/p/operations")
        limits = self.limits
        wanted = parse(filter, max_bytes=limits.filter, max_terms=limits.filter_terms, max_depth=limits.filter_depth)
        limit = min(page_size or limits.default_page_size, limits.page_size)
        who = principal or Principal()
        listing = (parent, filter, scope.owner, scope.tenant, who.id, who.tenant)
        tokens = PageTokens(await self.store.secret(), listing, self._clock, longest=limits.page_token)
        after = tokens.open(page_token) if page_token else None
        page = await self._lookup.list(PageQuery(parent, scope, limit, after, wanted))
        return OperationPage(
            [Operation.of(record, self.domain) for record in page.records],
            "" if page.after is None else tokens.seal(page.after),
        )

    async def cancel(
        self, name: str, *, reason: str | None = None, requester: str | None = None, scope: Scope = ANYTHING
    ) -> Operation:
        """Ask for an operation to be cancelled; the request is durable when this returns.

        It is a request: the job sees it at its next checkpoint, and may end naturally all the same. Asking
        again, or for an operation that has ended, changes nothing.

        Args:
            name: The operation.
            reason: The client's words, for the job and the metadata.
            requester: Who asks, for the metadata.
            scope: What the caller may touch.

        Raises:
            NotFound: There is none of this name, or it was deleted.
            Unimplemented: Its job can't be cancelled.
        """
        _check_text("reason", reason, self.limits.reason)
        transition = partial(lifecycle.request_cancel, reason=reason, requester=requester)
        return Operation.of(await self._lookup.update(name, transition, "operations.cancel", scope), self.domain)

    async def delete(self, name: str, *, scope: Scope = ANYTHING) -> None:
        """Forget an operation; one that has not ended is hidden, and goes on.

        Raises:
            NotFound: There is none of this name, or it was deleted before.
            FailedPrecondition: It has not ended, with delete_running="reject".
        """
        transition = partial(lifecycle.delete, reject_running=self._reject_running)
        await self._lookup.update(name, transition, "operations.delete", scope)

    async def wait(
        self,
        name: str,
        timeout: timedelta | None = None,
        *,
        principal: Principal | None = None,
        scope: Scope = ANYTHING,
    ) -> Operation:
        """Return the operation as soon as it is done, or as it is when the time is up.

        Args:
            name: The operation.
            timeout: How long at most; `limits.wait` if None or longer. May return earlier, and does so at once where
                too many wait already.
            principal: Who waits: one principal may not take all the places.
            scope: What the caller may see.

        Raises:
            NotFound: There is none of this name, or it is deleted meanwhile.
            InvalidArgument: The timeout is negative.
        """
        longest = self.limits.wait if timeout is None else min(timeout, self.limits.wait)
        if longest < timedelta(0):
            raise invalid("timeout", "must not be negative")
        client, seconds = principal or Principal(), longest.total_seconds()
        return Operation.of(await self._waits.until_done(name, seconds, "operations.wait", scope, client), self.domain)

    async def result(
        self,
        job: Job[Any, Any, ResultT],
        name: str,
        *,
        timeout: timedelta | None = None,  # Any: any such job
    ) -> ResultT:
        """Wait for an operation's end and return its result, typed.

        Args:
            job: The operation's job.
            name: The operation.
            timeout: How long at most; None for as long as it takes.

        Raises:
            OperationFailed: It ended in an error; OperationCancelled if that is CANCELLED.
            TimeoutError: It has not ended in this time.
            Unavailable: This service shuts down before the end.
            InvalidArgument: It is another job's.
            NotFound: There is none of this name.
        """
        with anyio.fail_after(None if timeout is None else timeout.total_seconds()):
            job_name = (await self.get_record(name)).job
            if job_name != job.name:
                msg = f"{name} is an operation of job {job_name}, not of {job.name}"
                raise InvalidArgument(msg, reason="WRONG_JOB", name=name, job=job_name)
            record = await self._waits.until_done(name, inf, "operations.get", ANYTHING, None)
        if not record.state.is_terminal:
            raise Unavailable(f"{name} has not ended, and this service shuts down", reason="SHUTTING_DOWN", name=name)
        operation = Operation.of(record, self.domain)
        if operation.error is not None:
            cancelled = operation.error.code is Code.CANCELLED
            raise (OperationCancelled if cancelled else OperationFailed)(name, operation.error)
        return job.result.load(record.response or "null")

    def begin_shutdown(self) -> None:
        """End all waits now, each with the current state, and let no new one wait until `resume`."""
        self._waits.begin_shutdown()

    def resume(self) -> None:
        """Let calls wait again: the service has been started anew."""
        self._waits.resume()


def _digest(asked: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _check_text(field: str, words: str | None, longest: int) -> None:
    if words is not None and (len(words) > longest or not is_text(words)):
        raise invalid(field, f"must be text of at most {longest} characters, without U+0000")
