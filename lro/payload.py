"""Payloads: params, progress and results between Python values and the JSON text that is stored.

Decides what counts as JSON here (finite numbers, integers of 64 bits, text that every database can keep, bounded size
and depth) and how a declared type reads and writes it. What is done about a payload that does not fit is left to the
caller.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from types import UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import JsonValue, PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, TypeAdapter

__all__ = ["Codec", "PayloadError", "PayloadTooLarge", "encode", "is_text", "json_schemas", "parse"]

T = TypeVar("T")


class PayloadError(ValueError):
    """A value can't be kept as JSON; it says why and where in words that clients may see.

    Attributes:
        what: Why.
        place: Where in the value, as in `pages[3].title`, cut if it is long; "" where it can't be told.
    """

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(f"{what}, in {place}" if place else what)
        self.what = what
        self.place = place


class PayloadTooLarge(PayloadError):
    """The JSON text is longer than its limit."""


class Codec(Generic[T]):
    """Reads and writes one declared type as JSON text.

    Args:
        annotation: The type: a pydantic model, a builtin, a union, ...; Any stands for any JSON value.

    Raises:
        TypeError: pydantic knows no schema for the type, or a model writes a field under a name that it does
            not read.
    """

    def __init__(self, annotation: Any) -> None:  # Any: a type form
        self.annotation = annotation
        try:
            self.adapter: TypeAdapter[T] = TypeAdapter(_json_type(annotation))
        except PydanticSchemaGenerationError as error:
            msg = f"{annotation!r} has no JSON form: use a pydantic model, or dict, list, str, int, float, bool, None"
            raise TypeError(msg) from error
        _check_round_trip(self.adapter, annotation)

    def schema(self) -> dict[str, Any]:  # Any: JSON
        """Return the JSON schema of what may be sent in."""
        return self.adapter.json_schema(by_alias=True)

    def shapes(self) -> list[dict[str, Any]]:  # Any: JSON
        """Return the JSON schemas of what is written: one, or each alternative of a union."""
        schema = self.adapter.json_schema(mode="serialization", by_alias=True)
        definitions = {f"#/$defs/{name}": one for name, one in schema.get("$defs", {}).items()}
        shapes: list[dict[str, Any]] = []  # Any: JSON
        left = [schema]
        while left:
            one = left.pop(0)
            if "$ref" in one:
                left.extend(found for found in [definitions.pop(one["$ref"], None)] if found)  # each once
            elif alternatives := one.get("anyOf") or one.get("oneOf"):
                left.extend(alternatives)
            else:
                shapes.append(one)
        return shapes

    def validate(self, value: Any) -> T:  # Any: what is to be checked
        """Return the value as this type; JSON's own types are converted, a model is taken as it is.

        Raises:
            pydantic.ValidationError: It does not fit.
        """
        return self.adapter.validate_python(value, by_alias=True, by_name=True)

    def load(self, text: str | bytes) -> T:
        """Read JSON text.

        Raises:
            pydantic.ValidationError: It does not fit the type.
        """
        return self.adapter.validate_json(text, by_alias=True, by_name=True)

    def dump(self, value: T, limit: int, depth: int) -> str:
        """Write a value as compact JSON text, under the model's own aliases.

        Args:
            value: The value.
            limit: Bytes at most.
            depth: Levels at most.

        Raises:
            PayloadError: What is to be written is not to be kept; PayloadTooLarge if it is longer than the limit.
            TypeError, ValueError, RecursionError: The value is not of the type, or has no JSON form. What these say
                may tell of the value.
        """
        self.adapter.validate_python(value, strict=True)
        written = self.adapter.dump_python(value, mode="json", by_alias=True, warnings="error")
        text = encode(written, limit, depth)
        if "null" in text:  # pydantic writes it for NaN and infinity too, where a field takes anything
            _check_finite(self.adapter.dump_python(value, by_alias=True))
        if "\ufffd" in text:  # and this for the half of a surrogate pair in a key
            _check_keys(self.adapter.dump_python(value, by_alias=True))
        return text


def json_schemas(
    codecs: Mapping[str, tuple[Codec[Any], Literal["validation", "serialization"]]],  # Any: of any types
    ref_template: str,
) -> tuple[dict[str, Any], dict[str, Any]]:  # Any: JSON
    """Return the JSON schemas of several types that share their definitions, by the keys given, and those by name.

    Args:
        codecs: By key, the codec, and whether what is sent in or what is written out.
        ref_template: How a schema refers to a definition, such as `#/components/schemas/{model}`.
    """
    found, definitions = TypeAdapter.json_schemas(
        [(key, mode, codec.adapter) for key, (codec, mode) in codecs.items()], by_alias=True, ref_template=ref_template
    )
    return {key: schema for (key, _), schema in found.items()}, definitions.get("$defs", {})


def _check_finite(value: object) -> None:
    if isinstance(value, float) and not isfinite(value):
        msg = f"holds {value}, which is not JSON"
        raise PayloadError(msg)
    if isinstance(value, dict):
        for member in cast("dict[object, object]", value).values():
            _check_finite(member)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for member in cast("list[object]", value):
            _check_finite(member)


def _check_keys(value: object) -> None:
    if isinstance(value, dict):
        for key, member in cast("dict[object, object]", value).items():
            if isinstance(key, str) and not is_text(key):
                raise PayloadError("holds a key that is no Unicode text")
            _check_keys(member)
    elif isinstance(value, (list, tuple)):
        for member in cast("list[object]", value):
            _check_keys(member)


def encode(value: object, limit: int, depth: int) -> str:
    """Write a value made of JSON's types as compact text.

    Args:
        value: The value.
        limit: Bytes at most.
        depth: Levels at most.

    Raises:
        PayloadError: It is not made of JSON's types, or is not to be kept; PayloadTooLarge if the text is longer
            than the limit.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError as error:
        raise PayloadError(_too_deep(depth)) from error
    except (TypeError, ValueError) as error:  # json names types, and no values but NaN and infinity
        msg = f"is no JSON: {error}"
        raise PayloadError(msg) from error
    size = len(text.encode(errors="surrogatepass"))
    if size > limit:
        msg = f"is {size:,} bytes of JSON, {limit:,} are allowed"
        raise PayloadTooLarge(msg)
    _check(text, value, depth)
    return text


