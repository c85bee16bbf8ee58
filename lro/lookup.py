"""Look-ups: how the API side finds what a caller names, and what it hears where it may not.

Every look-up names the scope of its caller and the permission that it needs. `Operations` reaches records through this
room alone, which a test holds it to, so that no method can forget the check. Foreign, deleted, expired and missing
operations are one and the same to a caller who may not see all of them (AIP-211).
"""

from typing import Literal, get_args

from lro.errors import LROError, NotFound
from lro.lifecycle import Facts, Record, Transition
from lro.principal import Permission, Scope, denied
from lro.resource import parse_name
from lro.store import Page, PageQuery, Store

__all__ = ["Conceal", "Lookup"]

Conceal = Literal["permission_denied", "not_found"]
"""As what an operation is refused that its caller may not touch, and one that is missing, to the same caller."""


class Lookup:
    """Finds records for callers.

    Args:
        store: Where the records are.
        conceal: See Conceal.

    Raises:
        ValueError: `conceal` is neither of the two.
    """

    def __init__(self, store: Store, conceal: Conceal) -> None:
        if conceal not in get_args(Conceal):
            msg = f"conceal={conceal!r}: use {' or '.join(map(repr, get_args(Conceal)))}"
            raise ValueError(msg)
        self.store = store
        self._conceal = conceal

    async def find(self, name: str, permission: Permission, scope: Scope) -> Record:
        """Return the record of this name.

        Raises:
            NotFound, PermissionDenied: The caller can't see one.
        """
        record = await self.store.get(name) if parse_name(name) is not None else None
        return self.seen(record, name, permission, scope)

    async def update(self, name: str, transition: Transition, permission: Permission, scope: Scope) -> Record:
        """Apply a transition to the record of this name.

        Raises:
            NotFound, PermissionDenied: The caller can't see one.
            LROError: What the transition raises.
        """
        if parse_name(name) is None:
            raise self.refusal(name, permission, scope)

        def visible(record: Record, facts: Facts) -> Record:
            return transition(self.seen(record, name, permission, scope), facts)

        try:
            return await self.store.update(name, visible)
        except NotFound:
            raise self.refusal(name, permission, scope) from None

    async def list(self, query: PageQuery) -> Page:
        """Return the records of a page; the query has the scope."""
        return await self.store.list(query)

    def seen(self, record: Record | None, name: str, permission: Permission, scope: Scope) -> Record:
        """Return the record if the caller may see it.

        Raises:
            NotFound, PermissionDenied: It may not, or there is none.
        """
        if record is not None and record.deleted_at is None and scope.covers(record):
            return record
        raise self.refusal(name, permission, scope)

    def refusal(self, name: str, permission: Permission, scope: Scope | None) -> LROError:
        """Return what a caller hears who can't see an operation; a scope of None is a call that was denied whole."""
        if self._conceal == "permission_denied" and (scope is None or scope.is_limited):
            return denied(permission, name)
        return NotFound(f"There is no operation {name}: it never was, has expired, or was deleted", name=name)
