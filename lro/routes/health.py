"""Health over REST: is the process alive, and can it do its work. No authorization, and no details."""

from collections.abc import Callable, Mapping

from starlette.responses import Response
from starlette.routing import BaseRoute

from lro.errors import Unavailable
from lro.principal import AllowAnonymous
from lro.routes.exchange import Exchange
from lro.routes.routing import Handler, JsonRoute
from lro.routes.rules import Rules

__all__ = ["health_routes"]


def health_routes(ready: Callable[[], bool], *, domain: str = "lro") -> list[BaseRoute]:
    """Return `GET healthz`, which answers 200 while the process serves, and `GET readyz`, 503 unless it is ready.

    Args:
        ready: Whether it can do its work, such as `lambda: store.ready and worker.ready`.
        domain: For the ErrorInfo of errors.
    """

    async def healthz(exchange: Exchange) -> Response:
        del exchange
        return Response(b"{}", media_type="application/json")

    async def readyz(exchange: Exchange) -> Response:
        del exchange
        if not ready():
            raise Unavailable("not ready: a part of this service is starting, stopping or failing", reason="NOT_READY")
        return Response(b"{}", media_type="application/json")

    handlers: Mapping[str, Mapping[str, Handler]] = {"/healthz": {"GET": healthz}, "/readyz": {"GET": readyz}}
    return [JsonRoute(handlers.get, Rules(AllowAnonymous()), domain)]
