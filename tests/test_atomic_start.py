"""`operations.start(..., within=fn)`: rows of one's own and the operation, one commit; whatever the function does.

The first half kills real processes; the second asks in process what a function may do and whom it harms.
"""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
from pydantic import BaseModel

from lro import Context, Operation, Operations, State, Worker, job
from lro.errors import InvalidArgument, StoreClosed, Unavailable
from lro.store import open_store
from lro.store.base import Within
from lro.store.sqlite import SQLiteStore
from tests.apps.atomic import (
    CALLERS,
    FILE,
    LOG,
    ROWS,
    TABLES,
    adding,
    adding_much,
    enforce_foreign_keys,
    executing,
    print_book,
    trace,
)
from tests.jobs import PATIENCE, ended
from tests.servers import REPOSITORY

FRAME_HEADER, PAGE, WAL_HEADER = 24, 4096, 32  # bytes, sqlite.org/fileformat2.html#walformat

# Kills


class Run(NamedTuple):
    """What a killed process left, as the next one to open its file finds it."""

    folder: Path
    told: list[str]
    rows: Counter[str]  # by caller
    operations: dict[str, str]  # names by caller
    log_size: int  # bytes of the write-ahead log, as the process left it

    @property
    def acknowledged(self) -> dict[str, str]:
        return {caller: name for what, caller, name in map(_words, self.told) if what == "ack"}

    @property
    def last(self) -> str:
        """What the process was about to do when it was killed."""
        return self.told[-1]


def _words(line: str) -> tuple[str, str, str]:
    what, caller, name, *_ = [*line.split(), "", ""]
    return what, caller, name


def play(folder: Path, scenario: str) -> list[Run]:
    """Run a scenario, killed once at each of its statements, and return what all its runs left."""
    command = [sys.executable, "-m", "tests.apps.atomic", str(folder), scenario]
    subprocess.run(command, cwd=REPOSITORY, timeout=100, check=True)
    return [look(run) for run in sorted(folder.glob("[0-9]*"))]


def look(folder: Path) -> Run:
    """Open the file as a new process would, and check all that must hold whenever the old one was killed."""
    log, wal = folder / LOG, folder / f"{FILE}-wal"
    log_size = wal.stat().st_size if wal.exists() else 0
    with closing(sqlite3.connect(folder / FILE)) as connection:
        rows = Counter(
            caller for (caller,) in connection.execute("SELECT caller FROM books UNION ALL SELECT caller FROM chapters")
        )
        named = connection.execute("SELECT target, name FROM operations WHERE target <> ''").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    run = Run(folder, log.read_text().splitlines() if log.exists() else [], rows, dict(named), log_size)
    assert len(named) == len(run.operations), "a caller has two operations"
    assert set(rows) == set(run.operations), f"rows or operations without the others: {folder}"
    for caller, name in run.acknowledged.items():
        assert run.operations.get(caller) == name, f"an acknowledged start is lost: {folder}"
    return run


def kinds(run: Run) -> list[str]:
    """Return the first words of the statements that a run carried out, or was about to."""
    return [line.split()[1] for line in run.told if line.startswith("at ")]


def test_killed_at_any_statement_of_a_start_the_rows_and_the_operation_are_both_there_or_neither(
    tmp_path: Path,
) -> None:
    *killed, through, unanswered = play(tmp_path, "one")
    assert through.last == "through"
    expected = ["BEGIN", "SELECT", "SELECT", "SELECT", "SAVEPOINT", "INSERT", "INSERT", "RELEASE", "INSERT", "COMMIT"]
    assert kinds(through) == expected
    assert [kinds(run)[-1] for run in killed] == kinds(through), "not each statement had its kill"
    for run in killed:
        assert not run.acknowledged
        assert not run.operations, f"there before the commit: {run.last}"
    for run in (through, unanswered):
        assert run.rows == {"one": ROWS}
    assert set(through.acknowledged) == {"one"}
    assert not unanswered.acknowledged, "it was killed between the commit and the answer"


def test_killed_at_any_statement_of_a_batch_all_its_starts_are_there_or_none(tmp_path: Path) -> None:
    *killed, through, unanswered = play(tmp_path, "batch")
    assert kinds(through).count("BEGIN") == 1, "they were not one batch"
    assert [kinds(run)[-1] for run in killed] == kinds(through)
    for run in killed:
        assert not run.operations, f"there before the commit: {run.last}"
    assert kinds(through).count("ROLLBACK") == 1, "to the savepoint"
    good = [f"{number}" for number in range(CALLERS) if number != 2]
    for run in (through, unanswered):
        assert run.rows == dict.fromkeys(good, ROWS), "the one that failed undoes its own rows and no others"
    assert sorted(through.acknowledged) == good
    assert not unanswered.acknowledged


