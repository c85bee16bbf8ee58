"""One HTTP call, as the handlers read it: who calls, the query, the body.

Decides nothing about operations. What a single field looks like is `fields`' affair, what goes wrong `answer`'s.
"""

import logging
from collections.abc import Collection, Generator
from contextlib import contextmanager
from inspect import isawaitable
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
from starlette.requests import Request
from starlette.types import Receive, Scope

from lro.errors import InvalidArgument, LROError, PermissionDenied, Unauthenticated, Unavailable, invalid
from lro.payload import parse
from lro.principal import Authorization, Permission, Principal
from lro.principal import Scope as Visible
from lro.routes.answer import TooLarge
from lro.routes.fields import lower_camel

__all__ = ["Exchange", "authenticate"]

log = logging.getLogger("lro.routes")

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

    async def authorize(self, permission: Permission, resource: str) -> Visible:
        """Ask the hooks, and return what the call may touch (AIP-211: before anything is validated).

        Raises:
            Unauthenticated, PermissionDenied: They refuse.
            Unavailable: They fail.
        """
        self.principal = await authenticate(self._auth, self.request)
        with _hooks():
            answer = self._auth.authorize(self.principal, permission, resource)
            visible = await answer if isawaitable(answer) else answer
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
            value: object = parse(raw, 64)
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
                        raise TooLarge(msg, reason="BODY_TOO_LARGE", limit=str(MAX_BODY))
                    chunks.append(chunk)
        except TimeoutError as error:
            raise InvalidArgument(f"the body took longer than {BODY_SECONDS} s", reason="BODY_TIMEOUT") from error
        return b"".join(chunks)

    async def disconnected(self) -> None:
        """Return when the client has gone; the body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
