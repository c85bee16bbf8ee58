"""Who calls, and what they may see: the two authorization hooks.

`authenticate` says who the caller is, `authorize` what part of the operations one call may touch. The
answer is a Scope, which becomes a condition of every look-up, so that a forgotten check finds nothing.
How permissions are kept is the service's own affair.
"""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lro.errors import PermissionDenied
from lro.lifecycle import Record

__all__ = ["ANYTHING", "AllowAnonymous", "Authorization", "Permission", "Principal", "Scope", "denied"]

Permission = Literal[
    "operations.create",
    "operations.get",
    "operations.list",
    "operations.cancel",
    "operations.delete",
    "operations.wait",
    "jobs.get",
    "jobs.list",
]
"""What a call needs: each method asks for one, and for no other (AIP-211)."""

MAX_PRINCIPAL = 512  # bytes of each of its two parts: they stand in every row and in an index


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller, as stamped on the operations that it starts.

    Attributes:
        id: Who it is, unique within the tenant; "" for nobody in particular.
        tenant: The customer that it belongs to; "" where there is only one.

    Raises:
        TypeError: One of the two is no text.
        ValueError: One is longer than 512 bytes, or holds what no database keeps.
    """

    id: str = ""
    tenant: str = ""

    def __post_init__(self) -> None:
        parts: dict[str, object] = {"id": self.id, "tenant": self.tenant}  # object: a hook need not be typed
        for what, value in parts.items():
            if not isinstance(value, str):
                msg = f"Principal: {what} must be text, not {type(value).__name__}"
                raise TypeError(msg)
            try:
                fits = len(value.encode()) <= MAX_PRINCIPAL and "\0" not in value
            except UnicodeEncodeError:  # half of a surrogate pair
                fits = False
            if not fits:
                msg = f"Principal: {what} must be text of at most {MAX_PRINCIPAL} bytes, without U+0000"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Scope:
    """The operations that one call may touch; None for no condition.

    Attributes:
        owner: Only those that this principal id started.
        tenant: Only those of this tenant.
    """

    owner: str | None = None
    tenant: str | None = None

    def covers(self, record: Record) -> bool:
        """Return whether the call may touch this operation."""
        return self.owner in (None, record.owner) and self.tenant in (None, record.tenant)

    @property
    def is_limited(self) -> bool:
        """True if there are operations that it does not cover."""
        return self.owner is not None or self.tenant is not None


ANYTHING = Scope()
"""The scope without a condition."""


def denied(permission: Permission, resource: str) -> PermissionDenied:
    """Return what a caller hears who may not do this; it does not tell whether there is such a resource (AIP-211)."""
    msg = f"Permission '{permission}' denied on resource '{resource}' (or it might not exist)."
    return PermissionDenied(msg, permission=permission, name=resource)


class Authorization(Protocol):
    """The two hooks that `auth=` takes; each may be async or not.

    They are asked before anything else of a call is looked at. An exception in either denies the call: an LROError as
    what it says, any other as UNAVAILABLE, and so does an answer that is none of those below.
    """

    def authenticate(self, request: Any, /) -> Principal | Awaitable[Principal | None] | None:  # Any: see below
        """Say who calls; None for nobody known, which is answered with 401.

        Args:
            request: The starlette.requests.Request; this room does not know Starlette.
        """

    def authorize(
        self, principal: Principal, permission: Permission, resource: str, /
    ) -> Scope | Awaitable[Scope | None] | None:
        """Say what part of the operations the call may touch; None to refuse it.

        Args:
            principal: Who calls.
            permission: What it needs.
            resource: The operation's name, which may be of no operation; the parent for list; `jobs/{job}` for create
                and for a job, `jobs` for all of them.
        """


class AllowAnonymous:
    """Let everybody do everything: for a service behind one that checks, and for trying out."""

    def authenticate(self, request: object, /) -> Principal:
        """Return the nameless principal."""
        return Principal()

    async def authorize(self, principal: Principal, permission: Permission, resource: str, /) -> Scope:
        """Return the scope without a condition."""
        return ANYTHING
