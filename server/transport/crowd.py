"""Calls that come faster than they can be begun: those whose connections are closed by now are left out.

A client can send hundreds of calls in some kilobytes, close its connection and make another one, and gRPC hands over
all of these calls, one by one. To answer each of them takes several times as long as to see that nobody waits for it.
"""

import asyncio
import ctypes
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tuneserve.server import concurrency
from tuneserve.server.transport import peers

# More calls than this, in so many seconds, are a crowd: more than a server can answer in that time.
_MANY, _SECONDS = 1000, 0.25
# Between two listings of the connections, each of which takes some milliseconds.
_PAUSE_SECONDS = 0.025
# How many are begun before others have their turn on the event loop.
_AT_ONCE = 64
# After so many calls were left out, memory is given back to the system: gRPC takes some ten kilobytes for each.
_MUCH = 1 << 13
# Peers whose names are the same for gRPC and for Linux. Others, such as Unix sockets, may be open though not listed.
_COMPARABLE = re.compile(r"ipv4:[\d.]+:\d+|ipv6:%5B[\da-f:]+%5D:\d+")


class Crowd:
    """The calls of one port that wait here."""

    def __init__(self, begin: Callable[[Any], object], leave_out: Callable[[str], object]) -> None:
        """`begin` is called with each call whose connection is open, `leave_out` with each of the others."""
        self.port = 0  # once it is known; until then nothing is left out
        self._begin = begin
        self._leave_out = leave_out
        self._since, self._count = 0.0, 0
        self._waiting: list[tuple[str, Any]] = []
        self._sorting: asyncio.Task[None] | None = None

    def takes(self, peer: str, call: Any) -> bool:
        """Whether this call waits here, because so many come."""
        now = time.monotonic()
        if now - self._since > _SECONDS:
            self._since, self._count = now, 0
        self._count += 1
        if self._count <= _MANY and not self._waiting:
            return False
        self._waiting.append((peer, call))
        if not self._sorting:
            self._sorting = asyncio.create_task(self._sort())
        return True

    def close(self) -> None:
        """Drops the calls that wait."""
        if self._sorting:
            self._sorting.cancel()

    async def _sort(self) -> None:
        left_out = 0
        try:
            while self._waiting:
                calls, self._waiting = self._waiting, []
                # After all of them came: a connection that is not there now is closed.
                connected = await self._connected()
                calls.reverse()
                while calls:
                    # Taken out one by one, since it takes gRPC some microseconds to delete a call.
                    peer, call = calls.pop()
                    if connected is None or peer in connected or not _COMPARABLE.fullmatch(peer):
                        self._begin(call)
                    else:
                        left_out += 1
                        self._leave_out(peer)
                    del call
                    if len(calls) % _AT_ONCE == 0:
                        await asyncio.sleep(0)
                await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            self._sorting = None
        # Only now, because calls that come meanwhile must not wait for it.
        if left_out > _MUCH:
            await concurrency.apart(_give_back)

    async def _connected(self) -> dict[str, peers.File] | None:
        if not self.port:
            return None
        try:
            return await concurrency.apart(peers.connected, self.port)
        except (OSError, RuntimeError):
            return None  # no file or thread is left to look with


def _give_back() -> None:
    # Of glibc. Other allocators give memory back by themselves.
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
