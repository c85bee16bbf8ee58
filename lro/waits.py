"""Waits: callers who stay until an operation is done, how many may, and how a shutdown sends them home.

A wait holds no connection and no transaction: it looks when it is told of a change, and once a second.
"""

from collections import Counter

import anyio

from lro.lifecycle import Record
from lro.limits import Limits
from lro.lookup import Lookup
from lro.principal import Permission, Principal, Scope

__all__ = ["Waits"]

LOOK_AGAIN = 1.0  # seconds between two looks of a wait that no hint reaches
NOBODY = Principal()


class Waits:
    """The waits of one process.

    Args:
        lookup: Finds what is waited for.
        limits: How many may wait.
    """

    def __init__(self, lookup: Lookup, limits: Limits) -> None:
        self._lookup = lookup
        self._limits = limits
        self._waiting: set[anyio.CancelScope] = set()
        self._clients: Counter[Principal] = Counter()
        self._shutting_down = False

    def __len__(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def begin_shutdown(self) -> None:
        """End all waits now, each with the state so far, and let no new one wait until `resume`."""
        self._shutting_down = True
        for scope in tuple(self._waiting):
            scope.cancel()

    def resume(self) -> None:
        """Let callers wait again."""
        self._shutting_down = False

    async def until_done(
        self, name: str, seconds: float, permission: Permission, scope: Scope, client: Principal | None
    ) -> Record:
        """Return the record once it is terminal, or as it is after so many seconds or at a shutdown.

        Args:
            name: The operation.
            seconds: How long at most.
            permission: What the caller needs.
            scope: What it may see.
            client: Whose wait it is. One too many is over at once, which the proto allows. None for code of the
                service's own, which has no such limit.
        """
        record = await self._lookup.find(name, permission, scope)
        if record.state.is_terminal or seconds <= 0 or self._shutting_down or self._is_full(client):
            return record
        with self._lookup.store.watch(name) as watch, anyio.move_on_after(seconds) as waiting:
            self._enter(waiting, client)
            try:
                record = await self._lookup.find(name, permission, scope)  # it may have ended before the watch began
                while not record.state.is_terminal:
                    told = await watch.changed(LOOK_AGAIN)
                    if told is None:
                        record = await self._lookup.find(name, permission, scope)
                    else:
                        record = self._lookup.seen(told, name, permission, scope)
            finally:
                self._leave(waiting, client)
        return record

    def _is_full(self, client: Principal | None) -> bool:
        if client is None:
            return False
        if self._clients.total() >= self._limits.waits:
            return True
        return client != NOBODY and self._clients[client] >= self._limits.waits_per_principal

    def _enter(self, waiting: anyio.CancelScope, client: Principal | None) -> None:
        self._waiting.add(waiting)
        if client is not None:
            self._clients[client] += 1

    def _leave(self, waiting: anyio.CancelScope, client: Principal | None) -> None:
        self._waiting.discard(waiting)
        if client is not None:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]