def test_killed_while_a_batch_is_redone_singly_each_start_is_whole_or_absent(tmp_path: Path) -> None:
    *killed, through, unanswered = play(tmp_path, "lost")
    good = [f"{number}" for number in range(CALLERS) if number != 2]
    assert kinds(through).count("BEGIN") == 1 + CALLERS
    assert [kinds(run)[-1] for run in killed] == kinds(through)
    for run in killed:
        committed = max(0, kinds(run)[:-1].count("COMMIT") - 1)  # the first was refused, and the one of caller 2
        assert sorted(run.operations) == [caller for caller in good if int(caller) < committed]
    for run in (through, unanswered):
        assert run.rows == dict.fromkeys(good, ROWS), "only the one that breaks the constraint fails"
    assert sorted(through.acknowledged) == good


def test_killed_with_half_of_a_large_start_in_the_file_nothing_of_it_is_there(tmp_path: Path) -> None:
    *killed, through, unanswered = play(tmp_path, "large")
    assert "at a step" in [run.last for run in killed], "none was killed in the middle of a statement"
    commit = next(run for run in killed if run.last == "at COMMIT")
    assert commit.log_size > 4_000_000, "it was not large enough to reach the file before the commit"
    for run in killed:
        assert not run.operations
    assert through.rows == unanswered.rows
    assert set(through.operations) == {"large"}


def test_a_commit_torn_at_any_byte_left_all_of_the_batch_or_nothing(tmp_path: Path) -> None:
    """What a kill between two writes of one COMMIT leaves: a part of what it appends to the write-ahead log."""
    command = [sys.executable, "-m", "tests.apps.atomic", str(tmp_path), "batch", "unanswered"]
    subprocess.run(command, cwd=REPOSITORY, timeout=60, check=True)
    (run,) = tmp_path.glob("[0-9]*")
    log = (run / f"{FILE}-wal").read_bytes()
    frame = FRAME_HEADER + PAGE
    frames, rest = divmod(len(log) - WAL_HEADER, frame)
    assert frames > 4
    assert rest == 0
    cuts = sorted(
        {
            min(WAL_HEADER + number * frame + more, len(log))
            for number in range(frames + 1)
            for more in (0, 1, FRAME_HEADER, frame // 2, frame - 1)
        }
        | {0, WAL_HEADER - 1}
    )
    seen: list[int] = []
    for number, cut in enumerate(cuts):
        torn = tmp_path / f"torn{number}"
        torn.mkdir()
        shutil.copy(run / FILE, torn)
        (torn / f"{FILE}-wal").write_bytes(log[:cut])
        found = look(torn)
        assert len(found.operations) in (0, CALLERS - 1), f"cut at {cut} of {len(log)}"
        assert set(found.rows.values()) <= {ROWS}
        seen.append(len(found.operations))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, CALLERS - 1)


def test_killed_under_load_each_start_is_whole_or_absent(tmp_path: Path) -> None:
    runs = play(tmp_path, "many")
    assert len(runs) >= 10
    for run in runs:
        assert set(run.rows.values()) <= {ROWS}
        for caller in run.operations:
            who, number = map(int, caller.split("."))
            assert (who + number) % 5, "its function failed"
    assert sum(len(run.acknowledged) for run in runs) > 200
    assert any(len(kinds(run)) > kinds(run).count("BEGIN") * 20 for run in runs), "they were no batches"


async def test_the_library_opens_what_a_killed_process_left_and_goes_on(tmp_path: Path) -> None:
    for run in play(tmp_path, "batch"):
        async with open_store(f"sqlite:///{run.folder / FILE}") as store:
            operations = Operations(store)
            assert {one.name: one for one in (await operations.list()).operations}.keys() >= set(
                run.operations.values()
            )
            for number in (0, 2):  # what is there is found by its request id; what is not may be asked again
                caller = f"{number}"
                again = await operations.start(print_book, request_id=caller, target=caller, within=adding(caller))
                assert run.operations.get(caller, again.name) == again.name
        assert look(run.folder).rows.keys() >= {"0", "2"}
        assert set(look(run.folder).rows.values()) == {ROWS}


