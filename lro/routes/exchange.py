"""One HTTP call: how a path, a query and a body are read, and how an answer or an error is written.

Decides nothing about operations. Everything that goes wrong, in the framework too, is answered with the
JSON of AIP-193, since Google's clients parse every body.
"""

import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from inspect import isawaitable
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from lro.clock import parse_duration
from lro.errors import InvalidArgument, LROError, NotFound, PermissionDenied, Unauthenticated, Unavailable, invalid
from lro.payload import parse
from lro.principal import Authorization, Principal
from lro.principal import Scope as Visible
from lro.resource import error_body
from lro.status import Code, Status, error_info

__all__ = ["Exchange", "Fallback", "Handler", "JsonRoute", "authenticate", "error_response", "relative_path"]

log = logging.getLogger("lro.routes")

_INTEGER = re.compile(r"-?[0-9]{1,18}")

MAX_BODY = 1024 * 1024  # bytes
BODY_SECONDS = 10.0

SYSTEM_PARAMETERS = frozenset(
    {
        *("alt", "$alt", "fields", "$fields", "prettyPrint", "$prettyPrint", "key", "$key", "quotaUser"),
        *("$userProject", "access_token", "oauth_token", "callback", "uploadType", "upload_protocol"),
        *("$.xgafv", "$apiVersion", "$ct", "$httpMethod"),
    }
)  # cloud.google.com/apis/docs/system-parameters: never refused


async def authenticate(auth: Authorization, request: Request) -> Principal:
    """Ask the first hook who calls.

    Raises:
        Unauthenticated: It knows nobody.
        Unavailable: It fails.
    """
    with _hooks():
        who = auth.authenticate(request)
        principal = await who if isawaitable(who) else who
    if principal is None:
        raise Unauthenticated
    return principal


@contextmanager
def _hooks() -> Generator[None]:
    """Deny the call if a hook of the service's fails."""
    try:
        yield
    except LROError:
        raise
    except Exception as error:
        log.exception("the authorization hooks failed; the call is refused")
        raise Unavailable("the caller can't be checked now", reason="AUTHORIZATION_UNAVAILABLE") from error


