"""Field masks: how they are written, what they leave, and what is refused."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lro.errors import InvalidArgument
from lro.routes.fields import lower_camel
from lro.routes.mask import MAX_DEPTH, MAX_LENGTH, parse_mask, select
from lro.routes.operations import OPERATION

Json = Any  # Any: JSON
Path = tuple[str, ...]

TYPE = "type.googleapis.com/google.protobuf.Struct"
OPERATIONS = {
    "operations": [
        {
            "name": "operations/1",
            "metadata": {"@type": TYPE, "value": {"state": "RUNNING", "progress": {"pages_done": 3, "a.b": 4}}},
            "done": False,
        },
        {"name": "operations/2", "metadata": {"@type": TYPE, "value": {}}, "done": True, "error": {"code": 1}},
    ],
    "nextPageToken": "t",
}


def chosen(text: str, value: Json) -> Json:
    mask = parse_mask(text, None)
    return value if mask is None else select(mask, value)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("name,done", {"name": "operations/1", "done": False}),
        ("done , name", {"name": "operations/1", "done": False}),
        ("metadata/value/state", {"metadata": {"@type": TYPE, "value": {"state": "RUNNING"}}}),
        ("metadata.value.state", {"metadata": {"@type": TYPE, "value": {"state": "RUNNING"}}}),
        ("metadata(value(state))", {"metadata": {"@type": TYPE, "value": {"state": "RUNNING"}}}),
        ("metadata/@type", {"metadata": {"@type": TYPE}}),
        ("metadata/*/state", {"metadata": {"@type": TYPE, "value": {"state": "RUNNING"}}}),
        ("metadata/value/progress/pages_done", {"metadata": {"@type": TYPE, "value": {"progress": {"pages_done": 3}}}}),
        ("metadata/value/progress/pagesDone", {"metadata": {"@type": TYPE, "value": {"progress": {"pages_done": 3}}}}),
        ("metadata/value/progress/`a.b`", {"metadata": {"@type": TYPE, "value": {"progress": {"a.b": 4}}}}),
        ("metadata/value/nothing,response", {}),
        ("name/below/a/scalar", {}),
    ],
)
def test_a_mask_leaves_what_it_names_of_an_operation(text: str, left: Json) -> None:
    assert chosen(text, OPERATIONS["operations"][0]) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("operations/name", {"operations": [{"name": "operations/1"}, {"name": "operations/2"}]}),
        ("operations/*/name", {"operations": [{"name": "operations/1"}, {"name": "operations/2"}]}),
        (
            "operations(name),next_page_token",
            {"operations": [{"name": "operations/1"}, {"name": "operations/2"}], "nextPageToken": "t"},
        ),
        ("operations/error/code", {"operations": [{}, {"error": {"code": 1}}]}),
        ("operations(error)", {"operations": [{}, {"error": {"code": 1}}]}),
        ("operations,operations/name", {"operations": OPERATIONS["operations"]}),
        ("operations/name,operations", {"operations": OPERATIONS["operations"]}),
        ("operations/*", {"operations": OPERATIONS["operations"]}),
        *((text, OPERATIONS) for text in ("*", "", "  ", "name,*", "operations(name),*")),
    ],
)  # fmt: skip  -- a table
def test_a_mask_sees_through_lists(text: str, left: Json) -> None:
    assert chosen(text, OPERATIONS) == left


@pytest.mark.parametrize(
    "text",
    [
        *(
            ",",
            "a,",
            ",a",
            "a,,b",
            "a//b",
            "/a",
            "a/",
            "a.",
            ".",
            "a b",
            "a(b",
            "a)b",
            "a(b))",
            "a()",
            "()",
            "(a)",
            "(a",
        ),
        *("a(b)c", "a(b)/c", "a(b)(c)", "a(,b)", "a(b,)", "a**", "a*", "**", "`a", "``", "a`b`", "a/(b)", "a(/b)"),
        *("a" * (MAX_LENGTH + 1), "/".join("a" * (MAX_DEPTH + 1)), "a(" * 400 + "a" + ")" * 400),
    ],
)  # fmt: skip  -- a table
def test_what_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_mask(text, None)
    assert caught.value.reason == "INVALID_FIELD_MASK"
    assert caught.value.details[0]["fieldViolations"][0]["field"] == "fields"


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("colour", ["colour"]),
        ("name,colour,shape(a,b)", ["colour", "shape/a", "shape/b"]),
        ("name/length", ["name/length"]),
        ("error/reason", ["error/reason"]),
        ("operations/name", ["operations/name"]),
        ("next_page_token", ["next_page_token"]),
        ("error(details(anything),message),metadata/anything/at/all,*/anything", []),
    ],
)
def test_all_unknown_names_are_told_at_once(text: str, unknown: list[str]) -> None:
    try:
        parse_mask(text, OPERATION)
        told = []
    except InvalidArgument as error:
        told = [
            one["description"].removesuffix(" is no field of the answer") for one in error.details[0]["fieldViolations"]
        ]
    assert told == unknown
    assert parse_mask(text, OPERATION, lenient=True) is not None


# -- against an oracle: a value is left if a path of the mask leads to it or to something around it

KEYS = st.sampled_from(["a", "b", "snake_case", "snakeCase", "@type", "d.e", "f(g", "*", "ü"])
NAMES = st.sampled_from(["a", "b", "snake_case", "snakeCase", "@type", "d.e", "f(g", "ü", "*"])


def trees(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Json]:
    return st.recursive(
        numbers,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
        max_leaves=20,
    )


def numbered(value: Json, numbers: list[int]) -> Json:
    """Return the value with all its scalars different."""
    if isinstance(value, dict):
        return {key: numbered(member, numbers) for key, member in value.items()}
    if isinstance(value, list):
        return [numbered(member, numbers) for member in value]
    numbers[0] += 1
    return numbers[0]


def leads(path: Path, steps: tuple[str | int, ...]) -> bool:
    """Return whether a path of a mask leads to what is at the end of the steps, or around it."""
    if not path or not steps:
        return not path
    if isinstance(steps[0], int):
        return leads(path, steps[1:]) or (path[0] == "*" and leads(path[1:], steps[1:]))
    same = path[0] == "*" or lower_camel(path[0]) == lower_camel(steps[0])
    return same and leads(path[1:], steps[1:])


def scalars(value: Json, steps: tuple[str | int, ...] = ()) -> dict[int, tuple[str | int, ...]]:
    if isinstance(value, dict):
        return {k: v for key, member in value.items() for k, v in scalars(member, (*steps, key)).items()}
    if isinstance(value, list):
        return {k: v for at, member in enumerate(value) for k, v in scalars(member, (*steps, at)).items()}
    return {value: steps}


def written(paths: list[Path], draw: st.DataObject) -> str:
    """Write the paths as a mask, in any of the ways that it may be written."""
    parts = []
    for first in dict.fromkeys(path[0] for path in paths):
        rests = [path[1:] for path in paths if path[0] == first]
        name = f"`{first}`" if re.search(r"[.(]", first) or (first != "*" and draw.draw(st.booleans())) else first
        whole, deeper = any(not rest for rest in rests), [rest for rest in rests if rest]
        if whole:
            parts.append(name)
        if len(deeper) == 1 and draw.draw(st.booleans()):
            parts.append(name + draw.draw(st.sampled_from(["/", "."])) + written(deeper, draw))
        elif deeper:
            parts.append(f"{name}({written(deeper, draw)})")
    return draw.draw(st.sampled_from([",", " , ", ",\t"])).join(draw.draw(st.permutations(parts)))


PATHS = st.lists(st.lists(NAMES, min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)


@given(trees(st.just(0)), PATHS, st.data())
def test_it_leaves_what_the_oracle_leaves(value: Json, paths: list[Path], data: st.DataObject) -> None:
    value = numbered(value, [0])
    if not isinstance(value, dict):
        value = {"a": value}
    before = scalars(value)
    kept = {number for number, steps in before.items() if any(leads(path, steps) for path in paths)}

    left = chosen(written(paths, data), value)

    types = {number for number, steps in before.items() if "@type" in steps}
    assert set(scalars(left)) - types == kept - types
    assert kept <= set(scalars(left))
    for number, steps in scalars(left).items():  # where it was, but for the places in lists
        assert [step for step in steps if isinstance(step, str)] == [s for s in before[number] if isinstance(s, str)]


@given(trees(st.just(0)), PATHS, st.data())
def test_what_keeps_anything_keeps_its_type(value: Json, paths: list[Path], data: st.DataObject) -> None:
    whole = {"@type": "t", "value": value, "a": {"@type": "u", "b": value}}

    left = chosen(written(paths, data), whole)

    def check(one: Json, was: Json) -> None:
        if isinstance(one, dict) and one:
            assert one.get("@type") == was.get("@type")
            for key in one:
                check(one[key], was[key])

    check({key: left[key] for key in left if key in ("@type", "a")}, whole)


@given(st.text(alphabet="ab*,./() `é\n\0", max_size=40))
def test_any_text_is_a_mask_or_refused(text: str) -> None:
    try:
        mask = parse_mask(text, None)
    except InvalidArgument as error:
        assert error.reason == "INVALID_FIELD_MASK"  # noqa: PT017 -- either is right
    else:
        assert mask is None or select(mask, OPERATIONS) is not None
