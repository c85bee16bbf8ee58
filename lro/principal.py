"""Who calls, and what they may see: the two authorization hooks.

`authenticate` says who the caller is, `authorize` what part of the operations one call may touch. The
answer is a Scope, which becomes a condition of every look-up, so that a forgotten check finds nothing.
How permissions are kept is the service's own affair.
"""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

from lro.lifecycle import Record

__all__ = ["ANYTHING", "AllowAnonymous", "Authorization", "Principal", "Scope"]


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller, as stamped on the operations that it starts.

    Attributes:
        id: Who it is, unique within the tenant; "" for nobody in particular.
        tenant: The customer that it belongs to; "" where there is only one.
    """

    id: str = ""
    tenant: str = ""


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


class Authorization(Protocol):
    """The two hooks that `auth=` takes.

    An exception in either denies the call: an LROError as what it says, any other as UNAVAILABLE.
    """

    def authenticate(self, request: Any, /) -> Principal | Awaitable[Principal | None] | None:  # Any: see below
        """Say who calls; None for nobody known, which is answered with 401. May be async.

        Args:
            request: The starlette.requests.Request; this room does not know Starlette.
        """

    async def authorize(self, principal: Principal, permission: str, resource: str, /) -> Scope | None:
        """Say what part of the operations the call may touch; None to refuse it with 403.

        Args:
            principal: Who calls.
            permission: `operations.create`, `.get`, `.list`, `.cancel`, `.delete` or `.wait`.
            resource: The operation's name; the parent for list; the job's name for create.
        """
        ...


class AllowAnonymous:
    """Let everybody do everything: for a service behind one that checks, and for trying out."""

    def authenticate(self, request: object, /) -> Principal:
        """Return the nameless principal."""
        return Principal()

    async def authorize(self, principal: Principal, permission: str, resource: str, /) -> Scope:
        """Return the scope without a condition."""
        return ANYTHING
