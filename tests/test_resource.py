"""What clients see: the Operation resource, names, times, statuses and errors."""

import inspect
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lro import errors
from lro.clock import SystemClock, format_duration, format_time, micros, moment, parse_duration
from lro.errors import LROError, OperationCancelled, OperationError, OperationFailed, Stopped
from lro.lifecycle import CancelOutcome, State, give_back, request_cancel
from lro.principal import ANYTHING, AllowAnonymous, Principal, Scope
from lro.resource import MAX_PARENT, Operation, error_body, is_parent, new_name, parse_name, with_domain
from lro.status import BAD_REQUEST, ERROR_INFO, Code, Status, error_info
from tests.records import LEASE, NAME, NOW, SECOND, at, ended, record, running

ID = NAME.removeprefix("operations/")
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
SEGMENTS = st.from_regex(r"[A-Za-z0-9._~-]{1,20}", fullmatch=True).filter(lambda text: text not in (".", "..", "-"))
PARENTS = st.lists(st.tuples(SEGMENTS, SEGMENTS), max_size=4).map(
    lambda pairs: "/".join(f"{collection}/{name}" for collection, name in pairs)
)
TIMES = st.integers(0, 253_402_300_799_999_999)  # to the end of the year 9999
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


# the resource


def test_an_operation_that_has_not_ended_has_a_name_metadata_and_done() -> None:
    for it in (record(), running()):
        value = Operation.of(it).to_dict()
        assert value.keys() == {"name", "metadata", "done"}
        assert (value["name"], value["done"]) == (NAME, False)


def test_an_operation_that_succeeded_has_a_response_besides() -> None:
    value = Operation.of(ended(State.SUCCEEDED)).to_dict()
    assert value.keys() == {"name", "metadata", "done", "response"}
    assert value["done"] is True
    assert value["response"] == {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"url": "u"}}


@pytest.mark.parametrize(("state", "code"), [(State.FAILED, 13), (State.CANCELLED, 1)])
def test_an_operation_that_failed_or_was_cancelled_has_an_error_besides(state: State, code: int) -> None:
    value = Operation.of(ended(state)).to_dict()
    assert value.keys() == {"name", "metadata", "done", "error"}
    assert value["done"] is True
    assert value["error"]["code"] == code


@pytest.mark.parametrize(
    ("response", "wrapped"),
    [
        ('{"a":1}', {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"a": 1}}),
        ("{}", {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}}),
        ("[1,2]", {"@type": "type.googleapis.com/google.protobuf.Value", "value": [1, 2]}),
        ('"done"', {"@type": "type.googleapis.com/google.protobuf.Value", "value": "done"}),
        ("0", {"@type": "type.googleapis.com/google.protobuf.Value", "value": 0}),
        ("false", {"@type": "type.googleapis.com/google.protobuf.Value", "value": False}),
        ("null", {"@type": "type.googleapis.com/google.protobuf.Empty"}),
    ],
)
def test_a_response_is_wrapped_in_a_type_that_every_client_knows(response: str, wrapped: dict[str, object]) -> None:
    operation = Operation.of(ended(State.SUCCEEDED, response=response))
    assert operation.to_dict()["response"] == wrapped
    assert operation.response == json.loads(response)


def test_the_metadata_is_a_struct() -> None:
    metadata = Operation.of(record()).to_dict()["metadata"]
    assert metadata.keys() == {"@type", "value"}
    assert metadata["@type"] == "type.googleapis.com/google.protobuf.Struct"


def test_the_metadata_of_a_fresh_operation_has_the_fields_that_are_set() -> None:
    assert Operation.of(record()).metadata == {
        "createTime": "2026-11-22T20:15:00Z",
        "updateTime": "2026-11-22T20:15:00Z",
        "verb": "books.render",
        "state": "PENDING",
        "attempt": 0,
        "requestedCancellation": False,
        "cancellable": True,
    }


