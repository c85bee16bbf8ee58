"""The HTTP side: Starlette routes for operations and jobs, to be mounted in any ASGI app."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lro.errors import LROError
from lro.principal import Authorization, Principal
from lro.resource import Operation
from lro.routes.answer import error_response
from lro.routes.exchange import authenticate
from lro.routes.health import health_routes
from lro.routes.jobs import job_routes
from lro.routes.openapi import openapi_routes
from lro.routes.operations import operation_routes

__all__ = [
    "exception_handlers",
    "health_routes",
    "job_routes",
    "openapi_routes",
    "operation_response",
    "operation_routes",
    "principal_of",
]


def operation_response(operation: Operation) -> Response:
    """Return the response for an operation: 200 with its JSON, for endpoints of your own."""
    return Response(operation.to_json(), media_type="application/json")


def principal_of(auth: Authorization) -> Callable[[Request], Awaitable[Principal]]:
    """Return the function that tells who calls an endpoint of your own, a dependency under FastAPI.

        Caller = Annotated[Principal, Depends(principal_of(auth))]

    It raises Unauthenticated for nobody known, which `exception_handlers` answer with 401.
    """

    async def principal(request: Request) -> Principal:
        return await authenticate(auth, request)

    return principal


async def _handle(request: Request, error: Exception) -> Response:
    return error_response(error, "lro")


exception_handlers: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    LROError: _handle
}  # Any: as Starlette and FastAPI declare it
"""For `Starlette(exception_handlers=...)`: the library's errors out of endpoints of your own, as AIP-193 JSON."""
