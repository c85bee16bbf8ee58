"""Everything in the README runs, and says what the README says."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.servers import REPOSITORY, Server

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
QUICKSTART = (REPOSITORY / "examples" / "quickstart.py").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def send(line: str, server: Server) -> Any:
    """Do what a curl line of the README says."""
    words = shlex.split(line)
    assert words.pop(0) == "curl"
    method, headers, body, url = "GET", {}, None, ""
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            key, _, value = words.pop(0).partition(": ")
            headers[key] = value
        elif word == "-d":
            body = words.pop(0)
        else:
            url = word
    url = url.replace("localhost:8000", server.url)
    response = httpx2.request(method, url, headers=headers, content=body, timeout=20)
    assert response.status_code == 200, response.text
    return response.json()


def shape(value: Any) -> Any:
    """Return JSON with everything that differs from run to run replaced by what it is."""
    if isinstance(value, dict):
        return {key: shape(member) for key, member in value.items()}
    if isinstance(value, list):
        return [shape(member) for member in value]
    if isinstance(value, str):
        value = re.sub(r"operations/[0-9a-z]{26}", "operations/ID", value)
        return re.sub(r"^[0-9]{4}-[0-9-]+T[0-9:.]+Z$", "TIME", value)
    return "NUMBER" if isinstance(value, int) and not isinstance(value, bool) and value > 1000 else value


def test_the_first_screen_shows_the_quick_start_as_it_is() -> None:
    assert blocks("python")[0].strip() in QUICKSTART
    assert len(README.split("```python")[1].split("```")[0].strip().splitlines()) <= 13


def test_the_curl_lines_answer_as_the_readme_shows(tmp_path: Path) -> None:
    (console,) = blocks("console")
    exchanges = re.findall(r"^\$ (curl .*)\n(.*)$", console, re.MULTILINE)
    assert len(exchanges) == 3
    with (tmp_path / "big.iso").open("wb") as big:
        big.truncate(8 << 30)
    with Server("examples.quickstart:app", tmp_path) as server:
        (run, run_shown), (cancel, cancel_shown), (get, get_shown) = exchanges
        name = re.search(r"operations/[0-9a-z]{26}", cancel)
        assert name is not None
        started = send(run, server)
        path = started["name"]
        while True:
            seen = httpx2.get(f"{server.url}/v1/{path}").json()["metadata"]["value"]
            if seen.get("progress", {}).get("bytes_done", 0) > 0:
                break
        cancelled = send(cancel.replace(name[0], path), server)
        httpx2.post(f"{server.url}/v1/{path}:wait", timeout=20)
        shown = send(get.replace(name[0], path), server)

    assert shape(started) == shape(json.loads(run_shown))
    assert cancelled == json.loads(cancel_shown)
    assert shape(shown) == shape(json.loads(get_shown))


def test_the_service_of_your_own_runs(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(blocks("python")[1], encoding="utf-8")
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    body = {"source": "source", "target": "copied"}
    with Server("own:app", tmp_path, {"PYTHONPATH": str(tmp_path)}) as server, server.client() as client:
        started = client.post(f"{server.url}/v1/files:copy", json=body, headers={"x-request-id": "1"}).json()
        again = client.post(f"{server.url}/v1/files:copy", json=body, headers={"x-request-id": "1"}).json()
        other = client.post(f"{server.url}/v1/files:copy", json={**body, "target": "t"}, headers={"x-request-id": "1"})
        ended = client.post(f"{started['name']}:wait").json()

    assert again["name"] == started["name"]
    assert other.status_code == 400
    assert other.json()["error"]["details"][0]["reason"] == "REQUEST_ID_REUSED"
    assert ended["response"]["value"] == {"bytes_done": 3_000_000}
    assert (tmp_path / "copied").read_bytes() == (tmp_path / "source").read_bytes()


def test_the_two_commands_stand_there_to_be_pasted() -> None:
    commands = "\n".join(blocks("sh"))
    assert 'python3 -m venv .venv && .venv/bin/pip install -e ".[all]" && .venv/bin/lro demo' in commands
    assert 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/python -m pytest' in commands
    assert 'python3 -m venv .venv && .venv/bin/pip install -q -e ".[dev]" && .venv/bin/python -m pytest' in (
        REPOSITORY / ".ci" / "run"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_what_the_readme_links_to_is_there(path: str) -> None:
    assert (REPOSITORY / path).exists()