def test_the_metadata_of_a_full_operation_has_all_fields() -> None:
    full = ended(
        State.CANCELLED,
        attempt=2,
        deadline_at=NOW + 10 * SECOND,
        cancel_reason="changed my mind",
        cancel_requester="ann",
        progress='{"pagesDone":3}',
        last_error=Status(Code.UNAVAILABLE, "away", (error_info("PRINTER_AWAY"),)).to_json(),
        status_message="nearly",
        target="books/7",
    )
    assert Operation.of(full, "books.example.com").metadata == {
        "createTime": "2026-11-22T20:15:00Z",
        "startTime": "2026-11-22T20:15:01Z",
        "endTime": "2026-11-22T20:15:02Z",
        "updateTime": "2026-11-22T20:15:02Z",
        "deadline": "2026-11-22T20:15:10Z",
        "expireTime": "2026-12-22T20:15:02Z",
        "verb": "books.render",
        "target": "books/7",
        "state": "CANCELLED",
        "attempt": 2,
        "requestedCancellation": True,
        "cancelTime": "2026-11-22T20:15:01Z",
        "cancelReason": "changed my mind",
        "cancelRequester": "ann",
        "cancelOutcome": "ACKNOWLEDGED",
        "cancellable": True,
        "statusMessage": "nearly",
        "lastError": {
            "code": 14,
            "message": "away",
            "details": [{"@type": ERROR_INFO, "reason": "PRINTER_AWAY", "domain": "books.example.com"}],
        },
        "progress": {"pagesDone": 3},
    }


def test_the_time_of_the_next_attempt_is_shown_only_while_it_is_waited_for() -> None:
    later = NOW + 5 * SECOND
    assert Operation.of(record(due_at=later)).metadata["scheduleTime"] == "2026-11-22T20:15:05Z"
    assert "scheduleTime" not in Operation.of(record()).metadata
    assert "scheduleTime" not in Operation.of(running(due_at=later)).metadata
    given_back = give_back(running(), at(-3600), lease=LEASE)  # by a clock that had jumped
    assert "scheduleTime" not in Operation.of(given_back).metadata


def test_the_metadata_is_sent_as_it_is() -> None:
    operation = Operation.of(running(progress='{"n":1}'))
    assert operation.to_dict()["metadata"]["value"] == operation.metadata
    assert operation.state is State.RUNNING


def test_the_services_domain_is_filled_into_errors_of_the_library() -> None:
    error = Operation.of(request_cancel(record(), at(1)), "books.example.com").error
    assert error is not None
    assert error.details == (
        {
            "@type": ERROR_INFO,
            "reason": "OPERATION_CANCELLED",
            "metadata": {"name": NAME, "outcome": "BEFORE_START"},
            "domain": "books.example.com",
        },
    )


def test_a_domain_that_the_job_gave_and_other_details_stay() -> None:
    theirs = {"@type": ERROR_INFO, "reason": "X", "domain": "printers.example.com"}
    other = {"@type": BAD_REQUEST, "fieldViolations": []}
    status = Status(Code.INTERNAL, "m", (theirs, other))
    assert with_domain(status, "books.example.com") == status


def test_the_etag_changes_with_each_write_and_does_not_count_in_comparisons() -> None:
    first, second = Operation.of(record()), Operation.of(record(version=2))
    assert (first.etag, second.etag) == ('"1"', '"2"')
    assert first == second


@given(response=JSON, progress=st.dictionaries(st.text(), JSON, max_size=3))
def test_the_json_of_an_operation_is_what_was_stored(response: Any, progress: dict[str, Any]) -> None:  # Any: JSON
    it = ended(State.SUCCEEDED, response=json.dumps(response), progress=json.dumps(progress))
    operation = Operation.of(it)
    value = json.loads(operation.to_json())
    assert value == operation.to_dict()
    assert value["response"].get("value") == response
    assert value["metadata"]["value"]["progress"] == progress


def test_the_json_is_utf_8_without_escapes_or_blanks() -> None:
    text = Operation.of(ended(State.SUCCEEDED, response='"grün"')).to_json()
    assert "grün".encode() in text
    assert b'": ' not in text
    assert b", " not in text


def test_the_body_of_a_failed_call_names_the_code_twice_and_the_domain() -> None:
    body = json.loads(error_body(errors.NotFound("none", name=NAME).status, "books.example.com"))
    assert body == {
        "error": {
            "code": 404,
            "message": "none",
            "status": "NOT_FOUND",
            "details": [
                {
                    "@type": ERROR_INFO,
                    "reason": "OPERATION_NOT_FOUND",
                    "metadata": {"name": NAME},
                    "domain": "books.example.com",
                }
            ],
        }
    }
    assert json.loads(error_body(Status(Code.INTERNAL, "m"), "d")) == {
        "error": {"code": 500, "message": "m", "status": "INTERNAL"}
    }


# names


@given(parent=PARENTS, now=TIMES)
def test_a_new_name_is_parsed_to_its_parent(parent: str, now: int) -> None:
    assert is_parent(parent)
    name = new_name(parent, now)
    assert parse_name(name) == parent
    identifier = name.rpartition("/")[2]
    assert len(identifier) == 26
    assert set(identifier) <= set(ALPHABET)
    assert name == (f"{parent}/operations/{identifier}" if parent else f"operations/{identifier}")


