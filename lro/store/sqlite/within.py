"""A caller's function in the transaction of a batch: it is lent the writer's connection, which comes back as it was.

Its rows stand in a savepoint, so that what it raises undoes them alone. It can't end the transaction, change
what the connection is set to, or leave a statement open: all who write after it would suffer.
"""

import sqlite3
from contextlib import suppress
from inspect import isasyncgen, isawaitable, iscoroutine, isgenerator
from typing import Any, NoReturn

from lro.store.base import Within
from lro.store.batch import TransactionEnded

__all__ = ["LendingConnection"]

_LOOKING = frozenset(
    {
        *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"),
        *("foreign_key_check", "integrity_check", "quick_check", "defer_foreign_keys"),
    }
)  # pragmas that take an argument and set nothing that lasts


class LendingConnection(sqlite3.Connection):
    """A connection that can be lent to a function."""

    _opened: list[sqlite3.Cursor | sqlite3.Blob] | None = None  # while it is lent: what was opened meanwhile

    def lend(self, within: Within) -> BaseException | None:
        """Call the function with this connection, in a savepoint of the open transaction.

        Returns what the function raised, its rows undone, or None.

        Raises:
            TransactionEnded: The whole transaction was rolled back; the cause is what the function raised.
            sqlite3.Error: The savepoint could not be made or left: that is none of the function's errors.
        """
        self.execute("SAVEPOINT lro_within")
        settings = {name: getattr(self, name) for name in ("row_factory", "text_factory", "isolation_level")}
        super().set_authorizer(_guard)
        self._opened = []
        raised: BaseException | None = None
        try:
            _expect_done(within(self), within)  # type: ignore[func-returns-value]  # that is the question
            self.check_transaction()
        except BaseException as error:
            raised = error
        self._take_back(settings)
        if raised is not None:
            if not self.in_transaction:
                raise TransactionEnded from raised
            self.execute("ROLLBACK TO lro_within")
        self.execute("RELEASE lro_within")
        return raised

    def _take_back(self, settings: dict[str, Any]) -> None:  # Any: as sqlite3 has them
        for name, value in settings.items():
            if getattr(self, name) is not value:
                with suppress(sqlite3.Error):  # a COMMIT comes with isolation_level, and is refused
                    setattr(self, name, value)
        for opened in self._opened or ():
            opened.close()
        self._opened = None
        super().set_authorizer(None)

    def check_transaction(self) -> None:
        """Refuse to go on outside the transaction.

        Raises:
            sqlite3.OperationalError: It is over: a statement of the function's rolled it back.
        """
        if self._opened is not None and not self.in_transaction:
            raise sqlite3.OperationalError("a statement rolled the whole transaction back")

    def cursor(self, *arguments: Any, **named: Any) -> Any:  # Any: as sqlite3 declares it, here and below
        """Return a cursor; while the connection is lent, one of ours, that is closed with the lending."""
        if self._opened is None:
            return super().cursor(*arguments, **named)
        if arguments or named:
            self._refuse("a cursor of another class")
        cursor = super().cursor(_LentCursor)
        self._opened.append(cursor)
        return cursor

    def execute(self, *arguments: Any) -> Any:
        """Execute a statement, on a cursor as above."""
        return super().execute(*arguments) if self._opened is None else self.cursor().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        """Execute a statement for many parameters, on a cursor as above."""
        return super().executemany(*arguments) if self._opened is None else self.cursor().executemany(*arguments)

    def executescript(self, *arguments: Any) -> Any:
        """Execute a script, unless the connection is lent: Python commits before it does."""
        return super().executescript(*arguments) if self._opened is None else self._refuse("executescript()")

    def blobopen(self, *arguments: Any, **named: Any) -> sqlite3.Blob:
        """Open a blob, which is closed with the lending."""
        self.check_transaction()
        blob = super().blobopen(*arguments, **named)
        if self._opened is not None:
            self._opened.append(blob)
        return blob

    def close(self) -> None:
        """Close the connection, unless it is lent."""
        if self._opened is not None:
            self._refuse("close()")
        super().close()

    def set_authorizer(self, *arguments: Any, **named: Any) -> None:  # Any: as sqlite3 declares it
        """Set the authorizer, unless the connection is lent."""
        if self._opened is not None:
            self._refuse("set_authorizer()")
        super().set_authorizer(*arguments, **named)

    def set_progress_handler(self, *arguments: Any, **named: Any) -> None:  # Any: as sqlite3 declares it
        """Set the progress handler, unless the connection is lent."""
        if self._opened is not None:
            self._refuse("set_progress_handler()")
        super().set_progress_handler(*arguments, **named)

    def _refuse(self, what: str) -> NoReturn:
        raise sqlite3.ProgrammingError(f"{what}: this connection is lent by lro's writer, and is not yours to change")


class _LentCursor(sqlite3.Cursor):
    """A cursor that goes on only inside the transaction: what is written outside would commit by itself."""

    def execute(self, *arguments: Any) -> Any:  # Any: as sqlite3 declares it, here and below
        self._check()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        self._check()
        return super().executemany(*arguments)

    def executescript(self, *arguments: Any) -> Any:
        return self.connection.executescript(*arguments)

    def _check(self) -> None:
        assert isinstance(self.connection, LendingConnection)
        self.connection.check_transaction()


def _expect_done(answer: object, within: Within) -> None:
    """Refuse a function that has not run when it returns: its rows would be missing, with the operation there."""
    if isawaitable(answer) or isgenerator(answer) or isasyncgen(answer):
        if iscoroutine(answer):
            answer.close()  # nobody awaits it
        msg = f"within={within!r} is an async function or a generator; use a plain function"
        raise TypeError(msg)


def _guard(action: int, what: str | None, value: str | None, *_: object) -> int:
    """Refuse the function what would outlast it; sqlite.org/c3ref/c_alter_table.html lists the actions."""
    match action:
        case sqlite3.SQLITE_TRANSACTION | sqlite3.SQLITE_ATTACH | sqlite3.SQLITE_DETACH:
            refused = True
        case sqlite3.SQLITE_CREATE_TEMP_TABLE | sqlite3.SQLITE_CREATE_TEMP_VIEW | sqlite3.SQLITE_CREATE_TEMP_TRIGGER:
            refused = True  # it stays with the connection, and may hide a table of the library's
        case sqlite3.SQLITE_SAVEPOINT:
            refused = (value or "").lower() == "lro_within"
        case sqlite3.SQLITE_PRAGMA:
            refused = value is not None and (what or "").lower() not in _LOOKING
        case _:
            refused = False
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK
