"""No SQL decides about state: every statement of the package, parsed.

State, cancel outcome, token, response and error come from a record that `lifecycle` made, as bound parameters.
"""

import ast
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

import lro
from lro.filter import KINDS
from lro.filter import parse as parse_filter
from lro.lifecycle import Record
from lro.principal import Scope
from lro.store import PageQuery
from lro.store.conditions import Condition
from lro.store.postgres import statements as postgres_statements
from lro.store.postgres.filtering import PostgresCondition, PostgresListing
from lro.store.sqlite import statements as sqlite_statements
from lro.store.sqlite.filtering import SQLiteCondition
from lro.store.sqlite.listing import SQLiteListing
from lro.store.walk import Listing

PACKAGE = Path(lro.__file__).parent
MIGRATIONS = sorted((PACKAGE.parent / "migrations").glob("*/*.sql"))
ROOMS = {"sqlite": sqlite_statements, "postgres": postgres_statements}
GUARDED = {"state", "cancel_outcome", "token", "response", "error"}
HOLE = "_interpolated_"
"""What stands in a parsed f-string for a value that is known only when it runs."""

_STATEMENT = (
    r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE|REPLACE|MERGE|CREATE|ALTER|DROP|PRAGMA|BEGIN|COMMIT|ROLLBACK|SAVEPOINT"
    r"|RELEASE|VACUUM|ATTACH|DETACH|ANALYZE|EXPLAIN|LISTEN)\b"
)
_KINDS = (
    exp.Query,
    exp.DML,
    exp.Create,
    exp.Drop,
    exp.Alter,
    exp.Pragma,
    exp.Transaction,
    exp.Commit,
    exp.Rollback,
)
_WITHOUT_ROWID = re.compile(r"\)\s*(?:STRICT\s*,\s*)?WITHOUT\s+ROWID(?:\s*,\s*STRICT)?", re.IGNORECASE)


_BARE = re.compile(r"(SAVEPOINT|RELEASE|ROLLBACK TO SAVEPOINT|LISTEN)( SAVEPOINT)? \w+")


def parse(sql: str, dialect: str = "sqlite") -> list[exp.Expression]:
    """Parse statements; what sqlglot does not understand is an error here, not a Command to be overlooked.

    Raises:
        SqlglotError: A statement is not understood.
    """
    level = logging.getLogger("sqlglot").level
    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of Commands, which are refused below
    try:
        parsed = sqlglot.parse(_readable(sql), dialect=dialect)
    finally:
        logging.getLogger("sqlglot").setLevel(level)
    found = [statement for statement in parsed if isinstance(statement, exp.Expression)]
    for statement in found:
        if not isinstance(statement, _KINDS) and not _is_harmless(statement):
            raise SqlglotError(f"not understood: {statement.sql(dialect=dialect)[:80]}")
    return found


def _readable(sql: str) -> str:
    """Write what sqlglot does not know, such as WITHOUT ROWID and psycopg's marks, as what it knows."""
    if _BARE.fullmatch(sql):
        return "SELECT 1"
    return re.sub(r"%\((\w+)\)s", r":\1", _WITHOUT_ROWID.sub(")", sql)).replace("%s", ":bound")


def _is_harmless(statement: exp.Expression) -> bool:
    """Return whether this Command is one that writes no row: a savepoint, say."""
    return isinstance(statement, exp.Command) and str(statement.this).upper() in ("SAVEPOINT", "RELEASE", "VACUUM")


def is_bound(value: exp.Expression | None) -> bool:
    return isinstance(value, exp.Placeholder | exp.Parameter)


def bound_sources(statement: exp.Expression) -> set[str]:
    """Return the aliases of sources in FROM that are nothing but a bound text, taken apart into rows."""
    return {
        table.alias
        for table in statement.find_all(exp.Table)
        if isinstance(call := table.this, exp.Anonymous)
        and call.name.lower() == "json_to_recordset"
        and all(
            is_bound(argument.this if isinstance(argument, exp.Cast) else argument) for argument in call.expressions
        )
    }


def faults(sql: str, dialect: str = "sqlite") -> list[str]:
    """Return what these statements do to guarded columns that only `lifecycle` may do."""
    try:
        parsed = parse(sql, dialect)
    except SqlglotError as error:
        return [f"can't be checked: {error}"]
    return [fault for statement in parsed for fault in _faults(statement)]


