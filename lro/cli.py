"""The command line: `lro demo`, `lro serve`, `lro worker`, `lro migrate` and `lro doctor`. Needs the `cli` extra.

Decides how commands are spelled and which exit code says what; the work is done elsewhere.
"""

import json
import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

try:
    import typer
    import uvicorn
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter
    from rich.console import Console
    from uvicorn.importer import ImportFromStringError, import_from_string
except ModuleNotFoundError as error:  # pragma: no cover -- seen only where the extra is missing
    sys.exit(f"lro's command line needs the package {error.name}: install it with  pip install 'lro[cli]'")

import anyio

from lro.errors import LROError, Unavailable
from lro.service import Service
from lro.worker import Worker

if TYPE_CHECKING:
    from lro.doctor import Examination

__all__ = ["app", "main"]

EXIT_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE = 1, 2, 5

log = logging.getLogger(__name__)

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Cancellable long-running operations.")


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogLevelOption = Annotated[LogLevel, typer.Option("--log-level", help="What is logged, to standard error.")]
LogJsonOption = Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.")]


@app.command()
def demo(
    path: Annotated[
        Path | None,
        typer.Option(help="The directory tree to archive; this Python's standard library by default."),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Leave the service running afterwards, until Ctrl-C.")] = False,
) -> None:
    """Run a real service and see operations started, cancelled, finished and resumed; under a minute."""
    from lro.demo.story import DemoFailed, TreeTooSmall, tell  # noqa: PLC0415 -- only this command pays for it

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidies up as Ctrl-C does
    console = Console(soft_wrap=True)
    try:
        tell(path, serve=serve, console=console)
    except TreeTooSmall as error:
        console.print(f"lro demo: {error}", style="red", highlight=False)
        raise typer.Exit(EXIT_USAGE) from error
    except DemoFailed as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        console.print(f"lro demo: {error}\n{notes}", style="red", highlight=False, markup=False)
        raise typer.Exit(EXIT_FAILED) from error


@app.command()
def serve(  # noqa: PLR0917 -- typer hands them over by name
    target: Annotated[str, typer.Argument(metavar="MODULE:OBJECT", help="Where the Service is, as in app:service.")],
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for a free one.")] = 8000,
    prefix: Annotated[str, typer.Option(help="What all paths begin with.")] = "/v1",
    log_level: LogLevelOption = LogLevel.INFO,
    log_json: LogJsonOption = False,
) -> None:
    """Serve a Service over HTTP until SIGTERM or Ctrl-C; it works too, unless it was made with worker=False."""
    _set_up_logging(log_level, as_json=log_json)
    service = _find("serve", target)
    if not isinstance(service, Service):
        what = type(service).__name__
        _refuse("serve", f"{target} is a {what}, not a Service; an app of your own is served by  uvicorn {target}")
    if not prefix.startswith("/") or prefix.endswith("/"):
        _refuse("serve", f"--prefix {prefix}: begin with a slash, and end without one, as in /v1")
    server = uvicorn.Server(uvicorn.Config(service.app(prefix), host=host, port=port, log_config=None))
    try:
        server.run()
    except KeyboardInterrupt:
        pass  # uvicorn raises it again after it has shut down
    except SystemExit:
        if server.started:
            raise
    if not server.started:  # uvicorn has logged why
        raise typer.Exit(EXIT_UNAVAILABLE)


@app.command()
def worker(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:OBJECT", help="Where the Service or the Worker is, as in app:service.")
    ],
    log_level: LogLevelOption = LogLevel.INFO,
    log_json: LogJsonOption = False,
) -> None:
    """Run operations without serving HTTP, until SIGTERM or Ctrl-C; a second one ends at once."""
    _set_up_logging(log_level, as_json=log_json)
    found = _find("worker", target)
    if not isinstance(found, (Service, Worker)):
        _refuse("worker", f"{target} is a {type(found).__name__}, neither a Service nor a Worker")
    try:
        anyio.run(_work, found.worker if isinstance(found, Service) else found)
    except LROError as error:
        typer.echo(f"lro worker: {error}", err=True)
        raise typer.Exit(EXIT_UNAVAILABLE) from error


