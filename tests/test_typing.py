"""Types as users see them: mypy and pyright, both strict, accept what is right and refuse what is wrong."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GOOD, BAD = HERE / "typing" / "good.py", HERE / "typing" / "bad.py"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=HERE.parent)


def mypy(directory: Path) -> dict[str, set[int]]:
    """Return the lines with errors by file name, as mypy finds them."""
    config = directory / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\nwarn_unreachable = true\n")
    options = ["--config-file", str(config), "--cache-dir", str(HERE.parent / ".mypy_cache" / "typing")]
    plain = ["--no-error-summary", "--hide-error-context", "--no-pretty"]
    done = run(sys.executable, "-m", "mypy", *options, *plain, str(GOOD), str(BAD))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, set[int]] = {}
    for name, line in re.findall(r"^(?:.*/)?(\w+\.py):(\d+)(?::\d+)?: error: ", done.stdout, re.MULTILINE):
        found.setdefault(name, set()).add(int(line))
    return found


def pyright(directory: Path) -> dict[str, set[int]]:
    """Return the lines with errors by file name, as pyright finds them."""
    config = directory / "pyrightconfig.json"
    config.write_text(json.dumps({"typeCheckingMode": "strict", "extraPaths": [str(HERE.parent)]}))
    for file in (GOOD, BAD):  # pyright reads what lies beside its configuration
        shutil.copy(file, directory)
    done = run(
        sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(config)
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 2
    found: dict[str, set[int]] = {}
    for entry in report["generalDiagnostics"]:
        if entry["severity"] == "error":
            found.setdefault(Path(entry["file"]).name, set()).add(entry["range"]["start"]["line"] + 1)
    return found


@pytest.mark.parametrize("check", [mypy, pyright], ids=lambda check: str(check.__name__))
def test_type_checkers_accept_what_is_right_and_refuse_what_is_wrong(check: object, tmp_path: Path) -> None:
    marked = {number for number, line in enumerate(BAD.read_text().splitlines(), 1) if "# error" in line}

    found = mypy(tmp_path) if check is mypy else pyright(tmp_path)

    assert found.get(GOOD.name, set()) == set()
    assert found.get(BAD.name, set()) == marked
    assert len(marked) > 20
