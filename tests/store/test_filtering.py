"""Filters in SQL: they find what is true on the wire, whatever is stored and asked; and nothing of them is SQL."""

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lro.filter import KINDS, Kind, parse
from lro.lifecycle import CancelOutcome, Record, State
from lro.resource import Operation
from lro.status import Code, Status, error_info
from lro.store import PageQuery
from lro.store.conditions import EVER, Condition, created_between
from lro.store.postgres import statements as postgres_statements
from lro.store.postgres.filtering import PostgresCondition, PostgresListing
from lro.store.postgres.transaction import to_records
from lro.store.sqlite import statements as sqlite_statements
from lro.store.sqlite.filtering import SQLiteCondition
from lro.store.sqlite.listing import read_page
from lro.store.sqlite.transaction import _to_row
from lro.store.walk import walk
from lro.testing.contract import START, sample_record
from tests.postgres import Databases

SCHEMA = Path(__file__).parents[2] / "migrations" / "sqlite" / "0001_operations.sql"

# -- what a filter means, told again over the JSON that clients get

TEXTS = ["", "a", "ab", "b", "a*b", "*", "AB", "a/b", "ü", "🎈", 'a"b', "x'y", "\\", "%_", "[a]?", "a b", "AND", "1"]
KEYS = ["a", "b", "c d", 'a"b', "", "1", "AND", "$", "a.b", "*"]
TIMES = [START + delta for delta in (-(10**12), -1, 0, 1, 10**6, 10**12)]
NUMBERS = ["0", "1", "2", "-3", "2.5", "1e0", "9007199254740993", "1e300"]


