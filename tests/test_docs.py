"""Every block of Python in the docs runs and does what stands around it; every link leads somewhere."""

import dataclasses
import hashlib
import json
import logging
import re
import shlex
import sqlite3
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from lro import AllowAnonymous, Operations, Service
from lro.clock import format_time
from lro.errors import InvalidArgument
from lro.filter import CHOICES, KINDS, MAX_BYTES, MAX_DEPTH, MAX_TERMS, parse
from lro.lifecycle import Record, State
from lro.limits import Limits
from lro.paging import MAX_AGE
from lro.principal import Permission
from lro.routes.system import SYSTEM_PARAMETERS
from lro.status import Code, Status, error_info
from lro.store import Store
from lro.store.walk import LOOKS_AT
from tests.records import NOW, ended, record, running
from tests.servers import REPOSITORY

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
Load = Callable[[str], Any]  # Any: a module
LoadFrom = Callable[[str, str], Any]


def blocks(page: Path) -> dict[str, str]:
    """Return the blocks of Python of a page by the heading that they stand under."""
    found = {}
    for section in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        code = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        if code:
            found[section.splitlines()[0]] = "\n".join(code)
    return found


@pytest.fixture
def load_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadFrom:
    """Run the blocks under a heading of a page as a module, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(page: str, heading: str) -> Any:  # Any: a module
        module = types.ModuleType("shown")
        monkeypatch.setitem(sys.modules, "shown", module)
        exec(compile(blocks(REPOSITORY / "docs" / page)[heading], heading, "exec"), module.__dict__)
        return module

    return run


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
    "Operations that do not give way",
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


async def test_an_observer_counts(load: Load) -> None:
    shown = load("Operations that do not give way")
    async with shown.service as service:
        name = (await service.operations.start(shown.bind)).name
        await service.operations.wait(name)
    assert shown.counting.ended == {"SUCCEEDED": 1}


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


WIRE = (REPOSITORY / "docs" / "wire.md").read_text(encoding="utf-8")
CALL = re.compile(r"(?P<method>[A-Z]+) (?P<path>\S+)(?: (?P<body>.+))?\n(?P<status>\d{3})(?: (?P<answer>.+))?")


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # Any: a module
    """Run the Python of docs/wire.md, all of it, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", module)
    for code in blocks(REPOSITORY / "docs" / "wire.md").values():
        exec(compile(code, "wire.md", "exec"), module.__dict__)
    return module


def test_calls_are_answered_as_the_page_on_the_wire_says(wire: Any) -> None:
    shown = re.findall(r"^```http\n(.*?)^```$", WIRE, re.DOTALL | re.MULTILINE)
    calls = [call for block in shown for call in CALL.finditer(block)]
    assert len(calls) == sum(len(block.strip().split("\n\n")) for block in shown), "a call is not understood"
    with TestClient(wire.app) as client:
        assert client.portal is not None
        name = client.portal.call(wire.start, "7").name
        assert client.post(f"/v1/{name}:wait").json()["done"]
        key = name.rpartition("/")[2]
        for call in calls:
            method, path, body, status, answer = (call[part] for part in CALL.groupindex)
            sent = {} if body is None else {"json": json.loads(body.replace("{id}", key))}
            got = client.request(method, path.replace("{id}", key), **sent)
            assert got.status_code == int(status), (call[0], got.text)
            if answer.startswith("{"):
                assert got.json() == json.loads(answer.replace("{id}", key)), call[0]
            elif answer.startswith("Allow: "):
                assert got.headers["allow"] == answer.removeprefix("Allow: ")
            else:
                reason, _, fields = answer.partition(" ")
                info = got.json()["error"]["details"][0]
                assert (info["reason"], info["metadata"].get("field", "")) == (reason, fields)


def test_a_service_that_only_reads_says_so(wire: Any) -> None:
    with TestClient(wire.reader.app()) as client:
        assert client.get("/v1/operations").status_code == 200
        assert client.delete(f"/v1/operations/{'0' * 26}").json()["error"]["status"] == "UNIMPLEMENTED"


def test_the_system_parameters_are_all_told() -> None:
    section = WIRE.partition("## System parameters")[2].partition("\n## ")[0]
    told = set(re.findall(r"`(\$?\.?[A-Za-z_.]+)`", section))
    untold = {"$key", "$callback", "$apiFormat"}  # other words for those that are told
    assert set(SYSTEM_PARAMETERS) - told == untold


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


FILTERS = (REPOSITORY / "docs" / "filters.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([^`]+)` \| `?([^`|]+?)`? \|$", re.MULTILINE)


def section(heading: str) -> str:
    """Return what stands under a heading of docs/filters.md."""
    return FILTERS.split(f"## {heading}\n")[1].split("\n## ")[0]


