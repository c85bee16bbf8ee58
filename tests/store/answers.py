"""The answer to one request, for tests of what answers it."""

from typing import TypeVar

import anyio

from lro.store.queue import Request

T = TypeVar("T")


async def answer_to(request: Request[T]) -> T:
    """Release a request that nobody serves any more, and return its answer."""
    request.release()
    with anyio.fail_after(5):
        return await request.wait()
