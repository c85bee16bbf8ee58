"""The Operation resource: what a record looks like to clients, and how operations are named.

Decides the fields of google.longrunning.Operation and of its metadata, and nothing about state. The top
level holds what Google's clients know and nothing else; all that is ours stands in the metadata.
"""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lro.clock import format_time
from lro.lifecycle import CancelOutcome, Record, State
from lro.status import ERROR_INFO, Code, Status

__all__ = ["ID_PATTERN", "Operation", "new_name", "operation_schema", "parse_name", "type_url"]

STRUCT = "type.googleapis.com/google.protobuf.Struct"
VALUE = "type.googleapis.com/google.protobuf.Value"
LIST_VALUE = "type.googleapis.com/google.protobuf.ListValue"
EMPTY = "type.googleapis.com/google.protobuf.Empty"
_NO_RESULT = {"": "null", EMPTY: "null", VALUE: "null", LIST_VALUE: "[]", STRUCT: "{}"}

_TIME, _TEXT = "2026-11-22T20:15:00.250001Z", "text"

COMMON: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("createTime", "updateTime", "scheduleTime", "startTime", "endTime", "expireTime"), (_TIME,)),
    **dict.fromkeys(("deadline", "cancelTime"), (_TIME,)),
    **dict.fromkeys(("requestedCancellation", "cancellable"), (True, False)),
    **dict.fromkeys(("verb", "target", "statusMessage", "cancelReason", "cancelRequester"), (_TEXT,)),
    "attempt": (1,),
    "state": tuple(state.value for state in State),
    "cancelOutcome": tuple(outcome.value for outcome in CancelOutcome),
    "lastError": ({"code": 14, "message": _TEXT, "details": [{"@type": ERROR_INFO, "reason": "REASON"}]},),
}  # Any: JSON
"""The common fields of the metadata with values as they may have: what a model that declares one must take."""

WORDS = frozenset({"verb", "target", "statusMessage"})
"""Those of them that a job may say in words of its own."""

_SYNONYMS = {"cancelRequested": "requestedCancellation", "statusDetail": "statusMessage"}  # of some Google APIs

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32: no i, l, o, u
ID_PATTERN = "^[0-9a-hjkmnp-tv-z]{26}$"
_NAME = re.compile(rf"(?:(.+)/)?operations/{ID_PATTERN[1:-1]}")
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")
_TYPE_URL = re.compile(
    r"(?:(?:https?://)?[a-z0-9.-]+(?::[0-9]+)?/(?:[a-z0-9._~-]+/)*)?"  # where it is said to be: a host, a path
    r"((?:[a-z_][a-z0-9_]*\.)+[a-z_][a-z0-9_]*)",  # its name with its package
    re.IGNORECASE | re.ASCII,
)
MAX_PARENT = 512  # characters