@given(earlier=TIMES, later=TIMES)
def test_names_are_ordered_by_time_to_the_millisecond(earlier: int, later: int) -> None:
    earlier, later = sorted((earlier, later))
    first, second = new_name("", earlier), new_name("", later)
    if earlier // 1000 < later // 1000:
        assert first < second
    else:
        assert first.removeprefix("operations/")[:9] == second.removeprefix("operations/")[:9]


def test_names_of_one_moment_differ() -> None:
    assert len({new_name("", NOW) for _ in range(1000)}) == 1000


@given(
    before=st.text(ALPHABET, max_size=26),
    control=st.characters(max_codepoint=0x20) | st.sampled_from("\x7f\x85\u2028\u2029"),
)
def test_a_name_with_a_control_character_anywhere_is_none(before: str, control: str) -> None:
    assert parse_name(f"operations/{before[:25]}{control}{ID[len(before[:25]) + 1 :]}") is None
    assert parse_name(NAME + control) is None
    assert parse_name(control + NAME) is None
    assert parse_name(f"projects/p{control}/{NAME}") is None
    assert parse_name(f"projects/{control}/{NAME}") is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "operations",
        "operations/",
        ID,
        f"/{NAME}",
        f"{NAME}/",
        f"//{NAME}",
        f"projects/{NAME}",
        f"projects//{NAME}",
        f"/p/{NAME}",
        f"projects/p//{NAME}",
        f"projects/../{NAME}",
        f"../projects/{NAME}",
        f"projects/./{NAME}",
        f"projects/p q/{NAME}",
        f"projects/p%2Fq/{NAME}",
        f"projects/ü/{NAME}",
        f"projects/p?/{NAME}",
        f"projects/p:cancel/{NAME}",
        f"operations/{ID.upper()}",
        f"Operations/{ID}",
        f"operations/{ID[:-1]}",
        f"operations/{ID}0",
        *(f"operations/{ID[:-1]}{letter}" for letter in "ilouILOU-_.~٣"),
        f"{NAME}:cancel",
        f"projects/{'p' * MAX_PARENT}/{NAME}",
    ],
)
def test_what_no_operation_is_called_is_refused(name: str) -> None:
    assert parse_name(name) is None


def test_a_parent_is_pairs_of_plain_segments() -> None:
    assert parse_name(f"projects/p/{NAME}") == "projects/p"
    assert parse_name(f"projects/P.1_~-/locations/eu/{NAME}") == "projects/P.1_~-/locations/eu"
    assert parse_name(f"projects/.../{NAME}") == "projects/..."
    assert is_parent("a/" + "b" * (MAX_PARENT - 2))
    assert not is_parent("a/" + "b" * (MAX_PARENT - 1))


# times


@pytest.mark.parametrize(
    ("micros_after", "text"),
    [
        (0, "2026-11-22T20:15:00Z"),
        (250_000, "2026-11-22T20:15:00.250Z"),
        (1_000, "2026-11-22T20:15:00.001Z"),
        (1, "2026-11-22T20:15:00.000001Z"),
        (100_100, "2026-11-22T20:15:00.100100Z"),
        (999_999, "2026-11-22T20:15:00.999999Z"),
    ],
)
def test_a_time_is_written_with_0_3_or_6_digits(micros_after: int, text: str) -> None:
    assert format_time(NOW + micros_after) == text


@given(TIMES)
def test_a_time_reads_back_as_it_was(value: int) -> None:
    text = format_time(value)
    assert micros(datetime.fromisoformat(text)) == value
    assert len(text) in (20, 24, 27)


@given(TIMES)
def test_a_moment_in_microseconds_reads_back_as_it_was(value: int) -> None:
    assert moment(value).tzinfo is UTC
    assert micros(moment(value)) == value


def test_a_datetime_of_another_zone_is_the_same_moment() -> None:
    tokyo = datetime(2026, 11, 23, 5, 15, tzinfo=timezone(timedelta(hours=9)))
    assert micros(tokyo) == NOW


def test_a_datetime_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="names no time zone"):
        micros(moment(NOW).replace(tzinfo=None))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0s"),
        (8_000_000, "8s"),
        (1_500_000, "1.500s"),
        (250, "0.000250s"),
        (1_000, "0.001s"),
        (-1_500_000, "-1.500s"),
        (1_000_000_001, "1000.000001s"),
        (1_000_000_000_000, "1000000s"),
    ],
)
def test_a_duration_is_written_in_seconds(value: int, text: str) -> None:
    assert format_duration(value) == text


