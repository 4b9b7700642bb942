"""Answers that are on their way out: how many bytes of them gRPC may hold, so that a client that reads nothing costs
bounded memory.

gRPC takes an answer and keeps it until the client makes room for it; it gives none back, and a call of one answer is
over for us before that. So what would be too much is not given to it.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.call.shares import Context, Shares, caller

# Bytes of one message: gRPC refuses larger ones, in words of its own and behind our back. As many are written in less
# than a tenth of a second.
LARGEST = 32 << 20
# Bytes that gRPC puts before each message, also before an empty one.
_HEADER = 5


def check_size(size: int) -> None:
    """Raises InvalidInput for an answer of too many bytes."""
    if size > LARGEST:
        raise InvalidInput("request", f"has an answer of {size} bytes; allowed: {LARGEST}; ask for less")


class Departures:
    """What gRPC was given and clients have not read."""

    def __init__(self, rejected: Callable[[], object] = lambda: None) -> None:
        """`rejected` is told of each answer, or call, that is turned away."""
        self.shares = Shares(256 << 20, 32 << 20, "answers wait to be read", "UNREAD", rejected)

    def check(self, context: Context) -> None:
        """Raises Overloaded for a caller that has too much to read already: before there is more."""
        self.shares.check(caller(context))

    def until_done(self, size: int, context: Context) -> None:
        """Counts a call's only answer, of so many bytes, until gRPC is through with it. Raises as Unread.add does."""
        unread = self.of(context)
        unread.remove_when_done(unread.add(size))

    def of(self, context: Context) -> "Unread":
        """Returns what counts the messages of one call."""
        return Unread(self.shares, context)


class Unread:
    """The messages of one call that gRPC has and its client has not read."""

    def __init__(self, shares: Shares, context: Any) -> None:
        self._shares = shares
        self._context = context
        self._caller = caller(context)

    def add(self, size: int) -> int:
        """Counts a message of so many bytes. Returns what to remove when it was read.

        Raises Overloaded, and InvalidInput for a call that asks for too much.
        """
        check_size(size)
        self._shares.add(self._caller, size + _HEADER)
        return size + _HEADER

    def remove(self, size: int) -> None:
        """A message was read."""
        self._shares.remove(self._caller, size)

    def remove_when_done(self, size: int) -> None:
        """A message is gRPC's as long as its call is there."""
        _when_done(self._context, partial(self._shares.remove, self._caller, size))


def _when_done(_: Context, work: Callable[[], object]) -> None:
    # Not by the call's own list: gRPC would keep the call there, and both would wait for the collector.
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda _: work())
