"""Hooks of schemathesis: what it can't know of our rules, told it before it reads the document."""

import os
import uuid
from typing import Any

import schemathesis

STATEFUL = os.environ.get("SCHEMA_HOOKS") == "stateful"


@schemathesis.hook
def before_load_schema(_context: Any, raw_schema: dict[str, Any]) -> None:
    """Let it start operations in stories: it takes `requestId` for the id of a resource that something else makes."""
    for path, item in raw_schema["paths"].items():
        if STATEFUL and path.endswith(":run"):
            fields = item["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
            del fields["requestId"]
            del fields["validateOnly"]  # which leaves nothing to go on with


@schemathesis.hook
def before_call(_context: Any, case: schemathesis.Case[Any], _kwargs: Any) -> None:
    """Never repeat a request id with other params by chance, which is refused."""
    body: Any = case.body
    if isinstance(body, dict) and isinstance(body.get("requestId"), str) and 0 < len(body["requestId"]) <= 1024:
        case.body = {**body, "requestId": str(uuid.uuid4())}


MASKS = ("", "*", "name", "name,done", "metadata/value/state", "metadata(value(state,progress)),response,error.code")


@schemathesis.hook
def map_query(_context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Ask for parts that there are: no schema can say what a field mask may name."""
    if query is not None and isinstance(query.get("fields"), str):
        return {**query, "fields": MASKS[len(query["fields"]) % len(MASKS)]}
    return query