@given(st.integers(-315_576_000_000 * SECOND, 315_576_000_000 * SECOND))
def test_a_duration_reads_back_as_it_was(value: int) -> None:
    assert micros(parse_duration(format_duration(value))) == value


def test_a_duration_may_have_up_to_nine_digits_of_which_six_are_kept() -> None:
    assert parse_duration("1.5s") == timedelta(seconds=1.5)
    assert parse_duration("0.000000999s") == timedelta(0)
    assert parse_duration("0.123456789s") == timedelta(microseconds=123_456)
    assert parse_duration("-0.5s") == timedelta(seconds=-0.5)
    assert parse_duration("315576000000s") == timedelta(seconds=315_576_000_000)


@pytest.mark.parametrize(
    "text",
    [
        *("", "8", "s", "8 s", " 8s", "8s\n", "8S", "1.s", ".5s", "1,5s", "+1s", "--1s", "1e3s", "٣s", "0x8s", "nans"),
        *("315576000001s", "1234567890123s", "1.1234567890s"),
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


def test_the_system_clock_reads_the_time() -> None:
    clock = SystemClock()
    before = micros(datetime.now(UTC))
    read = clock.now()
    assert before <= read <= micros(datetime.now(UTC))
    assert clock.monotonic() <= clock.monotonic()


# statuses


CODES: list[tuple[str, int, int]] = [
    ("OK", 0, 200),
    ("CANCELLED", 1, 499),
    ("UNKNOWN", 2, 500),
    ("INVALID_ARGUMENT", 3, 400),
    ("DEADLINE_EXCEEDED", 4, 504),
    ("NOT_FOUND", 5, 404),
    ("ALREADY_EXISTS", 6, 409),
    ("PERMISSION_DENIED", 7, 403),
    ("RESOURCE_EXHAUSTED", 8, 429),
    ("FAILED_PRECONDITION", 9, 400),
    ("ABORTED", 10, 409),
    ("OUT_OF_RANGE", 11, 400),
    ("UNIMPLEMENTED", 12, 501),
    ("INTERNAL", 13, 500),
    ("UNAVAILABLE", 14, 503),
    ("DATA_LOSS", 15, 500),
    ("UNAUTHENTICATED", 16, 401),
]


def test_the_codes_and_their_http_statuses_are_those_of_code_proto() -> None:
    assert [(code.name, int(code), code.http_status) for code in Code] == CODES


STATUSES = st.builds(
    Status,
    st.sampled_from(Code),
    st.text(),
    st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=3).map(tuple),
)


@given(STATUSES)
def test_a_status_reads_back_as_it_was(status: Status) -> None:
    assert Status.from_json(status.to_json()) == status


def test_a_status_is_compact_json_without_empty_details() -> None:
    assert Status(Code.NOT_FOUND, "grün").to_json() == '{"code":5,"message":"grün"}'
    detailed = Status(Code.NOT_FOUND, "", (error_info("GONE", name="n"),))
    assert json.loads(detailed.to_json()) == {
        "code": 5,
        "message": "",
        "details": [{"@type": ERROR_INFO, "reason": "GONE", "metadata": {"name": "n"}}],
    }
    assert Status.from_json('{"code":5}') == Status(Code.NOT_FOUND, "")


def test_a_status_that_is_not_made_of_json_is_refused() -> None:
    with pytest.raises(TypeError):
        Status(Code.INTERNAL, "", ({"x": object()},)).to_json()
    with pytest.raises(ValueError, match="JSON compliant"):
        Status(Code.INTERNAL, "", ({"x": float("nan")},)).to_json()
    with pytest.raises(UnicodeEncodeError):
        Status(Code.INTERNAL, "\ud800").to_json()


def test_the_reason_of_a_status_is_that_of_its_error_info() -> None:
    bad_request = {"@type": BAD_REQUEST, "reason": "not this one"}
    assert Status(Code.INTERNAL, "", (bad_request, error_info("THIS"))).reason == "THIS"
    assert Status(Code.INTERNAL, "", (bad_request,)).reason is None


# errors


TREE: dict[str, Code] = {
    "NotFound": Code.NOT_FOUND,
    "InvalidArgument": Code.INVALID_ARGUMENT,
    "FailedPrecondition": Code.FAILED_PRECONDITION,
    "Aborted": Code.ABORTED,
    "PermissionDenied": Code.PERMISSION_DENIED,
    "Unauthenticated": Code.UNAUTHENTICATED,
    "ResourceExhausted": Code.RESOURCE_EXHAUSTED,
    "Unimplemented": Code.UNIMPLEMENTED,
    "Unavailable": Code.UNAVAILABLE,
    "LeaseLost": Code.ABORTED,
    "StoreClosed": Code.UNAVAILABLE,
    "StoreDamaged": Code.DATA_LOSS,
}
PLAIN = [getattr(errors, name) for name in TREE]


def test_every_error_of_the_library_is_bound_to_a_code() -> None:
    found = {
        name: it
        for name, it in vars(errors).items()
        if inspect.isclass(it) and issubclass(it, LROError) and it.__module__ == errors.__name__
    }
    others = {"LROError", "OperationError", "OperationFailed", "OperationCancelled"}
    assert found.keys() == TREE.keys() | others
    assert {name: found[name].code for name in TREE} == TREE
    assert set(errors.__all__) == found.keys() | {"Stopped", "invalid", "invalid_fields"}


@pytest.mark.parametrize("kind", PLAIN)
def test_the_first_line_of_its_docstring_is_an_errors_default_message(kind: type[LROError]) -> None:
    assert kind.__doc__
    first_line = kind.__doc__.splitlines()[0]
    error = kind()
    assert str(error) == error.message == error.status.message == first_line
    assert first_line.endswith(".")


@pytest.mark.parametrize("kind", PLAIN)
def test_an_error_has_exactly_one_error_info_with_what_varies(kind: type[LROError]) -> None:
    hint = {"@type": BAD_REQUEST, "fieldViolations": []}
    error = kind("no", reason="NO_WAY", details=[hint], name=NAME)
    assert error.status == Status(kind.code, "no", (error_info("NO_WAY", name=NAME), hint))
    assert kind().status.reason == kind.reason
    assert kind.reason.isupper()


def test_a_job_may_fail_with_any_code_but_ok_and_cancelled() -> None:
    for code in (Code.OK, Code.CANCELLED):
        with pytest.raises(ValueError, match=f"OperationError with code {code.name}"):
            OperationError(code, "no")
    for code in set(Code) - {Code.OK, Code.CANCELLED}:
        assert OperationError(code, "no").status == Status(code, "no", (error_info("JOB_FAILED"),))
    assert OperationError(Code.INTERNAL).message == "The job failed."


def test_an_error_info_of_the_job_replaces_the_librarys() -> None:
    own = {"@type": ERROR_INFO, "reason": "OUT_OF_INK", "domain": "printers.example.com"}
    assert OperationError(Code.INTERNAL, "no", details=[own]).status.details == (own,)
    named = OperationError(Code.INTERNAL, "no", reason="OUT_OF_INK", printer="7")
    assert named.status.details == (error_info("OUT_OF_INK", printer="7"),)


def test_the_failure_of_an_operation_says_which_and_why() -> None:
    status = Status(Code.NOT_FOUND, "no such book", (error_info("NO_BOOK"),))
    error = OperationFailed(NAME, status)
    assert str(error) == f"{NAME} failed: NOT_FOUND: no such book"
    assert (error.name, error.status, error.reason) == (NAME, status, "NO_BOOK")
    assert isinstance(OperationCancelled(NAME, Status(Code.CANCELLED, "gone")), OperationFailed)


def test_being_stopped_is_no_error() -> None:
    assert issubclass(Stopped, BaseException)
    assert not issubclass(Stopped, Exception)


# principals and scopes


def test_a_scope_covers_the_records_of_its_owner_and_tenant() -> None:
    it = record(owner="ann", tenant="t1")
    assert ANYTHING.covers(it)
    assert Scope(owner="ann").covers(it)
    assert Scope(owner="ann", tenant="t1").covers(it)
    assert not Scope(owner="bob").covers(it)
    assert not Scope(owner="ann", tenant="t2").covers(it)
    assert not Scope(tenant="").covers(it)


def test_a_scope_is_limited_by_any_condition() -> None:
    assert not ANYTHING.is_limited
    assert Scope(owner="").is_limited
    assert Scope(tenant="").is_limited


async def test_allow_anonymous_lets_everybody_do_everything() -> None:
    auth = AllowAnonymous()
    assert auth.authenticate(object()) == Principal("", "")
    assert await auth.authorize(Principal(), "operations.delete", NAME) == ANYTHING


def test_every_cancel_outcome_is_shown_by_its_name() -> None:
    for outcome in CancelOutcome:
        shown = Operation.of(ended(State.CANCELLED, cancel_outcome=outcome)).metadata["cancelOutcome"]
        assert shown == outcome.name