# What a function may do, and whom it harms


class Shop(NamedTuple):
    """An open store with tables of the application's own, and a second look at its file."""

    store: SQLiteStore
    operations: Operations
    path: Path

    async def start(self, caller: str, within: Within) -> Operation:
        return await self.operations.start(print_book, target=caller, within=within)

    async def at_once(self, **callers: Within) -> dict[str, Operation | BaseException]:
        """Start for all callers in one batch, and return what each one got."""
        answers: dict[str, Operation | BaseException] = {}

        async def one(caller: str, within: Within) -> None:
            try:
                answers[caller] = await self.start(caller, within)
            except BaseException as error:
                answers[caller] = error

        with anyio.fail_after(PATIENCE * 2):
            async with anyio.create_task_group() as group:
                for caller, within in callers.items():
                    group.start_soon(one, caller, within)
        return answers

    def there(self) -> set[str]:
        """Return the callers whose rows and operations are there, and check that none has one without the other."""
        with closing(sqlite3.connect(self.path)) as connection:
            rows = {caller for (caller,) in connection.execute("SELECT caller FROM books")}
            started = {caller for (caller,) in connection.execute("SELECT target FROM operations WHERE target <> ''")}
        assert rows == started, "rows or operations without the others"
        return rows


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    path = tmp_path / "shop.db"
    async with open_store(f"sqlite:///{path}") as store:
        assert isinstance(store, SQLiteStore)
        operations = Operations(store)
        await operations.start(print_book, within=executing(*TABLES))
        yield Shop(store, operations, path)


def add(connection: sqlite3.Connection, caller: str) -> None:
    connection.execute("INSERT INTO books (caller) VALUES (?)", (caller,))


def good(*callers: str) -> dict[str, Within]:
    return {caller: adding(caller) for caller in callers}


async def test_what_a_function_raises_undoes_its_own_rows_and_no_others_of_its_batch(shop: Shop) -> None:
    told: list[str] = []
    await trace(shop.store, told.append)
    errors = {f"{number:02}": ArithmeticError(number) for number in range(0, 40, 3)}
    callers = [f"{number:02}" for number in range(40)]
    answers = await shop.at_once(**{caller: adding(caller, error=errors.get(caller)) for caller in callers})
    assert told.count("BEGIN IMMEDIATE") == told.count("COMMIT") == 1, "they were not one batch"
    for caller in callers:
        assert answers[caller] is errors[caller] if caller in errors else isinstance(answers[caller], Operation)
    assert shop.there() == set(callers) - errors.keys()


def leave_block(connection: sqlite3.Connection) -> None:
    with connection:
        add(connection, "guilty")


def leave_block_by_error(connection: sqlite3.Connection) -> None:
    with connection:
        add(connection, "guilty")
        raise ArithmeticError


