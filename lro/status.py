"""google.rpc.Code and google.rpc.Status: how every outcome and every error is named.

Decides which codes exist, which HTTP status each one has, and how a status is written as JSON. Who
raises what is left to `errors`; what an operation's error says is left to `lifecycle`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"

__all__ = ["BAD_REQUEST", "ERROR_INFO", "Code", "Status", "error_info"]


class Code(IntEnum):
    """A canonical error code. Source: google/rpc/code.proto.

    The number stands in an operation's `error.code`; `name` and `http_status` stand in the body of a
    failed HTTP call.
    """

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def http_status(self) -> int:
        """The HTTP status that google/rpc/code.proto maps this code to."""
        return _HTTP_STATUS[self]


_HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


@dataclass(frozen=True, slots=True)
class Status:
    """A google.rpc.Status: what went wrong, for people and for programs.

    Attributes:
        code: The canonical code.
        message: A sentence for developers, in English.
        details: JSON objects, each with its `@type`; at most one of each type (AIP-193). An ErrorInfo
            that the library made carries no `domain`: the service that sends it fills in its own.
    """

    code: Code
    message: str
    details: tuple[Mapping[str, Any], ...] = ()  # Any: JSON of whatever detail type the author chose

    @property
    def reason(self) -> str | None:
        """The `reason` of the ErrorInfo, or None where there is none."""
        for detail in self.details:
            if detail.get("@type") == ERROR_INFO:
                return str(detail.get("reason"))
        return None

    def to_json(self) -> str:
        """Return the status as JSON text: `{"code": 5, "message": ..., "details": [...]}`.

        Raises:
            TypeError, ValueError: A detail is not made of JSON values.
        """
        value: dict[str, Any] = {"code": int(self.code), "message": self.message}  # Any: JSON
        if self.details:
            value["details"] = [dict(detail) for detail in self.details]
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()  # a lone surrogate can be stored nowhere: better refused here
        return text

    @classmethod
    def from_json(cls, text: str) -> "Status":
        """Read what `to_json` wrote."""
        value = json.loads(text)
        return cls(Code(value["code"]), value.get("message", ""), tuple(value.get("details", ())))


def error_info(reason: str, **metadata: str) -> dict[str, Any]:  # Any: JSON
    """Return a google.rpc.ErrorInfo as JSON, its domain left to the service (AIP-193).

    Args:
        reason: UPPER_SNAKE_CASE, stable, at most 63 characters.
        metadata: Every part of the message that varies, by lowerCamel key.
    """
    info: dict[str, Any] = {"@type": ERROR_INFO, "reason": reason}  # Any: JSON
    if metadata:
        info["metadata"] = metadata
    return info
