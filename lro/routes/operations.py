"""google.longrunning.Operations over REST: get, list, cancel, delete, wait.

Decides which path and method is which call, and what each takes. What the calls do is `Operations`'.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial

import anyio
from starlette.responses import Response
from starlette.routing import BaseRoute

from lro.errors import InvalidArgument, LROError, Unimplemented, invalid
from lro.lifecycle import Record
from lro.operations import Operations
from lro.principal import Authorization, Permission, Scope
from lro.resource import Operation, etag
from lro.routes.answer import RETRY_SECONDS
from lro.routes.exchange import Exchange
from lro.routes.fields import duration_of, integer_of, text_of
from lro.routes.mask import Shape
from lro.routes.path import check_name, decode
from lro.routes.routing import Fallback, Handler, JsonRoute, Off
from lro.routes.rules import UnknownFields, rules_of

__all__ = ["METHODS", "OPERATION", "operation_headers", "operation_routes"]

METHODS = frozenset({"get", "list", "cancel", "delete", "wait"})

OPERATION: Shape = {
    "name": {},
    "metadata": None,
    "done": {},
    "error": {"code": {}, "message": {}, "details": None},
    "response": None,
}
_LIST: Shape = {"operations": OPERATION, "nextPageToken": {}, "unreachable": {}}

KEEP, KEEP_BYTES = 1024, 16 * 1024  # how many encoded operations are kept, and how large one may be


def operation_routes(
    operations: Operations,
    *,
    auth: Authorization,
    methods: Collection[str] = METHODS,
    unknown_fields: UnknownFields = "reject",
    allowed_origins: Collection[str] = (),
) -> list[BaseRoute]:
    """Return the routes of the operations, for a Mount at the version prefix: `Mount("/v1", routes=...)`.

    `GET operations`, `GET|DELETE operations/{id}`, `POST operations/{id}:cancel`, `POST operations/{id}:wait`,
    each also below any parent, `projects/p/operations/...`. What nothing matches is answered 404 in JSON.

    Args:
        operations: What they show.
        auth: Who may do what; `AllowAnonymous()` for everybody everything.
        methods: Those that this service offers, of get, list, cancel, delete, wait; the others are answered
            501 UNIMPLEMENTED.
        unknown_fields: "ignore" to let parameters and body members pass that no method knows, instead of
            answering 400.
        allowed_origins: Whose pages may send POST and DELETE from a browser, as in `https://app.example.com`; those of
            the service's own host may anyway.

    Raises:
        TypeError: auth has not the two hooks.
        ValueError: methods or unknown_fields has another word, or an origin is none.
    """
    rules = rules_of(
        auth,
        limits=operations.limits,
        unknown_fields=unknown_fields,
        allowed_origins=allowed_origins,
        refusal=operations.refusal,
    )
    if isinstance(methods, str) or not METHODS.issuperset(methods):
        msg = f"methods={methods!r}: give some of {', '.join(sorted(METHODS))}"
        raise ValueError(msg)
    routes = _OperationRoutes(operations, methods)
    return [JsonRoute(routes.pick, rules, operations.domain), Fallback(operations.domain)]


_Call = Callable[[str, Scope, Exchange], Awaitable[Response | None]]  # by name, with what it may touch

_PATH = re.compile(r"/(?P<name>(?P<parent>(?:[^/]*/[^/]*/)*)operations(?P<rest>/.*)?)", re.DOTALL)


class _OperationRoutes:
    def __init__(self, operations: Operations, methods: Collection[str]) -> None:
        self._operations = operations
        self._offered = {f"operations.{method}" for method in methods}
        self._encoded: dict[tuple[str, int], bytes] = {}

    def pick(self, path: str) -> Mapping[str, Handler] | None:
        """Return the handlers of a path by method; None if it is none of ours.

        Ours is what the pattern `{parent}/operations/**` matches, where each collection of the parent is
        followed by one id. The verb is what stands behind the last colon of the last segment, undecoded.
        """
        found = _PATH.fullmatch(path)
        if found is None:
            return None
        if found["rest"] is None:
            parent = decode(found["parent"].removesuffix("/"))
            return {"GET": self._offer("operations.list", partial(self._list, parent), parent)}
        name, colon, verb = found["name"].rpartition(":")
        if not colon or "/" in verb:
            name = decode(found["name"])
            return {
                "GET": self._one("operations.get", self._get, name),
                "DELETE": self._one("operations.delete", self._delete, name),
            }
        if verb == "cancel":
            return {"POST": self._one("operations.cancel", self._cancel, decode(name))}
        return {"POST": self._one("operations.wait", self._wait, decode(name))} if verb == "wait" else None

    def _offer(self, permission: Permission, handler: Handler, resource: str) -> Handler:
        return handler if permission in self._offered else Off(permission, resource)

    def _one(self, permission: Permission, call: _Call, name: str) -> Handler:
        """Return the handler of a call for one operation, which runs if the hooks let it, with what it may touch."""

        async def handler(exchange: Exchange) -> Response | None:
            visible = await exchange.authorize(permission, name, names_operation=True)
            try:
                check_name(name)
                return await call(name, visible, exchange)
            except InvalidArgument:
                if visible.is_limited:  # who may not touch it hears that first, whatever else is wrong (AIP-211)
                    await self._operations.get_record(name, scope=visible, permission=permission)
                raise

        return self._offer(permission, handler, name)

    async def _get(self, name: str, visible: Scope, exchange: Exchange) -> Response:
        exchange.query((), OPERATION)
        record = await self._operations.get_record(name, scope=visible)
        headers = operation_headers(etag(record), done=record.state.is_terminal)
        return exchange.respond(self._encode(record), headers)

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
        query = exchange.query(("filter", "pageSize", "pageToken", "returnPartialSuccess", "name"), _LIST)
        _check_list(query, parent)
        page = await self._operations.list(
            parent,
            query.get("filter", ""),
            integer_of(query, "pageSize"),
            query.get("pageToken", ""),
            scope=visible,
            principal=exchange.principal,
        )
        body = b'{"operations":[' + b",".join(operation.to_json() for operation in page.operations) + b"]"
        if page.next_page_token:
            body += b',"nextPageToken":"' + page.next_page_token.encode() + b'"'
        return exchange.respond(body + b"}")

    async def _cancel(self, name: str, visible: Scope, exchange: Exchange) -> Response:
        exchange.query(())
        body = await exchange.body(("name", "reason"))
        _check_name(body, name)
        reason = text_of(body, "reason")
        requester = exchange.principal.id or None
        await self._operations.cancel(name, reason=reason, requester=requester, scope=visible)
        return exchange.respond(b"{}")

    async def _delete(self, name: str, visible: Scope, exchange: Exchange) -> Response:
        exchange.query(())
        await self._operations.delete(name, scope=visible)
        return exchange.respond(b"{}")

    async def _wait(self, name: str, visible: Scope, exchange: Exchange) -> Response | None:
        exchange.query((), OPERATION)
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
                answer = await self._operations.wait(name, timeout, scope=visible, principal=exchange.principal)
            except LROError as error:
                answer = error  # raised below: out of the task group it would come in an exception group
            group.cancel_scope.cancel()
        if isinstance(answer, LROError):
            raise answer
        if answer is None:
            return None
        return exchange.respond(answer.to_json(), operation_headers(answer.etag, done=answer.done))


def operation_headers(tag: str, *, done: bool) -> dict[str, str]:
    """Return the headers of an answer that is an operation: its etag, and when to look again if it is not done."""
    return {"etag": tag} if done else {"etag": tag, "retry-after": str(RETRY_SECONDS)}


def _check_name(body: Mapping[str, object], name: str) -> None:
    if body.get("name", name) != name:
        raise invalid("name", "is not the name in the path")


def _check_list(query: Mapping[str, str], parent: str) -> None:
    """Refuse what no listing of ours offers: reads across parents, and the partial answers that those may have."""
    collection = f"{parent}/operations" if parent else "operations"
    if query.get("name", parent) not in (parent, collection):
        raise invalid("name", "is not the name in the path")
    partial_success = query.get("returnPartialSuccess", "false")
    if partial_success not in ("true", "false"):
        raise invalid("returnPartialSuccess", "must be true or false")
    if partial_success == "true":
        raise Unimplemented("returnPartialSuccess is not supported", reason="PARTIAL_SUCCESS_UNSUPPORTED")
    if "-" in parent.split("/"):
        msg = f"{parent}: no listing reads across parents; name one instead of -"
        raise Unimplemented(msg, reason="WILDCARD_UNSUPPORTED", parent=parent)
