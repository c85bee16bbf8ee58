"""Jobs that name protobuf types of their own: what may be named, and what their operations look like."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_serializer
from pydantic.alias_generators import to_camel

from lro import Context, Job, Operations, Worker, job, testing
from lro.lifecycle import State
from lro.resource import COMMON, Operation, common_field
from lro.status import Code, Status
from lro.store import Store
from tests.jobs import ended as wait_for
from tests.jobs import result, stored
from tests.records import NAME, NOW, SECOND, ended, record, running

BOOK = "type.googleapis.com/acme.v1.Book"
WRITING = "type.googleapis.com/acme.v1.Writing"
PROTOBUF = "type.googleapis.com/google.protobuf"


class Book(BaseModel):
    name: str = "books/1"
    copies: str = "9007199254740993"


class Writing(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    create_time: datetime | None = None
    end_time: datetime | None = None
    target: str = ""
    verb: str = ""
    requested_cancellation: bool = False
    api_version: str = "v1"
    chapter: str = ""


@job("books.write", response_type="acme.v1.Book", metadata_type="acme.v1.Writing")
async def write(ctx: Context[Writing]) -> Book:
    await ctx.checkpoint(ctx.progress.model_copy(update={"chapter": ctx.progress.chapter + "Loomings "}))
    return Book()


def define(result: Any = None, progress: Any = None, **options: Any) -> Job[Any, Any, Any]:  # Any: type forms; options
    async def work(ctx: Context) -> None:
        raise NotImplementedError

    return job("books.work", result=type(None) if result is None else result, progress=progress, **options)(work)


def refused(result: Any = None, progress: Any = None, **options: Any) -> str:  # Any: as above
    with pytest.raises(TypeError) as caught:
        define(result, progress, **options)
    assert str(caught.value).startswith("job books.work: ")
    return str(caught.value)


# type URLs


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("acme.v1.Book", BOOK),
        ("type.googleapis.com/acme.v1.Book", BOOK),
        ("types.example.com/acme.v1.Book", "types.example.com/acme.v1.Book"),
        ("https://types.example.com:8443/a/b/acme.v1.Book", "https://types.example.com:8443/a/b/acme.v1.Book"),
        ("_a.B_2.c", "type.googleapis.com/_a.B_2.c"),
    ],
)
def test_a_type_is_named_with_its_package_and_a_host_or_without(given: str, url: str) -> None:
    assert define(Book, response_type=given).response_type == url
    assert define(None, Writing, metadata_type=given).metadata_type == url


@pytest.mark.parametrize(
    "text",
    [
        *("Book", "acme.v1.", ".acme.v1.Book", "acme..Book", "acme.v1.Book ", "acme.v1.Book\n", "acme.1.Book"),
        *("/acme.v1.Book", "type.googleapis.com/", "type.googleapis.com//acme.v1.Book", "type.googleapis.com/Book"),
        *("ftp://h/acme.v1.Book", "acme.v1.Büch", "h/acme.v1.Book?x=1", "a b/acme.v1.Book"),
    ],
)
@pytest.mark.parametrize("what", ["response_type", "metadata_type"])
def test_what_is_no_type_is_refused(what: str, text: str) -> None:
    options: dict[str, Any] = {what: text}  # Any: options of job
    with pytest.raises(ValueError, match=f"^job books.work: {what}: .* is no type URL: write type"):
        job("books.work", **options)


# the response


def test_without_a_type_the_response_is_what_suits_it() -> None:
    assert (define(Book).response_type, define(Book).metadata_type) == ("", "")


def test_a_response_of_its_own_type_has_the_fields_of_the_result() -> None:
    it = Operation.of(ended(State.SUCCEEDED, response='{"name":"books/1"}', response_type=BOOK))
    assert it.to_dict()["response"] == {"@type": BOOK, "name": "books/1"}
    assert it.response == {"name": "books/1"}
    assert json.loads(it.to_json()) == it.to_dict()


def test_nothing_in_a_result_can_give_it_another_type() -> None:
    it = Operation.of(ended(State.SUCCEEDED, response='{"@type":"x","name":"books/1"}', response_type=BOOK))
    assert it.to_dict()["response"] == {"@type": BOOK, "name": "books/1"}


@pytest.mark.parametrize(
    ("name", "result", "response"),
    [
        ("Struct", dict[str, int], {"a": 1}),
        ("Struct", Book, {"name": "books/1"}),
        ("ListValue", list[int], [1, 2]),
        ("Value", Book, {"name": "books/1"}),
        ("Value", Any, "text"),
        ("Value", Any, None),
    ],
)
def test_a_type_that_holds_json_has_a_value(name: str, result: Any, response: Any) -> None:  # Any: a type form; JSON
    url = define(result, response_type=f"google.protobuf.{name}").response_type
    it = Operation.of(ended(State.SUCCEEDED, response=json.dumps(response), response_type=url))
    assert it.to_dict()["response"] == {"@type": f"{PROTOBUF}.{name}", "value": response}


def test_empty_has_none() -> None:
    url = define(None, response_type="other.example.com/google.protobuf.Empty").response_type
    it = Operation.of(ended(State.SUCCEEDED, response="null", response_type=url))
    assert it.to_dict()["response"] == {"@type": f"{PROTOBUF}.Empty"}


class Named(RootModel[dict[str, int]]):
    pass


class Listed(RootModel[list[int]]):
    pass


class Tree(BaseModel):
    branches: list["Tree"] = []


class Chosen(BaseModel):
    it: Book | Tree = Field(default_factory=Book)


class Typed(BaseModel):
    url: str = Field("", alias="@type")


class Words(BaseModel):
    @model_serializer
    def as_text(self) -> str:
        return "words"


@pytest.mark.parametrize("result", [Book, Tree, Named, Chosen, Book | Tree, dict[str, str], dict], ids=repr)
def test_a_result_that_is_an_object_may_be_a_message(result: Any) -> None:  # Any: a type form
    assert define(result, response_type=BOOK).response_type == BOOK


@pytest.mark.parametrize(
    ("result", "written"),
    [
        (None, "null"),
        (int, "integer"),
        (list[Book], "array"),
        (Book | None, "null, object"),
        (Book | int, "integer, object"),
        (Any, "any JSON"),
        (Listed, "array"),
        (Words, "string"),
    ],
    ids=repr,
)
def test_one_that_is_none_or_not_always_one_may_not(result: Any, written: str) -> None:  # Any: a type form
    message = refused(result, response_type=BOOK)
    assert f"response_type {BOOK}: its JSON is of type object, and what" in message
    assert message.endswith(f"writes is {written}")


def test_a_type_of_protobufs_own_must_suit_the_result() -> None:
    assert "its JSON is of type null, and what" in refused(Book, response_type=f"{PROTOBUF}.Empty")
    assert "its JSON is of type object, and what" in refused(list[int], response_type=f"{PROTOBUF}.Struct")
    assert "its JSON is of type array, and what" in refused(Book, response_type=f"{PROTOBUF}.ListValue")
    for name in ("Timestamp", "Duration", "Any", "Int64Value"):
        assert "use a message of your own that has a field of this type" in refused(
            datetime, response_type=f"google.protobuf.{name}"
        )


def test_a_field_that_names_a_type_is_refused() -> None:
    assert "has a field @type" in refused(Typed, response_type=BOOK)
    assert "has a field @type" in refused(None, Typed, metadata_type=WRITING)


# the metadata


def metadata(progress: str | None, **changes: Any) -> dict[str, Any]:  # Any: fields of Record; JSON
    it = Operation.of(running(metadata_type=WRITING, progress=progress, **changes))
    shown: dict[str, Any] = it.to_dict()["metadata"]  # Any: JSON
    assert shown.pop("@type") == WRITING
    assert it.state is State.RUNNING
    return shown


def test_metadata_of_its_own_type_has_the_fields_of_the_progress_and_no_others() -> None:
    assert metadata('{"chapter":"Loomings"}') == {"chapter": "Loomings"}
    assert metadata("{}") == {}
    assert metadata(None) == {}


def test_the_common_fields_among_them_are_filled_in() -> None:
    progress = '{"createTime":null,"endTime":null,"requestedCancellation":false,"state":"","attempt":0,"chapter":"x"}'
    assert metadata(progress) == {
        "createTime": "2026-11-22T20:15:00Z",
        "requestedCancellation": False,
        "state": "RUNNING",
        "attempt": 1,
        "chapter": "x",
    }


def test_what_is_known_goes_before_what_the_job_says() -> None:
    progress = '{"createTime":"1999-01-01T00:00:00Z","endTime":"1999-01-01T00:00:00Z","state":"DONE","attempt":7}'
    assert metadata(progress) == {"createTime": "2026-11-22T20:15:00Z", "state": "RUNNING", "attempt": 1}


def test_but_the_job_may_choose_the_words() -> None:
    words = '{"verb":"write","target":"books/2","statusMessage":"page 3 of 9"}'
    assert metadata(words, target="books/1") == json.loads(words)
    empty = '{"verb":"","target":null,"statusMessage":""}'
    assert metadata(empty, target="books/1") == {"verb": "books.render", "target": "books/1"}


def test_either_casing_and_the_names_of_older_apis_are_known() -> None:
    progress = '{"create_time":null,"requested_cancellation":false,"cancelRequested":false,"statusDetail":""}'
    assert metadata(progress, cancel_requested_at=NOW + SECOND, status_message="almost") == {
        "create_time": "2026-11-22T20:15:00Z",
        "requested_cancellation": True,
        "cancelRequested": True,
        "statusDetail": "almost",
    }
    assert common_field("cancel_requested") == "requestedCancellation"
    assert common_field("chapter") is None


def test_every_common_field_is_known_by_its_name_and_shown_with_such_a_value() -> None:
    full = ended(
        State.CANCELLED,
        deadline_at=NOW,
        cancel_reason="r",
        cancel_requester="ann",
        last_error=Status(Code.UNAVAILABLE, "away").to_json(),
        status_message="s",
        target="t",
    )
    shown = {**Operation.of(full).metadata, **Operation.of(record(due_at=NOW + SECOND)).metadata}
    assert shown.keys() == COMMON.keys()
    for name, value in shown.items():
        assert common_field(name) == name
        assert type(value) is type(COMMON[name][0])
    blank = json.dumps(dict.fromkeys(COMMON))
    typed = Operation.of(full._replace(metadata_type=WRITING, progress=blank)).to_dict()["metadata"]
    assert {"@type": WRITING, **Operation.of(full).metadata} == typed


def test_in_process_the_metadata_is_the_same_for_every_job() -> None:
    plain = Operation.of(running(progress='{"chapter":"x"}'))
    typed = Operation.of(running(progress='{"chapter":"x"}', metadata_type=WRITING))
    assert typed.metadata == plain.metadata
    assert typed.metadata["progress"] == {"chapter": "x"}


def test_metadata_needs_a_progress_and_a_message_for_it() -> None:
    assert "annotate the context as Context[YourProgress]" in refused(metadata_type=WRITING)
    for name in ("Struct", "Value", "Empty", "ListValue"):
        assert "leave it out for a Struct" in refused(None, Writing, metadata_type=f"google.protobuf.{name}")
    assert "use a message of your own" in refused(None, Writing, metadata_type="google.protobuf.Duration")


class Phase(StrEnum):
    RESTING = "RESTING"


class Pending(BaseModel):
    state: Literal["", "PENDING", "RUNNING", "SUCCEEDED", "FAILED"] = ""


class Counted(BaseModel):
    attempt: Phase = Phase.RESTING


class Silent(BaseModel):
    end_time: datetime | None = None
    pages: int = 0

    @model_serializer(mode="wrap")
    def without_nothing(self, handler: Any) -> dict[str, Any]:  # Any: pydantic's own; JSON
        return {key: value for key, value in handler(self).items() if value is not None}


class Unwritable(BaseModel):
    at: Any = Field(default_factory=object)  # Any: that is the point


class Every(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    state: str = ""
    attempt: int = 0
    deadline: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    last_error: dict[str, Any] | None = None  # Any: JSON


def test_a_common_field_must_take_whatever_it_is_filled_in_with() -> None:
    assert define(None, Every, metadata_type=WRITING).metadata_type == WRITING
    assert "state is filled in, as with 'CANCELLED', and the field does not take that" in refused(
        None, Pending, metadata_type=WRITING
    )
    assert "attempt is filled in, as with 1, and" in refused(None, Counted, metadata_type=WRITING)
    define(None, Pending)  # which is the job's own affair


def test_a_common_field_must_be_written_always() -> None:
    assert "end_time must be written always, empty or not, or it can't be filled in" in refused(
        None, Silent, metadata_type=WRITING
    )


def test_an_empty_progress_must_have_a_json_form() -> None:
    assert "begins with an empty" in refused(None, Unwritable, metadata_type=WRITING)


# in a store


async def test_an_operation_tells_of_its_types_from_start_to_end(store: Store) -> None:
    operations = Operations(store)
    started = await operations.start(write, target="books/1")
    empty = {"createTime": None, "endTime": None, "target": "", "verb": "", "requestedCancellation": False}
    assert started.metadata["progress"] == empty | {"apiVersion": "v1", "chapter": ""}
    assert started.to_dict()["metadata"] == {
        "@type": WRITING,
        "createTime": started.metadata["createTime"],
        "target": "books/1",
        "verb": "books.write",
        "requestedCancellation": False,
        "apiVersion": "v1",
        "chapter": "",
    }
    async with Worker(store, [write]):
        assert await result(operations, write, started.name) == Book()
        done = await wait_for(operations, started.name)
    assert done.to_dict()["response"] == {"@type": BOOK, "name": "books/1", "copies": "9007199254740993"}
    assert done.to_dict()["metadata"] == {
        **started.to_dict()["metadata"],
        "endTime": done.metadata["endTime"],
        "chapter": "Loomings ",
    }
    assert done.state is State.SUCCEEDED
    kept = await stored(store, started.name)
    assert (kept.response_type, kept.metadata_type) == (BOOK, WRITING)


async def test_one_that_never_ran_tells_of_its_cancel(store: Store) -> None:
    operations = Operations(store)
    name = (await operations.start(write)).name
    shown = (await operations.cancel(name)).to_dict()["metadata"]
    assert (shown["requestedCancellation"], "endTime" in shown) == (True, True)


@pytest.mark.parametrize(
    ("kind", "response"),
    [
        (BOOK, {"@type": BOOK}),
        (f"{PROTOBUF}.Struct", {"@type": f"{PROTOBUF}.Struct", "value": {}}),
        (f"{PROTOBUF}.Value", {"@type": f"{PROTOBUF}.Value", "value": None}),
        ("", {"@type": f"{PROTOBUF}.Empty"}),
    ],
)
async def test_what_is_only_validated_has_an_empty_response(
    kind: str, response: Any, store: Store
) -> None:  # Any: JSON
    it = define(Book, Writing, response_type=kind, metadata_type=WRITING)
    validated = (await Operations(store).start(it, validate_only=True)).to_dict()
    assert (validated["name"], validated["done"], validated["response"]) == ("", True, response)
    assert validated["metadata"]["@type"] == WRITING


async def test_progress_before_the_first_checkpoint_is_stored_for_typed_metadata_alone(store: Store) -> None:
    operations = Operations(store)
    plain = define(None, Writing)
    assert plain.first_progress() is None
    started = await operations.start(plain)
    assert "progress" not in started.metadata
    assert started.name != NAME


class Aliased(BaseModel):
    create_time: datetime | None = Field(None, validation_alias="createTime")
    state: int = Field(0, exclude=True)


def test_what_counts_is_how_a_field_is_written() -> None:
    it = define(None, Aliased, metadata_type=WRITING)
    assert it.first_progress() == '{"create_time":null}'
    assert metadata(it.first_progress()) == {"create_time": "2026-11-22T20:15:00Z"}


async def test_a_trial_begins_like_an_operation() -> None:
    outcome = await testing.run(write)
    assert outcome.operation.to_dict()["metadata"]["chapter"] == "Loomings "
    outcome = await testing.run(write, progress=Writing(chapter="Etymology "), attempt=2)
    assert outcome.operation.to_dict()["metadata"]["chapter"] == "Etymology Loomings "
    assert "createTime" in outcome.operation.to_dict()["metadata"]
