"""Every example does, run as its first lines say, what it is there to show."""

import csv
import json
import sqlite3
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.commands import Command
from tests.servers import REPOSITORY, Server

Json = dict[str, Any]
EXAMPLES = sorted((REPOSITORY / "examples").glob("[a-z]*.*"))
TESTED = {
    "quickstart.py", "fastapi_reports.py", "resume.py", "worker_process.py", "thread_job.py", "background_tasks.py",
    "browser.py", "browser.html",
}  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.name))
def test_it_is_short_and_tested_and_says_how_it_is_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert path.name in TESTED  # the quick start by the tests of the README
    if path.suffix == ".py":
        assert f"examples.{path.stem}:" in text.split('"""')[1]


def run(client: httpx2.Client, job: str, **params: Any) -> str:
    response = client.post(f"jobs/{job}:run", json={"params": params})
    assert response.status_code == 200, response.text
    return str(response.json()["name"])


def metadata(operation: Json) -> Json:
    return dict(operation["metadata"]["value"])


def end(client: httpx2.Client, name: str) -> Json:
    """Wait, within bounds, for an operation's end."""
    for _ in range(5):
        operation: Json = client.post(f"{name}:wait").json()
        if operation["done"]:
            return operation
    raise AssertionError(f"it has not ended: {operation}")


def until_progress(client: httpx2.Client, name: str, field: str) -> Json:
    for _ in range(2000):
        operation: Json = client.post(f"{name}:wait", json={"timeout": "0.005s"}).json()
        if metadata(operation).get("progress", {}).get(field):
            return operation
    raise AssertionError(f"no progress is seen: {operation}")


def make_files(folder: Path, count: int, text: str) -> None:
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:05}.txt").write_text(text, encoding="utf-8")