def print_shop() -> dict[str, Record]:
    """Return the operations that docs/filters.md tells of."""
    ink = Status(Code.INTERNAL, "out of ink", (error_info("NO_INK"),)).to_json()
    progress = re.search(r"`progress` `(.*?)`", FILTERS)
    assert progress is not None
    return {
        "D": ended(State.SUCCEEDED, name="operations/d", job="books.print", target="books/emma", attempt=2),
        "C": ended(State.FAILED, name="operations/c", job="books.print", target="books/moby", error=ink, ended_at=NOW),
        "B": record(name="operations/b"),
        "A": running(name="operations/a", target="books/moby", progress=progress[1]),
    }


async def test_the_filters_that_are_shown_find_what_is_said(store: Store) -> None:
    shop = print_shop()
    for number, stored in enumerate(shop.values()):
        await store.insert(stored._replace(created_at=NOW - 10 + number))
    names = {stored.name: letter for letter, stored in shop.items()}
    rows = ROW.findall(section("Examples"))
    for text, found in rows:
        page = await Operations(store).list(filter=text)
        assert " ".join(names[operation.name] for operation in page.operations) == found, text
    assert len(rows) > 15


def test_the_call_that_is_shown_is_answered(tmp_path: Path) -> None:
    (line,) = re.findall(r"^\$ (curl .*)$", FILTERS, re.MULTILINE)
    curl, get, url, encoded, data = shlex.split(line)
    assert (curl, get, encoded) == ("curl", "-G", "--data-urlencode")
    service = Service(f"sqlite:///{tmp_path}/lro.db", jobs=[], auth=AllowAnonymous())
    with TestClient(Starlette(routes=[Mount("/v1", app=service)], lifespan=service.lifespan)) as client:
        path, (key, _, value) = url.partition("/")[2], data.partition("=")
        response = client.get(f"/{path}", params={key: value})
    assert (response.status_code, response.json()) == (200, {"operations": []})


def test_the_filters_that_are_shown_as_refused_are_refused_so() -> None:
    rows = ROW.findall(section("What is refused"))
    for text, answer in rows:
        with pytest.raises(InvalidArgument) as caught:
            parse(text)
        assert caught.value.message == f"filter: {answer}"
    assert len(rows) == 5
    limits = f"{MAX_BYTES:,} bytes, {MAX_TERMS} values, {MAX_DEPTH} parentheses inside each other, {MAX_DEPTH} keys"
    assert limits in section("What is refused")


def test_the_fields_that_are_told_are_those_that_there_are() -> None:
    told = set(re.findall(r"`([a-z][A-Za-z.]*)(?:\.<key>\.\.\.)?`", section("Fields").split("\n\n")[0]))
    assert KINDS.keys() == told - {"true", "false", "google.rpc.Code"}
    for choices in CHOICES.values():
        assert ", ".join(f"`{choice.value}`" for choice in choices) in section("Fields")


async def test_a_walk_through_pages_meets_what_failed(store: Store) -> None:
    for stored in print_shop().values():
        await store.insert(stored._replace(created_at=NOW))
    module = types.ModuleType("shown")
    exec(blocks(REPOSITORY / "docs" / "filters.md")["Pages"], module.__dict__)

    found = [one.name async for one in module.failed_since(Operations(store), format_time(NOW))]

    assert found == ["operations/c"]
    assert [one async for one in module.failed_since(Operations(store), format_time(NOW + 1))] == []
    assert f"{LOOKS_AT:,} operations" in section("Pages")
    assert (MAX_AGE.days, Limits().default_page_size, Limits().page_size) == (3, 50, 1000)


async def test_the_hooks_that_are_shown_let_in_whom_they_say(load_from: LoadFrom) -> None:
    shown = load_from("security.md", "The two hooks")
    transport = httpx2.ASGITransport(app=shown.app)
    ann, ops = ({"authorization": f"Bearer s3cret-{who}"} for who in ("ann", "ops"))
    async with shown.service, httpx2.AsyncClient(transport=transport, base_url="http://host/v1/") as client:
        assert (await client.get("operations")).status_code == 401
        name = (await client.post("jobs/books.render:run", headers=ops)).json()["name"]
        assert (await client.get(name, headers=ann)).status_code == 403
        assert (await client.get(name, headers=ops)).status_code == 200
        assert (await client.delete(name, headers=ann)).status_code == 403


def test_the_permissions_are_told_as_they_are() -> None:
    text = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith(("  | `operations.", "  | `jobs."))]
    told = [name for row in rows for name in re.findall(r"`([a-z.]+)`", row.split("|")[1])]
    assert sorted(told) == sorted(get_args(Permission))


def test_the_limits_are_told_as_they_are(load_from: LoadFrom) -> None:
    assert load_from("security.md", "Limits").limits.pending_per_tenant == 500
    text = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| (\d+)", text, re.MULTILINE))
    values = {field.name: getattr(Limits(), field.name) for field in dataclasses.fields(Limits)}
    as_text = {
        name: f"{value.total_seconds():g}" if isinstance(value, timedelta) else str(value)
        for name, value in values.items()
    }
    assert told == as_text
