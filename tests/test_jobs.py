"""Defining jobs: what a signature says, and what is refused at definition, with words that help."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field, computed_field

from lro import Context, Job, RetryPolicy, job
from tests.jobs import Params, Progress, Rendered

AnyFunction = Callable[..., Any]  # Any: what a test defines


def refused(function: AnyFunction, **options: Any) -> str:  # Any: options of job
    with pytest.raises(TypeError) as caught:
        job("books.render", **options)(function)
    assert str(caught.value).startswith("job books.render: ")
    return str(caught.value)


async def test_the_types_of_a_job_come_from_its_signature() -> None:
    @job("books.render")
    async def render(ctx: Context[Progress], params: Params) -> Rendered:
        raise NotImplementedError

    assert isinstance(render, Job)
    assert (render.name, repr(render)) == ("books.render", "<Job 'books.render'>")
    assert render.params is not None
    assert render.params.annotation is Params
    assert render.progress is not None
    assert render.progress.annotation is Progress
    assert render.result.annotation is Rendered


async def test_params_and_progress_may_be_left_out() -> None:
    @job("books.count")
    async def bare(ctx: Context) -> int:
        raise NotImplementedError

    @job("books.count")
    async def explicit(ctx: Context[None]) -> None:
        raise NotImplementedError

    @job("books.count")
    async def annotated_as_text(ctx: "Context", params: "Params") -> "dict[str, int]":
        raise NotImplementedError

    assert (bare.params, bare.progress, bare.result.annotation) == (None, None, int)
    assert (explicit.params, explicit.progress, explicit.result.annotation) == (None, None, type(None))
    assert annotated_as_text.params is not None
    assert annotated_as_text.params.annotation is Params
    assert annotated_as_text.progress is None
    assert annotated_as_text.result.annotation == dict[str, int]


async def test_a_function_without_annotations_is_a_job_with_any_json_result() -> None:
    async def count(ctx):  # type: ignore[no-untyped-def]  # that is the point
        return {"books": 3}

    counted = job("books.count")(count)

    assert counted.progress is None
    assert counted.result.dump({"books": 3}, 100, 2) == '{"books":3}'


@pytest.mark.parametrize("name", ["a", "books", "books.render", "a1_b.c_2", "a" * 63])
def test_a_name_is_dotted_lower_case_words(name: str) -> None:
    async def work(ctx: Context) -> None:
        raise NotImplementedError

    assert job(name)(work).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "Books",
        "books.",
        ".books",
        "books..render",
        "books render",
        "books-render",
        "1books",
        "_books",
        "books.1",
        "books/render",
        "books\n",
        "bücher",
        "a" * 64,
    ],
)
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="dotted lower-case words such as books"):
        job(name)


def test_only_functions_that_return_are_jobs() -> None:
    async def generator(ctx: Context) -> AsyncIterator[int]:
        yield 1

    assert "define it with `async def` or `def`" in refused(generator)


def test_a_wrong_signature_is_refused_and_the_right_one_is_named() -> None:
    async def nothing() -> None:
        raise NotImplementedError

    async def too_much(ctx: Context, params: Params, more: int) -> None:
        raise NotImplementedError

    async def anything(*arguments: object) -> None:
        raise NotImplementedError

    for function in (nothing, too_much, anything):
        assert "a job takes (ctx) or (ctx, params), not (" in refused(function)


def test_a_required_keyword_that_nobody_would_give_is_refused() -> None:
    async def keyword(ctx: Context, *, more: int) -> None:
        raise NotImplementedError

    assert "a job takes (ctx) or (ctx, params), not (" in refused(keyword)


def test_further_arguments_with_defaults_are_the_functions_own_affair() -> None:
    @job("books.render")
    async def render(ctx: Context, params: Params, dry_run: bool = True) -> bool:
        return dry_run

    assert render.params is not None


def test_the_first_argument_is_a_context() -> None:
    async def swapped(params: Params, ctx: Context) -> None:
        raise NotImplementedError

    async def text(ctx: "Missing") -> None:  # type: ignore[name-defined]  # noqa: F821 -- that is the point
        raise NotImplementedError

    assert "the first argument of an async job is a Context, not <class" in refused(swapped)
    assert "the first argument of an async job is a Context, not 'Missing'" in refused(text)


def test_params_and_progress_are_pydantic_models() -> None:
    async def unannotated(ctx: Context, params) -> None:  # type: ignore[no-untyped-def]  # that is the point
        raise NotImplementedError

    async def scalar(ctx: Context, params: int) -> None:
        raise NotImplementedError

    async def optional(ctx: Context, params: Params | None) -> None:
        raise NotImplementedError

    async def number(ctx: Context[int]) -> None:
        raise NotImplementedError

    assert "annotate 'params' with its pydantic model" in refused(unannotated)
    assert "params must be a pydantic model, not <class 'int'>" in refused(scalar)
    assert "params must be a pydantic model, not" in refused(optional)
    assert "progress must be a pydantic model, not <class 'int'>" in refused(number)


async def test_models_local_to_a_function_are_handed_over() -> None:
    class LocalParams(BaseModel):
        book: str

    class LocalProgress(BaseModel):
        pages_done: int = 0

    class LocalResult(BaseModel):
        url: str

    async def render(ctx: "Context[LocalProgress]", params: "LocalParams") -> "LocalResult":
        raise NotImplementedError

    assert "'LocalProgress' can't be looked up; hand the type over: @job(..., progress=...)" in refused(
        render, params=LocalParams, result=LocalResult
    )
    assert "'LocalParams' can't be looked up; hand the type over: @job(..., params=...)" in refused(
        render, progress=LocalProgress, result=LocalResult
    )
    assert "'LocalResult' can't be looked up; hand the type over: @job(..., result=...)" in refused(
        render, params=LocalParams, progress=LocalProgress
    )

    whole = job("books.render", params=LocalParams, progress=LocalProgress, result=LocalResult)(render)

    assert whole.params is not None
    assert whole.progress is not None
    assert (whole.params.annotation, whole.progress.annotation) == (LocalParams, LocalProgress)
    assert whole.result.annotation is LocalResult


def test_progress_begins_empty_so_every_field_needs_a_default() -> None:
    class Needy(BaseModel):
        pages_done: int
        book: str
        note: str = ""

    async def render(ctx: Context) -> None:
        raise NotImplementedError

    assert "begins with an empty progress, so pages_done, book must have a default" in refused(render, progress=Needy)


class WritesOtherwise(BaseModel):
    page_count: int = Field(0, serialization_alias="pageCount")


class ReadsOtherwise(BaseModel):
    page_count: int = Field(0, validation_alias="pageCount")


class SameBothWays(BaseModel):
    page_count: int = Field(0, serialization_alias="pageCount", validation_alias="pageCount")


class Nested(BaseModel):
    inner: WritesOtherwise | None = None


class Withheld(BaseModel):
    page_count: int = Field(exclude=True)


class Computed(BaseModel, extra="forbid"):
    pages: int = 0

    @computed_field  # type: ignore[prop-decorator]  # as pydantic's documentation writes it
    @property
    def sheets(self) -> int:
        return self.pages // 2


@pytest.mark.parametrize("what", ["params", "progress", "result"])
def test_a_model_that_cannot_read_what_it_writes_is_refused(what: str) -> None:
    async def render(ctx: Context, params: Params) -> None:
        raise NotImplementedError

    message = refused(render, **{what: WritesOtherwise})

    assert "WritesOtherwise: pageCount is written but not read under that name" in message
    for fine in (SameBothWays, ReadsOtherwise):
        options: dict[str, Any] = {what: fine}  # Any: one of job's options
        job("books.render", **options)(render)


@pytest.mark.parametrize("model", [Nested, Withheld, Computed], ids=lambda model: str(model.__name__))
def test_so_is_one_that_cannot_in_its_depth(model: type[BaseModel]) -> None:
    async def render(ctx: Context, params: Params) -> None:
        raise NotImplementedError

    assert "not read" in refused(render, params=model)


def test_a_type_without_a_json_form_is_refused() -> None:
    class Opaque:
        pass

    async def render(ctx: Context) -> None:
        raise NotImplementedError

    assert "has no JSON form: use a pydantic model, or dict, list" in refused(render, result=Opaque)


def test_by_default_a_job_is_started_at_most_once() -> None:
    @job("books.render")
    async def render(ctx: Context) -> None:
        """Render a book."""

    assert (render.attempt_limit, render.restartable, render.retry) == (1, False, None)
    assert (render.grace, render.timeout, render.cancellable) == (None, None, True)
    assert render.retention == timedelta(days=30)
    assert render.__doc__ == "Render a book."


def test_restartable_gives_three_attempts_and_a_policy_its_own_number() -> None:
    async def render(ctx: Context) -> None:
        raise NotImplementedError

    restartable = job("books.render", restartable=True)(render)
    retried = job("books.render", retry=RetryPolicy(attempts=7))(render)
    both = job("books.render", retry=RetryPolicy(attempts=2), restartable=True)(render)

    assert (restartable.restartable, restartable.attempt_limit) == (True, 3)
    assert (retried.restartable, retried.attempt_limit) == (True, 7)
    assert (both.restartable, both.attempt_limit) == (True, 2)


async def test_a_job_stays_callable_as_the_function_it_is() -> None:
    @job("books.render")
    async def render(ctx: Context, params: Params, factor: int = 1) -> int:
        return params.pages * factor

    context: Any = None  # Any: this function does not use its context
    assert await render(context, Params(pages=4)) == 4
    assert await render(context, Params(pages=4), factor=2) == 8
    assert render.__wrapped__ is render.function


@pytest.mark.parametrize("number", [0, -1, True])
@pytest.mark.parametrize("what", ["concurrency", "concurrency_per_target"])
def test_a_quota_is_a_whole_number(what: str, number: int) -> None:
    quotas: dict[str, Any] = {what: number}  # Any: one of job's options
    with pytest.raises(ValueError, match=f"{what}={number!r}: give a whole number, at least 1"):
        job("books.render", **quotas)


def test_parallel_is_one_of_two_words() -> None:
    words: dict[str, Any] = {"parallel": "queue"}  # Any: one of job's options

    with pytest.raises(ValueError, match=r"parallel='queue': use 'allow' or 'reject'"):
        job("books.render", **words)


@pytest.mark.parametrize("what", ["grace", "timeout", "retention"])
def test_durations_are_not_negative(what: str) -> None:
    durations: dict[str, Any] = {what: timedelta(microseconds=-1)}  # Any: one of job's options

    with pytest.raises(ValueError, match=f"job books.render: {what} is negative"):
        job("books.render", **durations)

    durations[what] = timedelta(0)
    job("books.render", **durations)
