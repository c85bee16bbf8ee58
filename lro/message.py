"""Messages: whether what a job's models write is the JSON of the protobuf types that it names.

Decides that once, where the job is defined, so that Google's clients can parse every operation of it. How a message
stands on the wire is the resource's affair.
"""

import json
from typing import Any

from pydantic import ValidationError

from lro.limits import Limits
from lro.payload import Codec
from lro.resource import COMMON, EMPTY, LIST_VALUE, STRUCT, VALUE, common_field

__all__ = ["check_metadata", "check_response", "empty_text"]

_BOUNDS = Limits()
_JSON_TYPES = {EMPTY: "null", LIST_VALUE: "array", STRUCT: "object"}


def check_response(url: str, result: Codec[Any]) -> None:  # Any: of any type, here and below
    """Refuse a type of the response whose JSON is not what the result writes; "" and Value suit everything.

    Raises:
        TypeError: It is not.
    """
    if url not in ("", VALUE):
        _check_type("response_type", url, result)


def check_metadata(url: str, progress: Codec[Any] | None) -> None:
    """Refuse a type of the metadata whose fields the progress does not tell, or whose common fields it can't take.

    Raises:
        TypeError: It is such a type.
    """
    if not url:
        return
    if url == VALUE or url in _JSON_TYPES:
        msg = f"metadata_type {url}: leave it out for a Struct, or name a message of your own"
        raise TypeError(msg)
    if progress is None:
        msg = (
            f"metadata_type {url}: its fields are the job's progress, so annotate the context as Context[YourProgress]"
        )
        raise TypeError(msg)
    _check_type("metadata_type", url, progress)
    first = json.loads(empty_text(progress))
    read = progress.schema().get("properties", ())  # where a serializer of the model's own hides what it writes
    declared = {name for shape in progress.shapes() for name in shape.get("properties", read)}
    for name in sorted(declared | first.keys()):
        common = common_field(name)
        if common is not None and name not in first:
            msg = f"metadata_type {url}: {name} must be written always, empty or not, or it can't be filled in"
            raise TypeError(msg)
        for value in () if common is None else COMMON[common]:
            try:
                progress.load(json.dumps({**first, name: value}))
            except ValidationError as error:
                msg = f"metadata_type {url}: {name} is filled in, as with {value!r}, and the field does not take that"
                raise TypeError(msg) from error


def empty_text(progress: Codec[Any]) -> str:
    """Return what an operation begins with, as JSON text.

    Raises:
        TypeError: It has no JSON form, or does not read back.
    """
    try:
        text = progress.dump(progress.load("{}"), _BOUNDS.progress, _BOUNDS.depth)
        progress.load(text)
    except (TypeError, ValueError) as error:
        msg = f"an operation begins with an empty {progress.annotation!r}, which has no JSON form: {error}"
        raise TypeError(msg) from error
    return text


def _check_type(what: str, url: str, codec: Codec[Any]) -> None:
    if "/google.protobuf." in url and url not in _JSON_TYPES:
        msg = f"{what} {url}: its JSON is no object; use a message of your own that has a field of this type"
        raise TypeError(msg)
    expected, shapes = _JSON_TYPES.get(url, "object"), codec.shapes()
    found = {str(shape.get("type", "any JSON")) for shape in shapes}
    if found != {expected}:
        written = ", ".join(sorted(found))
        msg = f"{what} {url}: its JSON is of type {expected}, and what {codec.annotation!r} writes is {written}"
        raise TypeError(msg)
    if any("@type" in shape.get("properties", ()) for shape in shapes):
        msg = f"{what} {url}: {codec.annotation!r} has a field @type, and that is what names the type"
        raise TypeError(msg)
