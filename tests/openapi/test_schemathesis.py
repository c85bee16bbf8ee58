"""schemathesis against a real server: all phases, all checks, knowing nothing but the OpenAPI document."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.servers import REPOSITORY, Server

EXAMPLES = int(os.environ.get("LRO_TEST_SCHEMA_EXAMPLES", "10"))
CONFIG = REPOSITORY / "tests" / "openapi" / "schemathesis.toml"


def run(folder: Path, phases: str, hooks: str) -> str:
    with Server("tests.apps.shop:app", folder) as server:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", f"{server.url}/v1/openapi.json", "--phases", phases, "--checks", "all", "--mode", "all"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--continue-on-failure"),
        ]
        alone = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        alone |= {"SCHEMA_HOOKS": hooks, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    return done.stdout


def test_every_call_that_the_document_allows_or_forbids_is_answered_as_it_says(tmp_path: Path) -> None:
    said = run(tmp_path, "examples,coverage,fuzzing", "")
    assert "Failures" not in said
    selected, tested = re.search(r"Selected: (\d+)/\d+\s+Tested: (\d+)", said).groups()  # type: ignore[union-attr]
    assert selected == tested


def test_stories_from_a_run_to_a_wait_a_cancel_and_a_delete_hold_together(tmp_path: Path) -> None:
    said = run(tmp_path, "stateful", "stateful")
    assert "Failures" not in said
    covered = re.search(r"API Links:\s+(\d+) covered", said)
    assert covered is not None
    assert int(covered[1]) >= 8, said
