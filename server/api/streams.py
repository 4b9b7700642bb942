"""Many requests on one stream, answered concurrently.

A bounded number runs at a time and one answer waits to be sent, so flow control slows down a client that writes faster
than the models answer, or reads more slowly. Knows nothing of the content of requests.
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tuneserve.server.call import context, failures
from tuneserve.server.call.wire import Received
from tuneserve.server.concurrency import Put, passed_on, produced
from tuneserve.v1 import classification_pb2 as pb

Request = TypeVar("Request")
Response = TypeVar("Response")


def answered(
    requests: AsyncIterable[Request], answers: Callable[[Request], AsyncGenerator[Response, None]], most: int
) -> AsyncGenerator[Response, None]:
    """Yields the answers that `answers` gives for each request, as they come. At most `most` requests run, each in a
    task.
    """
    places = asyncio.Semaphore(most)

    async def answer(request: Request, put: Put[Response]) -> None:
        try:
            await passed_on(answers(request), put)
        finally:
            places.release()

    async def produce(put: Put[Response]) -> None:
        async with asyncio.TaskGroup() as group:
            async for request in requests:
                await places.acquire()
                # It waits for its turn as if it were a call of its own.
                await context.current().enter()
                group.create_task(answer(request, put))

    return produced(produce)


async def outcome(received: Received, answer: Callable[[Any], Awaitable[Response]]) -> Response | pb.Error:
    """Answers one request of a stream as a call of its own. Returns why it failed, if it does."""
    with part() as call:
        try:
            call.admit()
            call.hold(received.size)
            return await answer(received.message)
        except Exception as error:
            status = failures.status(error, call)
            return pb.Error(code=status.code, message=status.message, details=status.details)


@contextmanager
def part() -> Iterator[context.Call]:
    """Makes one request of a stream a call of its own, for its own task; its cost is added to the whole stream's.

    It has its own model, deadline and stages.
    """
    whole = context.current()
    call = dataclasses.replace(whole, asked="", prompt_tokens=0, completion_tokens=0, stages=[])
    context.begin(call)
    try:
        with whole.holding() as call.hold:
            yield call
    finally:
        whole.model, whole.version = call.model, call.version
        whole.prompt_tokens += call.prompt_tokens
        whole.completion_tokens += call.completion_tokens
