"""Jobs: functions that a worker can run as operations, and how they are defined.

Decides what a job's signature may be and what its types are. Nothing is registered anywhere: a worker is
given its jobs, and `start` takes one.
"""

import inspect
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, cast, get_args, get_origin, get_type_hints, overload

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar

from lro.admission import Quota
from lro.context import Context, SyncContext
from lro.errors import InvalidArgument, invalid
from lro.lifecycle import RetryPolicy
from lro.limits import Limits
from lro.message import check_metadata, check_response, empty_text
from lro.payload import Codec, PayloadError, encode
from lro.resource import type_url
from lro.status import BAD_REQUEST

__all__ = ["Job", "job"]

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ParamsT = TypeVar("ParamsT")
ProgressT = TypeVar("ProgressT")
ResultT = TypeVar("ResultT")

MAX_NAME = 63
MAX_VIOLATIONS = 20  # of which a client is told: params of 256 KiB may hold 80,000
MAX_PATH = 100  # characters of where a field stands

DEFAULT_RETENTION = timedelta(days=30)
RESTARTABLE_ATTEMPTS = 3  # in all, for a job that is restartable without a retry policy

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


class Job(Generic[ParamsT, ProgressT, ResultT]):
    """A function that can be run as an operation; made by `@job`.

    It stays callable as the function that it is.

    Attributes:
        name: What it is called in the store and on the wire.
        function: The function itself.
        params: How its params are read and written; None for a job without.
        progress: How its progress is; None for a bare Context.
        result: How its result is.
        retry: When it runs again after an exception; None for never.
        restartable: Whether it runs again after a lost worker or a shutdown.
        attempt_limit: Attempts in all.
        grace: From a cancel request until it is stopped at any await; None for never.
        timeout: From the start of an operation to its deadline; None for none.
        retention: From an operation's end to its removal.
        cancellable: Whether cancel requests are taken.
        in_thread: Whether it is a plain function, which runs in a thread.
        parallel: Whether it is started while another of its operations has not ended on the same target.
        quota: How many of its operations run at once, on all machines together.
        response_type: The URL of the response's type on the wire; "" for what suits it, Struct, Value or Empty.
        metadata_type: The URL of the metadata's type on the wire; "" for Struct.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],  # Any: its result, or an awaitable of it
        *,
        params: Codec[ParamsT] | None,
        progress: Codec[ProgressT] | None,
        result: Codec[ResultT],
        retry: RetryPolicy | None,
        restartable: bool,
        grace: timedelta | None,
        timeout: timedelta | None,
        retention: timedelta | None,
        cancellable: bool,
        parallel: Literal["allow", "reject"],
        quota: Quota,
        response_type: str,
        metadata_type: str,
    ) -> None:
        self.name = name
        self.function = function
        self.params = params
        self.progress = progress
        self.result = result
        self.retry = retry
        self.restartable = restartable or retry is not None
        self.attempt_limit = retry.attempts if retry is not None else RESTARTABLE_ATTEMPTS if restartable else 1
        self.grace = grace
        self.timeout = timeout
        self.retention = DEFAULT_RETENTION if retention is None else retention
        self.cancellable = cancellable
        self.parallel = parallel
        self.quota = quota
        self.response_type = response_type
        self.metadata_type = metadata_type
        check_response(response_type, result)
        check_metadata(metadata_type, progress)
        self.in_thread = not inspect.iscoroutinefunction(function)
        if self.in_thread and grace is not None:
            msg = f"job {name}: grace stops a job at any await, and a thread has none; it stops at checkpoints"
            raise ValueError(msg)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def params_text(
        self,
        params: Any,  # Any: the model, or JSON values that may fit it
        limits: Limits,
    ) -> str | None:
        """Return the params of an operation as JSON text; None for a job without.

        Raises:
            InvalidArgument: They do not fit, and the fields that don't are named; or they exceed a limit.
        """
        if self.params is None:
            if params is not None and params != {}:
                raise invalid("params", f"job {self.name} takes none")
            return None
        try:
            if not isinstance(params, BaseModel):
                params = {} if params is None else params
                encode(params, limits.params, limits.depth)  # before a model makes anything of it
            return self.params.dump(self.params.validate(params), limits.params, limits.depth)
        except ValidationError as error:
            raise _invalid_params(self.name, error, params) from error
        except PayloadError as error:
            field = f"params.{error.place}" if error.place else "params"
            raise invalid(field, error.what, reason="INVALID_PARAMS") from error
        except (TypeError, ValueError, RecursionError) as error:  # whose text may tell more than clients may know
            raise invalid("params", f"have no JSON form: {type(error).__name__}", reason="INVALID_PARAMS") from error

    def first_progress(self) -> str | None:
        """Return the progress to store at the start, as JSON text; None where it can wait for the first checkpoint.

        It can't where the progress is the metadata: what is stored tells which fields that type has.
        """
        return empty_text(self.progress) if self.progress is not None and self.metadata_type else None

    def __repr__(self) -> str:
        """Name the job."""
        return f"<Job {self.name!r}>"

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # Any: the function's own
        """Call the function itself: an async one returns an awaitable."""
        return self.function(*arguments, **named)


class _Decorator:
    """What `job(...)` returns: makes a Job of a function, its types taken from the signature."""

    def __init__(
        self,
        name: str,
        types: dict[str, Any],  # Any: type forms
        options: dict[str, Any],  # Any: handed to Job, which declares them
    ) -> None:
        self._name = name
        self._types = types
        self._options = options

    @overload
    def __call__(
        self, function: Callable[[Context[ProgressT], ParamsT], Awaitable[ResultT]], /
    ) -> Job[ParamsT, ProgressT, ResultT]: ...
    @overload
    def __call__(
        self, function: Callable[[Context[ProgressT]], Awaitable[ResultT]], /
    ) -> Job[None, ProgressT, ResultT]: ...
    @overload
    def __call__(
        self, function: Callable[[SyncContext[ProgressT], ParamsT], ResultT], /
    ) -> Job[ParamsT, ProgressT, ResultT]: ...
    @overload
    def __call__(self, function: Callable[[SyncContext[ProgressT]], ResultT], /) -> Job[None, ProgressT, ResultT]: ...
    def __call__(self, function: Callable[..., Any], /) -> Job[Any, Any, Any]:  # Any: see the overloads
        types = _signature_types(self._name, function, self._types)
        try:
            return Job(
                self._name,
                function,
                params=None if types["params"] is None else Codec(types["params"]),
                progress=None if types["progress"] is None else Codec(types["progress"]),
                result=Codec(types["result"]),
                **self._options,
            )
        except TypeError as error:
            msg = f"job {self._name}: {error}"
            raise TypeError(msg) from error


def job(
    name: str,
    *,
    retry: RetryPolicy | None = None,
    restartable: bool = False,
    grace: timedelta | None = None,
    timeout: timedelta | None = None,
    retention: timedelta | None = None,
    cancellable: bool = True,
    parallel: Literal["allow", "reject"] = "allow",
    concurrency: int | None = None,
    concurrency_per_target: int | None = None,
    params: Any = None,  # Any: a type form, here and below; None for the signature's own
    progress: Any = None,
    result: Any = None,
    response_type: str = "",
    metadata_type: str = "",
) -> _Decorator:
    """Define a job: `async def function(ctx: Context[Progress], params: Params) -> Result`.

    A plain `def function(ctx: SyncContext[Progress], params: Params) -> Result` runs in a thread of its worker's.
    Params and progress are pydantic models; `params` may be left out of the signature, and a bare Context
    means no progress. The result is a model, dict, list, scalar or None. Every field of the progress has a
    default: an operation begins with `Progress()`.

    Args:
        name: Explicit and stable, since stored operations refer to it: `books.render`; at most 63 characters.
        retry: Run again after exceptions, as the policy says; the job is restartable too. None for never.
        restartable: Run again after a lost worker or a shutdown, at most 3 attempts in all; its progress is
            where it resumes. A job that is not is started at most once.
        grace: How long after a cancel request it is stopped at any await, if it reached no checkpoint. None
            leaves it to checkpoints alone, which is all that a thread has.
        timeout: How long after its start an operation fails with DEADLINE_EXCEEDED. None for no deadline.
        retention: How long after its end an operation is kept; 30 days by default.
        cancellable: False refuses cancel requests with UNIMPLEMENTED.
        parallel: "reject" refuses a start with ABORTED while another of the job has not ended on the same target
            (AIP-151); operations without a target are on one. "allow" lets any number be.
        concurrency: How many of the job run at once, on all machines that share the store. Others may be started, and
            wait in the queue. None for any number. A worker goes by the number that its own version of the job has.
        concurrency_per_target: The same, for each target of its own; operations without a target are not counted.
        params: The params' type instead of the signature's; needed for a model local to a function.
        progress: The progress's type, likewise.
        result: The result's type, likewise.
        response_type: The protobuf type of the result, for Google's clients: `acme.v1.Book`, with a host or
            without. Then the response is the result's own fields. By default it is a Struct or a Value, or Empty for
            None.
        metadata_type: The protobuf type of the metadata, likewise. Then the metadata is the progress's own fields,
            and those common ones that it declares, such as `createTime`, are filled in. By default it is a Struct.

    Raises:
        TypeError: The function is not such a function, or a type has no JSON form, or not that of its protobuf type.
        ValueError: The name, a duration, a number or a protobuf type is not valid.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        msg = (
            f"job name {name!r}: use dotted lower-case words such as books.render, letters, digits and "
            f"underscores, at most {MAX_NAME} characters"
        )
        raise ValueError(msg)
    for what, duration in (("grace", grace), ("timeout", timeout), ("retention", retention)):
        if duration is not None and duration < timedelta(0):
            msg = f"job {name}: {what} is negative"
            raise ValueError(msg)
    if parallel not in ("allow", "reject"):
        msg = f"job {name}: parallel={parallel!r}: use 'allow' or 'reject'"
        raise ValueError(msg)
    for what, number in (("concurrency", concurrency), ("concurrency_per_target", concurrency_per_target)):
        if number is not None and (isinstance(number, bool) or number < 1):
            msg = f"job {name}: {what}={number!r}: give a whole number, at least 1, or None for any number"
            raise ValueError(msg)
    urls = {"response_type": response_type, "metadata_type": metadata_type}
    for what, text in urls.items():
        try:
            urls[what] = type_url(text) if text else ""
        except ValueError as error:
            msg = f"job {name}: {what}: {error}"
            raise ValueError(msg) from error
    options = {
        **urls,
        "retry": retry,
        "restartable": restartable,
        "grace": grace,
        "timeout": timeout,
        "retention": retention,
        "cancellable": cancellable,
        "parallel": parallel,
        "quota": Quota(concurrency, concurrency_per_target),
    }
    return _Decorator(name, {"params": params, "progress": progress, "result": result}, options)


