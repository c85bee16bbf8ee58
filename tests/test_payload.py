"""Payloads: what counts as JSON when it comes from outside, and what a declared type writes."""

import contextlib
import math
import time
from typing import Annotated, Any, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from lro.payload import MAX_DEPTH, Codec, PayloadTooLarge, encode, parse

LIMIT = 2**20


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"null", None),
        (b' {"a" : [1, 2.5, true, "x"]} ', {"a": [1, 2.5, True, "x"]}),
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"-0.0", -0.0),
        (b"1e308", 1e308),
        (b"1e-999", 0.0),
        ('"ü\U0001f600"'.encode(), "ü\U0001f600"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\u0000 [{ \" ]"', '\0 [{ " ]'),
        (b'{"a": {"a": 1}, "b": {"a": 1}}', {"a": {"a": 1}, "b": {"a": 1}}),
    ],
)
def test_json_from_outside_is_read(body: bytes, value: object) -> None:
    assert parse(body) == value


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"", "Expecting value", id="empty"),
        pytest.param(b"{", "Expecting", id="cut off"),
        pytest.param(b"{} {}", "Extra data", id="two values"),
        pytest.param(b"{'a': 1}", "Expecting", id="single quotes"),
        pytest.param(b'{"a": 1, "a": 1}', "key 'a' stands twice", id="duplicate key"),
        pytest.param(rb'[{"a": {"b": 1, "\u0062": 2}}]', "key 'b' stands twice", id="duplicate key, escaped"),
        pytest.param(b"NaN", "NaN is not JSON", id="NaN"),
        pytest.param(b"[Infinity]", "Infinity is not JSON", id="Infinity"),
        pytest.param(b'{"a": -Infinity}', "-Infinity is not JSON", id="-Infinity"),
        pytest.param(b"1e999", "the number 1e999 is too large", id="1e999"),
        pytest.param(b"-1e999", "the number -1e999 is too large", id="-1e999"),
        pytest.param(b"9" * 5000, "does not fit in 64 bits", id="5,000 digits"),
        pytest.param(b"18446744073709551616", "does not fit in 64 bits; send it as a string", id="2**64"),
        pytest.param(b"-9223372036854775809", "does not fit in 64 bits", id="-2**63-1"),
        pytest.param(rb'"\ud800"', "half of a surrogate pair", id="lone surrogate"),
        pytest.param(rb'{"\udc00": 1}', "half of a surrogate pair", id="lone surrogate as key"),
        pytest.param(b'"\xed\xa0\x80"', "not UTF-8 at byte 1", id="surrogate in UTF-8"),
        pytest.param(b"\xef\xbb\xbf{}", "BOM", id="BOM"),
        pytest.param("{}".encode("utf-16"), "not UTF-8", id="UTF-16"),
        pytest.param("{}".encode("utf-16-le"), "", id="UTF-16 without a BOM"),
        pytest.param(b'"\x00"', "control character", id="raw NUL"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the message is checked below
        parse(body)

    assert why in str(caught.value)
    assert len(str(caught.value)) < 300


def test_sixty_four_levels_are_read_and_one_more_is_not() -> None:
    parse(nested(MAX_DEPTH))
    parse(b"[" + nested(MAX_DEPTH - 1) + b"," + nested(MAX_DEPTH - 1) + b"]")

    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(ValueError, match="nested deeper than 64 levels"):
            parse(nested(depth))
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        parse(b'{"a":' * 65 + b"1" + b"}" * 65)


def test_a_duplicate_among_many_keys_is_found_in_reasonable_time() -> None:
    keys = [f'"{number}":0' for number in range(20_000)]
    body = ("{" + ",".join([*keys, '"19999":0']) + "}").encode()

    started = time.monotonic()
    with pytest.raises(ValueError, match="stands twice"):
        parse(body)
    assert time.monotonic() - started < 0.5


def test_text_longer_than_its_limit_in_bytes_is_refused() -> None:
    assert encode("ab", 4) == '"ab"'
    with pytest.raises(PayloadTooLarge, match="5 bytes of JSON, 4 are allowed"):
        encode("abc", 4)
    with pytest.raises(PayloadTooLarge):
        encode("üü", 4)
    with pytest.raises(PayloadTooLarge):
        Codec[str](str, limit=4).dump("abc")


def test_nesting_without_end_is_refused_by_name() -> None:
    deep: list[Any] = []  # Any: JSON
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises((RecursionError, ValueError)):
        encode(deep, LIMIT)
    with pytest.raises((RecursionError, ValueError)):
        Codec[Any](Any, limit=LIMIT).dump(deep)
    while deep:
        deep = deep[0]


class Loop(BaseModel):
    value: Any = None  # Any: JSON


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


NOT_JSON = {
    "set": {1, 2},
    "frozenset": frozenset({1}),
    "NaN": math.nan,
    "infinity": math.inf,
    "bytes": b"text",
    "cycle": cycle(),
    "lone surrogate": "\ud800",
    "object": object(),
    "complex": 1j,
    "function": len,
}
WRAPPINGS: dict[str, tuple[Any, Any]] = {  # Any: a type form, and what puts a value there
    "Any": (Any, lambda value: value),
    "object": (object, lambda value: value),
    "bare dict": (dict, lambda value: {"a": value}),
    "bare list": (list, lambda value: [value]),
    "dict[str, Any]": (dict[str, Any], lambda value: {"a": value}),
    "list[Any]": (list[Any], lambda value: [value]),
    "deep in Any": (Any, lambda value: {"a": [{"b": value}]}),
    "deep in dict[str, list[Any]]": (dict[str, list[Any]], lambda value: {"a": [value]}),
    "tuple[int, Any]": (tuple[int, Any], lambda value: (1, value)),
    "tuple[Any, ...]": (tuple[Any, ...], lambda value: (value,)),
    "Optional[Any]": (Optional[Any], lambda value: value),  # noqa: UP045 -- both spellings
    "Optional[dict]": (Optional[dict[str, Any]], lambda value: {"a": value}),  # noqa: UP045 -- both spellings
    "dict | None": (dict[str, Any] | None, lambda value: {"a": value}),
    "Union": (Union[int, list[Any]], lambda value: [value]),  # noqa: UP007 -- both spellings
    "Annotated": (Annotated[dict[str, Any], "note"], lambda value: {"a": value}),
    "dict[str, object]": (dict[str, object], lambda value: {"a": value}),
}


@pytest.mark.parametrize("what", NOT_JSON)
@pytest.mark.parametrize("where", WRAPPINGS)
def test_what_is_not_json_is_refused_wherever_it_stands(what: str, where: str) -> None:
    annotation, wrap = WRAPPINGS[where]
    codec = Codec[Any](annotation, limit=LIMIT)

    with pytest.raises((TypeError, ValueError, RecursionError)):
        codec.dump(wrap(NOT_JSON[what]))
    codec.dump(wrap("text"))


@pytest.mark.parametrize("what", ["NaN", "infinity", "cycle", "lone surrogate", "object", "function"])
def test_nor_in_a_field_of_a_model_that_takes_anything(what: str) -> None:
    with pytest.raises((TypeError, ValueError, RecursionError)):
        Codec[Loop](Loop, limit=LIMIT).dump(Loop(value=NOT_JSON[what]))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(int, "1"), (str, 1), (bool, 1), (list[int], ["1"]), (dict[str, int], {"a": None}), (Loop, {"value": 1})],
)
def test_a_value_of_another_type_than_declared_is_refused(annotation: Any, value: Any) -> None:  # Any: a type form
    with pytest.raises(ValueError, match=r"validation error|UnexpectedValue"):
        Codec[Any](annotation, limit=LIMIT).dump(value)


@pytest.mark.parametrize("key", [1, None, 1.5, (1, 2)])
def test_keys_are_text(key: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Codec[Any](dict, limit=LIMIT).dump({key: 1})


class Aliased(BaseModel):
    page_count: int = Field(alias="pageCount")
    both_ways: str = Field("", validation_alias="bothWays", serialization_alias="bothWays")
    plain_name: list[int] = []


def test_a_model_is_written_under_its_aliases_and_read_back() -> None:
    codec = Codec[Aliased](Aliased, limit=LIMIT)
    value = Aliased.model_validate({"pageCount": 3, "bothWays": "x", "plain_name": [1]})

    text = codec.dump(value)

    assert text == '{"pageCount":3,"bothWays":"x","plain_name":[1]}'
    assert codec.load(text) == value
    assert codec.load('{"page_count": 3, "bothWays": "x", "plain_name": [1]}') == value
    assert codec.validate({"pageCount": 3, "bothWays": "x", "plain_name": [1]}) == value
    assert codec.validate(value) is value
    assert set(codec.schema()["properties"]) == {"pageCount", "bothWays", "plain_name"}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)


@given(JSON)
def test_any_json_value_comes_back_equal(value: Any) -> None:  # Any: JSON
    codec = Codec[Any](Any, limit=LIMIT)

    text = codec.dump(value)

    assert codec.load(text) == value
    assert parse(text.encode()) == value
    assert encode(value, LIMIT) == text


@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_any_json_object_comes_back_equal_from_a_model(value: dict[str, Any]) -> None:  # Any: JSON
    codec = Codec[Loop](Loop, limit=LIMIT)

    assert codec.load(codec.dump(Loop(value=value))).value == value


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_no_bytes_make_it_fail_otherwise_than_by_refusing(body: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(body)
