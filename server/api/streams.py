"""Many requests on one stream, answered concurrently.

A bounded number runs at a time and one answer waits to be sent, so flow control slows down a client that writes faster
than the models answer, or reads more slowly. Knows nothing of the content of requests.
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeVar

from tuneserve.server.call import context

Request = TypeVar("Request")
Response = TypeVar("Response")


async def merged(
    requests: AsyncIterable[Request], answers: Callable[[Request], AsyncGenerator[Response, None]], most: int
) -> AsyncGenerator[Response, None]:
    """Yields the answers that `answers` gives for each request, as they come. At most `most` requests run, each in a
    task.
    """
    ready: asyncio.Queue[Response | Exception | None] = asyncio.Queue(1)
    places = asyncio.Semaphore(most)

    async def answer(request: Request) -> None:
        try:
            async with aclosing(answers(request)) as responses:
                async for response in responses:
                    await ready.put(response)
        finally:
            places.release()

    async def read() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    await places.acquire()
                    # It waits for its turn as if it were a call of its own.
                    await context.current().enter()
                    group.create_task(answer(request))
        except Exception as error:
            await ready.put(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
        else:
            await ready.put(None)

    reading = asyncio.create_task(read())
    try:
        while (response := await ready.get()) is not None:
            if isinstance(response, Exception):
                raise response
            yield response
    finally:
        reading.cancel()
        await asyncio.wait((reading,))


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
