"""The OpenAPI 3.1 document of what is mounted: the methods of operations, and each job's run with its schemas.

Describes what other rooms decide, and nothing else: `operations` and `jobs` say which calls there are, a job's
codecs what its types look like, `resource` what an Operation is.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from typing import Any, Literal, cast

from starlette.responses import Response
from starlette.routing import BaseRoute

from lro.jobs import Job
from lro.limits import Limits
from lro.payload import Codec, json_schemas
from lro.principal import Authorization
from lro.resource import ID_PATTERN, is_message, operation_schema
from lro.routes.exchange import Exchange
from lro.routes.operations import METHODS
from lro.routes.routing import Fallback, Handler, JsonRoute
from lro.routes.rules import UnknownFields, rules_of
from lro.status import Code

__all__ = ["openapi_document", "openapi_routes"]

Json = dict[str, Any]  # Any: JSON
Jobs = Mapping[str, Job[Any, Any, Any]]  # Any: jobs of any types

SCHEMAS = "#/components/schemas/"
OPERATION, ERROR = "google.longrunning.Operation", "google.rpc.Error"  # no name of a model has a dot
PATH = "/openapi.json"

_NO_NUL = r"^[^\u0000]*$"
_DURATION: Json = {"type": "string", "pattern": r"^[0-9]{1,11}(\.[0-9]{1,9})?s$", "examples": ["8s", "1.500s"]}
_TIME: Json = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$",
    "examples": ["2026-11-22T20:15:00Z"],
}


def openapi_routes(
    *,
    jobs: Iterable[Job[Any, Any, Any]],  # Any: jobs of any types
    auth: Authorization,
    domain: str = "lro",
    methods: Collection[str] = METHODS,
    unknown_fields: UnknownFields = "reject",
    limits: Limits | None = None,
) -> list[BaseRoute]:
    """Return `GET openapi.json`, for who may list the jobs.

    Args:
        jobs: The jobs that clients may start.
        auth: Who may do what; `AllowAnonymous()` for everybody everything.
        domain: For the ErrorInfo of errors, and the document's title.
        methods: See operation_routes, as for the next.
        unknown_fields: Whether unknown parameters are refused.
        limits: Those of the service.

    Raises:
        TypeError: auth has not the two hooks.
    """
    rules = rules_of(auth, limits=limits, unknown_fields=unknown_fields)
    known, bounds = {job.name: job for job in jobs}, limits or Limits()

    async def get(exchange: Exchange) -> Response:
        await exchange.authorize("jobs.list", "jobs")
        exchange.query(())
        server = exchange.request.scope.get("root_path", "") or "/"
        document = openapi_document(known, bounds, title=domain, server=server, methods=methods)
        return exchange.respond(json.dumps(document, separators=(",", ":")).encode())

    handlers: Mapping[str, Mapping[str, Handler]] = {PATH: {"GET": get}}
    return [JsonRoute(handlers.get, rules, domain), Fallback(domain)]


def openapi_document(
    jobs: Jobs, limits: Limits, *, title: str, server: str, methods: Collection[str] = METHODS
) -> Json:
    """Return the document, as JSON values.

    Args:
        jobs: The jobs that can be started, by name.
        limits: What clients must keep to.
        title: What the service is called.
        server: The URL, or the path, that the document's paths go on from.
        methods: Those of operations that are offered.
    """
    types, definitions = _types(jobs)
    paths: dict[str, Json] = {
        "/operations": {"get": _list(limits)},
        "/operations/{operation}": {"get": _GET, "delete": _DELETE},
        "/operations/{operation}:cancel": {"post": _cancel(limits)},
        "/operations/{operation}:wait": {"post": _WAIT},
    }
    offered = {f"operations.{method}" for method in methods}
    for path, item in paths.items():
        paths[path] = {verb: method for verb, method in item.items() if method["operationId"] in offered}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version("lro"), "description": _ABOUT},
        "servers": [{"url": server}],
        "paths": {
            **{
                path: {"parameters": [_OPERATION], **item} if "{" in path else item
                for path, item in paths.items()
                if item
            },
            **{f"/jobs/{name}:run": {"post": _run(job, types, limits, methods)} for name, job in jobs.items()},
        },
        "components": {
            "schemas": {**definitions, OPERATION: _operation(), ERROR: _ERROR},
            "parameters": _SYSTEM_PARAMETERS,
            "responses": {"Error": {"description": "What went wrong (AIP-193)", "content": _content(_ref(ERROR))}},
        },
    }


def _types(jobs: Jobs) -> tuple[Mapping[str, Json], Mapping[str, Json]]:
    """Return the schemas of all jobs' types, by `job:params` and so on, and the definitions that they refer to."""
    codecs: dict[str, tuple[Codec[Any], Literal["validation", "serialization"]]] = {}  # Any: of any types
    for name, job in jobs.items():
        if job.params is not None:
            codecs[f"{name}:params"] = (job.params, "validation")
        if job.progress is not None:
            codecs[f"{name}:progress"] = (job.progress, "serialization")
        codecs[f"{name}:result"] = (job.result, "serialization")
    types, definitions = json_schemas(codecs, SCHEMAS + "{model}")
    return _narrowed(types), _narrowed(definitions)