@dataclass(frozen=True)
class Term:
    """A restriction: a field by its keys on the wire, an operator, a literal as text."""

    keys: tuple[str, ...]
    operator: str
    literal: str
    quoted: bool = False
    before: bool = False  # wildcards
    after: bool = False

    @property
    def kind(self) -> Kind:
        return KINDS[".".join(self.keys[:2] if self.keys[:2] == ("metadata", "progress") else self.keys)]

    def true_of(self, wire: dict[str, Any]) -> bool:
        wire = {**wire, "metadata": wire["metadata"]["value"]}
        free = self.kind is Kind.FREE
        values = list(_reached(wire, self.keys, through_lists=self.kind is Kind.TEXTS or (free and self._is_has)))
        if free:
            return any(self._true_of_json(value) for value in values)
        if self.kind is Kind.TEXTS:
            return any(isinstance(value, str) and self._is_like(value) for value in values)
        (value,) = values or [None]
        if value is None and self.kind in (Kind.TEXT, Kind.ENUM) and _is_set(wire, self.keys[:-1]):
            value = ""
        if self._asks_presence:
            return value not in (None, False, 0, "")
        return value is not None and self._compares(value)

    @property
    def _is_has(self) -> bool:
        return self.operator == ":"

    @property
    def _asks_presence(self) -> bool:
        return self._is_has and not self.quoted and (self.before, self.literal) == (True, "")

    def _is_like(self, text: str) -> bool:
        pattern = ".*" * self.before + re.escape(self.literal) + ".*" * self.after
        return re.fullmatch(pattern, text, re.DOTALL) is not None

    def _compares(self, value: Any) -> bool:
        operator = "=" if self._is_has else self.operator
        match self.kind:
            case Kind.TEXT if operator in ("=", "!="):
                return self._is_like(value) == (operator == "=")
            case Kind.TIME:
                return _compare(operator, datetime.fromisoformat(value), datetime.fromisoformat(self.literal))
            case Kind.BOOLEAN:
                return _compare(operator, value, self.literal == "true")
            case Kind.NUMBER:
                return _compare(operator, value, json.loads(self.literal))
            case Kind.CODE:
                return _compare(operator, value, int(Code[self.literal]))
            case _:
                return _compare(operator, value, self.literal)

    def _true_of_json(self, value: Any) -> bool:
        if self._asks_presence:
            return value is not None
        equal = self._equals(value)
        match self.operator:
            case "=":
                return equal
            case "!=":
                return isinstance(value, str | bool | int | float) and not equal
            case ":":
                has_key = isinstance(value, dict) and any(
                    self._is_like(key) and member is not None for key, member in value.items()
                )
                return equal or has_key or (isinstance(value, list) and any(map(self._equals, value)))
            case _:
                other = self.literal if isinstance(value, str) else self._number
                ordered = isinstance(value, str | int | float) and not isinstance(value, bool)
                return ordered and other is not None and _compare(self.operator, value, other)

    def _equals(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._is_like(value)
        if isinstance(value, bool):
            return not self.quoted and not self.before and not self.after and self.literal == str(value).lower()
        return isinstance(value, int | float) and value == self._number

    @property
    def _number(self) -> Any:
        plain = not self.quoted and not self.before and not self.after
        return json.loads(self.literal) if plain and self.literal[-1:].isdigit() else None

    def __str__(self) -> str:
        first = self.keys[0]
        keys = [first, *map(_written, self.keys[1:])]
        return f"{'.'.join(keys)}{self.operator}{self._literal}"

    @property
    def _literal(self) -> str:
        stars = ("*" * self.before, "*" * self.after)
        if not self.quoted:
            return self.literal.join(stars)
        return '"' + re.sub(r'(["*\\])', r"\\\1", self.literal).join(stars) + '"'


def _compare(operator: str, value: Any, other: Any) -> bool:
    compare: dict[str, Callable[[Any, Any], bool]] = {
        "=": lambda one, two: bool(one == two),
        "!=": lambda one, two: bool(one != two),
        "<": lambda one, two: bool(one < two),
        "<=": lambda one, two: bool(one <= two),
        ">": lambda one, two: bool(one > two),
        ">=": lambda one, two: bool(one >= two),
    }
    return compare[operator](value, other)


def _reached(value: Any, keys: Sequence[str], *, through_lists: bool) -> Iterator[Any]:
    if not keys:
        yield value
        return
    for one in value if through_lists and isinstance(value, list) else [value]:
        if isinstance(one, dict) and keys[0] in one:
            yield from _reached(one[keys[0]], keys[1:], through_lists=through_lists)


def _is_set(wire: Any, keys: Sequence[str]) -> bool:
    return any(True for _ in _reached(wire, keys, through_lists=False))


def _written(key: str) -> str:
    if re.fullmatch("[A-Za-z0-9$]+", key):
        return key
    return '"' + re.sub(r'(["*\\])', r"\\\1", key) + '"'


@dataclass(frozen=True)
class Whole:
    """A combination of filters."""

    word: Literal["AND", "OR", "NOT", "-", " "]
    parts: "tuple[Term | Whole, ...]"

    def true_of(self, wire: dict[str, Any]) -> bool:
        truths = [part.true_of(wire) for part in self.parts]
        if self.word in ("NOT", "-"):
            return not truths[0]
        return any(truths) if self.word == "OR" else all(truths)

    def __str__(self) -> str:
        written = [str(part) if isinstance(part, Term) else f"({part})" for part in self.parts]
        if self.word in ("NOT", "-"):
            return f"{self.word} {written[0]}"
        return f" {self.word} ".join(written)


# -- records and filters


def _json_values() -> st.SearchStrategy[Any]:
    scalars = st.one_of(
        st.sampled_from(TEXTS),
        st.none(),
        st.booleans(),
        st.sampled_from([0, 1, 2, -3, 2.5, 1.0, 2**53 + 1, 1e300]),
    )
    keys = st.sampled_from(KEYS)
    return st.recursive(
        scalars | st.lists(st.dictionaries(keys, scalars, min_size=1, max_size=2), min_size=1, max_size=2),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )


PROGRESS = st.none() | st.dictionaries(st.sampled_from(KEYS), _json_values(), max_size=3).map(json.dumps)
TIME = st.sampled_from(TIMES)
TEXT = st.sampled_from(TEXTS)
STATUS = st.builds(
    lambda code, message, reasons: Status(code, message, tuple(map(error_info, reasons))).to_json(),
    st.sampled_from([Code.CANCELLED, Code.INTERNAL]),
    TEXT,
    st.lists(TEXT, max_size=2),
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    state = draw(st.sampled_from(State))
    cancelled = state is State.CANCELLED or draw(st.booleans())
    changes: dict[str, Any] = {
        "state": state,
        "job": draw(TEXT),
        "target": draw(TEXT),
        "attempt": draw(st.sampled_from([0, 1, 2, 2**53 + 1])),
        "cancellable": draw(st.booleans()),
        "created_at": draw(TIME),
        "updated_at": draw(TIME),
        "due_at": draw(TIME),
        "started_at": draw(st.none() | TIME),
        "deadline_at": draw(st.none() | TIME | st.just(2**63 - 1)),
        "progress": draw(PROGRESS),
        "last_error": draw(st.none() | STATUS),
        "status_message": draw(st.none() | TEXT),
    }
    if cancelled:
        changes |= {"cancel_requested_at": draw(TIME), "cancel_reason": draw(st.none() | TEXT)}
        changes |= {"cancel_outcome": draw(st.none() | st.sampled_from(CancelOutcome))}
        changes |= {"cancel_requester": draw(st.none() | TEXT)}
    if state is State.RUNNING:
        changes["lease_owner"] = "w"
    if state.is_terminal:
        changes |= {"ended_at": draw(TIME), "expire_at": draw(TIME | st.just(2**62))}
        changes |= {"response": "1"} if state is State.SUCCEEDED else {"error": draw(STATUS)}
    return sample_record(**changes)


EQUALITY, ORDER = ["=", "!=", ":"], ["=", "!=", ":", "<", "<=", ">", ">="]

Place = tuple[tuple[str, ...], Any]  # Any: JSON
"""The keys of a value on the wire, and the value."""


def places(value: Any, keys: tuple[str, ...] = ()) -> Iterator[Place]:
    """Return the place of every value in JSON, list elements under the keys of their list."""
    if keys:
        yield keys, value
    if isinstance(value, dict):
        for key, member in value.items():
            yield from places(member, (*keys, key))
    elif isinstance(value, list):
        for element in value:
            yield from places(element, keys)


@st.composite
def free_terms(draw: st.DrawFn, stored: Sequence[Record]) -> Term:
    """Return a restriction of the progress, mostly of a value that is there, or of one beside it."""
    known: list[Place] = [place for record in stored for place in places(json.loads(record.progress or "{}"))]
    keys: tuple[str, ...]
    value: Any
    if known and draw(st.integers(0, 4)) > 0:
        keys, value = draw(st.sampled_from(known))
    else:
        keys, value = tuple(draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3))), None
    keys = ("metadata", "progress", *keys)
    if len(keys) > 3 and isinstance(value, dict | list | None) and draw(st.booleans()):
        keys, value = keys[:-1], keys[-1]  # is there such a key?
    operator = draw(st.sampled_from(ORDER))
    if draw(st.integers(0, 7)) == 0:
        return Term(keys, ":", "", before=True)
    if isinstance(value, bool | int | float) and draw(st.integers(0, 3)):
        written = json.dumps(value)
        return Term(keys, operator, written, quoted=draw(st.integers(0, 4)) == 0)
    if draw(st.integers(0, 2)) == 0:
        return Term(keys, operator, draw(st.sampled_from([*NUMBERS, "true", "false"])))
    text = value if isinstance(value, str) and draw(st.integers(0, 3)) else draw(TEXT)
    return draw(texts(keys, operator, text))


