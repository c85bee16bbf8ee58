"""One HTTP call, as the handlers see it: who calls, the query, the body, and the answer's form.

Decides nothing about operations. What a single field looks like is `fields`' affair, what goes wrong `answer`'s.
"""

import logging
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from inspect import isawaitable
from typing import Any, TypeVar, cast

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from lro.errors import (
    InvalidArgument,
    LROError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    invalid,
    invalid_fields,
)
from lro.payload import PayloadError, parse
from lro.principal import Authorization, Permission, Principal, denied
from lro.principal import Scope as Visible
from lro.routes.answer import TooLarge, UnknownEncoding
from lro.routes.fields import lower_camel
from lro.routes.mask import Shape
from lro.routes.rules import Rules
from lro.routes.system import SYSTEM_PARAMETERS, Form, form_of, mask_header

__all__ = ["Exchange", "authenticate"]

log = logging.getLogger("lro.routes")

T = TypeVar("T")

SAFE = ("GET", "HEAD")  # methods that change nothing and take no place: what a page may read is CORS's affair


async def authenticate(auth: Authorization, request: Request) -> Principal:
    """Ask the first hook who calls.

    Raises:
        Unauthenticated: It knows nobody.
        Unavailable: It fails.
    """
    with _denying(auth, "authenticate"):
        who = auth.authenticate(request)
        principal = _checked(await who if isawaitable(who) else who, Principal)
    if principal is None:
        raise Unauthenticated
    return principal


@contextmanager
def _denying(auth: Authorization, hook: str) -> Generator[None]:
    """Deny the call if a hook of the service's fails."""
    try:
        yield
    except LROError:
        raise
    except Exception as error:
        log.exception("%s.%s failed: the call is refused", type(auth).__name__, hook)
        raise Unavailable("the caller can't be checked now", reason="AUTHORIZATION_UNAVAILABLE") from error


def _checked(answer: object, kind: type[T]) -> T | None:
    """Return what a hook answered; anything that is not meant to let a call in does not."""
    if answer is None or isinstance(answer, kind):
        return answer
    msg = f"it returned {type(answer).__name__}, not a {kind.__name__} or None"
    raise TypeError(msg)