class Exchange:
    """A request, and what the handlers need of it.

    Args:
        scope: Starlette's own, as are the next two.
        receive: See above.
        auth: The two hooks.
    """

    def __init__(self, scope: Scope, receive: Receive, auth: Authorization) -> None:
        self.request = Request(scope, receive)
        self._receive = receive
        self._auth = auth
        self.principal = Principal()

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.method

    async def authorize(self, permission: str, resource: str) -> Visible:
        """Ask the hooks, and return what the call may touch (AIP-211: before anything is validated).

        Raises:
            Unauthenticated, PermissionDenied: They refuse.
            Unavailable: They fail.
        """
        self.principal = await authenticate(self._auth, self.request)
        with _hooks():
            visible = await self._auth.authorize(self.principal, permission, resource)
        if visible is None:
            msg = f"Permission '{permission}' denied on resource '{resource}' (or it might not exist)."
            raise PermissionDenied(msg, permission=permission, name=resource)
        return visible

    def check_origin(self) -> None:
        """Refuse what a page of another site makes a browser send.

        Raises:
            PermissionDenied: It is such a call.
        """
        headers = self.request.headers
        site = headers.get("sec-fetch-site", "none")
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != headers.get("host", "")
        if site not in ("same-origin", "none") or foreign:
            raise PermissionDenied("a page of another site may not do this", reason="CROSS_SITE")

    def query(self, allowed: Collection[str]) -> dict[str, str]:
        """Return the query parameters by their lowerCamel names; either casing is taken.

        Raises:
            InvalidArgument: One is not known, or given twice.
        """
        found: dict[str, str] = {}
        if not self.request.scope["query_string"]:
            return found
        for key, value in self.request.query_params.multi_items():
            name = lower_camel(key)
            if name in allowed:
                if name in found:
                    raise invalid(name, "is given twice")
                found[name] = value
            elif key not in SYSTEM_PARAMETERS:
                raise invalid(key, "is no parameter of this method", reason="UNKNOWN_FIELD")
        return found

    async def body(self, allowed: Collection[str]) -> dict[str, Any]:  # Any: JSON
        """Return the members of the body, an object or nothing, by their lowerCamel names.

        Raises:
            InvalidArgument: It is too large, too slow, no JSON object, or has a member that is not known.
        """
        raw = await self._read()
        if not raw.strip():
            return {}
        try:
            value: object = parse(raw)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"the body is not valid JSON: {error}", reason="INVALID_BODY") from error
        if not isinstance(value, dict):
            raise InvalidArgument("the body must be a JSON object", reason="INVALID_BODY")
        found: dict[str, Any] = {}  # Any: JSON
        for key, member in cast("dict[str, Any]", value).items():  # Any: JSON
            name = lower_camel(key)
            if name not in allowed:
                raise invalid(key, "is no field of this request", reason="UNKNOWN_FIELD")
            if name in found:
                raise invalid(name, "is given in both casings")
            if member is not None:  # as in protobuf's JSON: null is not set
                found[name] = member
        return found

    async def _read(self) -> bytes:
        chunks: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(BODY_SECONDS):
                async for chunk in self.request.stream():
                    size += len(chunk)
                    if size > MAX_BODY:
                        msg = f"the body is larger than {MAX_BODY:,} bytes"
                        raise _TooLarge(msg, reason="BODY_TOO_LARGE", limit=str(MAX_BODY))
                    chunks.append(chunk)
        except TimeoutError as error:
            raise InvalidArgument(f"the body took longer than {BODY_SECONDS} s", reason="BODY_TIMEOUT") from error
        return b"".join(chunks)

    async def disconnected(self) -> None:
        """Return when the client has gone; the body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _TooLarge(InvalidArgument):
    """The body is too large."""


_HANDLERS = "lro.handlers"  # where a scope carries what its path was found to be

Handler = Callable[[Exchange], Awaitable[Response | None]]


class JsonRoute(BaseRoute):
    """Routes the paths that `pick` knows, and answers everything about them, errors included, in JSON.

    Args:
        pick: Given the relative path as it was sent, returns the handlers by method; None if it is not ours.
        auth: The two hooks.
        domain: For the ErrorInfo of errors.
    """

    def __init__(self, pick: Callable[[str], Mapping[str, Handler] | None], auth: Authorization, domain: str) -> None:
        self._pick = pick
        self._auth = auth
        self._domain = domain

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the paths that are ours, whatever the method."""
        handlers = self._pick(relative_path(scope)) if scope["type"] == "http" else None
        return (Match.NONE, {}) if handlers is None else (Match.FULL, {_HANDLERS: handlers})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the method's handler and send its answer."""
        handlers: Mapping[str, Handler] = scope[_HANDLERS]
        handler = handlers.get("GET" if scope["method"] == "HEAD" else scope["method"])
        response: Response | None
        if handler is None:
            allow = ", ".join(sorted(handlers))
            status = Status(
                Code.UNIMPLEMENTED,
                f"{scope['method']} is not offered here, but {allow}",
                (error_info("METHOD_NOT_ALLOWED", method=scope["method"], allow=allow),),
            )
            response = _error(status, self._domain, http_status=405, headers={"allow": allow})
        else:
            try:
                response = await handler(Exchange(scope, receive, self._auth))
            except ClientDisconnect:
                return
            except Exception as error:
                response = error_response(error, self._domain)
        if response is not None:
            await response(scope, receive, send)


