"""docs/guarantees.md names tests that there are, and each invariant once."""

import ast
import re
from pathlib import Path

import pytest

from tests.servers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)*)`", PAGE)) - {"tests/test_guarantees.py"})


def names_in(path: Path) -> set[str]:
    """Return the tests of a module, those of its classes and of the classes that it inherits them from."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize("test", NAMED)
def test_each_test_that_is_named_is_there(test: str) -> None:
    path, *names = test.split("::")
    assert (REPOSITORY / path).is_file()
    assert set(names[:1]) <= names_in(REPOSITORY / path)
    if len(names) > 1:
        everything = "".join(file.read_text() for file in (REPOSITORY / "lro" / "testing").rglob("*.py"))
        assert f"def {names[1]}(" in everything + (REPOSITORY / path).read_text()


def test_each_invariant_stands_there_once() -> None:
    rows = [int(number) for number in re.findall(r"^\| R(\d+) \|", PAGE, re.MULTILINE)]
    assert sorted(rows) == list(range(1, 35))