def _narrowed(schema: Any) -> Any:  # Any: JSON
    """Return a schema that knows what no payload has: integers of more than 64 bits, and U+0000."""
    if isinstance(schema, list):
        return [_narrowed(member) for member in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    narrowed: Json = {key: _narrowed(member) for key, member in cast("dict[str, object]", schema).items()}
    if narrowed.get("type") == "integer":
        if not narrowed.keys() & {"minimum", "exclusiveMinimum"}:
            narrowed["minimum"] = -(2**63)
        if not narrowed.keys() & {"maximum", "exclusiveMaximum"}:
            narrowed["maximum"] = 2**64 - 1
    if narrowed.get("type") == "string" and not narrowed.keys() & {"pattern", "format", "enum", "const"}:
        narrowed["pattern"] = _NO_NUL
    return narrowed


def _run(
    job: Job[Any, Any, Any],  # Any: a job of any types
    types: Mapping[str, Json],
    limits: Limits,
    methods: Collection[str],
) -> Json:
    fields: Json = {
        "requestId": _text(
            limits.request_id, "Repeating the call with it within 24 hours returns the same operation (AIP-155)"
        ),
        "validateOnly": {"type": "boolean", "description": "Check all of it, and start nothing (AIP-163)"},
        "scheduleTime": {**_TIME, "description": "Not to be run before"},
        "priority": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1, "description": "Higher runs first"},
        "timeout": {**_DURATION, "description": "From now, or from scheduleTime, to its deadline"},
        "target": _text(limits.target, "The resource that it works on"),
        "ttl": {**_DURATION, "description": "How long it is kept after its end"},
    }
    fields, needed = _optional(fields), False
    if job.params is not None:
        params = types[f"{job.name}:params"]
        needed = any(field.is_required() for field in job.params.annotation.model_fields.values())
        fields |= {"params": params} if needed else _optional({"params": params})
    must: Json = {"required": ["params"]} if needed else {}
    about = (job.__doc__ or "").strip()
    return {
        "operationId": f"run.{job.name}",
        "tags": ["jobs"],
        "summary": about.partition("\n")[0] or f"Start {job.name}",
        "description": about,
        "parameters": _system_parameters(),
        "requestBody": {"required": needed, "content": _content(_object(fields) | must)},
        "responses": _responses("The operation, which a worker runs", _operation_of(job, types), next_methods=methods),
    }


def _operation() -> Json:
    """Return the schema of any Operation; `fields` may leave out what else is always there."""
    schema = operation_schema()
    error = schema["properties"]["error"]
    for one in (schema, error):
        del one["required"]
    return schema


def _operation_of(job: Job[Any, Any, Any], types: Mapping[str, Json]) -> Json:  # Any: a job of any types
    """Return the schema of an Operation of this job: with its own progress and its own result, or their messages."""
    own: Json = {"response": {"properties": {"value": types[f"{job.name}:result"]}}}
    if is_message(job.response_type):
        own["response"] = _message(job.response_type)
    if job.metadata_type:
        own["metadata"] = _message(job.metadata_type)
    elif job.progress is not None:
        value = {"properties": {"progress": types[f"{job.name}:progress"]}}
        own["metadata"] = {"properties": {"value": value}}
    return {"allOf": [_ref(OPERATION), {"properties": own}]}


def _message(url: str) -> Json:
    return {"properties": {"@type": {"const": url}}}  # which names its fields


def _responses(about: str, schema: Json, *, next_methods: Collection[str] | None = None) -> Json:
    """Return the responses of a method; what starts an operation says how to go on with it."""
    ok: Json = {"description": about, "content": _content(schema)}
    if next_methods is not None:
        ok["headers"] = {
            "Operation-Id": {
                "description": "The last segment of the operation's name; none if it was only validated",
                "schema": {"type": "string", "pattern": ID_PATTERN},
            }
        }
        ok["links"] = {
            f"{verb}Operation": {
                "operationId": f"operations.{verb}",
                "parameters": {"operation": "$response.header.Operation-Id"},
            }
            for verb in ("get", "wait", "cancel", "delete")
            if verb in next_methods
        }
    return {"200": ok, "default": {"$ref": "#/components/responses/Error"}}


