"""Log lines about one operation: each begins with its name, and carries it as fields for structured logs."""

import logging
from collections.abc import Mapping
from typing import Any

from lro.lifecycle import Record

__all__ = ["OperationLog", "about"]


class OperationLog(logging.LoggerAdapter[logging.Logger]):
    """Adds `operation`, `job` and `attempt` to every record, beside what the caller gives as `extra`."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:  # Any: as logging declares it
        """See logging.LoggerAdapter."""
        own: Mapping[str, object] = self.extra or {}
        return f"{own['operation']}: {msg}", {**kwargs, "extra": {**own, **kwargs.get("extra", {})}}


def about(logger: logging.Logger, record: Record) -> OperationLog:
    """Return the logger for lines about this record's operation."""
    return OperationLog(logger, {"operation": record.name, "job": record.job, "attempt": record.attempt})
