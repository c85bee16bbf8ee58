"""The command line: `lro demo`. Needs the `cli` extra.

Decides how commands are spelled and which exit code says what; the work is done elsewhere.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as error:  # pragma: no cover -- seen only where the extra is missing
    sys.exit(f"lro's command line needs the package {error.name}: install it with  pip install 'lro[cli]'")

__all__ = ["app", "main"]

EXIT_FAILED, EXIT_USAGE = 1, 2

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Cancellable long-running operations.")


@app.callback()
def _commands() -> None:
    """Keep `lro demo` a subcommand while it is the only one."""


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


def main() -> None:
    """Run the command line."""
    app()
