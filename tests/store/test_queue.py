"""The queue: callers hand in requests, one task serves them in batches."""

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from lro.errors import StoreClosed, Unavailable
from lro.store import queue as room
from lro.store.queue import Queue, Request
from tests.store.answers import answer_to


class Ask(Request[str]):
    """A request for the queue."""

    __slots__ = ("word",)

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word


async def _serve(queue: "Queue[Ask]", *words: str) -> list[str | BaseException]:
    """Put words into the queue at once, and return each answer."""
    answers: dict[int, str | BaseException] = {}

    async def ask(number: int, word: str) -> None:
        try:
            answers[number] = await queue.put(Ask(word)).wait()
        except Exception as error:
            answers[number] = error

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for number, word in enumerate(words):
                group.start_soon(ask, number, word)
    return [answers[number] for number in range(len(words))]


async def test_a_queue_serves_in_order_and_in_batches_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BATCH_LIMIT", 3)
    batches: list[str] = []

    async def serve(batch: Sequence[Ask]) -> None:
        await anyio.lowlevel.checkpoint()
        batches.append("".join(request.word for request in batch))
        for request in batch:
            request.answer(request.word.upper())

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        await anyio.lowlevel.checkpoint()
        assert await _serve(queue, *"abcdefgh") == list("ABCDEFGH")
        assert await _serve(queue, "i") == ["I"]
        await queue.close(5)
    assert batches == ["abc", "def", "gh", "i"]


async def test_a_queue_that_is_not_open_takes_nothing() -> None:
    async def serve(_: Sequence[Ask]) -> None:
        pytest.fail("there is nothing to serve")

    queue: Queue[Ask] = Queue(serve, "word")
    with pytest.raises(StoreClosed):
        queue.put(Ask("a"))
    queue.open()
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        await queue.close(5)
    with pytest.raises(StoreClosed):
        queue.put(Ask("a"))


async def test_what_was_queued_before_the_close_is_served() -> None:
    async def serve(batch: Sequence[Ask]) -> None:
        for request in batch:
            request.answer("served")

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    request = queue.put(Ask("a"))
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        await queue.close(5)
    assert await answer_to(request) == "served"


async def test_what_nobody_serves_is_refused_by_the_close() -> None:
    async def serve(_: Sequence[Ask]) -> None:
        pytest.fail("nothing runs the queue")

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    request = queue.put(Ask("a"))
    with anyio.fail_after(5):
        await queue.close(0.01)
        with pytest.raises(StoreClosed):
            await request.wait()


async def test_a_failure_refuses_the_batch_and_comes_out() -> None:
    async def serve(_: Sequence[Ask]) -> None:
        raise ZeroDivisionError

    queue: Queue[Ask] = Queue(serve, "write to x.db")
    queue.open()
    requests = [queue.put(Ask(word)) for word in "ab"]
    with anyio.fail_after(5), pytest.raises(ZeroDivisionError):
        await queue.run()
    errors: list[BaseException] = []
    for request in requests:
        with pytest.raises(Unavailable, match=r"The write to x\.db failed: its outcome is unknown") as raised:
            await answer_to(request)
        assert raised.value.reason == "OUTCOME_UNKNOWN"
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        errors.append(raised.value)
    assert errors[0] is not errors[1]


async def test_an_error_of_the_library_refuses_the_batch_and_the_queue_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def serve(batch: Sequence[Ask]) -> None:
        if batch[0].word == "bad":
            raise Unavailable("the disk is full", reason="FULL", inside="x.db")
        for request in batch:
            request.answer(request.word)

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        refused = await _serve(queue, "bad", "b")
        assert [(type(error), str(error)) for error in refused] == [(Unavailable, "the disk is full (x.db)")] * 2
        assert {error.reason for error in refused if isinstance(error, Unavailable)} == {"FULL"}
        assert [line.getMessage() for line in caplog.records] == ["the disk is full (x.db)"]
        assert await _serve(queue, "good") == ["good"]
        await queue.close(5)


async def test_a_request_that_was_forgotten_is_refused() -> None:
    async def serve(batch: Sequence[Ask]) -> None:
        batch[0].answer("served")

    queue: Queue[Ask] = Queue(serve, "word")
    queue.open()
    requests = [queue.put(Ask(word)) for word in "ab"]
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        await queue.close(5)
    assert await answer_to(requests[0]) == "served"
    with pytest.raises(Unavailable, match="unknown"):
        await answer_to(requests[1])


async def test_an_answer_that_was_taken_back_is_given_anew() -> None:
    request = Ask("a")
    request.answer("first")
    request.reset()
    assert not request.answered
    request.refuse(ValueError("x"))
    request.answer("second")
    request.release()
    assert await answer_to(request) == "second"