def _method(verb: str, summary: str, about: str, schema: Json, *parameters: Json, body: Json | None = None) -> Json:
    described: Json = {
        "operationId": f"operations.{verb}",
        "tags": ["operations"],
        "summary": summary,
        "parameters": [*parameters, *_system_parameters()],
        "responses": _responses(about, schema),
    }
    return described if body is None else {**described, "requestBody": {"content": _content(_object(_optional(body)))}}


def _list(limits: Limits) -> Json:
    page = {
        "type": "object",
        "properties": {
            "operations": {"type": "array", "items": _ref(OPERATION)},
            "nextPageToken": {"type": "string"},
        },
        "additionalProperties": False,
    }
    size = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    return _method(
        "list",
        "List operations, newest first",
        "A page, which may be short; nextPageToken leads to the next one, and is missing at the end",
        page,
        _parameter("filter", "query", {"type": "string", "maxLength": limits.filter}, "Which operations (AIP-160)"),
        _parameter("pageSize", "query", size, f"At most so many; 0 for {limits.default_page_size}"),
        _parameter(
            "pageToken",
            "query",
            {"type": "string", "maxLength": limits.page_token},
            "The nextPageToken of the page before",
        ),
        _parameter("returnPartialSuccess", "query", {"type": "boolean", "const": False}, "Not supported: false"),
    )


def _cancel(limits: Limits) -> Json:
    return _method(
        "cancel",
        "Ask for an operation to be cancelled",
        "The request is on record; whether the operation ends as CANCELLED is seen there",
        _EMPTY,
        body={"reason": _text(limits.reason, "Why, for the job and the metadata")},
    )


def _parameter(name: str, where: str, schema: Json, about: str) -> Json:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": about}


def _system_parameters() -> list[Json]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in _SYSTEM_PARAMETERS]


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _optional(fields: Json) -> Json:
    """Return the members of a request's body: null is not set, as in protobuf's JSON."""
    return {
        name: {**schema, "type": [schema["type"], "null"]}
        if "type" in schema
        else {"anyOf": [schema, {"type": "null"}]}
        for name, schema in fields.items()
    }


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _ref(name: str) -> Json:
    return {"$ref": SCHEMAS + name}


def _text(longest: int, about: str) -> Json:
    return {"type": "string", "maxLength": longest, "pattern": _NO_NUL, "description": about}


_ABOUT = (
    "Long-running operations in the style of google.longrunning.Operations. A run answers at once with an Operation: "
    "wait for its end, or cancel it, by its name. An operation with a parent has the parent's name before its own in "
    "all these paths, as in `projects/p/operations/...`."
)
_SYSTEM_PARAMETERS: Mapping[str, Json] = {
    "fields": _parameter(
        "fields", "query", {"type": "string"}, "The fields to answer with, as in `name,done` (AIP-157)"
    ),
    "alt": _parameter("alt", "query", {"enum": ["json", "json;enum-encoding=int", ""]}, "How the answer is written"),
    "prettyPrint": _parameter("prettyPrint", "query", {"enum": [True, False, ""]}, "Indent the answer"),
}
_OPERATION = _parameter(
    "operation", "path", {"type": "string", "pattern": ID_PATTERN}, "The last segment of the operation's name"
)
_EMPTY: Json = {"type": "object", "maxProperties": 0}
_GET = _method("get", "Look at an operation", "The operation as it is now", _ref(OPERATION))
_DELETE = _method("delete", "Forget an operation", "It is hidden; what has not ended goes on", _EMPTY)
_WAIT = _method(
    "wait",
    "Wait for the end of an operation",
    "The operation when it is done, or as it is after that time",
    _ref(OPERATION),
    body={"timeout": {**_DURATION, "description": "How long at most; the service may answer earlier"}},
)
_ERROR: Json = _object(
    {
        "error": {
            **_object(
                {
                    "code": {"type": "integer", "minimum": 400, "maximum": 599, "description": "The HTTP status"},
                    "message": {"type": "string"},
                    "status": {"enum": [code.name for code in Code if code is not Code.OK]},
                    "details": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"@type": {"type": "string"}},
                            "required": ["@type"],
                        },
                        "minItems": 1,
                        "description": "One of them is a google.rpc.ErrorInfo: its reason is stable",
                    },
                }
            ),
            "required": ["code", "message", "status", "details"],
        }
    }
) | {"required": ["error"]}
