"""Writes the messages of one stream to a client that may not read them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tuneserve.server.call.departures import Departures
from tuneserve.server.call.errors import Unavailable
from tuneserve.server.call.shares import Context


class Writer:
    """Writes a stream's messages. Must be closed with its stream."""

    def __init__(
        self,
        context: Context,
        departures: Departures,
        stall_seconds: float,
        end: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        """`end` is called to end the stream's work if its client reads nothing for `stall_seconds`."""
        self._context = context
        self._unread = departures.of(context)
        self._seconds = stall_seconds
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None  # when the message that now waits was written
        # One timer for many messages: most messages are read at once.
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """Writes a message, and waits until there is room for the next.

        If the client reads nothing for too long, the stream's work is ended at once. The call itself ends when the
        client has read after all, or is gone: until then gRPC holds the message. Raises Unavailable then.
        """
        size = self._unread.add(len(data))
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)
        try:
            await self._context.write(data)
        except BaseException:
            self._unread.remove_when_done(size)
            raise
        else:
            self._unread.remove(size)
        finally:
            self._since = None
            if self._ending:
                await self._ending
        if self._ending:
            raise Unavailable(f"the client read nothing for {self._seconds:g} s")

    def close(self) -> None:
        """Stops watching the client."""
        if self._timer:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        late = self._since + self._seconds
        if self._loop.time() >= late:
            self._ending = self._loop.create_task(self._end())
        else:
            self._timer = self._loop.call_at(late, self._look)