@dataclass(frozen=True, slots=True)
class Operation:
    """A google.longrunning.Operation: a long-running piece of work as its clients see it.

    Attributes:
        name: Its resource name: `operations/{id}`, after its parent if it has one.
        metadata: Who asked for what and how far it is: `createTime`, `state`, `progress` and so on, as on the
            wire, times as RFC 3339 text. The same for every job, whatever its `metadata_type`.
        done: True once it has ended; then exactly one of the next two says how.
        error: Why it failed, or None.
        response: Its result as JSON values, or None. A job without a result responds with None too.
        etag: A value that changes with each write of the operation.
        response_type: The URL of the response's type on the wire; "" for what suits it, Struct, Value or Empty.
        metadata_type: The URL of the metadata's type on the wire, whose fields are the progress's; "" for Struct.
    """

    name: str
    metadata: Mapping[str, Any]  # Any: JSON, here and below
    done: bool
    error: Status | None
    response: Any
    etag: str = field(default="", compare=False)
    response_type: str = ""
    metadata_type: str = ""

    @classmethod
    def of(cls, record: Record, domain: str = "lro") -> "Operation":
        """Return the resource of a record.

        Args:
            record: The record.
            domain: Whose errors the library's are: the ErrorInfo's domain.
        """
        return cls(
            name=record.name,
            metadata=_metadata(record, domain),
            done=record.state.is_terminal,
            error=None if record.error is None else with_domain(Status.from_json(record.error), domain),
            response=None if record.response is None else json.loads(record.response),
            etag=etag(record),
            response_type=record.response_type,
            metadata_type=record.metadata_type,
        )

    @classmethod
    def validated(cls, record: Record, domain: str = "lro") -> "Operation":
        """Return the operation that stands for a start which was only validated: done, and with no name (AIP-163).

        Its response is an empty one of the job's type.
        """
        empty = _NO_RESULT.get(record.response_type, "{}")
        done = record._replace(name="", state=State.SUCCEEDED, ended_at=record.created_at, response=empty)
        return cls.of(done, domain)

    @property
    def state(self) -> State:
        """The state, as in the metadata."""
        return State(self.metadata["state"])

    def to_dict(self) -> dict[str, Any]:
        """Return the operation as protobuf's JSON mapping has it: ready for json.dumps."""
        value: dict[str, Any] = {
            "name": self.name,
            "metadata": _metadata_message(self.metadata, self.metadata_type),
            "done": self.done,
        }
        if self.error is not None:
            value["error"] = json.loads(self.error.to_json())
        elif self.done:
            value["response"] = _any(self.response, self.response_type)
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:  # Any: pydantic's own
        """Let pydantic write an operation as `to_dict` does: for a FastAPI endpoint that returns one."""
        as_dict = {"type": "function-plain", "function": cls.to_dict}
        return {"type": "is-instance", "cls": cls, "ref": cls.__qualname__, "serialization": as_dict}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:  # Any: pydantic's own
        """Return the JSON schema of `to_dict`."""
        return operation_schema()

    def to_json(self) -> bytes:
        """Return `to_dict` as JSON in UTF-8."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":")).encode()


def operation_schema() -> dict[str, Any]:
    """Return the JSON schema of an Operation as `to_dict` has it."""
    url = {"type": "string", "description": "The URL of its protobuf type"}
    any_message = {"type": "object", "properties": {"@type": url}, "required": ["@type"], "additionalProperties": True}
    status = {
        "code": {"type": "integer", "description": "A google.rpc.Code; 1 for cancelled"},
        "message": {"type": "string"},
        "details": {"type": "array", "items": any_message},
    }
    return {
        "type": "object",
        "title": "Operation",
        "description": "A google.longrunning.Operation",
        "properties": {
            "name": {"type": "string", "description": "Its resource name: get, wait for, cancel and delete it by this"},
            "metadata": any_message,
            "done": {"type": "boolean", "description": "True once it has ended: then there is an error or a response"},
            "error": {"type": "object", "properties": status, "required": ["code", "message"]},
            "response": any_message,
        },
        "required": ["name", "metadata", "done"],
        "additionalProperties": False,
    }


def etag(record: Record) -> str:
    """Return a value that changes with each write of a record (AIP-154)."""
    return f'"{record.version}"'


def type_url(text: str) -> str:
    """Return the URL of a protobuf type; `acme.v1.Book` alone is one of `type.googleapis.com`.

    Raises:
        ValueError: It is no type's name with its package.
    """
    found = _TYPE_URL.fullmatch(text)
    if found is None:
        msg = f"{text!r} is no type URL: write type.googleapis.com/acme.v1.Book, or acme.v1.Book for short"
        raise ValueError(msg)
    name = found[1]
    return f"type.googleapis.com/{name}" if name == text or name.startswith("google.protobuf.") else text


def is_message(url: str) -> bool:
    """Return whether it is the URL of a message, whose JSON is its fields: none of the types that hold any JSON."""
    return url not in _NO_RESULT


def common_field(name: str) -> str | None:
    """Return which common field of the metadata a model's field is, in either casing; None for the job's own."""
    return _SPELLINGS.get(name)


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


_SPELLINGS = {
    spelling: _SYNONYMS.get(name, name) for name in (*COMMON, *_SYNONYMS) for spelling in (name, _snake(name))
}


def _any(value: Any, url: str) -> dict[str, Any]:
    """Return JSON as google.protobuf.Any; without a URL in a type that every Google client can parse."""
    url = url or _type_for(value)
    if url == EMPTY:
        return {"@type": EMPTY}  # which may have no value
    return _message(value, url) if is_message(url) else {"@type": url, "value": value}


def _type_for(value: object) -> str:
    return EMPTY if value is None else STRUCT if isinstance(value, dict) else VALUE


def _message(fields: Mapping[str, Any], url: str) -> dict[str, Any]:
    return {"@type": url, **fields} | {"@type": url}  # whatever a model that takes any field has been given


def _metadata_message(metadata: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Return the metadata as google.protobuf.Any.

    With a URL it is the job's progress, and the common fields in it are filled in. A field that the progress has
    not is none of that type's, and Google's clients would refuse it.
    """
    if not url:
        return _any(dict(metadata), STRUCT)
    fields: dict[str, Any] = {}
    for key, own in metadata.get("progress", {}).items():
        name = common_field(key)
        if name is None or (own and name in WORDS):
            fields[key] = own
        elif name in metadata:
            fields[key] = metadata[name]
    return _message(fields, url)


