"""The HTTP side: Starlette routes for operations and jobs, to be mounted in any ASGI app."""

from starlette.requests import Request
from starlette.responses import Response

from lro.errors import LROError
from lro.resource import Operation
from lro.routes.exchange import error_response
from lro.routes.health import health_routes
from lro.routes.jobs import job_routes
from lro.routes.operations import operation_routes

__all__ = ["exception_handlers", "health_routes", "job_routes", "operation_response", "operation_routes"]


def operation_response(operation: Operation) -> Response:
    """Return the response for an operation: 200 with its JSON, for endpoints of your own."""
    return Response(operation.to_json(), media_type="application/json")


async def _handle(request: Request, error: Exception) -> Response:
    return error_response(error, "lro")


exception_handlers = {LROError: _handle}
"""For `Starlette(exception_handlers=...)`: the library's errors out of endpoints of your own, as AIP-193 JSON."""
