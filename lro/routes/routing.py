"""From a path to a handler: the routes that answer all about their paths in JSON, 404 and 405 among it.

Decides nothing about which paths there are; the handlers decide what a call does.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from lro.errors import NotFound
from lro.principal import Authorization
from lro.routes.answer import error_response, status_response
from lro.routes.exchange import Exchange
from lro.routes.path import relative_path
from lro.status import Code, Status, error_info

__all__ = ["Fallback", "Handler", "JsonRoute"]

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
            response = status_response(status, self._domain, http_status=405, headers={"allow": allow})
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