ENDINGS: dict[str, Callable[[sqlite3.Connection], object]] = {
    "commit()": sqlite3.Connection.commit,
    "rollback()": sqlite3.Connection.rollback,
    "own commit()": lambda connection: connection.commit(),
    "with connection": leave_block,
    "with connection, by an error": leave_block_by_error,
    "executescript": lambda connection: connection.executescript("DELETE FROM books; COMMIT;"),
    "isolation_level": lambda connection: setattr(connection, "isolation_level", None),
    "COMMIT": executing("COMMIT"),
    "END in a comment's shadow": executing("/* nothing */ END TRANSACTION"),
    "ROLLBACK": executing("ROLLBACK"),
    "BEGIN": executing("BEGIN"),
    "BEGIN IMMEDIATE": executing("BEGIN IMMEDIATE"),
    "VACUUM": executing("VACUUM"),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_function_that_ends_the_transaction_is_refused_and_harms_nobody(shop: Shop, ending: str) -> None:
    def end(connection: sqlite3.Connection) -> None:
        add(connection, "guilty")
        ENDINGS[ending](connection)

    answers = await shop.at_once(**good("before"), guilty=end, **good("after"))
    assert isinstance(answers["guilty"], sqlite3.Error), answers["guilty"]
    assert shop.there() == {"before", "after"}
    await shop.start("later", adding("later"))
    assert shop.there() == {"before", "after", "later"}
    assert shop.store.ready


@pytest.mark.parametrize("ending", ENDINGS)
async def test_one_that_goes_on_after_that_refusal_is_still_whole_or_absent(shop: Shop, ending: str) -> None:
    def end(connection: sqlite3.Connection) -> None:
        add(connection, "guilty")
        with suppress(sqlite3.Error, ArithmeticError):
            ENDINGS[ending](connection)
        add(connection, "guilty")

    await shop.at_once(**good("before"), guilty=end, **good("after"))
    assert shop.there() >= {"before", "after"}


async def librarys_savepoint(shop: Shop) -> str:
    """Return what the library calls its own."""
    told: list[str] = []
    await trace(shop.store, told.append)
    await shop.start("keeper", adding("keeper"))
    return next(statement.split()[1] for statement in told if statement.startswith("SAVEPOINT"))


@pytest.mark.parametrize("raises", [True, False])
async def test_a_savepoint_of_any_name_leaves_its_caller_whole_or_absent(shop: Shop, raises: bool) -> None:
    """Refused it may be: of the name that the library uses itself."""
    library = await librarys_savepoint(shop)

    def save(connection: sqlite3.Connection) -> None:
        for name in ("mine", library, library.upper()):
            add(connection, "guilty")
            connection.execute(f"SAVEPOINT {name}")
            add(connection, "guilty")
            connection.execute(f"ROLLBACK TO {name}")
            connection.execute(f"SAVEPOINT {name}")
        if raises:
            raise ArithmeticError

    answers = await shop.at_once(**good("before"), guilty=save, **good("after"))
    assert isinstance(answers["guilty"], BaseException) or not raises
    assert shop.there() >= {"before", "after"}


@pytest.mark.parametrize("statement", ["RELEASE", "ROLLBACK TO"])
async def test_the_librarys_own_savepoint_is_not_the_functions_to_end(shop: Shop, statement: str) -> None:
    library = await librarys_savepoint(shop)

    def end(connection: sqlite3.Connection) -> None:
        add(connection, "guilty")
        connection.execute(f"{statement} {library}")
        add(connection, "guilty")

    await shop.at_once(**good("before"), guilty=end, **good("after"))
    assert shop.there() >= {"before", "after"}


def roll_back_all(connection: sqlite3.Connection) -> None:
    """Break a constraint in a way that makes SQLite end the whole transaction by itself."""
    connection.execute("INSERT INTO books (id, caller) VALUES (-1, 'guilty')")
    connection.execute("INSERT OR ROLLBACK INTO books (id, caller) VALUES (-1, 'guilty')")


@pytest.mark.parametrize("caught", [True, False])
async def test_a_statement_that_rolls_everything_back_fails_only_its_caller(shop: Shop, caught: bool) -> None:
    def end(connection: sqlite3.Connection) -> None:
        with suppress(*([sqlite3.Error] if caught else [])):
            roll_back_all(connection)

    answers = await shop.at_once(**good("before"), guilty=end, **good("after"))
    assert isinstance(answers["guilty"], sqlite3.Error)
    assert shop.there() == {"before", "after"}


ADD = "INSERT INTO books (caller) VALUES ('guilty')"
WRITES: dict[str, Callable[[sqlite3.Connection], object]] = {
    "execute": lambda connection: connection.execute(ADD),
    "executemany": lambda connection: connection.executemany("INSERT INTO books (caller) VALUES (?)", [("guilty",)]),
    "executescript": lambda connection: connection.executescript(f"{ADD};"),
    "a cursor of its own class": lambda connection: connection.cursor(sqlite3.Cursor).execute(ADD),
    "a cursor's executescript": lambda connection: connection.cursor().executescript(f"{ADD};"),
    "a nested transaction": lambda connection: connection.executescript(f"SAVEPOINT mine; {ADD}; RELEASE mine;"),
}


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("write", WRITES)
async def test_one_that_writes_on_after_everything_was_rolled_back_leaves_no_rows(
    shop: Shop, write: str, raises: bool
) -> None:
    def go_on(connection: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):
            roll_back_all(connection)
        WRITES[write](connection)  # in no transaction any more
        if raises:
            raise ArithmeticError

    answers = await shop.at_once(**good("before"), guilty=go_on, **good("after"))
    assert isinstance(answers["guilty"], BaseException)
    assert shop.there() == {"before", "after"}


class Mute(BaseException):
    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()]),
        Mute(),
        MemoryError(),
        RecursionError(),
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.IntegrityError("mine"),
        StoreClosed(),
        Unavailable("mine"),
        StopAsyncIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_of_any_kind_comes_out_as_it_is_and_fails_only_its_caller(
    shop: Shop, error: BaseException
) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        add(connection, "guilty")
        raise error

    answers = await shop.at_once(**good("before"), guilty=fail, **good("after"))
    assert answers["guilty"] is error
    assert shop.there() == {"before", "after"}
    assert shop.store.ready
    assert not shop.store._supervisor.failures


