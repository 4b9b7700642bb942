"""Requests that are on their way in: how long one may take, and how many may take long, so that memory is bounded.

gRPC keeps what it has of a message until it is whole, checks its size only then, and has no limit of its own in time or
number. It begins to take a message in when it is asked for it: we ask once the caller is known. Most are there already.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tuneserve.server.errors import InvalidInput, Unavailable

# What takes longer than this, on a loaded machine too, is one of the few that may.
_SOON_SECONDS = 0.25
# A caller that cancels at once and one that sends nothing look the same, until its cancellation is here.
_CANCELLED_SECONDS = 1.0


class Arrivals:
    """At most `most` that take long, each for at most `seconds`. One more ends the one that has taken longest: what is
    sent as fast as it can be gets in, whoever holds the places.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._slow: dict[asyncio.Timeout, None] = {}

    async def read(self, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        """Returns the only message of a call. Raises Unavailable when it takes too long, InvalidInput without one."""
        async with self.place():
            message = await context.read()
        if message is grpc.aio.EOF:
            await asyncio.sleep(_CANCELLED_SECONDS)
            raise InvalidInput("request", "there is no message")
        return message

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Around what may take long. Raises Unavailable when it takes too long."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:
                later = loop.call_later(_SOON_SECONDS, self._takes_long, limit, loop)
                try:
                    yield
                finally:
                    later.cancel()
                    self._slow.pop(limit, None)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Unavailable(
                f"the request did not arrive within {self._seconds:g} s, or too many others were as slow"
            ) from None

    def _takes_long(self, limit: asyncio.Timeout, loop: asyncio.AbstractEventLoop) -> None:
        self._slow[limit] = None
        limit.reschedule(loop.time() + self._seconds)
        if len(self._slow) > self._most:
            oldest = next(iter(self._slow))
            del self._slow[oldest]
            oldest.reschedule(loop.time())
