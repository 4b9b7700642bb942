"""Many requests on one stream, answered concurrently.

A bounded number runs at a time and one answer waits to be sent, so flow control slows down a client that writes faster
than the models answer, or reads more slowly. While answers are being sent, new requests that are alike gather, and go
through their model as one call: most of what a small text costs, a call of many texts pays once. Knows nothing of the
content of requests.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from tuneserve.server import concurrency
from tuneserve.server.call import context, failures
from tuneserve.server.call.errors import DeadlinePassed, Overloaded, Unavailable
from tuneserve.server.call.wire import Received
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.v1 import classification_pb2 as pb

# Requests that are answered together. Of more, a request costs hardly less, and the engine would wait for them.
TOGETHER = 16
# Bytes of a request that may be answered together with others: a long text costs its model more than it costs us.
SMALL = 1 << 12
# Errors that each of several requests would have met alone: none of them is to blame, and all have waited already.
_COMMON = DeadlinePassed, Unavailable, EngineFailed

Request = TypeVar("Request")
Response = TypeVar("Response")


def answered(
    requests: AsyncIterable[Request],
    answers: Callable[[Sequence[Request]], AsyncGenerator[Response, None]],
    most: int,
    alike: Callable[[Request], Hashable] = lambda request: None,
) -> AsyncGenerator[Response, None]:
    """Yields the answers that `answers` gives for each request, as they come. At most `most` requests run.

    A request begins as soon as it comes, in a task of its own. But while answers are being sent, those for which
    `alike` returns the same wait, and are given to `answers` together: it gives one answer for each of several. Not
    those for which it returns None.
    """
    return concurrency.produced(_Stream(requests, answers, most, alike).produce)


class _Stream(Generic[Request, Response]):
    """The requests of a stream that run, and those that gather. Not closures that call each other, which would be left
    for the garbage collector.
    """

    def __init__(
        self,
        requests: AsyncIterable[Request],
        answers: Callable[[Sequence[Request]], AsyncGenerator[Response, None]],
        most: int,
        alike: Callable[[Request], Hashable],
    ) -> None:
        self._requests = requests
        self._answers = answers
        self._alike = alike
        self._places = asyncio.Semaphore(most)
        self._gathered: dict[Hashable, list[Request]] = {}
        self._sending = 0  # tasks that have answers
        self._running = asyncio.TaskGroup()

    async def produce(self, put: concurrency.Put[Response]) -> None:
        async with self._running:
            async for request in self._requests:
                await self._places.acquire()
                kind = self._alike(request)
                if kind is None or not self._sending:
                    await self._begin([request], put)
                    continue
                some = self._gathered.setdefault(kind, [])
                some.append(request)
                if len(some) == TOGETHER:
                    await self._begin(self._gathered.pop(kind), put)

    async def _begin(self, some: Sequence[Request], put: concurrency.Put[Response]) -> None:
        # They wait for their turn as if they were a call of their own.
        await context.current().enter()
        self._running.create_task(self._answer(some, put))

    async def _answer(self, some: Sequence[Request], put: concurrency.Put[Response]) -> None:
        left, is_sending = len(some), 0
        try:
            async with aclosing(self._answers(some)) as answers:
                async for one in answers:
                    self._sending, is_sending = self._sending + 1 - is_sending, 1
                    await put(one)
                    if left > 1:
                        left -= 1
                        self._places.release()
        finally:
            self._sending -= is_sending
            for _ in range(left):
                self._places.release()
        while self._gathered and not self._sending:
            await self._begin(self._gathered.pop(next(iter(self._gathered))), put)


async def outcomes(
    some: Sequence[Received],
    one: Callable[[Any], Awaitable[Response]],
    together: Callable[[Sequence[Any]], Awaitable[Sequence[Response]]],
) -> list[Response | pb.Error]:
    """Answers requests of a stream as calls of their own. Returns why one failed, if it does.

    Several are given to `together`, which answers all of them or fails. If it fails because of some of them, or there
    is no room for all, each half is tried, down to those that are given to `one`: a request never ends otherwise
    because of others.
    """
    refused = {index: refusal for index in range(len(some)) if (refusal := _refusal())}
    admitted = [received for index, received in enumerate(some) if index not in refused]
    found = iter(await _outcomes(admitted, one, together) if admitted else ())
    return [refused[index] if index in refused else next(found) for index in range(len(some))]


async def _outcomes(
    some: Sequence[Received],
    one: Callable[[Any], Awaitable[Response]],
    together: Callable[[Sequence[Any]], Awaitable[Sequence[Response]]],
) -> Sequence[Response | pb.Error]:
    with part() as call:
        call.requests = len(some)
        try:
            call.hold(sum(received.size for received in some))
            if len(some) == 1:
                return [await one(some[0].message)]
            return await together([received.message for received in some])
        except Exception as error:
            is_common = isinstance(error, Overloaded) and error.reason == "QUEUE_WAIT"
            if len(some) == 1 or is_common or isinstance(error, _COMMON):
                return [_told(error, call)] * len(some)
    half = len(some) // 2
    first = await _outcomes(some[:half], one, together)
    return [*first, *await _outcomes(some[half:], one, together)]


def _refusal() -> pb.Error | None:
    """Counts a request against its caller's quota. Returns why it is refused, if it is."""
    call = context.current()
    try:
        call.admit()
    except Exception as error:
        return _told(error, call)
    return None


def _told(error: Exception, call: context.Call) -> pb.Error:
    status = failures.status(error, call)
    return pb.Error(code=status.code, message=status.message, details=status.details)


@contextmanager
def part() -> Iterator[context.Call]:
    """Makes one request of a stream a call of its own, for its own task; its cost is added to the whole stream's.

    It has its own model, deadline and stages.
    """
    whole = context.current()
    call = replace(whole, asked="", prompt_tokens=0, completion_tokens=0, stages=[])
    context.begin(call)
    try:
        with whole.holding() as call.hold:
            yield call
    finally:
        context.begin(whole)
        whole.model, whole.version = call.model, call.version
        whole.prompt_tokens += call.prompt_tokens
        whole.completion_tokens += call.completion_tokens