async def test_a_stop_iteration_fails_only_its_caller(shop: Shop) -> None:
    """It comes out as Python turns it, which lets none leave a coroutine."""
    answers = await shop.at_once(**good("before"), guilty=lambda _: next(iter(())), **good("after"))
    assert isinstance(answers["guilty"], RuntimeError)
    assert isinstance(answers["guilty"].__cause__, StopIteration)
    assert shop.there() == {"before", "after"}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_an_async_function_is_refused(shop: Shop) -> None:
    """Nobody would await it: its rows would be missing while the operation is there."""

    async def add_later(connection: sqlite3.Connection) -> None:
        add(connection, "guilty")

    answers = await shop.at_once(**good("before"), guilty=add_later, **good("after"))  # type: ignore[arg-type]
    assert isinstance(answers["guilty"], TypeError)
    assert shop.there() == {"before", "after"}


async def test_a_generator_function_is_refused(shop: Shop) -> None:
    """Like an async one: nothing of it would be run."""

    def add_perhaps(connection: sqlite3.Connection) -> Iterator[None]:
        add(connection, "guilty")
        yield

    answers = await shop.at_once(**good("before"), guilty=add_perhaps, **good("after"))  # type: ignore[arg-type]
    assert isinstance(answers["guilty"], TypeError)
    assert shop.there() == {"before", "after"}


async def test_a_function_reads_what_was_committed_and_what_it_has_written_itself(shop: Shop) -> None:
    await shop.start("first", adding("first"))
    with closing(sqlite3.connect(shop.path)) as other, other:
        other.execute("INSERT INTO chapters VALUES ('other', 1)")  # of another connection, as of another process
    seen: dict[str, object] = {}

    def look_around(connection: sqlite3.Connection) -> None:
        add(connection, "second")
        seen["books"] = connection.execute("SELECT caller FROM books ORDER BY id").fetchall()
        seen["chapters"] = connection.execute("SELECT caller FROM chapters").fetchall()
        seen["operations"] = connection.execute("SELECT target, state FROM operations WHERE target <> ''").fetchall()
        with closing(sqlite3.connect(shop.path)) as outside:
            seen["outside"] = outside.execute("SELECT caller FROM books").fetchall()

    await shop.start("second", look_around)
    assert seen == {
        "books": [("first",), ("second",)],
        "chapters": [("first",), ("other",)],
        "operations": [("first", "PENDING")],  # not its own: that is written after it
        "outside": [("first",)],  # nobody else sees its rows before the commit
    }