def _faults(statement: exp.Expression) -> Iterator[str]:
    for node in statement.walk():
        match node:
            case exp.Update():
                yield from _assigned(node.expressions, bound_sources(node))
            case exp.OnConflict():
                yield from _assigned(node.expressions)
            case exp.Insert():
                yield from _inserted(node)
            case exp.Merge():
                yield "MERGE is not used here"
            case exp.ColumnDef():
                yield from _defined(node)


def _assigned(assignments: Iterable[exp.Expression], sources: set[str] = set()) -> Iterator[str]:  # noqa: B006
    for assignment in assignments:
        if not isinstance(assignment, exp.EQ):
            yield f"an assignment that can't be checked: {assignment}"
            continue
        left, right = assignment.this, assignment.expression
        lefts = left.expressions if isinstance(left, exp.Tuple) else [left]
        rights = right.expressions if isinstance(right, exp.Tuple) else [right] * len(lefts)
        for column, value in zip(lefts, rights, strict=True):
            copied = isinstance(value, exp.Column) and value.table in sources and value.name == column.name
            if column.name.lower() in GUARDED and not is_bound(value) and not copied:
                yield f"{column.name} = {value}"


def _inserted(insert: exp.Insert) -> Iterator[str]:
    target, source = insert.this, insert.expression
    table = target.find(exp.Table)
    if not isinstance(target, exp.Schema):
        if table is None or table.name.lower() == "operations":
            yield "INSERT INTO operations without its columns"
        return
    columns = [column.name.lower() for column in target.expressions]
    if not GUARDED & set(columns):
        return
    if isinstance(source, exp.Select) and _copies(source, columns):
        return
    if not isinstance(source, exp.Values):
        yield f"INSERT of {GUARDED & set(columns)} from a query"
        return
    for row in source.expressions:
        for column, value in zip(columns, row.expressions, strict=True):
            if column in GUARDED and not is_bound(value):
                yield f"{column} = {value}"


def _copies(source: exp.Select, columns: list[str]) -> bool:
    """Return whether a query gives each column the bound value of its own name."""
    table = source.find(exp.Table)
    only = len(list(source.find_all(exp.Table))) == 1 and table is not None and table.alias in bound_sources(source)
    return only and [isinstance(it, exp.Column) and it.name.lower() for it in source.expressions] == columns


def _defined(column: exp.ColumnDef) -> Iterator[str]:
    for constraint in column.find_all(exp.ColumnConstraint):
        fills_in = exp.DefaultColumnConstraint | exp.ComputedColumnConstraint | exp.GeneratedAsIdentityColumnConstraint
        if column.name.lower() in GUARDED and isinstance(constraint.kind, fills_in):
            yield f"{column.name} {constraint}"


def faults_elsewhere(text: str) -> list[str]:
    """Return what a text outside the room of statements does to operations: any write is a fault."""
    if not re.match(_STATEMENT, text, re.IGNORECASE):
        return []
    try:
        parsed = parse(text)
    except SqlglotError as error:
        is_meant = re.match(_STATEMENT, text) and ("operations" in text.lower() or HOLE in text)
        return [f"can't be checked: {error}"] if is_meant else []
    return [f"writes to {table}" for table in _written(parsed) if table == "operations" or HOLE in table]


def _written(parsed: Iterable[exp.Expression]) -> Iterator[str]:
    """Return the tables that these statements write to."""
    for statement in parsed:
        for write in statement.find_all(exp.Update, exp.Insert, exp.Delete, exp.Merge, exp.Drop, exp.Alter):
            targets = write.args["tables"] if isinstance(write, exp.Drop) else [write.this]
            yield from (table.name.lower() for target in targets if (table := target.find(exp.Table)) is not None)


def literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Return every text of a module that is no docstring, and the text of every f-string and every sum of texts."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    seen = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):  # breadth first: a whole comes before its parts
        if id(node) not in seen and isinstance(node, ast.expr) and (text := _text(node)) is not None:
            seen.update(id(part) for part in ast.walk(node))
            yield node.lineno, text


def _text(node: ast.AST) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) or HOLE for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            sides = (_text(left), _text(right))
            return None if sides == (None, None) else "".join(side or HOLE for side in sides)
    return None


STATEMENTS = {
    (dialect, name): value
    for dialect, room in ROOMS.items()
    for name, value in vars(room).items()
    if isinstance(value, str) and not name.startswith("_") and re.match(_STATEMENT, value)
}

