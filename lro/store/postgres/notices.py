"""Notices: hints between the processes of one database, by LISTEN and NOTIFY.

After a commit, and in a transaction of its own (a NOTIFY in it would make all that commit queue up behind each other),
a store tells the names of what has changed; what comes up while one telling is under way goes with the next. Who hears
of a name that matters to it reads the record, once for all its own waiters. A notice may be lost: whoever waits also
looks by itself. After a lost connection it is tried again for ever.
"""

import json
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
from psycopg import Error

from lro.lifecycle import Record, State
from lro.store.postgres import statements as sql
from lro.store.postgres.connections import Connections, bounded, connect, execute

__all__ = ["Notices"]

log = logging.getLogger(__name__)

LONGEST = 7900  # bytes of a payload; the server takes 7,999
QUIET = 15.0  # seconds without a notice after which it is asked whether the connection still lives
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds from one try to connect to the next


class Notices:
    """What one store tells others, and hears from them.

    Args:
        conninfo: Where to listen: past a pooler that hands out connections by the transaction.
        patience: Seconds that the server may take.
        connections: Where to tell.
        heard: Called with the names that others have changed: those that matter to workers, and all others.
        unknown: Called when anything may have changed.
    """

    def __init__(
        self,
        conninfo: str,
        patience: float,
        connections: Connections,
        heard: Callable[[Sequence[str], Sequence[str]], Awaitable[None]],
        unknown: Callable[[], None],
    ) -> None:
        self._conninfo = conninfo
        self._patience = patience
        self._connections = connections
        self._heard = heard
        self._unknown = unknown
        self._id = secrets.token_hex(8)
        self._urgent: dict[str, None] = {}
        self._others: dict[str, None] = {}
        self._wake = anyio.Event()

    def tell(self, written: Sequence[Record]) -> None:
        """Have others told of what was committed."""
        urgent, others = _sorted(written)
        if urgent or others:
            self._urgent |= dict.fromkeys(urgent)
            self._others |= dict.fromkeys(others)
            self._wake.set()

    def herald(self, record: Record) -> str:
        """Return the notice of one record, for a transaction of somebody else's."""
        return json.dumps(["", [record.name], []])

    async def keep_telling(self) -> None:
        """Tell others, for ever."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            urgent, self._urgent = list(self._urgent), {}
            others, self._others = list(self._others), {}
            try:
                async with self._connections.lend(anyio.current_time() + self._patience) as connection:
                    await execute(connection, sql.NOTIFY, (list(self._payloads(urgent, others)),))
            except (Error, OSError) as error:
                log.debug("others were not told: %s", error)

    def _payloads(self, urgent: list[str], others: list[str]) -> Iterable[str]:
        kinds: tuple[list[str], list[str]] = ([], [])
        length = len(self._id) + 20
        for number, names in enumerate((urgent, others)):
            for name in names:
                longer = len(json.dumps(name)) + 2
                if length + longer > LONGEST:
                    yield json.dumps([self._id, *kinds])
                    kinds = ([], [])
                    length = len(self._id) + 20
                kinds[number].append(name)
                length += longer
        yield json.dumps([self._id, *kinds])

    async def keep_listening(self) -> None:
        """Hear from others, for ever."""
        wait = FIRST_WAIT
        while True:
            began = anyio.current_time()
            try:
                await self._listen()
            except (Error, OSError) as error:
                if anyio.current_time() - began > LONGEST_WAIT:
                    wait = FIRST_WAIT
                log.info("notices are not heard, and changes found by looking; next try in %.1f s: %s", wait, error)
            await anyio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 -- so that not all come back at once
            wait = min(wait * 2, LONGEST_WAIT)

    async def _listen(self) -> None:
        with anyio.fail_after(self._patience):
            connection = await connect(self._conninfo)
        try:
            with bounded(connection, anyio.current_time() + self._patience):
                await execute(connection, sql.LISTEN)
            self._unknown()  # what has come since the last connection was lost
            while True:
                urgent: list[str] = []
                others: list[str] = []
                quiet = True
                async for notice in connection.notifies(timeout=QUIET, stop_after=1):
                    quiet = False
                    self._read(notice.payload, urgent, others)
                if quiet:
                    with bounded(connection, anyio.current_time() + self._patience):
                        await execute(connection, sql.ALIVE)
                elif urgent or others:
                    await self._heard(urgent, others)
        finally:
            with anyio.CancelScope(shield=True):
                await connection.close()

    def _read(self, payload: str, urgent: list[str], others: list[str]) -> None:
        try:
            sender, first, second = json.loads(payload)
        except ValueError:
            return  # somebody else's word on this channel
        if sender != self._id:
            urgent += first
            others += second


def _sorted(written: Sequence[Record]) -> tuple[list[str], list[str]]:
    """Part what workers need to know from what only concerns who waits for it.

    One record that waits to be run is enough for each job: who claims takes what there is.
    """
    urgent: list[str] = []
    others: list[str] = []
    told: set[tuple[str, State]] = set()
    for record in written:
        if record.state is State.RUNNING:
            (urgent if record.cancel_due else others).append(record.name)
        elif (record.job, record.state) in told:
            others.append(record.name)
        else:
            told.add((record.job, record.state))
            urgent.append(record.name)
    return urgent, others
