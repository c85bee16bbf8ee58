"""Every cell of the state table: each event on a PENDING, a RUNNING and a terminal record."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lro.errors import FailedPrecondition, LeaseLost, Unimplemented
from lro.lifecycle import (
    REQUEST_WINDOW,
    CancelOutcome,
    Facts,
    Lease,
    Outcome,
    Raised,
    Record,
    RetryPolicy,
    Returned,
    State,
    StopReason,
    Unwound,
    claim,
    delete,
    finish,
    give_back,
    pass_commit_point,
    request_cancel,
    save_progress,
    say,
    start,
    sweep,
)
from lro.status import Code, Status, error_info
from tests.records import HOUR, LEASE, NAME, NOW, SECOND, at, ended, record, running

BROKEN = Status(Code.UNAVAILABLE, "the printer is away", (error_info("PRINTER_AWAY"),))
STALE = Lease("worker-0", 0)
TERMINAL = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
PAST_COMMIT = {"committed_at": NOW + 2 * SECOND}
CANCEL_ASKED = {"cancel_requested_at": NOW + 2 * SECOND, "cancel_reason": "changed my mind", "cancel_requester": "ann"}
RESTARTABLE = {"restartable": True, "attempt_limit": 3}

OUTCOMES: list[Outcome] = [
    Returned("1"),
    Raised(BROKEN),
    Raised(BROKEN, retry_in=SECOND),
    Unwound(StopReason.CANCEL),
    Unwound(StopReason.DEADLINE),
    Unwound(StopReason.SHUTDOWN),
]
OUTCOME_IDS = ["value", "exception", "retry", "unwound by cancel", "unwound by deadline", "unwound by shutdown"]


def take(it: Record, facts: Facts) -> Record:
    return claim(it, facts, owner="worker-2", lease_time=30 * SECOND)


def status_of(it: Record) -> Status:
    assert it.error is not None
    return Status.from_json(it.error)


def end_of(it: Record) -> tuple[State, Code, str | None]:
    status = status_of(it)
    return it.state, status.code, status.reason


def must_stand(it: Record | None) -> Record:
    assert it is not None
    return it


def check_pending(it: Record, *, attempt: int, due_at: int) -> None:
    assert (it.state, it.attempt, it.due_at) == (State.PENDING, attempt, due_at)
    assert (it.lease, it.lease_owner, it.lease_time) == (None, None, None)
    assert (it.response, it.error, it.ended_at, it.expire_at, it.cancel_outcome) == (None, None, None, None, None)


def check_ended(it: Record, facts: Facts) -> None:
    assert it.state.is_terminal
    assert (it.ended_at, it.expire_at, it.updated_at) == (facts.now, facts.now + it.retention, facts.now)
    assert (it.lease, it.lease_owner, it.lease_time) == (None, None, None)
    assert (it.response is None) != (it.error is None)
    assert (it.cancel_outcome is None) == (it.cancel_requested_at is None)


CANCELLED = (State.CANCELLED, Code.CANCELLED, "OPERATION_CANCELLED")
LATE = (State.FAILED, Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
LOST = (State.FAILED, Code.ABORTED, "WORKER_LOST")


# cancel requested


def test_cancelling_a_pending_operation_ends_it_at_once_before_it_starts() -> None:
    done = request_cancel(record(), at(1), reason="changed my mind", requester="ann")
    assert end_of(done) == CANCELLED
    assert done.cancel_outcome is CancelOutcome.BEFORE_START
    assert (done.cancel_requested_at, done.cancel_reason, done.cancel_requester) == (
        NOW + SECOND,
        "changed my mind",
        "ann",
    )
    assert done.token == 0
    check_ended(done, at(1))
    assert take(done, at(9)) is done


def test_the_error_of_a_cancelled_operation_says_why_it_was_cancelled() -> None:
    with_reason = request_cancel(record(), at(1), reason="changed my mind")
    assert status_of(with_reason).message == f"{NAME} was cancelled: changed my mind"
    assert status_of(request_cancel(record(), at(1))).message == f"{NAME} was cancelled"
    assert status_of(with_reason).details == (
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "OPERATION_CANCELLED",
            "metadata": {"name": NAME, "outcome": "BEFORE_START"},
        },
    )


def test_cancelling_an_operation_that_waits_for_its_retry_suppresses_the_retry() -> None:
    waiting = finish(running(**RESTARTABLE), at(2), lease=LEASE, outcome=Raised(BROKEN, 5 * SECOND))
    done = request_cancel(waiting, at(3))
    assert end_of(done) == CANCELLED
    assert done.cancel_outcome is CancelOutcome.RETRY_SUPPRESSED
    assert done.last_error == BROKEN.to_json()
    check_ended(done, at(3))


def test_cancelling_a_running_operation_flags_it_and_leaves_it_to_its_worker() -> None:
    flagged = request_cancel(running(), at(2), reason="changed my mind", requester="ann")
    assert flagged == running(version=3, updated_at=NOW + 2 * SECOND, **CANCEL_ASKED)
    assert flagged.cancel_due
    assert flagged.cancel_outcome is None
    assert flagged.lease == LEASE


def test_the_first_cancel_request_stands() -> None:
    flagged = request_cancel(running(), at(2), reason="first", requester="ann")
    assert request_cancel(flagged, at(3), reason="second", requester="bob") is flagged


def test_cancelling_an_operation_whose_lease_has_expired_ends_it_at_once() -> None:
    done = request_cancel(running(**RESTARTABLE), at(60, expired=True))
    assert end_of(done) == CANCELLED
    assert done.cancel_outcome is CancelOutcome.WORKER_LOST
    check_ended(done, at(60))


def test_a_second_cancel_request_finds_the_lease_expired_and_ends_the_operation() -> None:
    flagged = request_cancel(running(), at(2), reason="first")
    done = request_cancel(flagged, at(60, expired=True), reason="second")
    assert end_of(done) == CANCELLED
    assert (done.cancel_outcome, done.cancel_requested_at, done.cancel_reason) == (
        CancelOutcome.WORKER_LOST,
        NOW + 2 * SECOND,
        "first",
    )


@pytest.mark.parametrize("state", TERMINAL)
@pytest.mark.parametrize("expired", [False, True])
def test_cancelling_an_operation_that_has_ended_changes_nothing(state: State, expired: bool) -> None:
    done = ended(state)
    assert request_cancel(done, at(9, expired=expired), reason="too late") is done


def test_a_job_that_does_not_support_cancelling_refuses_the_request() -> None:
    for it in (record(cancellable=False), running(cancellable=False)):
        with pytest.raises(Unimplemented, match="does not support") as caught:
            request_cancel(it, at(2))
        assert caught.value.reason == "CANCEL_UNSUPPORTED"
        assert caught.value.metadata == {"name": NAME, "job": "books.render"}


# the same, past its commit point


def test_a_cancel_past_the_commit_point_is_recorded_and_not_delivered_to_a_running_operation() -> None:
    asked = request_cancel(running(**PAST_COMMIT), at(3))
    assert asked == running(**PAST_COMMIT, version=3, updated_at=NOW + 3 * SECOND, cancel_requested_at=NOW + 3 * SECOND)
    assert not asked.cancel_due


def test_a_cancel_past_the_commit_point_is_recorded_and_lets_a_pending_operation_run() -> None:
    waiting = finish(running(**PAST_COMMIT, **RESTARTABLE), at(3), lease=LEASE, outcome=Raised(BROKEN, SECOND))
    asked = request_cancel(waiting, at(4))
    check_pending(asked, attempt=1, due_at=NOW + 4 * SECOND)
    assert asked.cancel_requested_at == NOW + 4 * SECOND
    assert take(asked, at(4)).state is State.RUNNING


def test_a_cancel_past_the_commit_point_leaves_an_orphan_to_the_sweep_which_runs_it_again() -> None:
    asked = request_cancel(running(**PAST_COMMIT, **RESTARTABLE), at(60, expired=True))
    assert asked.state is State.RUNNING
    check_pending(must_stand(sweep(asked, at(61, expired=True))), attempt=1, due_at=NOW)


@pytest.mark.parametrize("state", TERMINAL)
def test_a_cancel_past_the_commit_point_of_an_operation_that_has_ended_changes_nothing(state: State) -> None:
    done = ended(state, committed_at=NOW)
    assert request_cancel(done, at(9)) is done


def test_retries_go_on_past_the_commit_point_in_spite_of_a_cancel() -> None:
    committed = running(**RESTARTABLE, committed_at=NOW + SECOND, **CANCEL_ASKED)
    retried = finish(committed, at(3), lease=LEASE, outcome=Raised(BROKEN, SECOND))
    check_pending(retried, attempt=1, due_at=NOW + 4 * SECOND)
    shut_down = finish(committed, at(3), lease=LEASE, outcome=Unwound(StopReason.SHUTDOWN))
    check_pending(shut_down, attempt=0, due_at=NOW)


def test_a_commit_point_is_passed_once_and_keeps_its_time() -> None:
    passed = pass_commit_point(running(), at(2), lease=LEASE)
    assert passed == running(version=3, updated_at=NOW + 2 * SECOND, committed_at=NOW + 2 * SECOND)
    assert pass_commit_point(passed, at(3), lease=LEASE) is passed


def test_a_commit_point_is_not_passed_once_a_cancel_was_requested() -> None:
    flagged = running(**CANCEL_ASKED)
    assert pass_commit_point(flagged, at(3), lease=LEASE) is flagged
    assert flagged.cancel_due


def test_an_operation_past_its_commit_point_that_was_asked_to_cancel_has_its_natural_end() -> None:
    asked = running(committed_at=NOW + SECOND, **CANCEL_ASKED)
    completed = finish(asked, at(3), lease=LEASE, outcome=Returned("1"))
    assert (completed.state, completed.cancel_outcome) == (State.SUCCEEDED, CancelOutcome.COMPLETED_ANYWAY)
    failed = finish(asked, at(3), lease=LEASE, outcome=Raised(BROKEN))
    assert (failed.state, failed.cancel_outcome) == (State.FAILED, CancelOutcome.FAILED_ANYWAY)
    lost = must_stand(sweep(asked, at(60, expired=True)))
    assert (end_of(lost), lost.cancel_outcome) == (LOST, CancelOutcome.FAILED_ANYWAY)


# claim


def test_a_claim_starts_a_pending_operation_under_a_new_token() -> None:
    taken = take(record(), at(1))
    assert taken == record(
        state=State.RUNNING,
        version=2,
        attempt=1,
        token=1,
        updated_at=NOW + SECOND,
        started_at=NOW + SECOND,
        claimed_at=NOW + SECOND,
        lease_owner="worker-2",
        lease_time=30 * SECOND,
    )
    assert taken.lease == Lease("worker-2", 1)


def test_a_later_claim_keeps_the_time_of_the_first_start() -> None:
    waiting = finish(running(**RESTARTABLE), at(2), lease=LEASE, outcome=Raised(BROKEN, SECOND))
    taken = take(waiting, at(5))
    assert (taken.started_at, taken.claimed_at) == (NOW + SECOND, NOW + 5 * SECOND)
    assert (taken.token, taken.attempt) == (2, 2)


def test_an_operation_is_not_claimed_before_it_is_due() -> None:
    scheduled = record(due_at=NOW + 10 * SECOND)
    assert take(scheduled, at(9.999999)) is scheduled
    assert take(scheduled, at(10)).state is State.RUNNING


def test_what_is_said_of_a_running_operation_is_written_once() -> None:
    said = say(running(), at(3), lease=LEASE, message="slow")
    assert said == running(version=3, updated_at=NOW + 3 * SECOND, status_message="slow")
    assert say(said, at(4), lease=LEASE, message="slow") is said
    assert say(said, at(4), lease=LEASE, message="slower").status_message == "slower"


def test_what_is_said_of_an_attempt_may_come_with_its_end_and_stays() -> None:
    done = finish(running(), at(3), lease=LEASE, outcome=Returned("1"), message="slow")
    assert (done.state, done.status_message) == (State.SUCCEEDED, "slow")
    kept = finish(running(status_message="slow"), at(3), lease=LEASE, outcome=Returned("1"))
    assert kept.status_message == "slow"


@pytest.mark.parametrize("it", [running(token=2), record(), *map(ended, TERMINAL)])
def test_nothing_is_said_of_an_operation_that_is_another_workers(it: Record) -> None:
    with pytest.raises(LeaseLost):
        say(it, at(3), lease=LEASE, message="slow")


def test_what_is_due_at_once_is_so_whatever_the_clock_says() -> None:
    orphan = must_stand(sweep(running(**RESTARTABLE), at(60, expired=True)))
    shut_down = finish(running(**RESTARTABLE), at(60), lease=LEASE, outcome=Unwound(StopReason.SHUTDOWN))
    for waiting in (record(), orphan, shut_down, give_back(running(), at(60), lease=LEASE)):
        for seconds in (-3600, -20, 0, 3600):
            assert take(waiting, at(seconds)).state is State.RUNNING


def test_a_clock_that_jumps_back_starts_nothing_that_is_scheduled() -> None:
    scheduled = record(due_at=NOW + 10 * SECOND)
    assert take(scheduled, at(-3600)) is scheduled
    hidden = delete(scheduled, at(3))
    assert take(hidden, at(2)) is hidden


def test_a_retry_waits_no_longer_than_its_delay_though_the_clock_jumps_back() -> None:
    waiting = finish(running(**RESTARTABLE), at(100), lease=LEASE, outcome=Raised(BROKEN, 10 * SECOND))
    for seconds in (100, 109.999999):
        assert take(waiting, at(seconds)) is waiting
    assert take(waiting, at(99.999999)).state is State.RUNNING, "how long it has waited nobody knows"
    later = finish(running(**RESTARTABLE), at(-3600), lease=LEASE, outcome=Raised(BROKEN, 10 * SECOND))
    assert take(later, at(-3591)) is later, "after the jump a retry waits as ever"
    assert take(later, at(-3590)).state is State.RUNNING


def test_an_operation_whose_lease_stands_is_not_claimed() -> None:
    busy = running(**RESTARTABLE)
    assert take(busy, at(600)) is busy


def test_claiming_a_restartable_orphan_starts_it_again_under_a_new_token() -> None:
    taken = take(running(**RESTARTABLE), at(60, expired=True))
    assert (taken.state, taken.lease, taken.attempt) == (State.RUNNING, Lease("worker-2", 2), 2)


def test_claiming_an_orphan_that_may_not_run_again_ends_it() -> None:
    assert end_of(take(running(), at(60, expired=True))) == LOST
    assert end_of(take(running(**RESTARTABLE, **CANCEL_ASKED), at(60, expired=True))) == CANCELLED


def test_claiming_a_pending_operation_past_its_deadline_fails_it() -> None:
    done = take(record(deadline_at=NOW + 5 * SECOND), at(5))
    assert end_of(done) == LATE
    assert done.attempt == 0


@pytest.mark.parametrize("state", TERMINAL)
def test_an_operation_that_has_ended_is_not_claimed(state: State) -> None:
    done = ended(state)
    assert take(done, at(60, expired=True)) is done
    assert take(done._replace(expire_at=NOW), at(60)) == done._replace(expire_at=NOW)


# claimed, never started


@pytest.mark.parametrize("changes", [{}, RESTARTABLE, PAST_COMMIT])
def test_a_claim_whose_attempt_never_started_is_given_back_restartable_or_not(changes: dict[str, int]) -> None:
    back = give_back(running(**changes), at(2), lease=LEASE)
    check_pending(back, attempt=0, due_at=NOW)
    assert (back.started_at, back.token, back.version) == (None, 1, 3)
    again = take(back, at(3))
    assert (again.attempt, again.token, again.started_at) == (1, 2, NOW + 3 * SECOND)


def test_giving_back_a_later_claim_keeps_the_time_of_the_first_start() -> None:
    second = take(running(**RESTARTABLE), at(60, expired=True))
    back = give_back(second, at(61), lease=Lease("worker-2", 2))
    check_pending(back, attempt=1, due_at=NOW)
    assert back.started_at == NOW + SECOND


def test_giving_back_a_later_claim_keeps_the_first_start_even_if_the_clock_jumped_back_to_it() -> None:
    second = take(running(**RESTARTABLE), at(1, expired=True))
    assert second.claimed_at == NOW + SECOND + 1, "later than the first start, by the least there is"
    back = give_back(second, at(2), lease=Lease("worker-2", 2))
    assert back.started_at == NOW + SECOND
    assert request_cancel(back, at(3)).cancel_outcome is CancelOutcome.RETRY_SUPPRESSED


def test_giving_back_a_claim_delivers_the_cancel_that_came_meanwhile() -> None:
    first = give_back(running(**CANCEL_ASKED), at(3), lease=LEASE)
    assert (end_of(first), first.cancel_outcome) == (CANCELLED, CancelOutcome.BEFORE_START)
    check_ended(first, at(3))
    second = take(running(**RESTARTABLE), at(60, expired=True))
    flagged = request_cancel(second, at(61))
    later = give_back(flagged, at(62), lease=Lease("worker-2", 2))
    assert (end_of(later), later.cancel_outcome) == (CANCELLED, CancelOutcome.RETRY_SUPPRESSED)


def test_giving_back_a_claim_that_was_cancelled_after_its_deadline_is_a_missed_deadline() -> None:
    late = running(deadline_at=NOW + SECOND, **CANCEL_ASKED)
    assert end_of(give_back(late, at(3), lease=LEASE)) == LATE


# value returned


def test_a_returned_value_is_the_response() -> None:
    done = finish(running(), at(2), lease=LEASE, outcome=Returned('{"url":"u"}'))
    assert (done.state, done.response, done.error) == (State.SUCCEEDED, '{"url":"u"}', None)
    assert (done.cancel_outcome, done.version) == (None, 3)
    check_ended(done, at(2))


def test_a_value_returned_in_spite_of_a_cancel_is_the_response() -> None:
    done = finish(running(**CANCEL_ASKED), at(3), lease=LEASE, outcome=Returned("1"))
    assert (done.state, done.response, done.cancel_outcome) == (
        State.SUCCEEDED,
        "1",
        CancelOutcome.COMPLETED_ANYWAY,
    )
    check_ended(done, at(3))


def test_a_value_returned_after_the_deadline_is_the_response() -> None:
    done = finish(running(deadline_at=NOW + 2 * SECOND), at(9), lease=LEASE, outcome=Returned("1"))
    assert (done.state, done.response) == (State.SUCCEEDED, "1")


@pytest.mark.parametrize("deadline_at", [NOW + SECOND, NOW + 3 * SECOND])
def test_a_value_returned_after_a_cancel_and_the_deadline_is_the_response(deadline_at: int) -> None:
    late = running(deadline_at=deadline_at, **CANCEL_ASKED)
    done = finish(late, at(9), lease=LEASE, outcome=Returned("1"))
    assert (done.state, done.response, done.cancel_outcome) == (State.SUCCEEDED, "1", CancelOutcome.COMPLETED_ANYWAY)


def test_a_holder_whose_lease_expired_may_finish_while_its_token_stands() -> None:
    done = finish(running(), at(600, expired=True), lease=LEASE, outcome=Returned("1"))
    assert done.state is State.SUCCEEDED


def test_the_last_reported_progress_is_saved_with_the_end() -> None:
    for outcome in OUTCOMES:
        done = finish(running(progress='{"n":1}'), at(2), lease=LEASE, outcome=outcome, progress='{"n":2}')
        assert (done.progress, done.version) == ('{"n":2}', 3)
        kept = finish(running(progress='{"n":1}'), at(2), lease=LEASE, outcome=outcome)
        assert kept.progress == '{"n":1}'


# unwound by our cancel


@pytest.mark.parametrize(("forced", "expected"), [(False, CancelOutcome.ACKNOWLEDGED), (True, CancelOutcome.FORCED)])
def test_an_attempt_that_our_cancel_unwound_is_cancelled(forced: bool, expected: CancelOutcome) -> None:
    done = finish(running(**CANCEL_ASKED), at(3), lease=LEASE, outcome=Unwound(StopReason.CANCEL, forced))
    assert end_of(done) == CANCELLED
    assert done.cancel_outcome is expected
    check_ended(done, at(3))


# exception


def test_an_exception_that_is_not_to_be_retried_fails_the_operation() -> None:
    done = finish(running(**RESTARTABLE), at(2), lease=LEASE, outcome=Raised(BROKEN))
    assert (done.state, done.error, done.response) == (State.FAILED, BROKEN.to_json(), None)
    assert (done.cancel_outcome, done.last_error) == (None, None)
    check_ended(done, at(2))


def test_an_exception_that_is_to_be_retried_leads_to_another_attempt_when_its_wait_is_over() -> None:
    waiting = finish(running(**RESTARTABLE), at(2), lease=LEASE, outcome=Raised(BROKEN, 5 * SECOND))
    check_pending(waiting, attempt=1, due_at=NOW + 7 * SECOND)
    assert (waiting.last_error, waiting.version, waiting.token) == (BROKEN.to_json(), 3, 1)
    assert take(waiting, at(6)) is waiting
    assert take(waiting, at(7)).attempt == 2


def test_the_last_attempt_is_not_retried() -> None:
    last = running(restartable=True, attempt_limit=3, attempt=3)
    done = finish(last, at(2), lease=LEASE, outcome=Raised(BROKEN, SECOND))
    assert (done.state, done.error) == (State.FAILED, BROKEN.to_json())


def test_a_retry_that_the_deadline_would_forestall_is_not_waited_for() -> None:
    limited = running(**RESTARTABLE, deadline_at=NOW + 7 * SECOND)
    done = finish(limited, at(2), lease=LEASE, outcome=Raised(BROKEN, 5 * SECOND))
    assert (done.state, done.error) == (State.FAILED, BROKEN.to_json())
    waiting = finish(limited, at(2), lease=LEASE, outcome=Raised(BROKEN, 5 * SECOND - 1))
    assert waiting.state is State.PENDING


def test_a_retryable_exception_after_a_cancel_ends_cancelled_and_keeps_the_suppressed_error() -> None:
    flagged = running(**RESTARTABLE, **CANCEL_ASKED)
    done = finish(flagged, at(3), lease=LEASE, outcome=Raised(BROKEN, SECOND))
    assert (end_of(done), done.cancel_outcome) == (CANCELLED, CancelOutcome.RETRY_SUPPRESSED)
    assert done.last_error == BROKEN.to_json()
    check_ended(done, at(3))


def test_an_exception_after_a_cancel_that_is_not_to_be_retried_is_the_natural_result() -> None:
    final = finish(running(**RESTARTABLE, **CANCEL_ASKED), at(3), lease=LEASE, outcome=Raised(BROKEN))
    assert (final.state, final.error, final.cancel_outcome) == (
        State.FAILED,
        BROKEN.to_json(),
        CancelOutcome.FAILED_ANYWAY,
    )
    last = running(restartable=True, attempt_limit=3, attempt=3, **CANCEL_ASKED)
    exhausted = finish(last, at(3), lease=LEASE, outcome=Raised(BROKEN, SECOND))
    assert (exhausted.state, exhausted.error) == (State.FAILED, BROKEN.to_json())


def test_stored_params_that_no_longer_validate_fail_the_operation() -> None:
    stale = Status(Code.FAILED_PRECONDITION, "params do not validate", (error_info("STALE_PAYLOAD"),))
    done = finish(running(**RESTARTABLE), at(2), lease=LEASE, outcome=Raised(stale))
    assert end_of(done) == (State.FAILED, Code.FAILED_PRECONDITION, "STALE_PAYLOAD")


# a CancelledError nobody asked for


@pytest.mark.parametrize("changes", [{}, {"deadline_at": NOW}, {"committed_at": NOW + SECOND, **CANCEL_ASKED}])
def test_an_attempt_unwound_by_a_cancel_that_nobody_may_have_delivered_failed(changes: dict[str, int]) -> None:
    done = finish(running(**changes), at(3), lease=LEASE, outcome=Unwound(StopReason.CANCEL))
    assert end_of(done) == (State.FAILED, Code.INTERNAL, "JOB_FAILED")
    check_ended(done, at(3))


# deadline


def test_a_pending_operation_fails_at_its_deadline() -> None:
    waiting = record(deadline_at=NOW + 5 * SECOND)
    assert sweep(waiting, at(4.999999)) is waiting
    done = must_stand(sweep(waiting, at(5)))
    assert end_of(done) == LATE
    check_ended(done, at(5))


def test_a_running_operation_past_its_deadline_is_left_to_its_worker_while_the_lease_stands() -> None:
    late = running(deadline_at=NOW + 2 * SECOND)
    assert sweep(late, at(9)) is late


def test_an_attempt_that_the_deadline_unwound_failed() -> None:
    late = running(deadline_at=NOW + 2 * SECOND)
    done = finish(late, at(3), lease=LEASE, outcome=Unwound(StopReason.DEADLINE, forced=True))
    assert end_of(done) == LATE
    check_ended(done, at(3))


@pytest.mark.parametrize("reason", [StopReason.CANCEL, StopReason.DEADLINE])
def test_of_cancel_and_deadline_the_earlier_one_ends_a_running_operation(reason: StopReason) -> None:
    cancel_first = running(deadline_at=NOW + 3 * SECOND, **CANCEL_ASKED)
    cancelled = finish(cancel_first, at(9), lease=LEASE, outcome=Unwound(reason, forced=True))
    assert (end_of(cancelled), cancelled.cancel_outcome) == (CANCELLED, CancelOutcome.FORCED)
    deadline_first = running(deadline_at=NOW + SECOND, **CANCEL_ASKED)
    failed = finish(deadline_first, at(9), lease=LEASE, outcome=Unwound(reason, forced=True))
    assert (end_of(failed), failed.cancel_outcome) == (LATE, CancelOutcome.FAILED_ANYWAY)


def test_of_cancel_and_deadline_the_earlier_one_ends_a_pending_operation() -> None:
    limited = record(deadline_at=NOW + 5 * SECOND)
    assert end_of(request_cancel(limited, at(4))) == CANCELLED
    failed = request_cancel(limited, at(6))
    assert (end_of(failed), failed.cancel_outcome) == (LATE, CancelOutcome.FAILED_ANYWAY)


def test_of_cancel_and_deadline_the_earlier_one_ends_an_orphan() -> None:
    cancel_first = running(**RESTARTABLE, deadline_at=NOW + 3 * SECOND, **CANCEL_ASKED)
    cancelled = must_stand(sweep(cancel_first, at(60, expired=True)))
    assert (end_of(cancelled), cancelled.cancel_outcome) == (CANCELLED, CancelOutcome.WORKER_LOST)
    deadline_first = running(**RESTARTABLE, deadline_at=NOW + SECOND, **CANCEL_ASKED)
    assert end_of(must_stand(sweep(deadline_first, at(60, expired=True)))) == LATE


def test_of_cancel_and_deadline_the_earlier_one_ends_an_operation_at_shutdown() -> None:
    cancel_first = running(**RESTARTABLE, deadline_at=NOW + 3 * SECOND, **CANCEL_ASKED)
    shut_down = Unwound(StopReason.SHUTDOWN)
    assert end_of(finish(cancel_first, at(9), lease=LEASE, outcome=shut_down)) == CANCELLED
    deadline_first = running(**RESTARTABLE, deadline_at=NOW + SECOND, **CANCEL_ASKED)
    assert end_of(finish(deadline_first, at(9), lease=LEASE, outcome=shut_down)) == LATE


def test_past_the_commit_point_the_deadline_still_holds() -> None:
    late = running(committed_at=NOW + SECOND, deadline_at=NOW + 3 * SECOND, **CANCEL_ASKED)
    done = finish(late, at(4), lease=LEASE, outcome=Unwound(StopReason.DEADLINE))
    assert (end_of(done), done.cancel_outcome) == (LATE, CancelOutcome.FAILED_ANYWAY)


# worker shutdown


def test_a_restartable_operation_goes_back_at_shutdown_with_its_attempt() -> None:
    back = finish(running(**RESTARTABLE), at(2), lease=LEASE, outcome=Unwound(StopReason.SHUTDOWN))
    check_pending(back, attempt=0, due_at=NOW)
    assert back.started_at == NOW + SECOND
    again = take(back, at(2))
    assert (again.attempt, again.token) == (1, 2)


def test_an_operation_that_is_not_restartable_fails_at_shutdown() -> None:
    done = finish(running(), at(2), lease=LEASE, outcome=Unwound(StopReason.SHUTDOWN))
    assert end_of(done) == (State.FAILED, Code.UNAVAILABLE, "WORKER_SHUTDOWN")
    check_ended(done, at(2))


@pytest.mark.parametrize("changes", [{}, RESTARTABLE])
def test_an_operation_that_was_asked_to_cancel_is_cancelled_at_shutdown(changes: dict[str, int]) -> None:
    done = finish(running(**changes, **CANCEL_ASKED), at(3), lease=LEASE, outcome=Unwound(StopReason.SHUTDOWN))
    assert (end_of(done), done.cancel_outcome) == (CANCELLED, CancelOutcome.RETRY_SUPPRESSED)
    check_ended(done, at(3))


def test_an_operation_past_its_deadline_does_not_go_back_at_shutdown() -> None:
    late = running(**RESTARTABLE, deadline_at=NOW + 2 * SECOND)
    assert end_of(finish(late, at(3), lease=LEASE, outcome=Unwound(StopReason.SHUTDOWN))) == LATE


# orphan


def test_an_operation_whose_lease_stands_is_no_orphan() -> None:
    busy = running(**CANCEL_ASKED)
    assert sweep(busy, at(600)) is busy


def test_a_restartable_orphan_with_attempts_left_waits_for_another_worker() -> None:
    back = must_stand(sweep(running(restartable=True, attempt_limit=2), at(60, expired=True)))
    check_pending(back, attempt=1, due_at=NOW)
    assert back.last_error is None


def test_a_restartable_orphan_without_attempts_left_failed() -> None:
    done = must_stand(sweep(running(restartable=True, attempt_limit=2, attempt=2), at(60, expired=True)))
    assert end_of(done) == LOST
    assert "in attempt 2 of 2" in status_of(done).message
    check_ended(done, at(60))


def test_an_orphan_that_is_not_restartable_failed() -> None:
    done = must_stand(sweep(running(attempt_limit=3), at(60, expired=True)))
    assert end_of(done) == LOST
    check_ended(done, at(60))


def test_an_orphan_that_was_asked_to_cancel_is_cancelled() -> None:
    done = must_stand(sweep(running(**RESTARTABLE, **CANCEL_ASKED), at(60, expired=True)))
    assert (end_of(done), done.cancel_outcome) == (CANCELLED, CancelOutcome.WORKER_LOST)
    check_ended(done, at(60))


def test_an_orphan_past_its_deadline_failed() -> None:
    done = must_stand(sweep(running(**RESTARTABLE, deadline_at=NOW + 60 * SECOND), at(60, expired=True)))
    assert end_of(done) == LATE


def test_a_deleted_orphan_is_not_run_again() -> None:
    done = must_stand(sweep(running(**RESTARTABLE, deleted_at=NOW + 2 * SECOND), at(60, expired=True)))
    assert (done.state, done.error, done.expire_at) == (State.FAILED, None, NOW)


def test_a_pending_operation_is_no_orphan() -> None:
    waiting = record()
    assert sweep(waiting, at(60, expired=True)) is waiting


# delete


def test_a_deleted_pending_operation_is_hidden_and_still_runs_and_its_result_is_dropped() -> None:
    hidden = delete(record(request_id="r"), at(1))
    assert hidden == record(request_id="r", version=2, updated_at=NOW + SECOND, deleted_at=NOW + SECOND)
    taken = take(hidden, at(2))
    assert (taken.state, taken.params) == (State.RUNNING, '{"pages":9}')
    assert taken.lease is not None
    done = finish(taken, at(3), lease=taken.lease, outcome=Returned("1"), progress='{"n":2}')
    assert done.state is State.SUCCEEDED
    check_tombstone(done, NOW + REQUEST_WINDOW)


def check_tombstone(it: Record, expire_at: int) -> None:
    assert it.deleted_at is not None
    content = (it.params, it.progress, it.response, it.error, it.last_error, it.status_message)
    assert content == (None,) * 6
    assert it.expire_at == expire_at


def test_a_deleted_running_operation_goes_on_and_leaves_a_tombstone() -> None:
    hidden = delete(running(request_id="r"), at(2))
    assert hidden == running(request_id="r", version=3, updated_at=NOW + 2 * SECOND, deleted_at=NOW + 2 * SECOND)
    assert save_progress(hidden, at(3), lease=LEASE, progress='{"n":1}').progress == '{"n":1}'
    for outcome in OUTCOMES:
        done = finish(hidden, at(4), lease=LEASE, outcome=outcome, progress='{"n":2}')
        check_tombstone(done, NOW + REQUEST_WINDOW)
        assert done.request_id == "r"


def test_a_deleted_operation_is_retried_as_any_other() -> None:
    hidden = delete(running(**RESTARTABLE), at(2))
    check_pending(finish(hidden, at(3), lease=LEASE, outcome=Raised(BROKEN, 0)), attempt=1, due_at=NOW + 3 * SECOND)


@pytest.mark.parametrize("state", TERMINAL)
def test_deleting_an_operation_that_has_ended_leaves_a_tombstone_at_once(state: State) -> None:
    full = ended(state, request_id="r", progress='{"n":1}', last_error=BROKEN.to_json(), status_message="nearly")
    gone = delete(full, at(9))
    check_tombstone(gone, NOW + REQUEST_WINDOW)
    assert (gone.state, gone.ended_at, gone.cancel_outcome) == (state, full.ended_at, full.cancel_outcome)
    assert (gone.deleted_at, gone.updated_at, gone.version) == (NOW + 9 * SECOND, NOW + 9 * SECOND, 4)
    assert (gone.name, gone.tenant, gone.job, gone.request_id) == (full.name, full.tenant, full.job, "r")


@pytest.mark.parametrize("it", [record(), running(), *map(ended, TERMINAL)])
def test_deleting_twice_changes_nothing_more(it: Record) -> None:
    gone = delete(it, at(9))
    assert delete(gone, at(10)) is gone
    assert delete(gone, at(10), reject_running=True) is gone


def test_deleting_an_operation_that_has_not_ended_may_be_rejected() -> None:
    for it in (record(), running()):
        with pytest.raises(FailedPrecondition, match="before deleting it") as caught:
            delete(it, at(2), reject_running=True)
        assert caught.value.reason == "OPERATION_RUNNING"
        assert caught.value.metadata == {"name": NAME, "state": it.state.value}
    assert delete(ended(State.FAILED), at(9), reject_running=True).deleted_at is not None


def test_cancelling_a_deleted_operation_leaves_a_tombstone() -> None:
    done = request_cancel(delete(record(request_id="r"), at(1)), at(2))
    assert (done.state, done.cancel_outcome) == (State.CANCELLED, CancelOutcome.BEFORE_START)
    check_tombstone(done, NOW + REQUEST_WINDOW)


# request window and expiry


def test_a_tombstone_keeps_its_request_id_for_the_window_and_is_then_removed() -> None:
    gone = delete(ended(State.SUCCEEDED, request_id="r"), at(9))
    window = REQUEST_WINDOW // SECOND
    assert sweep(gone, at(window - 1)) is gone
    assert sweep(gone, at(window)) is None


def test_a_tombstone_without_a_request_id_is_removed_at_once() -> None:
    assert sweep(delete(ended(State.SUCCEEDED), at(9)), at(9)) is None


def test_an_operation_that_has_ended_is_removed_after_its_retention() -> None:
    done = finish(running(retention=48 * HOUR, request_id="r"), at(2), lease=LEASE, outcome=Returned("1"))
    kept_for = 2 + 48 * 3600
    assert sweep(done, at(kept_for - 1)) is done
    assert sweep(done, at(kept_for)) is None


def test_an_operation_that_expires_within_its_request_window_leaves_a_tombstone() -> None:
    done = finish(running(retention=HOUR, request_id="r"), at(2), lease=LEASE, outcome=Returned("1"))
    gone = must_stand(sweep(done, at(3602)))
    check_tombstone(gone, NOW + REQUEST_WINDOW)
    assert (gone.state, gone.ended_at, gone.deleted_at) == (State.SUCCEEDED, NOW + 2 * SECOND, NOW + 3602 * SECOND)
    assert sweep(gone, at(86_400)) is None


def test_an_operation_without_an_expiry_is_kept() -> None:
    kept = ended(State.SUCCEEDED, expire_at=None)
    assert sweep(kept, at(10**9)) is kept


@pytest.mark.parametrize("it", [record(retention=HOUR), running(retention=HOUR)], ids=["pending", "running"])
def test_what_has_not_ended_never_expires(it: Record) -> None:
    assert sweep(it, at(10**9)) is it


# the same finish again, same token


HOLDERS: list[tuple[str, Record]] = [
    ("plain", running()),
    ("restartable", running(**RESTARTABLE)),
    ("cancel asked", running(**RESTARTABLE, **CANCEL_ASKED)),
    ("deadline ahead", running(deadline_at=NOW + 10 * SECOND)),
    ("restartable, deadline ahead", running(**RESTARTABLE, deadline_at=NOW + 10 * SECOND)),
    ("deleted", running(deleted_at=NOW + 2 * SECOND)),
]


@pytest.mark.parametrize("later", [3, 2.5, 9.5, 11, 600])
@pytest.mark.parametrize("outcome", OUTCOMES, ids=OUTCOME_IDS)
@pytest.mark.parametrize("held", [held for _, held in HOLDERS], ids=[name for name, _ in HOLDERS])
def test_the_same_finish_again_under_the_same_lease_changes_nothing(
    held: Record, outcome: Outcome, later: float
) -> None:
    done = finish(held, at(3), lease=LEASE, outcome=outcome, progress='{"n":2}')
    again = finish(done, at(later), lease=LEASE, outcome=outcome, progress='{"n":2}')
    assert again is done


def test_a_finish_repeated_after_the_clock_jumped_back_changes_nothing() -> None:
    limited = running(**RESTARTABLE, deadline_at=NOW + 10 * SECOND)
    outcome = Raised(BROKEN, retry_in=SECOND)
    done = finish(limited, at(9.5), lease=LEASE, outcome=outcome)
    assert done.state is State.FAILED
    assert finish(done, at(3), lease=LEASE, outcome=outcome) is done


def test_a_finish_repeated_after_the_operation_was_deleted_changes_nothing() -> None:
    for outcome in OUTCOMES:
        gone = delete(finish(running(), at(3), lease=LEASE, outcome=outcome), at(4))
        assert finish(gone, at(5), lease=LEASE, outcome=outcome) is gone


def test_another_outcome_under_the_same_lease_is_refused() -> None:
    done = finish(running(), at(3), lease=LEASE, outcome=Returned("1"))
    for other in (Returned("2"), Raised(BROKEN), Unwound(StopReason.SHUTDOWN)):
        with pytest.raises(LeaseLost):
            finish(done, at(4), lease=LEASE, outcome=other)


# late writers


WRITES: list[tuple[str, Callable[[Record, Facts, Lease], Record]]] = [
    *(
        (name, lambda it, facts, lease, outcome=outcome: finish(it, facts, lease=lease, outcome=outcome))
        for name, outcome in zip(OUTCOME_IDS, OUTCOMES, strict=True)
    ),
    ("give_back", lambda it, facts, lease: give_back(it, facts, lease=lease)),
    ("save_progress", lambda it, facts, lease: save_progress(it, facts, lease=lease, progress="{}")),
    ("pass_commit_point", lambda it, facts, lease: pass_commit_point(it, facts, lease=lease)),
]


@pytest.mark.parametrize("write", [write for _, write in WRITES], ids=[name for name, _ in WRITES])
@pytest.mark.parametrize(
    "it",
    [record(), record(token=1, attempt=1, **RESTARTABLE), running(), running(token=2), *map(ended, TERMINAL)],
    ids=["never claimed", "released", "held by another", "claimed again", *TERMINAL],
)
def test_a_write_under_an_old_token_is_refused(it: Record, write: Callable[[Record, Facts, Lease], Record]) -> None:
    with pytest.raises(LeaseLost):
        write(it, at(9, expired=True), Lease("worker-1", it.token - 1))


@pytest.mark.parametrize("state", TERMINAL)
def test_the_value_of_a_zombie_does_not_replace_an_end(state: State) -> None:
    with pytest.raises(LeaseLost, match="nothing was written") as caught:
        finish(ended(state), at(9), lease=LEASE, outcome=Returned("late"))
    assert caught.value.metadata == {"name": NAME}


@pytest.mark.parametrize("changes", [{}, RESTARTABLE, CANCEL_ASKED, {"deadline_at": NOW}])
def test_the_value_of_a_worker_that_was_taken_for_dead_is_refused(changes: dict[str, int]) -> None:
    orphan = must_stand(sweep(running(**changes), at(60, expired=True)))
    with pytest.raises(LeaseLost):
        finish(orphan, at(61), lease=LEASE, outcome=Returned("late"))
    with pytest.raises(LeaseLost):
        save_progress(orphan, at(61), lease=LEASE, progress="{}")
    with pytest.raises(LeaseLost):
        give_back(orphan, at(61), lease=LEASE)
    with pytest.raises(LeaseLost):
        pass_commit_point(orphan, at(61), lease=LEASE)


def test_an_attempt_that_lost_its_lease_writes_nothing_even_if_its_token_stands() -> None:
    with pytest.raises(LeaseLost):
        finish(running(), at(3), lease=LEASE, outcome=Unwound(StopReason.LEASE_LOST, forced=True))


def test_what_is_no_outcome_at_all_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        finish(running(), at(3), lease=LEASE, outcome=cast("Outcome", "done"))


def test_progress_is_saved_under_the_lease_even_past_its_expiry() -> None:
    saved = save_progress(running(), at(600, expired=True), lease=LEASE, progress='{"n":1}')
    assert saved == running(version=3, updated_at=NOW + 600 * SECOND, progress='{"n":1}')


# what each write leaves behind


def settled(it: Record) -> Record:
    return must_stand(sweep(it, at(60, expired=True)))


@pytest.mark.parametrize(
    ("before", "write"),
    [
        (record(), lambda it: take(it, at(3))),
        (running(), lambda it: request_cancel(it, at(3))),
        (running(**RESTARTABLE), settled),
        (running(), settled),
        (record(deadline_at=NOW), settled),
        (running(), lambda it: give_back(it, at(3), lease=LEASE)),
        (running(), lambda it: save_progress(it, at(3), lease=LEASE, progress="{}")),
        (running(), lambda it: pass_commit_point(it, at(3), lease=LEASE)),
        *(
            (running(**RESTARTABLE), lambda it, outcome=outcome: finish(it, at(3), lease=LEASE, outcome=outcome))
            for outcome in OUTCOMES
        ),
        (running(), lambda it: delete(it, at(3))),
        (ended(State.FAILED), lambda it: delete(it, at(3))),
        (ended(State.FAILED, expire_at=NOW, request_id="r"), settled),
        (record(), lambda it: request_cancel(it, at(3))),
    ],
)
def test_a_write_counts_the_version_up_by_one(before: Record, write: Callable[[Record], Record]) -> None:
    assert write(before).version == before.version + 1


# states and words


def test_only_pending_and_running_are_not_final() -> None:
    assert {state for state in State if not state.is_terminal} == {State.PENDING, State.RUNNING}


def test_the_stop_reasons_are_those_of_the_design() -> None:
    assert set(StopReason) == {"CANCEL", "DEADLINE", "SHUTDOWN", "LEASE_LOST"}


def test_the_cancel_outcomes_are_those_of_the_design() -> None:
    assert set(CancelOutcome) == {
        "BEFORE_START",
        "ACKNOWLEDGED",
        "FORCED",
        "WORKER_LOST",
        "RETRY_SUPPRESSED",
        "COMPLETED_ANYWAY",
        "FAILED_ANYWAY",
    }


# retry policy


def test_the_wait_doubles_up_to_its_maximum() -> None:
    policy = RetryPolicy()
    waits = [policy.delay(attempt, 1.0).total_seconds() for attempt in range(1, 10)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_the_wait_is_jittered_over_its_whole_length() -> None:
    policy = RetryPolicy(initial_delay=timedelta(seconds=10), multiplier=3)
    assert policy.delay(2, 0.0) == timedelta(0)
    assert policy.delay(2, 0.5) == timedelta(seconds=15)
    assert policy.delay(2, 1.0) == timedelta(seconds=30)


@given(
    attempt=st.integers(1, 10_000),
    jitter=st.floats(0, 1),
    multiplier=st.floats(1, 1000),
    seconds=st.integers(0, 10**6),
    longest=st.integers(0, 10**6),
)
def test_the_wait_is_never_negative_or_longer_than_its_maximum(
    attempt: int, jitter: float, multiplier: float, seconds: int, longest: int
) -> None:
    policy = RetryPolicy(
        initial_delay=timedelta(seconds=seconds), multiplier=multiplier, max_delay=timedelta(seconds=longest)
    )
    assert timedelta(0) <= policy.delay(attempt, jitter) <= timedelta(seconds=longest)
    assert policy.delay(attempt, 1.0) >= policy.delay(attempt, jitter)
    assert policy.delay(attempt + 1, 1.0) >= policy.delay(attempt, 1.0)


def test_a_wait_too_large_for_a_number_is_the_longest_one() -> None:
    assert RetryPolicy(multiplier=1e6).delay(1000, 1.0) == timedelta(seconds=60)


def test_every_exception_is_retried_by_default_and_nothing_beyond() -> None:
    policy = RetryPolicy()
    assert policy.covers(ValueError())
    assert not policy.covers(KeyboardInterrupt())
    assert policy.covers(ExceptionGroup("", [ValueError(), KeyError()]))
    assert not policy.covers(BaseExceptionGroup("", [ValueError(), SystemExit()]))


def test_a_group_is_retried_if_all_its_members_are_at_any_depth() -> None:
    policy = RetryPolicy(retry_on=(OSError,))
    assert policy.covers(TimeoutError())
    assert not policy.covers(ValueError())
    assert policy.covers(ExceptionGroup("", [OSError(), ExceptionGroup("", [TimeoutError()])]))
    assert not policy.covers(ExceptionGroup("", [OSError(), ExceptionGroup("", [ValueError()])]))


def test_a_policy_whose_numbers_make_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attempts=0\): at least 1"):
        RetryPolicy(attempts=0)
    with pytest.raises(ValueError, match="not negative"):
        RetryPolicy(initial_delay=timedelta(seconds=-1))
    with pytest.raises(ValueError, match="not negative"):
        RetryPolicy(max_delay=timedelta(microseconds=-1))
    with pytest.raises(ValueError, match="multiplier is at least 1"):
        RetryPolicy(multiplier=0.99)
    once = RetryPolicy(attempts=1, initial_delay=timedelta(0), max_delay=timedelta(0), multiplier=1)
    assert once.delay(1, 1.0) == timedelta(0)


def test_what_has_expired_is_removed_without_a_request_id_even_if_the_clock_jumped_back_behind_its_start() -> None:
    expired = ended(State.FAILED, request_id=None, created_at=NOW + 2 * HOUR, expire_at=NOW)

    assert sweep(expired, Facts(NOW)) is None


def test_a_claim_leaves_what_has_ended_alone_even_if_it_has_expired() -> None:
    expired = ended(State.FAILED, request_id="r", expire_at=NOW)

    assert claim(expired, Facts(NOW), owner="w", lease_time=HOUR) is expired


def test_a_finish_repeated_after_a_delete_under_a_clock_that_jumped_back_changes_nothing() -> None:
    it = running(**RESTARTABLE, deadline_at=NOW + 10 * SECOND, request_id="1")
    forestalled = Raised(BROKEN, retry_in=6 * SECOND)
    ended_late = finish(it, at(5), lease=LEASE, outcome=forestalled)
    assert ended_late.state is State.FAILED

    hidden = delete(ended_late, at(1))

    assert finish(hidden, at(2), lease=LEASE, outcome=forestalled) is hidden


def test_a_new_operation_has_what_it_is_given_and_else_belongs_to_nobody() -> None:
    bare = start(NOW, name=NAME, job="books.render", retention=HOUR)

    assert (bare.parent, bare.owner, bare.tenant, bare.target) == ("", "", "", "")
    assert (bare.response_type, bare.metadata_type) == ("", "")
    assert (bare.params, bare.progress, bare.request_id, bare.request_digest) == (None, None, None, None)
    given: dict[str, Any] = {  # Any: one type per argument
        "progress": "{}",
        "params": "[]",
        "request_id": "1",
        "request_digest": "d",
        "owner": "ann",
        "tenant": "t",
    }
    full = start(NOW, name=NAME, job="books.render", retention=HOUR, **given)
    assert {field: getattr(full, field) for field in given} == given


def test_a_request_id_counts_to_the_end_of_its_window_and_no_longer() -> None:
    expired = ended(State.FAILED, request_id="r", expire_at=NOW)

    assert sweep(expired, Facts(NOW + REQUEST_WINDOW - 1)) is not None
    assert sweep(expired, Facts(NOW + REQUEST_WINDOW)) is None
