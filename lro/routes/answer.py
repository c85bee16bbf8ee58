"""What goes out when a call fails: an exception as the JSON of AIP-193, with its HTTP status and headers.

Everything that goes wrong, in the framework too, is written here, since Google's clients parse every body.
"""

import json
import logging
import uuid
from collections.abc import Mapping

from starlette.responses import Response

from lro.errors import InvalidArgument, LROError, Unauthenticated
from lro.resource import error_body
from lro.status import Code, Status, error_info

__all__ = ["TooLarge", "error_response", "status_response"]

log = logging.getLogger("lro.routes")


class TooLarge(InvalidArgument):
    """The body is too large."""


def error_response(error: Exception, domain: str) -> Response:
    """Return the response for an exception; one that is not an LROError is logged and told by its id only."""
    if isinstance(error, LROError):
        headers = {"retry-after": "1"} if error.status.code is Code.UNAVAILABLE else {}
        if isinstance(error, Unauthenticated):
            headers = {"www-authenticate": "Bearer"}
        return status_response(
            error.status, domain, http_status=413 if isinstance(error, TooLarge) else None, headers=headers
        )
    error_id = uuid.uuid4().hex[:16]
    log.error("a call failed, error id %s", error_id, exc_info=error)
    message = f"internal error; the log has it under error id {error_id}"
    return status_response(Status(Code.INTERNAL, message, (error_info("INTERNAL", errorId=error_id),)), domain)


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
    return Response(body, status_code=code, headers=dict(headers or {}), media_type="application/json")
