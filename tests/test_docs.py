"""Every block of Python in the docs runs and does what stands around it; every link leads somewhere."""

import hashlib
import json
import logging
import re
import sqlite3
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.servers import REPOSITORY

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
Load = Callable[[str], Any]  # Any: a module


def blocks(page: Path) -> dict[str, str]:
    """Return the blocks of Python of a page by the heading that they stand under."""
    found = {}
    for section in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        code = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        if code:
            found[section.splitlines()[0]] = "\n".join(code)
    return found


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Run the blocks under a heading of docs/embedding.md as a module, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    sections = blocks(REPOSITORY / "docs" / "embedding.md")

    def run(heading: str) -> Any:
        module = types.ModuleType("shown")
        monkeypatch.setitem(sys.modules, "shown", module)
        exec(compile(sections[heading], heading, "exec"), module.__dict__)
        return module

    yield run
    assert set(sections) == SHOWN, "a block has no test"


SHOWN = {
    "Code that blocks: plain functions",
    "Your rows and the operation, one commit",
    "Starlette and FastAPI",
    "Logs",
}


def test_a_plain_function_hashes_a_file(load: Load, tmp_path: Path) -> None:
    shown = load("Code that blocks: plain functions")
    (tmp_path / "book").write_bytes(b"x" * 3_000_000)
    with TestClient(shown.app) as client:
        started = client.post("/v1/jobs/files.sha256:run", json={"params": {"path": "book"}}).json()
        ended = client.post(f"/v1/{started['name']}:wait").json()
    assert ended["response"]["value"] == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert ended["metadata"]["value"]["progress"] == {"bytes_done": 3_000_000}


async def test_an_order_and_its_operation_are_one_commit(load: Load, tmp_path: Path) -> None:
    shown = load("Your rows and the operation, one commit")
    async with shown.store:
        operation = await shown.place(shown.Order(book="Moby-Dick"), "o-1")
        again = await shown.place(shown.Order(book="Moby-Dick"), "o-1")
    assert again.name == operation.name
    connection = sqlite3.connect(tmp_path / "shop.db")
    assert connection.execute("SELECT * FROM orders").fetchall() == [("o-1", "Moby-Dick")]
    connection.close()


def test_an_endpoint_returns_an_operation(load: Load) -> None:
    shown = load("Starlette and FastAPI")
    with TestClient(shown.app) as client:
        started = client.post("/v1/books:render", json={"pages": 9}).json()
        assert client.post(f"/v1/{started['name']}:wait").json()["response"]["value"] == 9
        assert "Operation" in client.get("/openapi.json").json()["components"]["schemas"]


def test_a_line_is_json(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("lro")
    level, handlers = logger.level, list(logger.handlers)
    try:
        load("Logs")
        logging.getLogger("lro.job").info("page", extra={"operation": "operations/1"})
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["operation"]) == ("page", "operations/1")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / path).exists(), path


@pytest.mark.parametrize("heading", sorted(blocks(REPOSITORY / "docs" / "testing.md")))
def test_the_tests_that_are_shown_pass(heading: str, tmp_path: Path) -> None:
    conftest = "import pytest\n\npytest_plugins = ['lro.testing.plugin']\n\n@pytest.fixture\ndef anyio_backend():\n"
    (tmp_path / "conftest.py").write_text(f"{conftest}    return 'asyncio'\n", encoding="utf-8")
    shown = blocks(REPOSITORY / "docs" / "testing.md")[heading]
    (tmp_path / "test_shown.py").write_text(shown, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "anyio_mode=auto", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{shown.count('async def test_')} passed" in done.stdout
