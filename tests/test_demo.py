"""`lro demo` as a person runs it: an installed command, no terminal."""

import shutil
import subprocess
import sys
from pathlib import Path

import pip
import pytest


def lro(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lro.cli import main; main()", *words]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_the_demo_tells_its_whole_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    tree = Path(pip.__file__).parent  # a few hundred real files

    ended = lro("demo", "--path", str(tree))

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "All of it happened" in ended.stdout
    assert ended.stdout.count(":run -H 'content-type: application/json' -d") == 4
    assert ended.stdout.count(":cancel\n{}") == 2
    assert ended.stdout.count("$ curl http://127.0.0.1:") == 6
    assert "kill -9" in ended.stdout
    for happened in (
        "CANCELLED, error code 1",
        "the half-written archive is gone",
        "it completed anyway, and its result is kept",
        "its SHA-256 of the tree is right",
        "and it had gone on behind file",
    ):
        assert f"✓ {happened}" in ended.stdout
    assert ended.stdout.count("SHA-256 equal those of the tree") == 2
    (folder,) = {line.split("its operations in ")[1] for line in ended.stdout.splitlines() if "operations in" in line}
    assert not Path(folder).parent.exists()


@pytest.mark.parametrize("kind", ["empty", "missing", "few"])
def test_a_tree_that_is_too_small_is_refused_with_what_to_do(tmp_path: Path, kind: str) -> None:
    tree = tmp_path / "missing" if kind == "missing" else tmp_path
    if kind == "few":
        (tree / "one").write_bytes(b"x" * 10_000_000)

    ended = lro("demo", "--path", str(tree))

    assert ended.returncode == 2
    assert "is no directory" in ended.stdout if kind == "missing" else "Choose a tree of at least" in ended.stdout


def test_the_story_fails_if_something_did_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from lro.demo import story

    class Forgetful(story._Server):
        """A server that was killed and comes back with another, empty database."""

        def kill(self) -> int:
            pid = super().kill()
            for path in self._folder.glob("lro.db*"):
                if path.is_file():
                    path.unlink()
            shutil.rmtree(self._folder / "lro.db.workers")  # or it would know that there was one
            return pid

    monkeypatch.setattr(story, "_Server", Forgetful)
    with pytest.raises(story.DemoFailed, match="404"):
        story.tell(Path(pip.__file__).parent, serve=False, console=Console(quiet=True))


def test_an_archive_that_differs_from_the_tree_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from lro.demo import story

    source = Path(pip.__file__).parent
    tree = story._Tree(source)
    first = min(tree.digests)
    tree.digests[first] = "0" * 64
    monkeypatch.setattr(story, "_Tree", lambda source: tree)
    with pytest.raises(story.DemoFailed, match="SHA-256 equal"):
        story.tell(source, serve=False, console=Console(quiet=True))


def test_serve_leaves_the_service_running(tmp_path: Path) -> None:
    import re

    import httpx2

    tree = Path(pip.__file__).parent
    command = [sys.executable, "-u", "-c", "from lro.cli import main; main()", "demo", "--serve", "--path", str(tree)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"goes on at (http://127.0.0.1:[0-9]+)/v1", line):
                break
        else:
            raise AssertionError("it never said where the service goes on")
        listed = httpx2.get(f"{found[1]}/v1/operations").json()["operations"]
        process.terminate()  # SIGINT would be ignored where the tests run in the background
        process.communicate(timeout=20)
        status = process.returncode

    assert len(listed) == 4
    assert status == 0
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{found[1]}/v1/operations")
