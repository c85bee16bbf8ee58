"""Payloads: params, progress and results between Python values and the JSON text that is stored.

Decides what counts as JSON here (finite numbers, no lone surrogates, bounded size) and how a declared
type reads and writes it. What is done about a payload that does not fit is left to the caller.
"""

import json
from collections import Counter
from collections.abc import Mapping
from math import isfinite
from types import UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import JsonValue, PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, TypeAdapter

__all__ = ["MAX_DEPTH", "Codec", "PayloadTooLarge", "encode", "json_schemas", "parse"]

T = TypeVar("T")

MAX_DEPTH = 64


class PayloadTooLarge(ValueError):
    """The JSON text is longer than its limit."""


class Codec(Generic[T]):
    """Reads and writes one declared type as JSON text.

    Args:
        annotation: The type: a pydantic model, a builtin, a union, ...; Any stands for any JSON value.
        limit: Bytes at most.

    Raises:
        TypeError: pydantic knows no schema for the type, or a model writes a field under a name that it does
            not read.
    """

    def __init__(self, annotation: Any, *, limit: int) -> None:  # Any: a type form
        self.annotation = annotation
        self.limit = limit
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

    def dump(self, value: T) -> str:
        """Write a value as compact JSON text, under the model's own aliases.

        Raises:
            TypeError, ValueError, RecursionError: The value is not of the type, or has no JSON form.
            PayloadTooLarge: The text is longer than the limit.
        """
        self.adapter.validate_python(value, strict=True)
        text = encode(self.adapter.dump_python(value, mode="json", by_alias=True, warnings="error"), self.limit)
        if "null" in text:  # pydantic writes it for NaN and infinity too, where a field takes anything
            _check_finite(self.adapter.dump_python(value, by_alias=True))
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
        msg = f"{value} is not JSON"
        raise ValueError(msg)
    if isinstance(value, dict):
        for member in cast("dict[object, object]", value).values():
            _check_finite(member)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for member in cast("list[object]", value):
            _check_finite(member)


def encode(value: object, limit: int) -> str:
    """Write a value made of JSON's types as compact text.

    Raises:
        TypeError, ValueError, RecursionError: It is not made of JSON's types, or holds NaN, infinity, a lone
            surrogate or itself.
        PayloadTooLarge: The text is longer than `limit` bytes.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    size = len(text.encode())
    if size > limit:
        msg = f"{size:,} bytes of JSON, {limit:,} are allowed"
        raise PayloadTooLarge(msg)
    return text


def parse(body: bytes) -> Any:  # Any: JSON
    """Read JSON from outside strictly: no duplicate keys, finite 64-bit numbers, valid text, 64 levels.

    Raises:
        ValueError: It is not such JSON; the message says where or why.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        msg = f"the body is not UTF-8 at byte {error.start}"
        raise ValueError(msg) from error
    try:
        value = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_int=_bounded,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_depth(value)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        msg = "the body holds half of a surrogate pair"
        raise ValueError(msg) from error
    return value


_TOO_DEEP = f"the body is nested deeper than {MAX_DEPTH} levels"


def _check_depth(value: JsonValue) -> None:
    level: list[JsonValue] = [value]
    for _ in range(MAX_DEPTH):
        members = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [member for some in members for member in some]
    if any(isinstance(one, (dict, list)) for one in level):
        raise ValueError(_TOO_DEEP)


def _no_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        msg = f"key {twice!r} stands twice in one object"
        raise ValueError(msg)
    return value


def _bounded(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        msg = f"the integer {digits[:24]} does not fit in 64 bits; send it as a string"
        raise ValueError(msg)
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        msg = f"the number {digits[:24]} is too large"
        raise ValueError(msg)
    return number


def _refuse_constant(name: str) -> float:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


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