async def test_a_function_may_change_delete_and_define(shop: Shop) -> None:
    await shop.at_once(**good("one", "two", "three"))

    def rewrite(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE shelves (name TEXT)")
        connection.executemany("INSERT INTO shelves VALUES (?)", [("a",), ("b",)])
        assert connection.execute("DELETE FROM chapters").rowcount == 3
        assert connection.execute("UPDATE books SET text = 'x' RETURNING id").fetchall() == [(1,), (2,), (3,)]
        connection.execute("ALTER TABLE books ADD COLUMN year INTEGER DEFAULT 1926")
        add(connection, "four")

    def undone(connection: sqlite3.Connection) -> None:
        rewrite(connection)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await shop.start("four", undone)
    assert shop.there() == {"one", "two", "three"}
    await shop.start("four", rewrite)
    with closing(sqlite3.connect(shop.path)) as connection:
        assert connection.execute("SELECT COUNT(*), MIN(year) FROM books").fetchone() == (4, 1926)
        assert connection.execute("SELECT COUNT(*) FROM chapters").fetchone() == (0,)
        assert connection.execute("SELECT COUNT(*) FROM shelves").fetchone() == (2,)


async def test_a_repeated_request_does_not_call_its_function_again(shop: Shop) -> None:
    calls: list[str] = []

    async def start(call: str, *, target: str = "x") -> Operation:
        def within(connection: sqlite3.Connection) -> None:
            calls.append(call)
            add(connection, target)

        return await shop.operations.start(print_book, request_id="1", target=target, within=within)

    names: set[str] = set()

    async def note(call: str) -> None:
        names.add((await start(call)).name)

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(note, f"{number}")
    assert len(calls) == len(names) == 1
    await note("again")
    with pytest.raises(InvalidArgument, match="used for another request"):
        await start("other", target="y")
    await shop.operations.delete(*names)
    with pytest.raises(InvalidArgument, match="deleted"):
        await start("deleted")
    assert len(calls) == len(names) == 1
    assert shop.there() == {"x"}


async def test_a_request_whose_function_failed_may_be_repeated(shop: Shop) -> None:
    start = partial(shop.operations.start, print_book, request_id="1", target="x")
    with pytest.raises(ArithmeticError):
        await start(within=adding("x", error=ArithmeticError()))
    assert shop.there() == set()
    await start(within=adding("x"))
    assert shop.there() == {"x"}


async def test_a_large_write_is_whole_or_absent_like_a_small_one(shop: Shop) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        adding_much("guilty", 5_000)(connection)
        raise ArithmeticError

    answers = await shop.at_once(**good("before"), guilty=fail, large=adding_much("large", 5_000), **good("after"))
    assert isinstance(answers["guilty"], ArithmeticError)
    assert shop.there() == {"before", "large", "after"}
    with closing(sqlite3.connect(shop.path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM books").fetchone() == (5_003,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_constraint_that_the_commit_looks_at_fails_only_who_breaks_it(shop: Shop) -> None:
    await enforce_foreign_keys(shop.store)
    told: list[str] = []
    await trace(shop.store, told.append)
    answers = await shop.at_once(
        **good("a", "b"), guilty=adding("guilty", lost=True), **good("c"), other=adding("other", lost=True)
    )
    assert told[: told.index("ROLLBACK")].count("BEGIN IMMEDIATE") == 1
    for caller in ("guilty", "other"):
        refusal = answers[caller]
        assert isinstance(refusal, InvalidArgument)
        assert isinstance(refusal.__cause__, sqlite3.IntegrityError)
    assert shop.there() == {"a", "b", "c"}
    with closing(sqlite3.connect(shop.path)) as connection:  # functions were called twice, their rows are there once
        assert connection.execute("SELECT COUNT(*), (SELECT COUNT(*) FROM chapters) FROM books").fetchone() == (3, 3)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


async def test_foreign_keys_that_are_looked_at_at_once_fail_in_the_function(shop: Shop) -> None:
    await enforce_foreign_keys(shop.store)
    await shop.start("tables", executing("CREATE TABLE pages (book REFERENCES books (id))", *insert("tables")))
    answers = await shop.at_once(**good("before"), guilty=executing("INSERT INTO pages VALUES (-1)"), **good("after"))
    assert isinstance(answers["guilty"], sqlite3.IntegrityError)
    assert shop.there() == {"tables", "before", "after"}


def insert(caller: str) -> Sequence[str]:
    return [f"INSERT INTO books (caller) VALUES ('{caller}')"]


class Text(BaseModel):
    text: str


@job("books.write")
async def write_book(ctx: Context, params: Text) -> None:
    del ctx, params


async def test_those_of_a_batch_that_were_committed_singly_are_told_so(shop: Shop) -> None:
    """A batch that must be redone singly, and then the disk is full for one of its callers."""

    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")

    await shop.store._writer.run(limit)
    answers: dict[str, Operation | Exception] = {}

    async def one(caller: str, within: Within, size: int = 1) -> None:
        text = Text(text="x" * size)
        try:
            answers[caller] = await shop.operations.start(
                write_book, text, request_id=caller, target=caller, within=within
            )
        except Exception as error:
            answers[caller] = error

    async with anyio.create_task_group() as group:
        group.start_soon(one, "first", adding("first"))
        group.start_soon(one, "guilty", roll_back_all)  # makes them be redone singly
        group.start_soon(one, "large", adding("large"), 200_000)
        group.start_soon(one, "last", adding("last"))
    assert isinstance(answers["guilty"], sqlite3.Error)
    assert isinstance(answers["large"], Unavailable)
    there = shop.there()
    assert {caller for caller, answer in answers.items() if isinstance(answer, Operation)} == there, answers
    assert "first" in there


# Whose connection it is


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to count descriptors")
async def test_the_connection_is_the_writers_own_and_no_other_is_opened(shop: Shop) -> None:
    def descriptors() -> int:
        return sum(os.path.realpath(link).startswith(str(shop.path)) for link in Path("/proc/self/fd").iterdir())

    seen: list[tuple[sqlite3.Connection, str, int, int]] = []

    def note(connection: sqlite3.Connection) -> None:
        add(connection, f"{len(seen)}")
        seen.append((connection, threading.current_thread().name, connection.total_changes, descriptors()))

    await shop.start("0", note)
    before = descriptors()
    for number in range(1, 5):
        await shop.start(f"{number}", note)
    assert shop.there() == {f"{number}" for number in range(5)}
    assert {id(connection) for connection, *_ in seen} == {await shop.store._writer.run(id)}
    (thread,) = {thread for _, thread, *_ in seen}
    assert thread != threading.current_thread().name, "a function blocks no event loop"
    changes = [total for _, _, total, _ in seen]
    assert [later - earlier for earlier, later in pairwise(changes)] == [2] * 4  # its row, and the operation before it
    assert {count for *_, count in seen} == {before}
    for lane in (shop.store._reader, shop.store._lister):  # the process's other connections can't write
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await lane.run(lambda connection: add(connection, "x"))


async def test_the_connection_is_of_no_use_outside_the_function(shop: Shop) -> None:
    """It belongs to its thread: kept, or handed to another one, it refuses clearly."""
    taken: list[sqlite3.Connection] = []
    raised: list[BaseException | None] = []

    def keep(connection: sqlite3.Connection) -> None:
        taken.append(connection)
        add(connection, "x")
        with ThreadPoolExecutor(1) as pool:
            raised.append(pool.submit(add, connection, "other thread").exception())

    await shop.start("x", keep)
    for use in (lambda: add(taken[0], "kept"), taken[0].cursor, taken[0].close, taken[0].rollback):
        with pytest.raises(sqlite3.ProgrammingError, match="same thread"):
            use()
    (error,) = raised
    assert isinstance(error, sqlite3.ProgrammingError)
    await shop.start("y", adding("y"))
    assert shop.there() == {"x", "y"}


def rows_as_dicts(cursor: sqlite3.Cursor, row: tuple[object, ...]) -> dict[str, object]:
    return dict(zip((column[0] for column in cursor.description), row, strict=True))


kept: list[object] = []


def keep_a_cursor(connection: sqlite3.Connection) -> None:
    cursor = connection.execute("SELECT * FROM operations, books AS a, books AS b")
    cursor.fetchone()
    kept.append(cursor)


def keep_a_writing_cursor(connection: sqlite3.Connection) -> None:
    kept.append(connection.execute("INSERT INTO books (caller) VALUES ('guilty'), ('guilty') RETURNING id"))


def keep_a_blob(connection: sqlite3.Connection) -> None:
    row = connection.execute("INSERT INTO books (caller, text) VALUES ('guilty', zeroblob(9))").lastrowid
    assert row is not None
    kept.append(connection.blobopen("books", "text", row))


LEFTOVERS: dict[str, Callable[[sqlite3.Connection], object]] = {
    "an open cursor": keep_a_cursor,
    "an open cursor that writes": keep_a_writing_cursor,
    "an open blob": keep_a_blob,
    "row_factory": lambda connection: setattr(connection, "row_factory", rows_as_dicts),
    "row_factory Row": lambda connection: setattr(connection, "row_factory", sqlite3.Row),
    "text_factory": lambda connection: setattr(connection, "text_factory", bytes),
    "isolation_level": lambda connection: setattr(connection, "isolation_level", "DEFERRED"),
    "close()": lambda connection: connection.close(),
    "query_only": executing("PRAGMA query_only = ON"),
    "defer_foreign_keys": executing("PRAGMA defer_foreign_keys = ON"),
    "a temporary table": executing("CREATE TEMP TABLE shelves (id)"),
    "a temporary table of the library's name": executing("CREATE TEMP TABLE operations (id)"),
    "another file": executing("ATTACH ':memory:' AS other"),
    "cache_spill": executing("PRAGMA cache_spill = OFF"),
    "a progress handler": lambda connection: connection.set_progress_handler(lambda: 1, 1),
    "a trace callback": lambda connection: connection.set_trace_callback(lambda _: 1 // 0),
    "an authorizer": lambda connection: connection.set_authorizer(lambda *_: sqlite3.SQLITE_DENY),
    "a function": lambda connection: connection.create_function("shelf", 1, str),
}


@pytest.mark.parametrize("leftover", LEFTOVERS)
async def test_what_a_function_leaves_on_the_connection_harms_no_later_caller(shop: Shop, leftover: str) -> None:
    kept.clear()
    await shop.at_once(**good("0", "1", "2"))

    def leave(connection: sqlite3.Connection) -> None:
        add(connection, "guilty")
        LEFTOVERS[leftover](connection)

    with anyio.fail_after(PATIENCE * 2):
        await shop.at_once(**good("before"), guilty=leave, **good("after"))
        assert shop.there() >= {"before", "after"}
        async with open_store(f"sqlite:///{shop.path}") as other:  # whose commits the writer must not lag behind
            for number in range(3):
                await Operations(other).start(print_book, target=f"o{number}", within=adding(f"o{number}"))
        later = await shop.operations.start(print_book, request_id="1", target="later", within=adding("later"))
        again = await shop.operations.start(print_book, request_id="1", target="later", within=adding("again"))
        assert again.name == later.name
        assert (await shop.operations.cancel(later.name)).state is State.CANCELLED
        last = await shop.start("last", adding("last"))
        async with Worker(shop.store, [print_book]):
            assert (await ended(shop.operations, last.name)).state is State.SUCCEEDED
    assert shop.there() >= {"before", "after", "o2", "later", "last"}
    kept.clear()


# Callers that go, and a function that takes its time


@contextmanager
def blocked() -> Iterator[tuple[Within, anyio.Event, threading.Event]]:
    """Give a function that blocks, with what it sets when it does and what it waits for."""
    loop, entered, release = asyncio.get_running_loop(), anyio.Event(), threading.Event()

    def block(connection: sqlite3.Connection) -> None:
        add(connection, "slow")
        loop.call_soon_threadsafe(entered.set)
        assert release.wait(PATIENCE)

    try:
        yield block, entered, release
    finally:
        release.set()


async def test_a_slow_function_blocks_no_reads_and_not_the_event_loop(shop: Shop) -> None:
    first = await shop.start("first", adding("first"))
    with blocked() as (block, entered, release), anyio.fail_after(PATIENCE * 2):
        async with anyio.create_task_group() as group:
            group.start_soon(shop.start, "slow", block)
            await entered.wait()
            assert (await shop.operations.get(first.name)).name == first.name
            assert len((await shop.operations.list()).operations) == 2
            group.start_soon(shop.start, "next", adding("next"))
            await anyio.wait_all_tasks_blocked()
            assert shop.there() == {"first"}
            release.set()
    assert shop.there() == {"first", "slow", "next"}


async def test_a_caller_cancelled_while_its_function_runs_leaves_both_or_neither(shop: Shop) -> None:
    with blocked() as (block, entered, release), anyio.fail_after(PATIENCE * 2):
        async with anyio.create_task_group() as group:
            group.start_soon(shop.start, "slow", block)
            await entered.wait()
            for number in range(20):
                group.start_soon(shop.start, f"{number}", adding(f"{number}"))
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        release.set()
        await shop.start("later", adding("later"))
    assert shop.there() >= {"slow", "later"}
    assert not await shop.store._writer.run(lambda connection: connection.in_transaction)


async def test_starts_cancelled_at_any_time_leave_both_or_neither(shop: Shop) -> None:
    acknowledged: set[str] = set()

    async def one(caller: str) -> None:
        await shop.start(caller, adding(caller))
        acknowledged.add(caller)

    for turns in range(40):
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(one, f"{turns}.{number}")
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    await shop.start("later", adding("later"))
    assert shop.there() >= acknowledged | {"later"}


async def test_starts_queued_when_the_store_closes_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    answers: dict[str, Operation | BaseException] = {}
    async with anyio.create_task_group() as group, open_store(f"sqlite:///{path}") as store:
        assert isinstance(store, SQLiteStore)
        shop = Shop(store, Operations(store), path)
        await shop.operations.start(print_book, within=executing(*TABLES))

        async def one(caller: str) -> None:
            answers.update(await shop.at_once(**{caller: adding(caller)}))

        for number in range(700):  # more than one batch holds
            group.start_soon(one, f"{number}")
        await anyio.lowlevel.checkpoint()
    acknowledged = {caller for caller, answer in answers.items() if isinstance(answer, Operation)}
    assert shop.there() == acknowledged
    assert all(isinstance(answers[caller], StoreClosed) for caller in answers.keys() - acknowledged)
    assert len(answers) == 700
