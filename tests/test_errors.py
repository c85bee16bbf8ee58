"""The catalogue of errors: complete, in the form that AIP-193 asks for, and true."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import lro
from lro import errors
from lro.errors import LROError
from lro.status import Code
from tests.servers import REPOSITORY

PACKAGE = Path(lro.__file__).parent
CATALOGUE = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \|(?: ([\w ,]+) \|)?(?: (\d{3}) \|)?", re.MULTILINE)


def reasons_in(source: str) -> Iterator[str]:
    """Return every reason that a module can give: its literals, whatever they are handed to."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="error_info") | ast.Attribute(attr="_internal"), args=[first, *_]):
                yield from _texts(first)
            case ast.keyword(arg="reason", value=value):
                yield from _texts(value)
            case ast.Assign(targets=[ast.Name(id="reason")], value=ast.Constant(value=str(reason))):
                yield reason
            case ast.AnnAssign(target=ast.Name(id="reason"), value=ast.Constant(value=str(reason))):
                yield reason


def _texts(node: ast.expr) -> Iterator[str]:
    """Return the texts that an expression may come to, those of both arms of a condition."""
    match node:
        case ast.Constant(value=str(text)) if text:
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from _texts(body)
            yield from _texts(orelse)


def raised() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if "testing" not in path.parts and "demo" not in path.parts:
            for reason in reasons_in(path.read_text(encoding="utf-8")):
                found.setdefault(reason, set()).add(path.name)
    return found


def test_every_reason_is_in_the_catalogue_and_no_other() -> None:
    listed = [row[1] for row in ROW.finditer(CATALOGUE)]
    assert len(listed) == len(set(listed)), "a reason stands twice"
    assert set(listed) == raised().keys(), set(listed) ^ raised().keys()


def test_reasons_are_found_wherever_they_stand() -> None:
    source = """
raise NotFound("x", reason="A_ONE" if x else "A_TWO")
error_info("A_THREE", name="n")
self._internal("A_FIVE" if x == "NO" else "A_SIX", None)
class X:
    reason = "A_FOUR"
    other: str = "NOT_A_REASON"
"""
    assert set(reasons_in(source)) == {"A_ONE", "A_TWO", "A_THREE", "A_FOUR", "A_FIVE", "A_SIX"}


def test_reasons_have_the_form_that_aip_193_asks_for() -> None:
    for reason in raised():
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", reason), reason
        assert len(reason) <= 63


def test_the_catalogue_tells_codes_and_their_http_status_as_they_are() -> None:
    classes = {
        found.reason: found.code
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, LROError)
    }
    checked = 0
    for row in ROW.finditer(CATALOGUE):
        reason, code, http = row.groups()
        if code is None or code not in Code.__members__:
            continue
        if http is not None and reason not in ("METHOD_NOT_ALLOWED", "BODY_TOO_LARGE", "CONTENT_ENCODING_UNSUPPORTED"):
            assert int(http) == Code[code].http_status, reason
            checked += 1
        if reason in classes and reason not in ("UNKNOWN", "JOB_FAILED", "LEASE_LOST"):
            assert classes[reason] is Code[code], reason
    assert checked > 30


def test_every_part_of_a_message_that_varies_has_a_well_formed_key() -> None:
    """The keys of `metadata`, as they are written in the package (AIP-193)."""
    callers = {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, LROError)}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in callers | {"error_info"}
            ):
                for keyword in node.keywords:
                    if keyword.arg not in (None, "reason", "details"):
                        assert re.fullmatch(r"[a-z][a-zA-Z0-9-_]+", keyword.arg), (path.name, keyword.arg)