@st.composite
def texts(draw: st.DrawFn, keys: tuple[str, ...], operator: str, text: str) -> Term:
    """Return a restriction by a text, or by a part of it and a wildcard."""
    before = after = False
    if operator in EQUALITY and draw(st.integers(0, 2)) == 0:
        before, after = draw(st.booleans()), draw(st.booleans())
        text = text[1:] if before and draw(st.booleans()) else text
        text = text[:-1] if after and draw(st.booleans()) else text
    return Term(keys, operator, text, True, before, after)


@st.composite
def terms(draw: st.DrawFn, stored: Sequence[Record]) -> Term:
    """Return a restriction, mostly by a value that one of the records has."""
    path = draw(st.sampled_from([path for path, kind in KINDS.items() if kind is not Kind.FREE]))
    keys, kind = tuple(path.split(".")), KINDS[path]
    if kind is Kind.MESSAGE or draw(st.integers(0, 9)) == 0:
        return Term(keys, ":", "", before=True)
    operator = draw(st.sampled_from(EQUALITY if kind in (Kind.BOOLEAN, Kind.ENUM) else ORDER))
    wire = Operation.of(draw(st.sampled_from(stored))).to_dict()
    wire["metadata"] = wire["metadata"]["value"]
    value: Any = next(_reached(wire, keys, through_lists=True), None)
    usual = value is not None and draw(st.integers(0, 2)) > 0
    match kind:
        case Kind.BOOLEAN:
            return Term(keys, operator, draw(st.sampled_from(["true", "false"])))
        case Kind.ENUM:
            choices = State if path == "metadata.state" else CancelOutcome
            return Term(keys, operator, value if usual else draw(st.sampled_from(choices)).value)
        case Kind.NUMBER:
            return Term(keys, operator, str(value) if usual else draw(st.sampled_from(NUMBERS)))
        case Kind.CODE:
            return Term(keys, operator, Code(value).name if usual else draw(st.sampled_from(["CANCELLED", "OK"])))
        case Kind.TIME:
            at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=draw(TIME))
            zone = draw(st.sampled_from([UTC, timezone(timedelta(hours=-3, minutes=-30))]))
            return Term(keys, operator, value if usual else at.astimezone(zone).isoformat())
        case _:
            operator = ":" if kind is Kind.TEXTS else operator
            return draw(texts(keys, operator, value if usual else draw(TEXT)))


