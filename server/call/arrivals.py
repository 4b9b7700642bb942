"""Requests that are on their way in: how long one may take, and how many may take long, so that memory is bounded.

gRPC keeps what it has of a message until it is whole, looks at its size only then, and has no limit of its own in time
or number. It begins to take a message in when it is asked for it: we ask once the caller is known. Most are there
already. What is sent too fast for all this is ended when memory runs short, before the system ends the whole server.
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

# What takes longer than this, on a loaded machine too, is one of the few that may.
_SOON_SECONDS = 0.25
# A caller that cancels at once and one that sends nothing look the same, until its cancellation is here.
_CANCELLED_SECONDS = 1.0
_KEPT_BYTES = 256 << 20


@dataclass(eq=False)
class _Place:
    """Of one request."""

    limit: asyncio.Timeout
    why: str  # it ends, if it does

    def end(self, why: str) -> None:
        self.why = why
        self.limit.reschedule(asyncio.get_running_loop().time())


class Arrivals:
    """At most `most` that take long, each for at most `seconds`. One more ends the one that has taken longest: what is
    sent as fast as it can be gets in, whoever holds the places.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._slow: dict[_Place, None] = {}
        self._streams: dict[_Place, None] = {}

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
        """Around a call that sends one message after the other, when it likes. Raises Unavailable to end it."""
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
        """Whether there is something that `end_all` would end."""
        return bool(self._slow or self._streams)

    def _takes_long(self, place: _Place) -> None:
        self._slow[place] = None
        place.limit.reschedule(asyncio.get_running_loop().time() + self._seconds)
        if len(self._slow) > self._most:
            oldest = next(iter(self._slow))
            del self._slow[oldest]
            oldest.end("the request took long to arrive, and too many others did")

    def end_all(self, why: str) -> int:
        """Ends all that take long, and streams; returns how many there were."""
        places = [*self._slow, *self._streams]
        self._slow.clear()
        self._streams.clear()
        for place in places:
            place.end(why)
        return len(places)


async def guard(arrivals: Sequence[Arrivals], free: Callable[[], int]) -> None:
    """Ends what is on its way whenever memory is short. `free` returns how many bytes are left. Does not return."""
    while True:
        await asyncio.sleep(_SOON_SECONDS)
        if any(one.under_way for one in arrivals) and free() < _KEPT_BYTES:
            ended = sum(one.end_all("the server's memory is short") for one in arrivals)
            logger.error("memory is short: %d calls were ended whose requests were on their way", ended)