def _metadata(record: Record, domain: str) -> dict[str, Any]:
    """Return the common fields that are set, named as about a hundred Google APIs name them (AIP-142, AIP-148)."""
    value: dict[str, Any] = {
        "createTime": format_time(record.created_at),
        "updateTime": format_time(record.updated_at),
        "verb": record.job,
        "state": record.state.value,
        "attempt": record.attempt,
        "requestedCancellation": record.cancel_requested_at is not None,
        "cancellable": record.cancellable,
    }
    delayed = record.state is State.PENDING and record.due_at > max(record.updated_at, record.created_at)
    times = {
        "scheduleTime": record.due_at if delayed else None,
        "startTime": record.started_at,
        "endTime": record.ended_at,
        "deadline": record.deadline_at,
        "expireTime": record.expire_at,
        "cancelTime": record.cancel_requested_at,
    }
    value.update((key, format_time(at)) for key, at in times.items() if at is not None)
    texts = {
        "target": record.target,
        "cancelReason": record.cancel_reason,
        "cancelRequester": record.cancel_requester,
        "statusMessage": record.status_message,
    }
    value.update((key, text) for key, text in texts.items() if text)
    if record.cancel_outcome is not None:
        value["cancelOutcome"] = record.cancel_outcome.value
    if record.last_error is not None:
        status = with_domain(Status.from_json(record.last_error), domain)
        value["lastError"] = json.loads(status.to_json())
    if record.progress is not None:
        value["progress"] = json.loads(record.progress)
    return value


def with_domain(status: Status, domain: str) -> Status:
    """Return the status with the service's domain in an ErrorInfo that has none."""
    details = tuple(
        {**detail, "domain": domain} if detail.get("@type") == ERROR_INFO and "domain" not in detail else detail
        for detail in status.details
    )
    return Status(status.code, status.message, details)


def error_body(status: Status, domain: str) -> bytes:
    """Return the JSON body of a failed HTTP call (AIP-193), in UTF-8."""
    value = json.loads(with_domain(status, domain).to_json())
    code = Code(value["code"])
    error = {"code": code.http_status, "message": value["message"], "status": code.name}
    if "details" in value:
        error["details"] = value["details"]
    return json.dumps({"error": error}, ensure_ascii=False, separators=(",", ":")).encode()


def new_name(parent: str, now: int) -> str:
    """Return a name for a new operation: 26 characters of base32, 128 bits, roughly ordered by time.

    Args:
        parent: The resource that it belongs to; "" for none.
        now: Microseconds since 1970.
    """
    number = (now // 1000 % 2**48) << 80 | secrets.randbits(80)
    digits = "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
    return f"{parent}/operations/{digits}" if parent else f"operations/{digits}"


def parse_name(name: str) -> str | None:
    """Return the parent of an operation's name, "" for none; None if it is no operation's name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    parent = found[1] or ""
    return parent if is_parent(parent) else None


def is_parent(parent: str) -> bool:
    """Return whether this can be what operations belong to: "" or `collection/id/...`, plain segments."""
    if not parent:
        return True
    segments = parent.split("/")
    plain = all(_SEGMENT.fullmatch(segment) and segment not in (".", "..", "-") for segment in segments)
    return plain and len(segments) % 2 == 0 and len(parent) <= MAX_PARENT
