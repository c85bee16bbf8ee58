"""The page on conformance: every item in its place, and the tests that it names are there."""

import ast
import re
from functools import cache

import pytest

from tests.servers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "conformance.md").read_text(encoding="utf-8")
ITEMS = [f"P{number}" for number in range(1, 87)]
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| P")]
DOES = re.compile(r"Done\b|(?:Departs(?: in part)?|Not applicable): .{20,}", re.DOTALL)


@cache
def names_in(path: str) -> set[str]:
    """Return the names of the tests in a module."""
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {function.name for function in functions if function.name.startswith("test_")}


def test_every_item_has_its_row_in_order() -> None:
    assert [row[0] for row in ROWS] == ITEMS
    assert {len(row) for row in ROWS} == {4}
    assert all(row[1] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_is_done_and_tested_or_gives_a_reason(row: list[str]) -> None:
    _, _, does, named = row

    assert DOES.match(does), "begin with Done, or Departs or Not applicable and a reason"
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", named)
    assert tests or not does.startswith("Done")
    assert named == " ".join(f"`{path}::{name}`" for path, name in tests), "nothing but tests stands there"
    for path, name in tests:
        assert name in names_in(path), f"{path} has no {name}"
