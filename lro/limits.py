"""Limits: how large, how deep, how many and how long; every number that stands between a client and the service.

Decides the numbers and nothing else: each room keeps the limits that concern it, and says what is refused and how.
"""

from dataclasses import dataclass, fields
from datetime import timedelta

__all__ = ["Limits"]

DEEPEST = 128  # pydantic reads JSON to about 200 levels, and what is stored stands inside an operation's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a service; give the same to all its processes.

    Some rules have no number and always hold: JSON has finite numbers, integers of 64 bits, no key twice in one
    object, no U+0000 and no half of a surrogate pair.

    Attributes:
        body: Bytes of a request's body, counted as they come. More is answered with 413.
        body_time: How long a body may take to come.
        params: Bytes of an operation's params, as JSON in UTF-8, like the next two.
        progress: Bytes of its progress.
        result: Bytes of its result. A larger one ends it with RESOURCE_EXHAUSTED.
        error: Bytes of the message of a job's error; what is longer is cut. Its details may have as many again, and
            those that don't fit are left out.
        depth: How deep JSON may be nested, at most 128.
        request_id: Characters of a request id.
        target: Characters of a target.
        reason: Characters of the reason of a cancel request.
        filter: Bytes of a list's filter.
        filter_terms: Comparisons in a filter.
        filter_depth: How deep a filter may be nested.
        page_size: Operations on a page; who asks for more gets so many.
        default_page_size: Operations on a page for who asks for no number.
        page_token: Characters of a page token.
        wait: The longest wait, and that of who names no time. Clients' own time-outs often are 10 s.
        waits: Clients that wait at once, in one process; one too many is answered at once, with the state so far.
        waits_per_principal: Of those, how many may be one principal's; nobody in particular has no such limit.
        pending_per_tenant: Operations of one tenant that wait to be run; one more is refused with RESOURCE_EXHAUSTED.

    Raises:
        ValueError: A number is not positive, `depth` is larger than 128, or `default_page_size` than `page_size`.
    """

    body: int = 1024 * 1024
    body_time: timedelta = timedelta(seconds=10)
    params: int = 256 * 1024
    progress: int = 64 * 1024
    result: int = 1024 * 1024
    error: int = 4 * 1024
    depth: int = 64
    request_id: int = 128
    target: int = 1024
    reason: int = 1024
    filter: int = 2 * 1024
    filter_terms: int = 50
    filter_depth: int = 20
    page_size: int = 1000
    default_page_size: int = 50
    page_token: int = 1024
    wait: timedelta = timedelta(seconds=8)
    waits: int = 1000
    waits_per_principal: int = 100
    pending_per_tenant: int = 10_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, timedelta):
                fits, what = isinstance(value, timedelta) and value > timedelta(0), "a positive timedelta"
            else:
                fits, what = type(value) is int and value >= 1, "a whole number, at least 1"
            if not fits:
                msg = f"Limits({field.name}={value!r}): give {what}"
                raise ValueError(msg)
        if self.depth > DEEPEST:
            msg = f"Limits(depth={self.depth}): at most {DEEPEST}"
            raise ValueError(msg)
        if self.default_page_size > self.page_size:
            msg = f"Limits(default_page_size={self.default_page_size}): at most page_size, which is {self.page_size}"
            raise ValueError(msg)
