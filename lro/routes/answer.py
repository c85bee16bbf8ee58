"""What goes out when a call fails: an exception as the JSON of AIP-193, with its HTTP status and headers.

Everything that goes wrong, in the framework too, is written here, since Google's clients parse every body.
"""

import json
import logging
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from math import ceil

from starlette.responses import Response

from lro.clock import parse_duration
from lro.errors import InvalidArgument, LROError, Unauthenticated
from lro.resource import error_body
from lro.status import Code, Status, error_info

__all__ = ["RETRY_INFO", "RETRY_SECONDS", "TooLarge", "UnknownEncoding", "error_response", "status_response"]

RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"

log = logging.getLogger("lro.routes")


class TooLarge(InvalidArgument):
    """The body is too large."""


class UnknownEncoding(InvalidArgument):
    """The body is compressed."""

    reason = "CONTENT_ENCODING_UNSUPPORTED"


_BETTER: Mapping[type[LROError], int] = {
    TooLarge: 413,
    UnknownEncoding: 415,
}  # where HTTP has a status that google.rpc has no code for

RETRY_SECONDS = 1  # when to ask again, unless the error says otherwise
_RETRY = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)


def error_response(error: Exception, domain: str) -> Response:
    """Return the response for an exception; one that is not an LROError is logged and told by its id only."""
    if isinstance(error, LROError):
        status, headers = _retryable(error.status)
        if isinstance(error, Unauthenticated):
            headers["www-authenticate"] = error.challenge
        if isinstance(error, UnknownEncoding):
            headers["accept-encoding"] = "identity"
        return status_response(status, domain, http_status=_BETTER.get(type(error)), headers=headers)
    error_id = uuid.uuid4().hex[:16]
    log.error("a call failed, error id %s", error_id, exc_info=error)
    message = f"internal error; the log has it under error id {error_id}"
    return status_response(Status(Code.INTERNAL, message, (error_info("INTERNAL", errorId=error_id),)), domain)


def _retryable(status: Status) -> tuple[Status, dict[str, str]]:
    """Return the status with a RetryInfo, and the header that says the same, where a retry may help."""
    if status.code not in _RETRY:
        return status, {}
    for detail in status.details:
        if detail.get("@type") == RETRY_INFO:
            with suppress(KeyError, TypeError, ValueError):  # whoever raised it wrote it
                return status, {"retry-after": str(ceil(parse_duration(detail["retryDelay"]).total_seconds()))}
            return status, {}
    info = {"@type": RETRY_INFO, "retryDelay": f"{RETRY_SECONDS}s"}
    return replace(status, details=(*status.details, info)), {"retry-after": str(RETRY_SECONDS)}


def status_response(
    status: Status, domain: str, *, http_status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response for a status; `http_status` where HTTP has a better one than the code's."""
    body = error_body(status, domain)
    if http_status is not None:
        value = json.loads(body)
        value["error"]["code"] = http_status
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    code = http_status or status.code.http_status
    return Response(body, status_code=code, headers=headers, media_type="application/json")
