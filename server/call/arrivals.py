"""Incoming requests: how long one may take to arrive, and how many may be slow at once, so that memory is bounded.

gRPC buffers a message until it is complete, checks its size only then, and has no limit on how long that takes or on
how many messages it buffers. It starts to receive a message when the server asks for it: we ask once the caller is
known. Most messages have arrived by then. If messages arrive too fast for these limits, they are ended when memory runs
short, before the system kills the whole server.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from tuneserve.server.call.errors import InvalidInput, Unavailable

logger = logging.getLogger(__name__)

# A request that takes longer than this to arrive, even on a loaded machine, counts as slow; few may be slow at once.
_SOON_SECONDS = 0.25
# A caller that cancels at once looks like one that sends nothing, until its cancellation arrives.
_CANCELLED_SECONDS = 1.0
_KEPT_BYTES = 256 << 20


@dataclass(eq=False)
class _Place:
    """The place of one request."""

    limit: asyncio.Timeout
    why: str  # the reason, if the request is ended

    def end(self, why: str) -> None:
        self.why = why
        self.limit.reschedule(asyncio.get_running_loop().time())


class Arrivals:
    """At most `most` slow requests at once, each for at most `seconds`. One more ends the oldest of them, so
    slow requests never keep out those that are sent at full speed.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._slow: dict[_Place, None] = {}
        self._streams: dict[_Place, None] = {}

    async def read(self, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        """Returns a call's only message. Raises Unavailable if it takes too long, InvalidInput if there is none."""
        async with self.place():
            message = await context.read()
        if message is grpc.aio.EOF:
            await asyncio.sleep(_CANCELLED_SECONDS)
            raise InvalidInput("request", "there is no message")
        return message

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wraps work that may be slow. Raises Unavailable if it takes too long."""
        place = _Place(asyncio.timeout(None), f"the request did not arrive within {self._seconds:g} s")
        try:
            async with place.limit:
                later = asyncio.get_running_loop().call_later(_SOON_SECONDS, self._takes_long, place)
                try:
                    yield
                finally:
                    later.cancel()
                    self._slow.pop(place, None)
        except TimeoutError:
            if not place.limit.expired():
                raise
            raise Unavailable(place.why) from None

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """Wraps a call whose client sends messages one by one, at any time. Raises Unavailable to end it."""
        place = _Place(asyncio.timeout(None), "")
        self._streams[place] = None
        try:
            async with place.limit:
                yield
        except TimeoutError:
            if not place.limit.expired():
                raise
            raise Unavailable(place.why) from None
        finally:
            self._streams.pop(place, None)

    @property
    def under_way(self) -> bool:
        """Whether there is anything for `end_all` to end."""
        return bool(self._slow or self._streams)

    def _takes_long(self, place: _Place) -> None:
        self._slow[place] = None
        place.limit.reschedule(asyncio.get_running_loop().time() + self._seconds)
        if len(self._slow) > self._most:
            oldest = next(iter(self._slow))
            del self._slow[oldest]
            oldest.end("the request took long to arrive, and too many others did")

    def end_all(self, why: str) -> int:
        """Ends all slow requests and all streams; returns how many there were."""
        places = [*self._slow, *self._streams]
        self._slow.clear()
        self._streams.clear()
        for place in places:
            place.end(why)
        return len(places)


async def guard(arrivals: Sequence[Arrivals], free: Callable[[], int]) -> None:
    """Ends incoming requests whenever memory is short. `free` returns how many bytes are free. Does not return."""
    while True:
        await asyncio.sleep(_SOON_SECONDS)
        if any(one.under_way for one in arrivals) and free() < _KEPT_BYTES:
            ended = sum(one.end_all("the server's memory is short") for one in arrivals)
            logger.error("memory is short: %d calls were ended while their requests arrived", ended)