GOOD = [
    "UPDATE operations SET state = ?, token = ?, error = :error WHERE name = ?",
    "UPDATE operations SET (state, error) = (?, ?) WHERE name = ?",
    "UPDATE operations SET params = NULL WHERE state = 'SUCCEEDED'",
    "UPDATE workers SET beat = beat + 1 WHERE id = ?",
    "INSERT INTO operations (name, state, response) VALUES (?, ?, ?)",
    "INSERT INTO operations (name, state) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET state = ?",
    "SELECT CASE WHEN state = 'PENDING' THEN 1 END FROM operations",
    "CREATE TABLE operations (state TEXT NOT NULL CHECK (state <> ''), priority INTEGER DEFAULT 0)",
    "DELETE FROM operations WHERE state = 'FAILED'",
]

BAD = [
    "UPDATE operations SET state = 'FAILED' WHERE name = ?",
    "update operations set STATE = 'FAILED' where name = ?",
    "UPDATE operations SET \"state\" = ? || '' WHERE name = ?",
    "UPDATE operations SET state = CASE WHEN state = 'PENDING' THEN 'CANCELLED' ELSE state END WHERE name = ?",
    "UPDATE operations SET cancel_outcome = NULL WHERE name = ?",
    "UPDATE operations SET version = ?, token = token + 1 WHERE name = ?",
    "UPDATE operations SET token = coalesce(?, 1) WHERE name = ?",
    "UPDATE operations SET response = json_object('a', ?) WHERE name = ?",
    "UPDATE operations SET error = (SELECT error FROM other)",
    "UPDATE operations SET error = CAST(? AS TEXT)",
    "UPDATE operations SET state = other.state FROM other",
    "UPDATE operations SET (name, state) = (?, 'FAILED')",
    "UPDATE operations SET (name, state) = (SELECT a, b FROM other)",
    "WITH due AS (SELECT name FROM operations) UPDATE operations SET state = 'RUNNING'",
    "INSERT INTO operations (name, state) VALUES (?, 'PENDING')",
    "INSERT INTO operations (name, token) VALUES (?, 0)",
    "INSERT INTO operations (name, state) VALUES (?, ?), (?, 'PENDING')",
    "INSERT INTO operations (name, state) SELECT name, 'PENDING' FROM other",
    "INSERT INTO operations VALUES (?, ?)",
    "INSERT INTO operations DEFAULT VALUES",
    "INSERT INTO operations (name, state) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET state = 'PENDING'",
    "INSERT INTO operations (name, state) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET state = excluded.state",
    "INSERT OR REPLACE INTO operations (name, error) VALUES (?, lower(?))",
    "REPLACE INTO operations (name, state) VALUES (?, 'PENDING')",
    "CREATE TRIGGER sly AFTER UPDATE ON operations BEGIN UPDATE operations SET state = 'FAILED'; END",
    "CREATE TABLE operations (state TEXT NOT NULL DEFAULT 'PENDING')",
    "CREATE TABLE operations (token INTEGER NOT NULL DEFAULT 0) STRICT",
    "CREATE TABLE operations (error TEXT GENERATED ALWAYS AS ('x')) STRICT",
    "CREATE TABLE a (b TEXT) STRICT, WITHOUT ROWID; ALTER TABLE operations ADD COLUMN token INTEGER DEFAULT 0",
    "UPDATE operations SET state = ",
    "this is no SQL",
]

BAD_ELSEWHERE = [
    'run("UPDATE operations SET priority = ? WHERE name = ?")',
    'run("update Operations set priority = 1")',
    'run(f"UPDATE {table} SET priority = ? WHERE name = ?")',
    'run(f"UPDATE operations SET {column} = ?")',
    'run("UPDATE " + table + " SET priority = ?")',
    'run("DELETE FROM operations" + condition)',
    'run("DELETE FROM operations")',
    'run("INSERT INTO operations (name) VALUES (?)")',
    'run("REPLACE INTO operations (name) VALUES (?)")',
    'run("DROP TABLE operations")',
    'run("PRAGMA optimize; UPDATE operations SET priority = 1")',
    'run("UPDATE operations SET nonsense")',
    'run("ALTER TABLE operations ADD COLUMN x TEXT")',
    'run("CREATE TRIGGER t AFTER UPDATE ON workers BEGIN DELETE FROM operations; END")',
    'run("WITH x AS (SELECT 1) DELETE FROM operations")',
    'def f():\n    "A docstring."\n    run("""\n        UPDATE operations\n        SET priority = 1""")',
]