def parse(body: bytes, depth: int) -> Any:  # Any: JSON
    """Read JSON from outside strictly: no duplicate keys, finite 64-bit numbers, text that can be kept.

    Args:
        body: The JSON in UTF-8.
        depth: Levels at most.

    Raises:
        PayloadError: It is not such JSON; the message says where or why.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        msg = f"is not UTF-8 at byte {error.start}"
        raise PayloadError(msg) from error
    try:
        value = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_int=_bounded,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise PayloadError(_too_deep(depth)) from error
    except json.JSONDecodeError as error:
        msg = f"is no JSON: {error}"
        raise PayloadError(msg) from error
    _check(text, value, depth)
    return value


_ESCAPED = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")  # in JSON: U+0000, and what may be half of a surrogate pair
_LONG_INTEGER = re.compile(r"[0-9]{19}")
LONGEST_PLACE = 100  # characters


def _check(text: str, value: object, depth: int) -> None:
    """Refuse a value that is not to be kept; its text tells quickly that most may be."""
    deep = text.count("[") + text.count("{") > depth
    if deep or _ESCAPED.search(text) or _LONG_INTEGER.search(text) or not _is_unicode(text):
        _check_value(value, depth, ())


def _check_value(value: object, depth: int, place: tuple[object, ...]) -> None:
    if isinstance(value, str):
        _check_string(value, place)
    elif isinstance(value, int):
        if not _MIN_INTEGER <= value <= _MAX_INTEGER:
            raise PayloadError(_TOO_LONG, _place(place))
    elif isinstance(value, (dict, list, tuple)):
        if len(place) == depth:
            raise PayloadError(_too_deep(depth))
        members: Iterable[tuple[object, object]] = enumerate(cast("Sequence[object]", value))
        if isinstance(value, dict):
            members = cast("dict[object, object]", value).items()
            for key, _ in members:
                _check_string(str(key), place)
        for key, member in members:
            _check_value(member, depth, (*place, key))


def _check_string(words: str, place: tuple[object, ...]) -> None:
    if "\0" in words:
        raise PayloadError("holds U+0000, which not every database keeps", _place(place))
    if not _is_unicode(words):
        raise PayloadError("holds half of a surrogate pair", _place(place))


def is_text(words: str) -> bool:
    """Return whether every database can keep this: no U+0000, and no half of a surrogate pair."""
    return "\0" not in words and _is_unicode(words)


def _is_unicode(words: str) -> bool:
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True


def _place(steps: tuple[object, ...]) -> str:
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return words.removeprefix(".")[:LONGEST_PLACE]


def _too_deep(depth: int) -> str:
    return f"is nested deeper than {depth} levels"


_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
_TOO_LONG = "holds an integer that does not fit in 64 bits; send it as a string"


def _no_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        msg = f"holds the key {twice[:LONGEST_PLACE]!r} twice in one object"
        raise PayloadError(msg)
    return value


def _bounded(digits: str) -> int:
    if len(digits) > 20 or not _MIN_INTEGER <= int(digits) <= _MAX_INTEGER:
        raise PayloadError(_TOO_LONG)
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        msg = f"holds the number {digits[:24]}, which is too large"
        raise PayloadError(msg)
    return number


def _refuse_constant(name: str) -> float:
    msg = f"holds {name}, which is not JSON"
    raise PayloadError(msg)


def _json_type(annotation: Any) -> Any:  # Any: type forms
    """Return the annotation with `Any` and bare containers narrowed to what JSON can hold.

    pydantic would write whatever it finds there, a set as a list; a job that returns one shall hear of it.
    """
    if annotation is Any or annotation is object:
        return JsonValue
    if annotation is dict:
        return dict[str, JsonValue]
    if annotation is list:
        return list[JsonValue]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (dict, list, tuple):
        return cast("Any", origin)[
            tuple(_json_type(argument) if argument is not ... else ... for argument in arguments)
        ]
    if origin in (Union, UnionType):
        return Union[tuple(_json_type(argument) for argument in arguments)]  # noqa: UP007 -- made at run time
    if origin is Annotated:
        return Annotated[(_json_type(arguments[0]), *arguments[1:])]
    return annotation


def _check_round_trip(adapter: TypeAdapter[Any], annotation: object) -> None:
    """Refuse a type whose models do not read what they write, or write less than they need."""
    try:
        by_alias, by_name, writes, fields = (
            _objects(adapter.json_schema(mode=mode, by_alias=aliased)) for mode, aliased in _BOTH_WAYS
        )
    except PydanticInvalidForJsonSchema as error:
        msg = f"{annotation!r} has no JSON schema: {error}"
        raise TypeError(msg) from error
    for title in by_alias.keys() & writes.keys():
        known = {*by_alias[title].get("properties", ()), *by_name[title].get("properties", ())}  # both are read
        strict = by_alias[title].get("additionalProperties") is False
        unread = {
            name
            for name, field in writes[title].get("properties", {}).items()
            if name not in known and (strict or not field.get("readOnly"))  # a computed field may be ignored
        }
        unwritten = set(by_name[title].get("required", ())) - set(fields[title].get("properties", ()))
        if unread or unwritten:
            what = ", ".join(sorted(unread)) or ", ".join(sorted(unwritten))
            how = "written but not read under that name" if unread else "needed but not written, so not read back"
            msg = f"{title}: {what} is {how}: what is stored must read back, so use alias= for both ways"
            raise TypeError(msg)


_BOTH_WAYS: tuple[tuple[Literal["validation", "serialization"], bool], ...] = (
    ("validation", True),
    ("validation", False),
    ("serialization", True),
    ("serialization", False),
)


def _objects(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:  # Any: JSON
    """Return the object schemas in a JSON schema, by their names."""
    return {**schema.get("$defs", {}), str(schema.get("title", "")): schema}
