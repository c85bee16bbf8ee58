"""From a path to a handler: the routes that answer all about their paths in JSON, 404 and 405 among it.

Decides nothing about which paths there are; the handlers decide what a call does.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from lro.errors import NotFound, Unimplemented
from lro.principal import Permission
from lro.routes.answer import error_response, status_response
from lro.routes.exchange import Exchange
from lro.routes.path import relative_path, sent_path
from lro.routes.rules import Rules
from lro.status import Code, Status, error_info

__all__ = ["Fallback", "Handler", "JsonRoute", "Off"]

_HANDLERS = "lro.handlers"  # where a scope carries what its path was found to be

Handler = Callable[[Exchange], Awaitable[Response | None]]


class Off:
    """The handler of a method that this service does not offer: 501, for those who might call it.

    Args:
        permission: The method, as the hooks know it.
        resource: What it is called for.
    """

    def __init__(self, permission: Permission, resource: str) -> None:
        self._permission: Permission = permission
        self._resource = resource

    async def __call__(self, exchange: Exchange) -> Response:
        """Refuse the call."""
        names_operation = self._permission != "operations.list"
        await exchange.authorize(self._permission, self._resource, names_operation=names_operation)
        msg = f"this service does not offer {self._permission}"
        raise Unimplemented(msg, reason="METHOD_NOT_OFFERED", method=self._permission)


class JsonRoute(BaseRoute):
    """Routes the paths that `pick` knows, and answers everything about them, errors included, in JSON.

    Args:
        pick: Given the relative path as it was sent, returns the handlers by method; None if it is not ours.
        rules: How calls are taken.
        domain: For the ErrorInfo of errors.
    """

    def __init__(self, pick: Callable[[str], Mapping[str, Handler] | None], rules: Rules, domain: str) -> None:
        self._pick = pick
        self._rules = rules
        self._domain = domain

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the paths that are ours, whatever the method."""
        handlers = self._pick(relative_path(scope)) if scope["type"] == "http" else None
        return (Match.NONE, {}) if handlers is None else (Match.FULL, {_HANDLERS: handlers})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the method's handler and send its answer."""
        handlers: Mapping[str, Handler] = scope[_HANDLERS]
        method: str = scope["method"]
        handler = handlers.get("GET" if method == "HEAD" else method)
        response: Response | None
        if handler is not None:
            try:
                response = await handler(Exchange(scope, receive, self._rules))
            except ClientDisconnect:
                return
            except Exception as error:
                response = error_response(error, self._domain)
        elif method == "OPTIONS":
            response = Response(status_code=204, headers={"allow": _allow(handlers)})
        else:
            response = self._not_allowed(method[:100], _allow(handlers))
        if response is not None:
            await response(scope, receive, send)

    def _not_allowed(self, method: str, allow: str) -> Response:
        info = error_info("METHOD_NOT_ALLOWED", method=method, allow=allow)
        status = Status(Code.UNIMPLEMENTED, f"{method} is not offered here, but {allow}", (info,))
        return status_response(status, self._domain, http_status=405, headers={"allow": allow})


def _allow(handlers: Mapping[str, Handler]) -> str:
    offered = {method for method, handler in handlers.items() if not isinstance(handler, Off)}
    return ", ".join(sorted(offered | {"OPTIONS"} | ({"HEAD"} if "GET" in offered else set())))


class Fallback(BaseRoute):
    """Answers what no route knows. It matches partially, so that any route after it comes first."""

    def __init__(self, domain: str) -> None:
        self._domain = domain

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match every HTTP path, for want of anything better."""
        return (Match.PARTIAL, {}) if scope["type"] == "http" else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404."""
        path = (relative_path(scope) or sent_path(scope))[:200]
        error = NotFound(f"there is nothing at {path}", reason="ROUTE_NOT_FOUND", path=path)
        await error_response(error, self._domain)(scope, receive, send)