def _signature_types(name: str, function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:  # Any: types
    """Return the types of params, progress and result; None for no params and for no progress."""
    expected = Context if inspect.iscoroutinefunction(function) else SyncContext
    if isinstance(function, type) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        msg = f"job {name}: {function!r} is no plain function; define it with `async def` or `def`, without yield"
        raise TypeError(msg)
    arguments = [
        argument
        for argument in inspect.signature(function).parameters.values()
        if argument.kind in (argument.POSITIONAL_ONLY, argument.POSITIONAL_OR_KEYWORD)
    ]
    keywords = [
        argument
        for argument in inspect.signature(function).parameters.values()
        if argument.kind is argument.KEYWORD_ONLY and argument.default is argument.empty
    ]
    required = sum(argument.default is argument.empty for argument in arguments)
    if not arguments or required > 2 or keywords:
        msg = f"job {name}: a job takes (ctx) or (ctx, params), not {inspect.signature(function)}"
        raise TypeError(msg)
    hints = _hints(function)
    types = dict(given)
    found = _progress_type(name, expected, hints.get(arguments[0].name, expected))
    if types["progress"] is None:
        types["progress"] = found
    if len(arguments) == 1:
        if types["params"] is not None:
            msg = f"job {name}: it is given params={types['params']!r} and takes none: add the argument"
            raise TypeError(msg)
    elif types["params"] is None:
        types["params"] = hints.get(arguments[1].name)
        if types["params"] is None:
            msg = f"job {name}: annotate {arguments[1].name!r} with its pydantic model"
            raise TypeError(msg)
    if types["result"] is None:
        types["result"] = hints.get("return", Any)
    for what, annotation in types.items():
        if isinstance(annotation, str):
            msg = f"job {name}: {annotation!r} can't be looked up; hand the type over: @job(..., {what}=...)"
            raise TypeError(msg)
    for what in ("params", "progress"):
        model = types[what]
        if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
            msg = f"job {name}: {what} must be a pydantic model, not {model!r}"
            raise TypeError(msg)
    needed = (
        []
        if types["progress"] is None
        else [field for field, info in types["progress"].model_fields.items() if info.is_required()]
    )
    if needed:
        msg = f"job {name}: an operation begins with an empty progress, so {', '.join(needed)} must have a default"
        raise TypeError(msg)
    return types


def _progress_type(name: str, expected: type, context: Any) -> Any:  # Any: type forms
    """Return the progress that the annotation of the context says, None for none, or a name not to be found."""
    if isinstance(context, str) and (found := re.fullmatch(rf"(?:\w+\.)*{expected.__name__}(?:\[(.+)\])?", context)):
        return found[1]
    if context is expected:
        return None
    if get_origin(context) is expected:
        (progress,) = get_args(context)
        return None if progress is type(None) else progress
    kind = "an async job" if expected is Context else "a job that is a plain `def`, run in a thread,"
    msg = f"job {name}: the first argument of {kind} is a {expected.__name__}, not {context!r}"
    raise TypeError(msg)


def _path(error: "ErrorDetails", value: Any) -> str:  # Any: JSON, or a model
    """Return where a value is wrong, as in `params.authors[0].email` (google.rpc.BadRequest).

    pydantic names the branches of a union and the like among the steps; those are not of the value, and are left out.
    """
    field = "params"
    for step in error["loc"]:
        if isinstance(value, dict):
            members = cast("dict[object, Any]", value)  # Any: JSON
            if step in members:
                field, value = f"{field}.{step}", members[step]
        elif isinstance(value, list):
            if isinstance(step, int):
                field, value = f"{field}[{step}]", value[step]  # pyright: ignore[reportUnknownVariableType]  # JSON
        elif isinstance(value, BaseModel):
            field = f"{field}.{step}"  # given as a model: its fields, and nothing below them
            value = None
    return f"{field}.{error['loc'][-1]}" if error["type"] == "missing" else field


def _hints(function: Callable[..., Any]) -> dict[str, Any]:  # Any: type forms; a string is one not found
    """Return the annotations, as strings where a name in them is not known at module level."""
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:
        hints: dict[str, Any] = {}  # Any: type forms
        for argument, annotation in inspect.get_annotations(function).items():
            lone = type("_", (), {"__annotations__": {"it": annotation}, "__module__": function.__module__})
            try:
                hints[argument] = get_type_hints(lone, include_extras=True)["it"]
            except NameError:
                hints[argument] = annotation
        return hints


def _invalid_params(job: str, error: ValidationError, given: object) -> InvalidArgument:
    violations = [
        {"field": _path(entry, given)[:MAX_PATH], "description": entry["msg"]}
        for entry in error.errors(include_url=False, include_input=False)[:MAX_VIOLATIONS]
    ]
    fields = ", ".join(violation["field"] for violation in violations[:5])
    details = [{"@type": BAD_REQUEST, "fieldViolations": violations}]
    msg = f"the params of job {job} are not valid: {fields}"
    return InvalidArgument(msg, reason="INVALID_PARAMS", details=details, job=job, fields=fields)
