"""`lro migrate`: what it does to a database, and what a store says that finds one behind or ahead."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from typer.testing import CliRunner, Result

from lro.cli import app
from lro.errors import FailedPrecondition, StoreClosed, Unavailable
from lro.store import migrate, open_store
from lro.store.migrations import shipped
from lro.testing.contract import sample_record
from tests.postgres import Databases, ask

FIRST = "applied 0001_operations"


def lro(*words: str) -> Result:
    return CliRunner(env={"LRO_STORE": ""}).invoke(app, words)


@pytest.fixture
def empty_url(databases: Databases) -> Iterator[str]:
    """The URL of a new database on PostgreSQL, without a schema of ours."""
    with databases.new(empty=True) as url:
        yield url


@pytest.fixture
def own_url(databases: Databases) -> Iterator[str]:
    """The URL of a migrated database, whose schema may be spoilt."""
    with databases.new(again=False) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/lro.db" if request.param == "sqlite" else str(request.getfixturevalue("empty_url"))


def test_it_makes_the_schema_and_does_nothing_a_second_time(any_url: str) -> None:
    first, second = lro("migrate", any_url), lro("migrate", any_url)
    assert (first.exit_code, first.stdout.strip()) == (0, FIRST)
    assert (second.exit_code, second.stdout.strip()) == (0, "nothing to do: the schema is up to date")


async def test_a_migrated_database_can_be_used_at_once(any_url: str) -> None:
    assert await migrate(any_url) == ["0001_operations"]
    async with open_store(any_url) as store:
        record = await store.insert(sample_record())
        assert await store.get(record.name) == record


async def test_a_store_refuses_a_database_that_is_behind_and_says_what_to_run(empty_url: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"lacks migration 1 .*: run  lro migrate postgresql://") as raised:
        async with open_store(empty_url):
            pass
    assert raised.value.reason == "SCHEMA_BEHIND"
    assert ask(empty_url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'lro'") == [(0,)], "it is left as it was"


async def test_a_password_is_in_no_message() -> None:
    url = "postgresql://ann:secret@127.0.0.1:1/db"
    with pytest.raises(Unavailable) as raised:
        async with open_store(url):
            pass
    assert "secret" not in f"{raised.value} {raised.value!r} {open_store(url)!r}"
    with pytest.raises(ValueError, match="no URL that libpq understands") as refused:
        open_store("postgresql://ann:secret@host/db?nonsense=1")
    assert "secret" not in str(refused.value)
    assert "nonsense" in str(refused.value)


async def test_processes_that_migrate_at_once_do_it_once(empty_url: str) -> None:
    done: list[list[str]] = []

    async def run() -> None:
        done.append(await migrate(empty_url))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(run)
    assert sorted(done) == [[], [], [], [], ["0001_operations"]]


def test_a_migration_that_fails_leaves_the_database_as_it_was(empty_url: str) -> None:
    ask(empty_url, "CREATE SCHEMA lro")
    ask(empty_url, "CREATE TABLE lro.settings (mine TEXT)")
    result = lro("migrate", empty_url)
    assert result.exit_code == 1
    assert "migration 1 (operations) can't be applied there" in result.stderr
    assert ask(empty_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'lro'") == [("settings",)]


async def test_another_history_or_a_newer_schema_is_refused(own_url: str) -> None:
    ask(own_url, "UPDATE lro.schema_migrations SET checksum = 'x'")
    with pytest.raises(FailedPrecondition, match="is not the one that was applied"):
        async with open_store(own_url):
            pass
    ask(own_url, "INSERT INTO lro.schema_migrations VALUES (99, 'later', 'y', 0, FALSE)")
    assert lro("migrate", own_url).exit_code == 1
    with pytest.raises(FailedPrecondition, match="has schema 99, this version of lro knows up to 1"):
        async with open_store(own_url):
            pass


async def test_a_store_stops_once_a_newer_library_has_taken_over(own_url: str) -> None:
    async with open_store(own_url) as store:
        record = await store.insert(sample_record())
        ask(own_url, "INSERT INTO lro.schema_migrations VALUES (99, 'later', 'y', 0, TRUE)")
        await store.insert(sample_record())
        ask(own_url, "INSERT INTO lro.schema_migrations VALUES (100, 'latest', 'z', 0, FALSE)")
        with pytest.raises(StoreClosed) as raised:
            await store.insert(sample_record())
        assert raised.value.reason == "SERVICE_OUTDATED"
        with pytest.raises(StoreClosed):
            await store.get(record.name)
        assert not store.ready


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("mysql://host/db",), 2, "use sqlite:///file.db"),
        (("postgresql://host/db?x=1",), 2, "no URL that libpq understands"),
        (("postgresql://127.0.0.1:1/db",), 5, "can't be reached"),
    ],
)
def test_what_can_not_be_migrated_is_refused(words: tuple[str, ...], code: int, says: str) -> None:
    result = lro("migrate", *words)
    assert result.exit_code == code
    assert says in result.stderr


def test_the_stores_share_numbers_and_names_of_their_migrations() -> None:
    assert [migration.title for migration in shipped("postgres")] == [one.title for one in shipped("sqlite")]