def test_endpoints_under_fastapi_and_a_row_in_the_same_commit(tmp_path: Path) -> None:
    make_files(tmp_path / "texts", 3, "to be or not to be")
    ada, bob = ({"authorization": f"Bearer {who}"} for who in ("ada", "bob"))
    with Server("examples.fastapi_reports:app", tmp_path) as server, server.client() as client:
        started = client.post("reports", json={"folder": "texts"}, headers=ada)
        operation: Json = client.post(f"{started.json()['name']}:wait", headers=ada).json()
        foreign = client.get(started.json()["name"], headers=bob)
        nobody = client.post("reports", json={"folder": "texts"})
        wrong = client.post("reports", json={"folder": 3}, headers=ada)
        schema = client.get(f"{server.url}/openapi.json").json()

    assert started.status_code == 200
    assert started.json().keys() == {"name", "metadata", "done"}
    assert metadata(started.json())["target"] == "texts"
    assert operation["response"]["value"] == {"to": 6, "be": 6, "or": 3, "not": 3}
    assert foreign.status_code == 403
    assert (nobody.status_code, nobody.json()["error"]["status"]) == (401, "UNAUTHENTICATED")
    assert wrong.status_code == 422, "the parameters are FastAPI's own"
    answer = schema["paths"]["/v1/reports"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/Operation"}
    assert schema["components"]["schemas"]["Operation"]["required"] == ["name", "metadata", "done"]
    assert "Folder" in schema["components"]["schemas"]
    connection = sqlite3.connect(tmp_path / "reports.db")
    assert connection.execute("SELECT folder, owner FROM reports").fetchall() == [("texts", "ada")]
    connection.close()


def test_an_import_goes_on_after_kill_9(tmp_path: Path) -> None:
    books = 20_000
    with (tmp_path / "books.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([f"978-{index:09}", f'Volume {index}, "the" book'] for index in range(books))
    with Command("lro", "serve", "examples.resume:service", "--port", "0", folder=tmp_path) as server:
        with server.client() as client:
            name = run(client, "books.import", path="books.csv")
            before = metadata(until_progress(client, name, "books"))["progress"]["books"]
            server.kill()
        server.start()
        with server.client() as client:
            operation = end(client, name)

    assert before < books, "the kill came too late to show anything"
    assert metadata(operation)["attempt"] == 2
    assert operation["response"]["value"] == {"books": books}
    connection = sqlite3.connect(tmp_path / "books.db")
    assert connection.execute("SELECT count(*) FROM books").fetchone() == (books,)
    connection.close()


def test_a_separate_process_does_the_work(tmp_path: Path) -> None:
    make_files(tmp_path / "texts", 20, "first\nTODO: second\n")
    serve = ("lro", "serve", "examples.worker_process:service", "--port", "0")
    with Command(*serve, folder=tmp_path) as server, server.client() as client:
        name = run(client, "texts.search", folder="texts", pattern="T[O0]DO")
        assert metadata(client.post(f"{name}:wait", json={"timeout": "0.2s"}).json())["state"] == "PENDING"
        with Command("lro", "worker", "examples.worker_process:service", folder=tmp_path) as worker:
            operation = end(client, name)
            worker.until("runs up to 10 operations")
            assert worker.terminate() == 0

    assert sorted(operation["response"]["value"]) == [f"texts/{index:05}.txt:2: TODO: second" for index in range(20)]


def test_a_job_in_a_thread_zips_and_is_cancelled(tmp_path: Path) -> None:
    make_files(tmp_path / "texts", 50, "zip me")
    make_files(tmp_path / "more", 4000, "x" * 20_000)
    serve = ("lro", "serve", "examples.thread_job:service", "--port", "0")
    with Command(*serve, folder=tmp_path) as server, server.client() as client:
        zipped = end(client, run(client, "folders.zip", folder="texts", target="texts.zip"))
        name = run(client, "folders.zip", folder="more", target="more.zip")
        until_progress(client, name, "files_done")
        assert (tmp_path / "more.zip.part").exists()
        client.post(f"{name}:cancel")
        cancelled = end(client, name)

    assert zipped["response"]["value"] == {"files_done": 50, "bytes_done": 300}
    assert len(zipfile.ZipFile(tmp_path / "texts.zip").namelist()) == 50
    assert cancelled["error"]["code"] == 1
    assert metadata(cancelled)["cancelOutcome"] == "ACKNOWLEDGED"
    assert not (tmp_path / "more.zip.part").exists()
    assert not (tmp_path / "more.zip").exists()


class _Webhooks(BaseHTTPRequestHandler):
    """Takes announcements; the third one is refused once."""

    taken: list[tuple[str, str]]
    failures: int

    def do_POST(self) -> None:
        key = self.headers["Idempotency-Key"]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner = type(self)
        failed = self.path == "/2" and owner.failures > 0
        if failed:
            owner.failures -= 1
        else:
            owner.taken.append((key, body["text"]))
        self.send_response(503 if failed else 204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- as its base calls it
        del format, args


@pytest.fixture
def webhooks() -> Iterator[tuple[str, type[_Webhooks]]]:
    handler = type("Handler", (_Webhooks,), {"taken": [], "failures": 1})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def test_background_tasks_become_a_job(tmp_path: Path, webhooks: tuple[str, type[_Webhooks]]) -> None:
    url, handler = webhooks
    with Server("examples.background_tasks:app", tmp_path) as server, server.client() as client:
        body = {"text": "closed on Monday", "webhooks": [f"{url}/{index}" for index in range(5)]}
        started = client.post(f"{server.url}/announcements", json=body)
        name = started.json()["name"]
        operation = end(client, name)

    assert started.status_code == 202
    assert operation["response"]["value"] == {"delivered": 5}
    assert metadata(operation)["attempt"] == 2, "one webhook was refused once"
    assert handler.taken == [(f"{name}/{index}", "closed on Monday") for index in range(5)], "each exactly once"


@pytest.mark.needs("chromium", "chromedriver")
def test_a_page_follows_an_operation_in_a_browser(tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    make_files(tmp_path / "texts", 50, "zip me")
    make_files(tmp_path / "more", 6000, "x" * 20_000)
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.binary_location = "/usr/bin/chromium"
    service = webdriver.ChromeService(executable_path="/usr/bin/chromedriver")
    with (
        Server("examples.browser:app", tmp_path) as server,
        webdriver.Chrome(options=options, service=service) as browser,
    ):
        wait = WebDriverWait(browser, 20, poll_frequency=0.02)

        def shown(what: str) -> str:
            return str(browser.find_element(By.ID, what).text)

        def zip_folder(folder: str, target: str) -> None:
            for field, value in (("folder", folder), ("target", target)):
                entry = browser.find_element(By.NAME, field)
                entry.clear()
                entry.send_keys(value)
            browser.find_element(By.CSS_SELECTOR, "button").click()

        browser.get(server.url)
        zip_folder("texts", "texts.zip")
        wait.until(lambda _: shown("state") == "SUCCEEDED")
        assert shown("files") == "50 files"

        zip_folder("more", "more.zip")
        wait.until(lambda _: shown("state") == "RUNNING" and shown("files").split()[:1] not in ([], ["0"]))
        browser.refresh()  # it goes on following
        wait.until(lambda _: shown("state") == "RUNNING")
        browser.find_element(By.ID, "cancel").click()
        wait.until(lambda _: shown("state") == "CANCELLED")
        assert not browser.find_element(By.ID, "cancel").is_enabled()

        zip_folder("", "x.zip")
        assert shown("state") == "CANCELLED", "the form is not complete"
        zip_folder("missing", "missing/x.zip")
        wait.until(lambda _: shown("state") == "FAILED")
    assert not (tmp_path / "more.zip").exists()
