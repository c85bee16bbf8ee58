"""Field masks: the part of an answer that a client asks for (AIP-157, `fields=` and X-Goog-FieldMask).

Decides how a mask is written, which names it may hold, and what it leaves of a JSON value. Where a mask comes
from is `system`'s affair. PyPI's two packages for this stand still since 2018 and 2023, and refuse nothing.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, cast

from lro.errors import InvalidArgument, invalid, invalid_fields
from lro.routes.fields import lower_camel

__all__ = ["Mask", "Shape", "parse_mask", "select"]

Shape: TypeAlias = Mapping[str, "Shape"] | None
"""The fields of an answer and what is in them; None where any field may be."""

Mask: TypeAlias = dict[str, "Mask | None"]
"""The fields that are chosen, in lowerCamel, and what of them; None for all of it."""

MAX_LENGTH = 1024  # characters
MAX_DEPTH = 16

_TOKEN = re.compile(r"\s*(?:`(?P<quoted>[^`]+)`|(?P<name>[^\s,./()`*]+|\*)|(?P<mark>[,./()]))\s*")
_TYPE = "@type"


def parse_mask(text: str, shape: Shape, *, lenient: bool = False) -> Mask | None:
    """Read a mask: `name,metadata/value/progress`, `operations(name,done)`, `operations.name`, `*`.

    A name with one of the marks in it stands between backquotes. Either casing is taken.

    Args:
        text: The mask; an empty one chooses everything.
        shape: What the answer holds.
        lenient: Let a name that the answer does not have choose nothing, instead of refusing it.

    Raises:
        InvalidArgument: It is too long or too deep, is written otherwise, or names a field that is not there.
    """
    if not text.strip():
        return None
    if len(text) > MAX_LENGTH:
        raise _bad(f"is longer than {MAX_LENGTH} characters")
    paths = list(_paths(text))
    unknown = ["/".join(path) for path in paths if not _fits(path, shape)]
    if unknown and not lenient:
        wrong = [("fields", f"{path} is no field of the answer") for path in unknown]
        raise invalid_fields(wrong, reason="INVALID_FIELD_MASK")
    mask: Mask = {}
    for path in paths:
        _add(mask, path)
    return None if "*" in mask and mask["*"] is None else mask


def _bad(what: str) -> InvalidArgument:
    return invalid("fields", what, reason="INVALID_FIELD_MASK")


def _paths(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the paths of a mask, its parentheses multiplied out."""
    outer: list[tuple[str, ...]] = [()]  # the paths before the parentheses that are open
    path: tuple[str, ...] = ()  # the one that is being read; empty behind a closing parenthesis
    name_next = True
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        name, mark = (None, None) if found is None else (found["quoted"] or found["name"], found["mark"])
        fits = name if name_next else mark and (path or mark in ",)") and (mark != ")" or len(outer) > 1)
        if found is None or not fits:
            raise _bad(f"is no field mask at character {at + 1}: write a,b/c,d(e,f) or *")
        at = found.end()
        if name is not None:
            path = (*(path or outer[-1]), name)
            if len(path) > MAX_DEPTH:
                raise _bad(f"is deeper than {MAX_DEPTH} levels")
        elif mark == "(":
            outer.append(path)
            path = ()
        elif mark in (",", ")"):
            if path:
                yield path
            path = ()
            if mark == ")":
                outer.pop()
        name_next = mark not in (None, ")")
    if name_next or len(outer) > 1:
        raise _bad("is no field mask: it ends too early")
    if path:
        yield path


def _fits(path: tuple[str, ...], shape: Shape) -> bool:
    for name in path:
        if shape is None or name == "*":
            return True
        if lower_camel(name) not in shape:
            return False
        shape = shape[lower_camel(name)]
    return True


def _add(mask: Mask, path: tuple[str, ...]) -> None:
    *heads, last = map(lower_camel, path)
    for name in heads:
        inner = mask.setdefault(name, {})
        if inner is None:
            return  # all of it is chosen already
        mask = inner
    mask[last] = None


def select(mask: Mask, value: Any) -> Any:  # Any: JSON
    """Return what a mask leaves of a JSON value.

    Lists are seen through; `*` on a list means its elements, too (AIP-161). What is chosen from an object with
    an `@type` keeps that: without it a google.protobuf.Any can't be read.
    """
    chosen = _select([mask], value)
    return {} if chosen is _NOTHING else chosen


_NOTHING = object()


def _select(masks: list[Mask | None], value: Any) -> Any:  # Any: JSON
    """Return what any of the masks chooses; there are several where `*` and a name stand side by side."""
    chosen = [mask for mask in masks if mask is not None]
    if len(chosen) < len(masks):
        return value
    if isinstance(value, list):
        elements = [*chosen, *(mask["*"] for mask in chosen if "*" in mask)]
        kept: list[object] = []
        for one in cast("list[object]", value):
            part = _select(elements, one)
            if part is not _NOTHING:
                kept.append(part)
            elif isinstance(one, dict):
                kept.append({})  # so that the others keep their places
        return kept if kept or not value else _NOTHING
    if not isinstance(value, dict):
        return _NOTHING
    members = cast("dict[str, Any]", value)
    found: dict[str, Any] = {}
    for key, member in members.items():
        names = {lower_camel(key), "*"}
        inner = [mask[name] for mask in chosen for name in names if name in mask]
        part = _select(inner, member) if inner else _NOTHING
        if part is not _NOTHING:
            found[key] = part
    if not found:
        return _NOTHING
    return {_TYPE: members[_TYPE], **found} if _TYPE in members else found