class Profile(StrEnum):
    """What a PostgreSQL server can do; see `open_store`."""

    POSTGRES = "postgres"
    DISTRIBUTED = "distributed"


@app.command()
def migrate(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", envvar="LRO_STORE", help="The store, as in postgresql://user:password@host/db."),
    ],
    profile: Annotated[Profile, typer.Option(help="What the server can do; see open_store().")] = Profile.POSTGRES,
) -> None:
    """Bring the schema of a database up to date; what is applied already is left alone.

    Exits with 1 if a migration can't be applied or the schema is a newer library's, and with 5 if the database can't be
    reached.
    """
    from lro.store import migrate  # noqa: PLC0415 -- only this command pays for it

    try:
        applied = anyio.run(partial(migrate, url, profile=profile.value))
    except ValueError as error:
        _refuse("migrate", str(error))
    except LROError as error:
        typer.echo(f"lro migrate: {error}", err=True)
        raise typer.Exit(EXIT_UNAVAILABLE if isinstance(error, Unavailable) else EXIT_FAILED) from error
    typer.echo("\n".join(f"applied {name}" for name in applied) or "nothing to do: the schema is up to date")


@app.command()
def doctor(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", envvar="LRO_STORE", help="The store, as in sqlite:///lro.db; see open_store()."),
    ],
    thorough: Annotated[bool, typer.Option("--thorough", help="Compare the indexes with their tables too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at a database, beside whoever works on it, and say what is wrong and what to do; changes nothing.

    Exits with 0 if nothing is wrong, with 1 if something is, and with 5 if it can't be read.
    """
    from lro.doctor import examine  # noqa: PLC0415 -- only this command pays for it

    try:
        examination = examine(url, thorough=thorough)
    except ValueError as error:
        _refuse("doctor", str(error))
    if as_json:
        typer.echo(json.dumps(asdict(examination) | {"sound": examination.sound}, indent=2))
    else:
        typer.echo("\n".join(_report(examination)))
    if not examination.sound:
        raise typer.Exit(EXIT_FAILED if examination.opened else EXIT_UNAVAILABLE)


def _report(examination: "Examination") -> Iterator[str]:
    yield examination.where
    for name, value in examination.facts.items():
        yield f"  {name.replace('_', ' ')}: {_words(value)}"
    for finding in examination.findings:
        colour = {"note": None, "warning": typer.colors.YELLOW, "error": typer.colors.RED}[finding.severity]
        yield f"{typer.style(finding.severity, fg=colour)} {finding.check}: {finding.what}"
        yield f"  {finding.advice}"
    if examination.sound:
        yield "nothing is wrong"


def _words(value: object) -> str:
    match value:
        case dict():
            return ", ".join(f"{count} {name}" for name, count in cast("dict[str, int]", value).items()) or "none"
        case list():
            return ", ".join(map(str, cast("list[int]", value))) or "none"
        case int():
            return f"{value:,}"
        case _:
            return str(value)


async def _work(worker: Worker) -> None:
    async with worker.store, worker:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            log.info("worker %s runs up to %d operations at once", worker.id, worker.concurrency)
            async for number in signals:
                log.info("%s: shutting down; once more to end at once", number.name)
                break
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what then is running is taken over by others


def _find(command: str, target: str) -> object:
    """Import `module:object`, with the working directory on the path as under uvicorn."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return import_from_string(target)
    except ImportFromStringError as error:
        _refuse(command, str(error))


def _refuse(command: str, why: str) -> NoReturn:
    typer.echo(f"lro {command}: {why}", err=True)
    raise typer.Exit(EXIT_USAGE)


def _set_up_logging(level: LogLevel, *, as_json: bool) -> None:
    handler = logging.StreamHandler()
    if as_json:
        names = {"levelname": "level", "name": "logger"}
        hidden = [*RESERVED_ATTRS, "color_message"]  # uvicorn's second copy of its messages
        fields = ["levelname", "name", "message"]
        handler.setFormatter(JsonFormatter(fields, timestamp=True, rename_fields=names, reserved_attrs=hidden))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def main() -> None:
    """Run the command line."""
    app()