GOOD_ELSEWHERE = [
    'run("SELECT name FROM operations")',
    'run("UPDATE workers SET beat = ? WHERE id = ?")',
    'run(f"PRAGMA synchronous = {durability}")',
    'run("SAVEPOINT within")',
    "run(f\"INSERT INTO notes VALUES ('{text}')\")",
    'run("DELETE FROM workers WHERE id NOT IN (SELECT lease_owner FROM operations)")',
    'def f():\n    """UPDATE operations SET state = 1: what this function does not do."""',
    'methods = {"GET": get, "DELETE": delete}',
    'log.info("delete from the list of operations")\nlog.info("Update the record")',
]


FROM_ROWS = "FROM json_to_recordset(%s::json) AS new(name TEXT, state TEXT, other TEXT)"

GOOD_ON_POSTGRES = [
    f"UPDATE lro.operations AS old SET state = new.state {FROM_ROWS} WHERE old.name = new.name",
    f"INSERT INTO lro.operations (name, state) SELECT name, state {FROM_ROWS} ORDER BY name ON CONFLICT DO NOTHING",
]

BAD_ON_POSTGRES = [
    f"UPDATE lro.operations AS old SET state = new.other {FROM_ROWS}",
    f"UPDATE lro.operations AS old SET state = old.state {FROM_ROWS}",
    f"UPDATE lro.operations AS old SET state = upper(new.state) {FROM_ROWS}",
    "UPDATE lro.operations SET state = new.state FROM json_to_recordset('[]'::json) AS new(state TEXT)",
    "UPDATE lro.operations SET state = new.state FROM other AS new",
    f"INSERT INTO lro.operations (name, state) SELECT state, name {FROM_ROWS}",
    f"INSERT INTO lro.operations (name, state) SELECT name, 'PENDING' {FROM_ROWS}",
    f"INSERT INTO lro.operations (name, state) SELECT * {FROM_ROWS}",
    f"INSERT INTO lro.operations (name, state) SELECT name, state {FROM_ROWS} CROSS JOIN other",
]


@pytest.mark.parametrize("sql", GOOD_ON_POSTGRES)
def test_the_checker_lets_rows_pass_that_are_bound_as_one_text(sql: str) -> None:
    assert faults(sql, "postgres") == []


@pytest.mark.parametrize("sql", BAD_ON_POSTGRES)
def test_the_checker_rejects_what_makes_something_else_of_bound_rows(sql: str) -> None:
    assert faults(sql, "postgres") != []


@pytest.mark.parametrize("sql", GOOD)
def test_the_checker_lets_bound_parameters_pass(sql: str) -> None:
    assert faults(sql) == []


@pytest.mark.parametrize("sql", BAD)
def test_the_checker_rejects_what_decides_about_state(sql: str) -> None:
    assert faults(sql) != []


@pytest.mark.parametrize("column", sorted(GUARDED))
def test_the_checker_guards_every_column_that_only_lifecycle_fills(column: str) -> None:
    assert faults(f"UPDATE operations SET {column} = ?") == []
    assert faults(f"UPDATE operations SET {column} = 1") == [f"{column} = 1"]
    assert faults(f"INSERT INTO operations ({column}) VALUES (NULL)") == [f"{column} = NULL"]


def faults_in(module: str) -> list[str]:
    return [
        f"line {line}: {fault}: {text}"
        for line, text in literals(ast.parse(module))
        for fault in faults_elsewhere(text)
    ]


@pytest.mark.parametrize("module", BAD_ELSEWHERE)
def test_the_checker_finds_writes_to_operations_in_any_module(module: str) -> None:
    assert faults_in(module) != []


@pytest.mark.parametrize("module", GOOD_ELSEWHERE)
def test_the_checker_lets_other_texts_of_a_module_pass(module: str) -> None:
    assert faults_in(module) == []


@pytest.mark.parametrize(("dialect", "name"), STATEMENTS)
def test_a_statement_of_the_store_decides_nothing_about_state(dialect: str, name: str) -> None:
    assert faults(STATEMENTS[dialect, name], dialect) == []