class Fallback(BaseRoute):
    """Answers what no route knows. It matches partially, so that any route after it comes first."""

    def __init__(self, domain: str) -> None:
        self._domain = domain

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match every HTTP path, for want of anything better."""
        return (Match.PARTIAL, {}) if scope["type"] == "http" else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404."""
        path = relative_path(scope)[:200]
        error = NotFound(f"there is nothing at {path}", reason="ROUTE_NOT_FOUND", path=path)
        await error_response(error, self._domain)(scope, receive, send)


def error_response(error: Exception, domain: str) -> Response:
    """Return the response for an exception; one that is not an LROError is logged and told by its id only."""
    if isinstance(error, LROError):
        headers = {"retry-after": "1"} if error.status.code is Code.UNAVAILABLE else {}
        if isinstance(error, Unauthenticated):
            headers = {"www-authenticate": "Bearer"}
        return _error(error.status, domain, http_status=413 if isinstance(error, _TooLarge) else None, headers=headers)
    error_id = uuid.uuid4().hex[:16]
    log.error("a call failed, error id %s", error_id, exc_info=error)
    message = f"internal error; the log has it under error id {error_id}"
    return _error(Status(Code.INTERNAL, message, (error_info("INTERNAL", errorId=error_id),)), domain)


def _error(
    status: Status, domain: str, *, http_status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    body = error_body(status, domain)
    if http_status is not None:
        value = json.loads(body)
        value["error"]["code"] = http_status
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    code = http_status or status.code.http_status
    return Response(body, status_code=code, headers=dict(headers or {}), media_type="application/json")


def relative_path(scope: Scope) -> str:
    """Return the path below the mount as it was sent, percent-encodings and all.

    Routing on the decoded path would let `%3Acancel` pass for a verb and `%2F` for a separator (http.proto).
    """
    root: str = scope.get("root_path", "")
    raw = scope.get("raw_path")
    path = quote(scope["path"], safe="/:") if raw is None else raw.decode("latin-1").partition("?")[0]
    segments = path.split("/")
    depth = root.rstrip("/").count("/")
    if unquote("/".join(segments[: depth + 1])) != root.rstrip("/"):
        return quote(scope["path"].removeprefix(root), safe="/:")  # the prefix itself was encoded oddly
    return "/" + "/".join(segments[depth + 1 :])


def decode(segments: str) -> str:
    """Decode a path once, but for `%2F`, which is no separator (http.proto)."""
    return unquote(re.sub("%2[fF]", "%252F", segments))


def lower_camel(key: str) -> str:
    """Return a field name in lowerCamel; snake_case is taken too (protobuf's JSON mapping)."""
    head, *rest = key.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in rest)


def text_of(body: Mapping[str, object], field: str) -> str | None:
    """Return a member of a body that is a string, or None if it is not there."""
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise invalid(field, "must be a string")
    return value


def integer_of(fields: Mapping[str, object], field: str) -> int:
    """Return a field that is an integer, written as digits or as a number; 0 if it is not there."""
    value = fields.get(field, 0)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(field, "must be an integer")
    return value


def boolean_of(fields: Mapping[str, object], field: str) -> bool:
    """Return a field that is true or false; false if it is not there."""
    value = fields.get(field, False)
    if not isinstance(value, bool):
        raise invalid(field, "must be true or false")
    return value


def duration_of(body: Mapping[str, object], field: str) -> timedelta | None:
    """Return a member of a body that is a google.protobuf.Duration, or None if it is not there."""
    written = text_of(body, field)
    if written is None:
        return None
    try:
        return parse_duration(written)
    except ValueError as error:
        raise invalid(field, str(error)) from error


def time_of(body: Mapping[str, object], field: str) -> datetime | None:
    """Return a member of a body that is a google.protobuf.Timestamp, or None if it is not there."""
    written = text_of(body, field)
    if written is None:
        return None
    try:
        value = datetime.fromisoformat(written)
        if "T" in written and value.tzinfo is not None:
            return value
    except ValueError:
        pass
    raise invalid(field, "must be an RFC 3339 time with its zone, as in 2026-11-22T20:15:00Z")
