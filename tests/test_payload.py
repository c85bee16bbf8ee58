"""Payloads: what counts as JSON when it comes from outside, and what a declared type writes."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import Annotated, Any, Optional, Union

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from lro import payload
from lro.limits import Limits
from lro.payload import Codec, PayloadError, PayloadTooLarge, encode, is_text, parse

LIMIT = 2**20
DEPTH = Limits().depth


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
        (rb'"\\u0000 \\ud800 [{ \" ]"', r'\u0000 \ud800 [{ " ]'),
        (b'"9999999999999999999999"', "9" * 22),
        (b"[1.7976931348623157e308, 0.1234567890123456789]", [1.7976931348623157e308, 0.12345678901234568]),
        (b'{"a": {"a": 1}, "b": {"a": 1}}', {"a": {"a": 1}, "b": {"a": 1}}),
    ],
)
def test_json_from_outside_is_read(body: bytes, value: object) -> None:
    assert parse(body, DEPTH) == value


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"", "Expecting value", id="empty"),
        pytest.param(b"{", "Expecting", id="cut off"),
        pytest.param(b"{} {}", "Extra data", id="two values"),
        pytest.param(b"{'a': 1}", "Expecting", id="single quotes"),
        pytest.param(b'{"a": 1, "a": 1}', "the key 'a' twice", id="duplicate key"),
        pytest.param(rb'[{"a": {"b": 1, "\u0062": 2}}]', "the key 'b' twice", id="duplicate key, escaped"),
        pytest.param(b'{"%b": 1, "%b": 2}' % (b"k" * 5000, b"k" * 5000), "kkk' twice", id="duplicate key, long"),
        pytest.param(b"NaN", "holds NaN, which is not JSON", id="NaN"),
        pytest.param(b"[Infinity]", "holds Infinity, which is not JSON", id="Infinity"),
        pytest.param(b'{"a": -Infinity}', "holds -Infinity, which is not JSON", id="-Infinity"),
        pytest.param(b"1e999", "the number 1e999, which is too large", id="1e999"),
        pytest.param(b"-1e999", "the number -1e999, which is too large", id="-1e999"),
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
        pytest.param(rb'"\u0000"', "holds U+0000, which not every database keeps", id="NUL"),
        pytest.param(
            rb'{"a": {"b": [1, "x\u0000"]}}', "U+0000, which not every database keeps, in a.b[1]", id="NUL, deep"
        ),
        pytest.param(rb'{"a": {"\u0000": 1}}', "keeps, in a", id="NUL as key"),
        pytest.param(b'{"%b": "\\u0000"}' % (b"k" * 5000), "in kkk", id="NUL under a long key"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the message is checked below
        parse(body, DEPTH)

    assert why in str(caught.value)
    assert len(str(caught.value)) < 300


def test_sixty_four_levels_are_read_and_one_more_is_not() -> None:
    parse(nested(DEPTH), DEPTH)
    parse(b"[" + nested(DEPTH - 1) + b"," + nested(DEPTH - 1) + b"]", DEPTH)

    for depth in (DEPTH + 1, 100_000):
        with pytest.raises(ValueError, match="nested deeper than 64 levels"):
            parse(nested(depth), DEPTH)
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        parse(b'{"a":' * 65 + b"1" + b"}" * 65, DEPTH)


def test_a_duplicate_among_many_keys_is_found_in_reasonable_time() -> None:
    keys = [f'"{number}":0' for number in range(20_000)]
    body = ("{" + ",".join([*keys, '"19999":0']) + "}").encode()

    started = time.monotonic()
    with pytest.raises(ValueError, match="twice in one object"):
        parse(body, DEPTH)
    assert time.monotonic() - started < 0.5


def test_text_longer_than_its_limit_in_bytes_is_refused() -> None:
    assert encode("ab", 4, DEPTH) == '"ab"'
    with pytest.raises(PayloadTooLarge, match="5 bytes of JSON, 4 are allowed"):
        encode("abc", 4, DEPTH)
    with pytest.raises(PayloadTooLarge):
        encode("üü", 4, DEPTH)
    with pytest.raises(PayloadTooLarge):
        Codec[str](str).dump("abc", 4, DEPTH)


def test_nesting_without_end_is_refused_by_name() -> None:
    deep: list[Any] = []  # Any: JSON
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises((RecursionError, ValueError)):
        encode(deep, LIMIT, DEPTH)
    with pytest.raises((RecursionError, ValueError)):
        Codec[Any](Any).dump(deep, LIMIT, DEPTH)
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
    codec = Codec[Any](annotation)

    with pytest.raises((TypeError, ValueError, RecursionError)):
        codec.dump(wrap(NOT_JSON[what]), LIMIT, DEPTH)
    codec.dump(wrap("text"), LIMIT, DEPTH)


@pytest.mark.parametrize("what", ["NaN", "infinity", "cycle", "lone surrogate", "object", "function"])
def test_nor_in_a_field_of_a_model_that_takes_anything(what: str) -> None:
    with pytest.raises((TypeError, ValueError, RecursionError)):
        Codec[Loop](Loop).dump(Loop(value=NOT_JSON[what]), LIMIT, DEPTH)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(int, "1"), (str, 1), (bool, 1), (list[int], ["1"]), (dict[str, int], {"a": None}), (Loop, {"value": 1})],
)
def test_a_value_of_another_type_than_declared_is_refused(annotation: Any, value: Any) -> None:  # Any: a type form
    with pytest.raises(ValueError, match=r"validation error|UnexpectedValue"):
        Codec[Any](annotation).dump(value, LIMIT, DEPTH)


@pytest.mark.parametrize("key", [1, None, 1.5, (1, 2)])
def test_keys_are_text(key: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Codec[Any](dict).dump({key: 1}, LIMIT, DEPTH)


class Aliased(BaseModel):
    page_count: int = Field(alias="pageCount")
    both_ways: str = Field("", validation_alias="bothWays", serialization_alias="bothWays")
    plain_name: list[int] = []


def test_a_model_is_written_under_its_aliases_and_read_back() -> None:
    codec = Codec[Aliased](Aliased)
    value = Aliased.model_validate({"pageCount": 3, "bothWays": "x", "plain_name": [1]})

    text = codec.dump(value, LIMIT, DEPTH)

    assert text == '{"pageCount":3,"bothWays":"x","plain_name":[1]}'
    assert codec.load(text) == value
    assert codec.load('{"page_count": 3, "bothWays": "x", "plain_name": [1]}') == value
    assert codec.validate({"pageCount": 3, "bothWays": "x", "plain_name": [1]}) == value
    assert codec.validate(value) is value
    assert set(codec.schema()["properties"]) == {"pageCount", "bothWays", "plain_name"}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
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
    codec = Codec[Any](Any)

    text = codec.dump(value, LIMIT, DEPTH)

    assert codec.load(text) == value
    assert parse(text.encode(), DEPTH) == value
    assert encode(value, LIMIT, DEPTH) == text


@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_any_json_object_comes_back_equal_from_a_model(value: dict[str, Any]) -> None:  # Any: JSON
    codec = Codec[Loop](Loop)

    assert codec.load(codec.dump(Loop(value=value), LIMIT, DEPTH)).value == value


ODD = st.text(st.characters() | st.sampled_from("\0\ud800\udfff\\u0d8"), max_size=6)
ODD_JSON = st.recursive(
    st.integers(-(2**65), 2**65) | st.sampled_from([2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**18, 10**19]) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3),
    max_leaves=6,
)


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except PayloadError as error:
        return is_text(str(error))  # in words that can be sent
    return False


def is_kept(value: object, depth: int) -> bool:
    """Say by the rules themselves whether a value is to be kept."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    assert isinstance(value, (dict, list))
    members = [*value, *value.values()] if isinstance(value, dict) else value
    return depth > 0 and all(is_kept(member, depth - 1) for member in members)


