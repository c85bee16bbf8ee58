"""The system parameters that all of Google's APIs share: which there are, and the form they give an answer.

`fields` and `prettyPrint` are done, `alt` is JSON or refused, all others are let through and mean nothing: no
`callback` wraps an answer, no `$httpMethod` makes a GET another call.
Source: cloud.google.com/apis/docs/system-parameters.
"""

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lro.errors import invalid
from lro.routes.mask import Mask, Shape, parse_mask, select

__all__ = ["SYSTEM_PARAMETERS", "Form", "form_of", "mask_header"]

SYSTEM_PARAMETERS: Mapping[str, str | None] = {
    **{prefix + name: name for name in ("alt", "fields", "prettyPrint") for prefix in ("", "$")},
    **dict.fromkeys(
        (
            *("key", "$key", "quotaUser", "$userProject", "access_token", "oauth_token", "callback", "$callback"),
            *("uploadType", "upload_protocol", "$.xgafv", "$apiFormat", "$apiVersion", "$ct", "$httpMethod"),
            "$outputDefaults",
        )
    ),
}
"""Every one that is never refused, and the name of its meaning if it has one here."""

_JSON = ("", "json", "json;enum-encoding=int")  # there are no enums but in text of ours


class Form(NamedTuple):
    """How an answer is written.

    Attributes:
        mask: What of it; None for all.
        pretty: With an indent of two.
    """

    mask: Mask | None = None
    pretty: bool = False

    def write(self, body: bytes) -> bytes:
        """Return an answer, which is JSON, in this form."""
        value = json.loads(body)
        if self.mask is not None:
            value = select(self.mask, value)
        indent, separators = (2, None) if self.pretty else (None, (",", ":"))
        return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators).encode()


def form_of(parameters: Mapping[str, str], header: str, shape: Shape, *, lenient: bool) -> Form | None:
    """Return the form that a request asks for; None for the plain one.

    Args:
        parameters: What it says about `alt`, `fields`, `prettyPrint`.
        header: Its X-Goog-FieldMask, for want of a `fields`.
        shape: What the answer holds.
        lenient: Take a mask with unknown names.

    Raises:
        InvalidArgument: One has a value that is not offered.
    """
    if parameters.get("alt", "") not in _JSON:
        raise invalid("alt", "must be json: there is no other form", reason="FORM_UNSUPPORTED")
    pretty = parameters.get("prettyPrint", "")
    if pretty not in ("", "true", "false"):
        raise invalid("prettyPrint", "must be true or false")
    mask = parse_mask(parameters.get("fields", "") or header, shape, lenient=lenient)
    return Form(mask, pretty == "true") if mask is not None or pretty == "true" else None


def mask_header(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the X-Goog-FieldMask of a request, "" if it has none."""
    return ",".join([value.decode(errors="replace") for key, value in headers if key == b"x-goog-fieldmask"])
