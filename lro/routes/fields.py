"""The fields of a request, from its query or its body: how they are named, and how each type is written.

Decides what the text or JSON of one field must look like, as protobuf's JSON mapping has it. Which fields a
request has is left to the routes.
"""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta

from lro.clock import parse_duration
from lro.errors import invalid

__all__ = ["boolean_of", "duration_of", "integer_of", "lower_camel", "text_of", "time_of"]

_INTEGER = re.compile(r"-?[0-9]{1,18}")


def lower_camel(key: str) -> str:
    """Return a field name in lowerCamel; snake_case is taken too (protobuf's JSON mapping)."""
    head, *rest = key.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in rest)


def text_of(body: Mapping[str, object], field: str) -> str | None:
    """Return a member of a body that is a string, or None if it is not there."""
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise invalid(field, "must be a string")
    return value


def integer_of(fields: Mapping[str, object], field: str) -> int:
    """Return a field that is an integer, written as digits or as a number; 0 if it is not there."""
    value = fields.get(field, 0)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1.0 and 1e3 are integers in JSON, to protobuf and JSON Schema too
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(field, "must be an integer")
    return value


def boolean_of(fields: Mapping[str, object], field: str) -> bool:
    """Return a field that is true or false; false if it is not there."""
    value = fields.get(field, False)
    if not isinstance(value, bool):
        raise invalid(field, "must be true or false")
    return value


def duration_of(body: Mapping[str, object], field: str) -> timedelta | None:
    """Return a member of a body that is a google.protobuf.Duration, or None if it is not there."""
    written = text_of(body, field)
    if written is None:
        return None
    try:
        return parse_duration(written)
    except ValueError as error:
        raise invalid(field, str(error)) from error


def time_of(body: Mapping[str, object], field: str) -> datetime | None:
    """Return a member of a body that is a google.protobuf.Timestamp, or None if it is not there."""
    written = text_of(body, field)
    if written is None:
        return None
    try:
        value = datetime.fromisoformat(written)
        if "T" in written and value.tzinfo is not None:
            return value
    except ValueError:
        pass
    raise invalid(field, "must be an RFC 3339 time with its zone, as in 2026-11-22T20:15:00Z")
