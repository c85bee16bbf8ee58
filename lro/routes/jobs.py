"""Jobs over REST, for services without endpoints of their own (AIP-152): list, get, run."""

import json
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from lro.errors import NotFound
from lro.jobs import Job
from lro.operations import Operations
from lro.principal import Authorization
from lro.routes.exchange import Exchange
from lro.routes.fields import boolean_of, duration_of, integer_of, text_of, time_of
from lro.routes.mask import Shape
from lro.routes.operations import OPERATION, operation_headers
from lro.routes.path import check_name, decode
from lro.routes.routing import Fallback, Handler, JsonRoute
from lro.routes.rules import UnknownFields, rules_of

__all__ = ["job_routes"]


def job_routes(
    operations: Operations,
    *,
    jobs: Iterable[Job[Any, Any, Any]],  # Any: jobs of any types
    auth: Authorization,
    unknown_fields: UnknownFields = "reject",
    allowed_origins: Collection[str] = (),
) -> list[BaseRoute]:
    """Return routes that start jobs: `GET jobs`, `GET jobs/{job}`, `POST jobs/{job}:run`.

    `:run` takes `{"params": {...}, "requestId": "...", ...}` and answers with the Operation.

    Args:
        operations: Where they are started.
        jobs: The jobs that clients may start.
        auth: Who may do what; `AllowAnonymous()` for everybody everything.
        unknown_fields: "ignore" to let parameters and body members pass that no method knows.
        allowed_origins: Whose pages may start jobs from a browser; see operation_routes.

    Raises:
        TypeError: auth has not the two hooks.
        ValueError: unknown_fields has another word, or an origin is none.
    """
    rules = rules_of(auth, limits=operations.limits, unknown_fields=unknown_fields, allowed_origins=allowed_origins)
    routes = _JobRoutes(operations, {job.name: job for job in jobs})
    return [JsonRoute(routes.pick, rules, operations.domain), Fallback(operations.domain)]


_JOB: Shape = {
    **{name: {} for name in ("name", "description", "cancellable", "restartable")},
    **dict.fromkeys(("paramsSchema", "progressSchema", "resultSchema")),
}


class _JobRoutes:
    def __init__(self, operations: Operations, jobs: Mapping[str, Job[Any, Any, Any]]) -> None:  # Any: as above
        self._operations = operations
        self._jobs = jobs

    def pick(self, path: str) -> Mapping[str, Handler] | None:
        """Return the handlers of a path by method; None if it is none of ours."""
        if path == "/jobs":
            return {"GET": self._list}
        head, _, last = path.removeprefix("/").rpartition("/")
        if head != "jobs":
            return None
        name, colon, verb = last.partition(":")
        if not colon:
            return {"GET": partial(self._get, decode(name))}
        return {"POST": partial(self._run, decode(name))} if verb == "run" else None

    async def _list(self, exchange: Exchange) -> Response:
        await exchange.authorize("jobs.list", "jobs")
        exchange.query((), {"jobs": _JOB})
        return exchange.respond(_json({"jobs": [_describe(job) for job in self._jobs.values()]}))

    async def _get(self, name: str, exchange: Exchange) -> Response:
        await exchange.authorize("jobs.get", f"jobs/{name}")
        exchange.query((), _JOB)
        return exchange.respond(_json(_describe(self._job(name))))

    async def _run(self, name: str, exchange: Exchange) -> Response:
        await exchange.authorize("operations.create", f"jobs/{name}")
        exchange.query((), OPERATION)
        job = self._job(name)
        body = await exchange.body(
            ("params", "requestId", "scheduleTime", "priority", "timeout", "target", "ttl", "validateOnly")
        )
        operation = await self._operations.start(
            job,
            body.get("params"),
            request_id=text_of(body, "requestId"),
            target=text_of(body, "target") or "",
            priority=integer_of(body, "priority"),
            schedule_at=time_of(body, "scheduleTime"),
            timeout=duration_of(body, "timeout"),
            ttl=duration_of(body, "ttl"),
            principal=exchange.principal,
            validate_only=boolean_of(body, "validateOnly"),
        )
        headers = operation_headers(operation.etag, done=operation.done)
        if operation.name:
            headers["operation-id"] = operation.name.rpartition("/")[2]
        return exchange.respond(operation.to_json(), headers)

    def _job(self, name: str) -> Job[Any, Any, Any]:  # Any: as above
        check_name(name)
        try:
            return self._jobs[name]
        except KeyError:
            known = ", ".join(self._jobs)
            raise NotFound(f"there is no job {name!r}, but {known}", reason="JOB_NOT_FOUND", job=name) from None


def _describe(job: Job[Any, Any, Any]) -> dict[str, Any]:  # Any: a job of any types; JSON
    return {
        "name": f"jobs/{job.name}",
        "description": (job.__doc__ or "").strip(),
        "cancellable": job.cancellable,
        "restartable": job.restartable,
        "paramsSchema": {} if job.params is None else job.params.schema(),
        "progressSchema": {} if job.progress is None else job.progress.schema(),
        "resultSchema": job.result.schema(),
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
