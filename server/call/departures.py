"""Outgoing answers: how many bytes of them gRPC may hold, so that a client that reads nothing costs bounded memory.

gRPC takes an answer and keeps it until the client has room for it. It never hands an answer back, and for us a unary
call is over before that. So an answer that would exceed the limit is not handed to gRPC.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.call.shares import Context, Shares, caller

# Bytes of one message: gRPC refuses larger ones with an error of its own, which we never see. This many bytes are
# written in less than a tenth of a second.
LARGEST = 32 << 20
# Bytes that gRPC puts before each message, even an empty one.
_HEADER = 5


def check_size(size: int) -> None:
    """Raises InvalidInput for an answer of too many bytes."""
    if size > LARGEST:
        raise InvalidInput("request", f"has an answer of {size} bytes; allowed: {LARGEST}; ask for less")


class Departures:
    """Answers that were handed to gRPC and that clients have not read."""

    def __init__(self, rejected: Callable[[], object] = lambda: None) -> None:
        """`rejected` is called for each answer or call that is rejected."""
        self.shares = Shares(256 << 20, 32 << 20, "answers wait to be read", "UNREAD", rejected)

    def check(self, context: Context) -> None:
        """Raises Overloaded if the caller has too many unread bytes already, before the call makes more."""
        self.shares.check(caller(context))

    def until_done(self, size: int, context: Context) -> None:
        """Counts a call's only answer, of `size` bytes, until gRPC is done with it. Raises as Unread.add does."""
        unread = self.of(context)
        unread.remove_when_done(unread.add(size))

    def of(self, context: Context) -> "Unread":
        """Returns the counter of one call's messages."""
        return Unread(self.shares, context)


class Unread:
    """The messages of one call that gRPC holds and the client has not read."""

    def __init__(self, shares: Shares, context: Any) -> None:
        self._shares = shares
        self._context = context
        self._caller = caller(context)

    def add(self, size: int) -> int:
        """Counts a message of `size` bytes. Returns how many bytes to remove when it has been read.

        Raises Overloaded, and InvalidInput for a message that is too large.
        """
        check_size(size)
        self._shares.add(self._caller, size + _HEADER)
        return size + _HEADER

    def remove(self, size: int) -> None:
        """A message was read."""
        self._shares.remove(self._caller, size)

    def remove_when_done(self, size: int) -> None:
        """Counts a message until its call ends: gRPC may hold it until then."""
        _when_done(self._context, partial(self._shares.remove, self._caller, size))


def _when_done(_: Context, work: Callable[[], object]) -> None:
    # Not with the call's own done callbacks: gRPC would make a reference cycle, which only the garbage collector frees.
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda _: work())