def filters(stored: Sequence[Record]) -> st.SearchStrategy[Term | Whole]:
    return st.recursive(
        terms(stored) | free_terms(stored),
        lambda inner: st.one_of(
            st.builds(Whole, st.sampled_from(["AND", "OR", " "]), st.lists(inner, min_size=2, max_size=3).map(tuple)),
            st.builds(Whole, st.sampled_from(["NOT", "-"]), st.tuples(inner)),
        ),
        max_leaves=4,
    )


class Table:
    """The table of operations on SQLite."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.executescript(SCHEMA.read_text())

    def fill(self, *stored: Record) -> None:
        """Have it hold these records alone."""
        self.connection.execute("DELETE FROM operations")
        self.connection.executemany(sqlite_statements.INSERT, map(_to_row, stored))

    def find(self, text: str) -> set[str]:
        """Return the names of the records that a filter finds."""
        page = read_page(self.connection, PageQuery(filter=parse(text)), lambda: 0.0)
        return {record.name for record in page.records}

    def condition(self, text: str) -> Condition:
        """Return the filter as SQL."""
        return SQLiteCondition(parse(text))

    def close(self) -> None:
        self.connection.close()


class PostgresTable(Table):
    """The table of operations on PostgreSQL."""

    def __init__(self, url: str) -> None:
        self.server = psycopg.connect(url, autocommit=True, prepare_threshold=None)

    def fill(self, *stored: Record) -> None:
        self.server.execute("DELETE FROM lro.operations")
        written = json.dumps([record._asdict() for record in stored], ensure_ascii=False)
        assert self.server.execute(postgres_statements.INSERT.encode(), (written,)).rowcount == len(stored)

    def find(self, text: str) -> set[str]:
        query = PageQuery(filter=parse(text))
        steps = walk(PostgresListing(query), query, to_records, lambda: 0.0)
        statement, parameters = next(steps)
        while True:
            try:
                rows = self.server.execute(statement.encode(), parameters).fetchall()
                statement, parameters = steps.send(rows)
            except StopIteration as stop:
                return {record.name for record in stop.value.records}

    def condition(self, text: str) -> Condition:
        return PostgresCondition(parse(text))

    def close(self) -> None:
        self.server.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    with contextlib.ExitStack() as exits:
        if request.param == "sqlite":
            made = Table()
        else:
            databases: Databases = request.getfixturevalue("databases")
            made = PostgresTable(exits.enter_context(databases.new()))
        exits.callback(made.close)
        yield made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_filter_finds_what_it_is_true_of_on_the_wire(table: Table, data: st.DataObject) -> None:
    stored = data.draw(st.lists(records(), min_size=1, max_size=4))
    asked = data.draw(st.lists(filters(stored), min_size=4, max_size=8))
    table.fill(*stored)
    for one in asked:
        expected = {record.name for record in stored if one.true_of(Operation.of(record).to_dict())}
        assert table.find(str(one)) == expected, str(one)


@pytest.mark.parametrize("pattern", ['"*"', '"a*"', '"*a"', '"a"'])
def test_a_text_that_is_not_there_is_unlike_nothing(pattern: str, table: Table) -> None:
    table.fill(sample_record())
    for text in (f"error.message != {pattern}", f"metadata.lastError.message != {pattern}"):
        assert not table.find(text), text
        assert table.find(f"NOT {text}"), text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("metadata.progress.book.title = Moby", True),
        ("metadata.progress.book.title != Emma", True),
        ("metadata.progress.books.title = Moby", False),
        ("metadata.progress.books.title != Emma", False),
        ("metadata.progress.books.title:Moby", True),
        ("metadata.progress.books.title:Emma", False),
        ("metadata.progress.nothing.title = Moby", False),
        ("metadata.progress.nothing.title != Moby", False),
        ("metadata.progress.null.title != Moby", False),
        ("metadata.progress.null != Moby", False),
        ("NOT metadata.progress.nothing.title = Moby", True),
        ("error.message != Moby", False),
        ("metadata.endTime != 2026-11-22T20:15:00Z", False),
    ],
)
def test_a_filter_goes_into_lists_with_a_colon_only_and_finds_nothing_in_what_is_not_set(
    text: str, found: bool, table: Table
) -> None:
    progress = {"book": {"title": "Moby"}, "books": [{"title": "Moby"}], "null": None}
    table.fill(sample_record(progress=json.dumps(progress)))

    assert bool(table.find(text)) is found


# -- what becomes of a filter's words

HOSTILE = [
    "'; DROP TABLE operations; --",
    '" OR 1=1 --',
    "x' OR 'x'='x",
    ":filter_0",
    "?",
    "%s",
    "{0}",
    "json_each",
    "*/",
]


@pytest.mark.parametrize("word", HOSTILE)
def test_what_a_filter_says_is_bound_and_not_in_the_text(word: str, table: Table) -> None:
    quoted = '"' + re.sub(r'(["*\\])', r"\\\1", word) + '"'
    table.fill(sample_record())
    texts = [
        f"name={quoted}",
        f"metadata.target!={quoted}",
        f"metadata.progress.{quoted}:*",
        f"metadata.progress.a.{quoted}:{quoted}",
        f"metadata.progress:{quoted}",
        f"error.details.reason:{quoted}",
    ]
    plain = [text.replace(quoted, "z") for text in texts]
    for text, other in zip(texts, plain, strict=True):
        condition = table.condition(text)
        assert condition.text == table.condition(other).text
        assert word in condition.parameters.values()
        table.find(text)
    assert len(table.find("")) == 1


def test_every_field_has_its_value_in_sql() -> None:
    assert SQLiteCondition.VALUES.keys() == KINDS.keys()


SECONDS = ["1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z"]


@pytest.mark.parametrize(
    ("text", "earliest", "latest"),
    [
        ("", EVER[0], EVER[1]),
        ("done = true", EVER[0], EVER[1]),
        (f"metadata.createTime > {SECONDS[1]}", 1_000_001, EVER[1]),
        (f"metadata.createTime >= {SECONDS[1]}", 1_000_000, EVER[1]),
        (f"metadata.createTime < {SECONDS[1]}", EVER[0], 999_999),
        (f"metadata.createTime <= {SECONDS[1]}", EVER[0], 1_000_000),
        (f"metadata.createTime = {SECONDS[1]}", 1_000_000, 1_000_000),
        (f"metadata.createTime != {SECONDS[1]}", EVER[0], EVER[1]),
        ("metadata.createTime:*", EVER[0], EVER[1]),
        (f"metadata.startTime = {SECONDS[1]}", EVER[0], EVER[1]),
        (f"NOT metadata.createTime > {SECONDS[1]}", EVER[0], EVER[1]),
        (f"metadata.createTime > {SECONDS[1]} OR done = true", EVER[0], EVER[1]),
        ("metadata.createTime = 9999-12-31T23:59:59.999999Z", EVER[0], EVER[1]),
        (
            "metadata.createTime>1970-01-01T00:00:01Z done=true (metadata.createTime<1970-01-01T00:00:02Z)",
            1_000_001,
            1_999_999,
        ),
    ],
)
def test_a_walk_begins_and_ends_where_the_times_of_creation_do(text: str, earliest: int, latest: int) -> None:
    assert created_between(parse(text)) == (earliest, latest)