SCOPES = [Scope(), Scope(owner="ann"), Scope(tenant="t"), Scope(owner="", tenant=""), Scope(owner="ann", tenant="t")]
FILTERS = [
    "",
    "(done = true OR NOT metadata.attempt > 1) -metadata.state:RUNNING",
    "name = 'a*' metadata.verb != '*b' metadata.target = '*c*' error.message < d",
    "metadata.progress.a.b = 1 metadata.progress.a != true metadata.progress.a.b >= x",
    "metadata.progress.a.b.c:x metadata.progress:a error.details.reason:X",
    *(f"{path}:*" for path in KINDS),
]


LISTINGS: dict[str, type[Listing]] = {"sqlite": SQLiteListing, "postgres": PostgresListing}
CONDITIONS: dict[str, type[Condition]] = {"sqlite": SQLiteCondition, "postgres": PostgresCondition}
INDEXES = {"operations_listed", "operations_owned", "operations_of_tenant"}
JSON_TYPES = {"text", "integer", "real", "true", "false", "null", "array", "object", "string", "number", "boolean"}
COLUMNS = set(Record._fields)


@pytest.mark.parametrize("text", FILTERS)
@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("dialect", LISTINGS)
def test_a_page_is_read_by_selects_whose_words_are_the_librarys(dialect: str, scope: Scope, text: str) -> None:
    listing = LISTINGS[dialect](PageQuery("p", scope, filter=parse_filter(text)))
    bound = listing.step((1, "x"), (0, "y"), 1)
    for composed in (listing.edge, listing.page):
        assert faults(composed, dialect) == []
        (select,) = parse(composed, dialect)
        assert isinstance(select, exp.Select)
        assert {table.name for table in select.find_all(exp.Table) if table.name} <= {
            "operations",
            *INDEXES,
            *FUNCTIONS,
        }
        assert {mark.name for mark in select.find_all(exp.Placeholder)} <= bound.keys()
        spelled = {literal.this for literal in select.find_all(exp.Literal) if literal.is_string}
        assert spelled <= {"", "PENDING", "$.code", "$.message", "code", "message", "{}", *JSON_TYPES}


FUNCTIONS = {"jsonb_each", "jsonb_array_elements"}


@pytest.mark.parametrize("path", SQLiteCondition.VALUES)
@pytest.mark.parametrize("dialect", CONDITIONS)
def test_a_fields_value_is_an_expression_over_the_columns(dialect: str, path: str) -> None:
    (select,) = parse(f"SELECT {CONDITIONS[dialect].VALUES[path]} FROM operations", dialect)
    assert isinstance(select, exp.Select)
    assert {column.name for column in select.find_all(exp.Column)} <= COLUMNS | {"C"}  # the collation


def test_every_store_has_the_same_fields() -> None:
    assert PostgresCondition.VALUES.keys() == SQLiteCondition.VALUES.keys()


@pytest.mark.parametrize("dialect", ROOMS)
def test_every_text_of_the_room_of_statements_is_a_statement_or_a_list_of_columns(dialect: str) -> None:
    texts = {
        name: value
        for name, value in vars(ROOMS[dialect]).items()
        if isinstance(value, str) and name.isupper() and name[0] != "_"
    }
    fragments = {name for name in texts if (dialect, name) not in STATEMENTS}
    assert all(re.fullmatch(r"[a-z_?]+(, [a-z_?]+)*", texts[name]) for name in fragments)
    assert {(dialect, name) for name in ("INSERT", "UPDATE", "DELETE", "FIND_DUE")} <= STATEMENTS.keys()


@pytest.mark.parametrize("dialect", ROOMS)
def test_the_guarded_columns_are_columns(dialect: str) -> None:
    parsed = parse(STATEMENTS[dialect, "UPDATE"], dialect)
    assigned = {column.name for statement in parsed for column in statement.find_all(exp.Column)}
    assert assigned >= GUARDED


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_migration_leaves_state_to_lifecycle(path: Path) -> None:
    assert faults(path.read_text(), path.parent.name) == []


@pytest.mark.parametrize("dialect", ROOMS)
def test_the_migrations_are_found_and_define_the_guarded_columns(dialect: str) -> None:
    paths = [path for path in MIGRATIONS if path.parent.name == dialect]
    assert paths
    parsed = [statement for path in paths for statement in parse(path.read_text(), dialect)]
    assert {column.name for statement in parsed for column in statement.find_all(exp.ColumnDef)} >= GUARDED


MODULES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if str(path) not in {room.__file__ for room in ROOMS.values()}
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_writes_to_operations(path: Path) -> None:
    assert faults_in(path.read_text()) == []
