"""docs/clients.md: its service is served, and its clients do what stands around them."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions

from lro import testing
from tests.google.conftest import Service
from tests.servers import REPOSITORY, Server
from tests.test_docs import blocks

PAGE = blocks(REPOSITORY / "docs" / "clients.md")


def load(heading: str, monkeypatch: pytest.MonkeyPatch) -> Any:  # Any: a module
    module = types.ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", module)
    exec(compile(PAGE[heading], heading, "exec"), module.__dict__)
    return module


def test_every_block_has_a_test() -> None:
    assert set(PAGE) == {"The service", "The client", "Types of your own", "A generated client"}


def test_the_client_follows_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shown_service.py").write_text(PAGE["The service"], encoding="utf-8")
    client = load("The client", monkeypatch)

    with Server("shown_service:app", tmp_path, {"PYTHONPATH": str(tmp_path)}) as server:
        assert client.follow(server.url) == "9780142437247"


async def test_a_job_names_its_types(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = load("Types of your own", monkeypatch)

    operation = (await testing.run(shown.write)).operation.to_dict()

    assert operation["response"] == {
        "@type": "type.googleapis.com/acme.v1.Book",
        "name": "books/moby-dick",
        "copies": "9007199254740993",
    }
    times = ("createTime", "endTime")
    assert {key: value for key, value in operation["metadata"].items() if key not in times} == {
        "@type": "type.googleapis.com/acme.v1.WritingMetadata",
        "verb": "write",
        "requestedCancellation": False,
        "chapter": "Loomings",
    }
    assert set(times) < set(operation["metadata"])


def test_the_generated_client_creates_and_cancels(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(exceptions.Cancelled):
        load("A generated client", monkeypatch).create(service.url)
