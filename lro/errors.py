"""The exceptions of the library, one tree.

    LROError
    ├── NotFound                NOT_FOUND
    ├── InvalidArgument         INVALID_ARGUMENT
    ├── FailedPrecondition      FAILED_PRECONDITION
    ├── Aborted                 ABORTED
    ├── PermissionDenied        PERMISSION_DENIED
    ├── Unauthenticated         UNAUTHENTICATED
    ├── ResourceExhausted       RESOURCE_EXHAUSTED
    ├── Unimplemented           UNIMPLEMENTED
    ├── Unavailable             UNAVAILABLE
    ├── LeaseLost               ABORTED
    ├── StoreClosed             UNAVAILABLE
    │   └── StoreDamaged        DATA_LOSS
    ├── OperationError          raised by a job: its public error
    └── OperationFailed         the operation ended in an error
        └── OperationCancelled  ... which is CANCELLED

Each class is bound to one `Code`, from which HTTP follows. `Stopped` stands apart: it is no error.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from lro.status import BAD_REQUEST, ERROR_INFO, Code, Status, error_info

__all__ = [
    "Aborted",
    "FailedPrecondition",
    "InvalidArgument",
    "LROError",
    "LeaseLost",
    "NotFound",
    "OperationCancelled",
    "OperationError",
    "OperationFailed",
    "PermissionDenied",
    "ResourceExhausted",
    "Stopped",
    "StoreClosed",
    "StoreDamaged",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "invalid",
    "invalid_fields",
]

_Details = Iterable[Mapping[str, Any]]  # Any: JSON


class LROError(Exception):
    """The call failed.

    Args:
        message: What was asked, what was found and what to do; the class's first docstring line if empty.
        reason: The stable UPPER_SNAKE_CASE name of this error (AIP-193); the class's own if empty.
        details: Further google.rpc details as JSON objects with `@type`.
        inside: What the log and the service's own code may know besides; `str()` has it, the status has not.
        metadata: Every part of the message that varies, for the ErrorInfo.
    """

    code: ClassVar[Code] = Code.UNKNOWN
    reason: str = "UNKNOWN"

    def __init__(
        self, message: str = "", *, reason: str = "", details: _Details = (), inside: str = "", **metadata: str
    ) -> None:
        self.message = message or (type(self).__doc__ or "").partition("\n")[0]
        self.reason = reason or type(self).reason
        self.metadata = metadata
        self.details = tuple(details)
        self.inside = inside
        super().__init__(f"{self.message} ({inside})" if inside else self.message)

    @property
    def status(self) -> Status:
        """This error as a google.rpc.Status with exactly one ErrorInfo."""
        return Status(self.code, self.message, (error_info(self.reason, **self.metadata), *self.details))


class NotFound(LROError):
    """There is no such operation."""

    code = Code.NOT_FOUND
    reason = "OPERATION_NOT_FOUND"


class InvalidArgument(LROError):
    """The request is not valid."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class FailedPrecondition(LROError):
    """The state of the operation does not allow this."""

    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class Aborted(LROError):
    """The call collided with another one."""

    code = Code.ABORTED
    reason = "ABORTED"


class PermissionDenied(LROError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Unauthenticated(LROError):
    """The caller did not say who it is: send valid credentials.

    Attributes:
        challenge: How, for the header WWW-Authenticate; a subclass may say otherwise.
    """

    challenge: ClassVar[str] = "Bearer"
    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class ResourceExhausted(LROError):
    """A limit is reached: try again later."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class Unimplemented(LROError):
    """This service does not offer that."""

    code = Code.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class Unavailable(LROError):
    """The store cannot be reached now: try again later.

    For a write the outcome is unknown, unless the message says otherwise: read again before you repeat it.
    """

    code = Code.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"


class StoreClosed(LROError):
    """The store is closed; nothing was written. Open it with `async with store:`."""

    code = Code.UNAVAILABLE
    reason = "STORE_CLOSED"


class StoreDamaged(StoreClosed):
    """The store has lost what it held, or can't read it: it has stopped, and trying again does not help."""

    code = Code.DATA_LOSS
    reason = "STORE_DAMAGED"


class LeaseLost(LROError):
    """Another worker has this operation now, or it has ended: nothing was written."""

    code = Code.ABORTED
    reason = "LEASE_LOST"


class OperationError(LROError):
    """The job failed.

    Raise it in a job to end the operation in an error that clients may see. Every other exception
    reaches them as INTERNAL with an error id, its text only in the log.

    Args:
        code: The canonical code; not OK, and not CANCELLED, which only a cancel request leads to.
        message: A sentence for the client's developer.
        reason: The stable name of this error, for the ErrorInfo.
        details: Further google.rpc details as JSON objects with `@type`.
        metadata: Every part of the message that varies.

    Raises:
        ValueError: The code is OK or CANCELLED.
    """

    reason = "JOB_FAILED"

    def __init__(
        self, code: Code, message: str = "", *, reason: str = "", details: _Details = (), **metadata: str
    ) -> None:
        if code in (Code.OK, Code.CANCELLED):
            msg = f"OperationError with code {Code(code).name}: a job fails with another code, or returns a result"
            raise ValueError(msg)
        super().__init__(message, reason=reason, details=details, **metadata)
        self._code = Code(code)

    @property
    def status(self) -> Status:
        """This error as a google.rpc.Status; an ErrorInfo among the details replaces the library's."""
        own = any(detail.get("@type") == ERROR_INFO for detail in self.details)
        info = () if own else (error_info(self.reason, **self.metadata),)
        return Status(self._code, self.message, (*info, *self.details))


class OperationFailed(LROError):
    """The operation ended in an error.

    Attributes:
        name: The operation's name.
        status: Its `error`, as a Status.
    """

    def __init__(self, name: str, status: Status) -> None:
        super().__init__(f"{name} failed: {status.code.name}: {status.message}", reason=status.reason or "")
        self.name = name
        self._status = status

    @property
    def status(self) -> Status:
        """The operation's error."""
        return self._status


class OperationCancelled(OperationFailed):
    """The operation was cancelled."""


class Stopped(BaseException):
    """The attempt is to stop: raised at a checkpoint where no cancel scope can reach.

    A thread gets it, and a task outside the attempt's own scope. Like a cancellation it is no Exception,
    so that `except Exception` lets it pass; clean up and let it go on.
    """


def invalid(field: str, what: str, *, reason: str = "INVALID_ARGUMENT", **metadata: str) -> InvalidArgument:
    """Return the error for one bad field of a request, with a google.rpc.BadRequest."""
    return invalid_fields([(field, what)], reason=reason, **metadata)


def invalid_fields(violations: Sequence[tuple[str, str]], *, reason: str, **metadata: str) -> InvalidArgument:
    """Return the error for all bad fields of a request, each with what is wrong about it.

    The first 20 of them, and 100 characters of each name: the client chose how many there are.
    """
    shown = [(field[:100], what) for field, what in violations[:20]]
    detail = {
        "@type": BAD_REQUEST,
        "fieldViolations": [{"field": field, "description": what} for field, what in shown],
    }
    message = "; ".join(f"{field}: {what}" for field, what in shown)
    names = ",".join(dict.fromkeys(field for field, _ in shown))
    return InvalidArgument(message, reason=reason, details=[detail], field=names, **metadata)
