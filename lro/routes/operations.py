"""google.longrunning.Operations over REST: get, list, cancel, delete, wait.

Decides which path and method is which call, and what each takes. What the calls do is `Operations`'.
"""

from collections.abc import Mapping
from functools import partial

import anyio
from starlette.responses import Response
from starlette.routing import BaseRoute

from lro.errors import LROError, Unimplemented, invalid
from lro.lifecycle import Record
from lro.operations import Operations
from lro.principal import Authorization
from lro.resource import Operation, etag
from lro.routes.exchange import Exchange
from lro.routes.fields import duration_of, integer_of, text_of
from lro.routes.path import decode
from lro.routes.routing import Fallback, Handler, JsonRoute

__all__ = ["operation_routes"]

_JSON = "application/json"

KEEP, KEEP_BYTES = 1024, 16 * 1024  # how many encoded operations are kept, and how large one may be


def operation_routes(operations: Operations, *, auth: Authorization) -> list[BaseRoute]:
    """Return the routes of the operations, for a Mount at the version prefix: `Mount("/v1", routes=...)`.

    `GET operations`, `GET|DELETE operations/{id}`, `POST operations/{id}:cancel`, `POST operations/{id}:wait`,
    each also below a parent, `projects/p/operations/...`. What nothing matches is answered 404 in JSON.

    Args:
        operations: What they show.
        auth: Who may do what; `AllowAnonymous()` for everybody everything.

    Raises:
        TypeError: auth has not the two hooks.
    """
    check_auth(auth)
    routes = _OperationRoutes(operations)
    return [JsonRoute(routes.pick, auth, operations.domain), Fallback(operations.domain)]


def check_auth(auth: object) -> None:
    """Refuse what can't be `auth=`.

    Raises:
        TypeError: It has not the two hooks.
    """
    if not callable(getattr(auth, "authenticate", None)) or not callable(getattr(auth, "authorize", None)):
        msg = f"auth={auth!r}: give an object with authenticate and authorize, or AllowAnonymous() for no checks"
        raise TypeError(msg)


class _OperationRoutes:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._encoded: dict[tuple[str, int], bytes] = {}

    def pick(self, path: str) -> Mapping[str, Handler] | None:
        """Return the handlers of a path by method; None if it is none of ours."""
        head, _, last = path.removeprefix("/").rpartition("/")
        last, colon, verb = last.rpartition(":") if ":" in last else (last, "", "")
        name = decode(f"{head}/{last}" if head else last)
        if last == "operations" and not colon:
            return {"GET": partial(self._list, name.removesuffix("operations").removesuffix("/"))}
        if head != "operations" and not head.endswith("/operations"):
            return None
        if not colon:
            return {"GET": partial(self._get, name), "DELETE": partial(self._delete, name)}
        if verb == "cancel":
            return {"POST": partial(self._cancel, name)}
        return {"POST": partial(self._wait, name)} if verb == "wait" else None

    async def _get(self, name: str, exchange: Exchange) -> Response:
        visible = await exchange.authorize("operations.get", name)
        exchange.query(())
        record = await self._operations.get_record(name, scope=visible)
        return Response(self._encode(record), media_type=_JSON, headers={"etag": etag(record)})

    def _encode(self, record: Record) -> bytes:
        """Return an operation's JSON; a version never changes, so its bytes are kept."""
        key = (record.name, record.version)
        body = self._encoded.get(key)
        if body is None:
            body = Operation.of(record, self._operations.domain).to_json()
            if len(body) <= KEEP_BYTES:
                if len(self._encoded) >= KEEP:
                    del self._encoded[next(iter(self._encoded))]
                self._encoded[key] = body
        return body

    async def _list(self, parent: str, exchange: Exchange) -> Response:
        visible = await exchange.authorize("operations.list", parent)
        query = exchange.query(("filter", "pageSize", "pageToken", "returnPartialSuccess", "name"))
        if query.get("returnPartialSuccess", "false") != "false":
            raise Unimplemented("returnPartialSuccess is not supported", reason="PARTIAL_SUCCESS_UNSUPPORTED")
        page = await self._operations.list(
            parent,
            query.get("filter", ""),
            integer_of(query, "pageSize"),
            query.get("pageToken", ""),
            scope=visible,
        )
        body = b'{"operations":[' + b",".join(operation.to_json() for operation in page.operations) + b"]"
        if page.next_page_token:
            body += b',"nextPageToken":"' + page.next_page_token.encode() + b'"'
        return Response(body + b"}", media_type=_JSON)

    async def _cancel(self, name: str, exchange: Exchange) -> Response:
        visible = await exchange.authorize("operations.cancel", name)
        exchange.check_origin()
        exchange.query(())
        body = await exchange.body(("name", "reason"))
        _check_name(body, name)
        reason = text_of(body, "reason")
        requester = exchange.principal.id or None
        await self._operations.cancel(name, reason=reason, requester=requester, scope=visible)
        return Response(b"{}", media_type=_JSON)

    async def _delete(self, name: str, exchange: Exchange) -> Response:
        visible = await exchange.authorize("operations.delete", name)
        exchange.check_origin()
        exchange.query(())
        await self._operations.delete(name, scope=visible)
        return Response(b"{}", media_type=_JSON)

    async def _wait(self, name: str, exchange: Exchange) -> Response | None:
        visible = await exchange.authorize("operations.wait", name)
        exchange.query(())
        body = await exchange.body(("name", "timeout"))
        _check_name(body, name)
        timeout = duration_of(body, "timeout")
        answer: Operation | LROError | None = None
        async with anyio.create_task_group() as group:

            async def watch_client() -> None:
                await exchange.disconnected()
                group.cancel_scope.cancel()

            group.start_soon(watch_client)
            try:
                answer = await self._operations.wait(name, timeout, scope=visible)
            except LROError as error:
                answer = error  # raised below: out of the task group it would come in an exception group
            group.cancel_scope.cancel()
        if isinstance(answer, LROError):
            raise answer
        return None if answer is None else _found(answer)


def _found(operation: Operation) -> Response:
    return Response(operation.to_json(), media_type=_JSON, headers={"etag": operation.etag})


def _check_name(body: Mapping[str, object], name: str) -> None:
    if body.get("name", name) != name:
        raise invalid("name", "is not the name in the path")