@example({"\ud800": 0}, 1)  # which pydantic replaces without a word
@given(ODD_JSON, st.integers(1, 4))
def test_what_comes_from_outside_and_what_a_job_makes_keep_the_same_rules(value: Any, depth: int) -> None:  # Any: JSON
    text = json.dumps(value)

    refused = not is_kept(value, depth)

    assert is_refused(lambda: parse(text.encode(), depth)) == refused
    assert is_refused(lambda: encode(value, LIMIT, depth)) == refused
    assert is_refused(lambda: Codec[Any](Any).dump(value, LIMIT, depth)) == refused


def test_most_values_are_known_to_fit_by_their_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk through a large one in Python would take as long again as writing it."""

    def walk(*_: object) -> None:
        raise AssertionError("it is walked through")

    monkeypatch.setattr(payload, "_check_value", walk)
    flat = {f"key {number}": [10**17 + number, 0.1, None, True, "a few words"] for number in range(10)}

    assert parse(encode(flat, LIMIT, DEPTH).encode(), DEPTH) == flat
    for suspect in ("\0", "\ud800", "0" * 19, nested(DEPTH + 1).decode()):
        with pytest.raises(AssertionError, match="walked"):
            encode([suspect], LIMIT, DEPTH)


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_no_bytes_make_it_fail_otherwise_than_by_refusing(body: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(body, DEPTH)
