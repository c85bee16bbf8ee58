"""Cancellable long-running operations for any Python service, in the style of Google's APIs (AIP-151).

Return an operation, do the work in your own service, cancel it truthfully.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lro.context import Context, SyncContext
    from lro.errors import LROError, OperationError, Stopped
    from lro.jobs import Job, job
    from lro.lifecycle import RetryPolicy, State, StopReason
    from lro.operations import Operations
    from lro.principal import AllowAnonymous, Principal
    from lro.resource import Operation
    from lro.service import Service
    from lro.status import Code, Status
    from lro.worker import Worker

__all__ = [
    "AllowAnonymous",
    "Code",
    "Context",
    "Job",
    "LROError",
    "Operation",
    "OperationError",
    "Operations",
    "Principal",
    "RetryPolicy",
    "Service",
    "State",
    "Status",
    "StopReason",
    "Stopped",
    "SyncContext",
    "Worker",
    "job",
]

_MODULES = {
    "AllowAnonymous": "lro.principal",
    "Code": "lro.status",
    "Context": "lro.context",
    "Job": "lro.jobs",
    "LROError": "lro.errors",
    "Operation": "lro.resource",
    "OperationError": "lro.errors",
    "Operations": "lro.operations",
    "Principal": "lro.principal",
    "RetryPolicy": "lro.lifecycle",
    "Service": "lro.service",
    "State": "lro.lifecycle",
    "Status": "lro.status",
    "StopReason": "lro.lifecycle",
    "Stopped": "lro.errors",
    "SyncContext": "lro.context",
    "Worker": "lro.worker",
    "job": "lro.jobs",
}

if not TYPE_CHECKING:  # a type checker that saw this would take every name for `object`

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            msg = f"module 'lro' has no attribute {name!r}"
            raise AttributeError(msg)
        from importlib import import_module  # noqa: PLC0415 -- only who asks for a name pays

        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
