"""What `lro serve` and `lro worker` take, what they refuse, and the exit code that says which."""

import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lro.cli import app
from tests.commands import Command

OWN = """
from lro import AllowAnonymous, Context, Service, Worker, job
from lro.store import open_store

@job("nothing")
async def nothing(ctx: Context) -> None:
    pass

service = Service("sqlite:///own.db", jobs=[nothing], auth=AllowAnonymous())
nowhere = Service("sqlite:///missing/own.db", jobs=[nothing], auth=AllowAnonymous())
asgi = service.app()
worker = Worker(open_store("sqlite:///own.db"), [nothing], concurrency=3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a module of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "own", None)  # so that what the command imports is taken out again
    del sys.modules["own"]
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def lro(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("serve", "own:asgi"), "own:asgi is a Starlette, not a Service; an app of your own is served by  uvicorn own"),
        (("serve", "own:missing"), 'Attribute "missing" not found in module "own"'),
        (("serve", "other:service"), 'Could not import module "other"'),
        (("serve", "own"), 'must be in format "<module>:<attribute>"'),
        (("serve", "own:service", "--prefix", "v1"), "begin with a slash, and end without one"),
        (("serve", "own:service", "--prefix", "/"), "begin with a slash, and end without one"),
        (("worker", "own:nothing"), "own:nothing is a Job, neither a Service nor a Worker"),
        (("worker", "own:missing"), 'Attribute "missing" not found in module "own"'),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_can_not_be_meant_is_refused_with_2_and_says_what_to_do(words: tuple[str, ...], says: str) -> None:
    result = lro(*words)
    assert result.exit_code == 2
    assert f"lro {words[0]}: " in result.stderr
    assert says in result.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_store_that_can_not_be_opened_is_5(command: str, caplog: pytest.LogCaptureFixture) -> None:
    result = lro(command, "own:nowhere")
    assert result.exit_code == 5
    said = result.stderr + caplog.text
    assert "the store can't be opened" in said
    assert "own.db: " in said


@pytest.mark.usefixtures("folder")
def test_an_address_that_is_taken_is_5(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = lro("serve", "own:service", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 5
    assert "address already in use" in caplog.text


def test_a_worker_of_ones_own_works_as_it_was_made(folder: Path) -> None:
    with Command("lro", "worker", "own:worker", folder=folder) as worker:
        worker.until("runs up to 3 operations")
        assert worker.terminate() == 0