class Exchange:
    """A request, and what the handlers need of it.

    Args:
        scope: Starlette's own, as is the next.
        receive: See above.
        rules: How the service takes calls.
    """

    def __init__(self, scope: Scope, receive: Receive, rules: Rules) -> None:
        self.request = Request(scope, receive)
        self._receive = receive
        self._rules = rules
        self._form: Form | None = None
        self.principal = Principal()

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.method

    async def authorize(self, permission: Permission, resource: str, *, names_operation: bool = False) -> Visible:
        """Ask the hooks, and return what the call may touch (AIP-211: before anything is validated).

        Args:
            permission: What the call needs.
            resource: What it is for.
            names_operation: Whether that is one operation, whose existence a refusal may have to hide.

        Raises:
            Unauthenticated, PermissionDenied, NotFound: They refuse; or a page of another site makes a browser send
                what is not merely read.
            Unavailable: They fail.
        """
        auth = self._rules.auth
        self.principal = await authenticate(auth, self.request)
        with _denying(auth, "authorize"):
            answer = auth.authorize(self.principal, permission, resource)
            visible = _checked(await answer if isawaitable(answer) else answer, Visible)
        if visible is None:
            raise self._rules.refusal(resource, permission, None) if names_operation else denied(permission, resource)
        if self.method not in SAFE:
            self._check_site()
        return visible

    def _check_site(self) -> None:
        """Refuse what a page of another site makes a browser send."""
        headers = self.request.headers
        origin = headers.get("origin")
        if origin in self._rules.origins:
            return
        host = "" if origin is None else origin.lower().partition("://")[2]
        own = origin is None or (host != "" and host == headers.get("host", "").lower())
        if not own or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise PermissionDenied("a page of another site may not do this", reason="CROSS_SITE")

    def query(self, allowed: Collection[str], shape: Shape = None) -> dict[str, str]:
        """Return the query parameters by their lowerCamel names; either casing is taken, an empty one is not set.

        Args:
            allowed: Those of this method; the system parameters are known anyway.
            shape: What the answer holds, for a field mask.

        Raises:
            InvalidArgument: Some are not known, or given twice, or ask for a form that is not offered.
        """
        header = mask_header(self.request.scope["headers"])
        if not self.request.scope["query_string"] and not header:
            return {}
        found: dict[str, str] = {}
        system: dict[str, str] = {}
        unknown: list[str] = []
        twice: list[str] = []
        for key, value in self.request.query_params.multi_items():
            name = lower_camel(key)
            known, to = (name, found) if name in allowed else (SYSTEM_PARAMETERS.get(key), system)
            if known in to:
                twice.append(known)
            elif known is not None:
                to[known] = value
            elif key not in SYSTEM_PARAMETERS:
                unknown.append(key)
        self._refuse(unknown, twice, "is no parameter of this method")
        self._form = form_of(system, header, shape, lenient=self._rules.lenient)
        return {name: value for name, value in found.items() if value}

    async def body(self, allowed: Collection[str]) -> dict[str, Any]:  # Any: JSON
        """Return the members of the body, an object or nothing, by their lowerCamel names.

        Raises:
            InvalidArgument: It is too large, too slow, no JSON object, or has members that are not known.
        """
        raw = await self._read()
        if not raw.strip():
            return {}
        self._check_kind()
        try:
            value: object = parse(raw, self._rules.limits.depth)
        except PayloadError as error:
            if error.place:
                raise invalid(error.place, error.what, reason="INVALID_BODY") from error
            raise InvalidArgument(f"the body {error}", reason="INVALID_BODY") from error
        if not isinstance(value, dict):
            raise InvalidArgument("the body must be a JSON object", reason="INVALID_BODY")
        found: dict[str, Any] = {}  # Any: JSON
        unknown: list[str] = []
        twice: list[str] = []
        for key, member in cast("dict[str, Any]", value).items():  # Any: JSON
            name = lower_camel(key)
            if name not in allowed:
                unknown.append(key)
            elif name in found:
                twice.append(name)
            else:
                found[name] = member
        self._refuse(unknown, twice, "is no field of this request")
        return {name: member for name, member in found.items() if member is not None}  # null is not set, as in protobuf

    def _refuse(self, unknown: Iterable[str], twice: Iterable[str], what: str) -> None:
        wrong = [(name, "is given twice") for name in twice]
        if wrong:
            raise invalid_fields(wrong, reason="INVALID_ARGUMENT")
        wrong = [(name, what) for name in unknown]
        if wrong and not self._rules.lenient:
            raise invalid_fields(wrong, reason="UNKNOWN_FIELD")

    def _check_kind(self) -> None:
        """Refuse a body, one that is not empty, that says it is no plain JSON; one that says nothing is taken."""
        headers = self.request.headers
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            msg = f"Content-Encoding {encoding[:100]} is not taken: send the body as it is"
            raise UnknownEncoding(msg, contentEncoding=encoding[:100])
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and kind != "application/json" and not kind.endswith("+json"):
            msg = f"a body of type {kind[:100]} is not taken: send JSON, and content-type: application/json"
            raise InvalidArgument(msg, reason="CONTENT_TYPE_UNSUPPORTED", contentType=kind[:100])

    async def _read(self) -> bytes:
        chunks: list[bytes] = []
        size, limit = 0, self._rules.limits.body
        seconds = self._rules.limits.body_time.total_seconds()
        try:
            with anyio.fail_after(seconds):
                async for chunk in self.request.stream():
                    size += len(chunk)
                    if size > limit:
                        msg = f"the body is larger than {limit:,} bytes"
                        raise TooLarge(msg, reason="BODY_TOO_LARGE", limit=str(limit))
                    chunks.append(chunk)
        except TimeoutError as error:
            msg = f"the body took longer than {seconds:g} s"
            raise InvalidArgument(msg, reason="BODY_TIMEOUT", seconds=f"{seconds:g}") from error
        return b"".join(chunks)

    def respond(self, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
        """Return the response with this JSON, in the form that the query asked for."""
        if self._form is not None:
            body = self._form.write(body)
        return Response(body, headers=headers, media_type="application/json")

    async def disconnected(self) -> None:
        """Return when the client has gone; the body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
