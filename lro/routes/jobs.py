"""Jobs over REST, for services without endpoints of their own (AIP-152): list, get, run."""

import json
from collections.abc import Iterable, Mapping
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
from lro.routes.operations import check_auth
from lro.routes.path import decode
from lro.routes.routing import Fallback, Handler, JsonRoute

__all__ = ["job_routes"]


def job_routes(
    operations: Operations,
    *,
    jobs: Iterable[Job[Any, Any, Any]],  # Any: jobs of any types
    auth: Authorization,
) -> list[BaseRoute]:
    """Return routes that start jobs: `GET jobs`, `GET jobs/{job}`, `POST jobs/{job}:run`.

    `:run` takes `{"params": {...}, "requestId": "...", ...}` and answers with the Operation.

    Args:
        operations: Where they are started.
        jobs: The jobs that clients may start.
        auth: Who may do what; `AllowAnonymous()` for everybody everything.

    Raises:
        TypeError: auth has not the two hooks.
    """
    check_auth(auth)
    routes = _JobRoutes(operations, {job.name: job for job in jobs})
    return [JsonRoute(routes.pick, auth, operations.domain), Fallback(operations.domain)]


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
        exchange.query(())
        return _json({"jobs": [_describe(job) for job in self._jobs.values()]})

    async def _get(self, name: str, exchange: Exchange) -> Response:
        await exchange.authorize("jobs.get", f"jobs/{name}")
        exchange.query(())
        return _json(_describe(self._job(name)))

    async def _run(self, name: str, exchange: Exchange) -> Response:
        await exchange.authorize("operations.create", f"jobs/{name}")
        exchange.check_origin()
        exchange.query(())
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
        headers = {"operation-id": operation.name.rpartition("/")[2]} if operation.name else {}
        return Response(operation.to_json(), media_type="application/json", headers=headers)

    def _job(self, name: str) -> Job[Any, Any, Any]:  # Any: as above
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


def _json(value: object) -> Response:
    return Response(json.dumps(value, separators=(",", ":")), media_type="application/json")
