"""An event loop that gRPC can always wake up.

A thread of gRPC's hands events to the loop by a queue, and for each writes a byte to a socket that the loop reads. The
loop takes one byte each time it comes round, though it handles all events then. The socket has room for some 270 bytes
on Linux: once it is full, that thread waits, and the loop gets one event each time it comes round, of all ports
together. Calls are then taken in one by one, tens of milliseconds apart, whoever makes them. So all bytes but the last
are taken before. (grpcio 1.81, `completion_queue.pyx.pxi`.)
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

_HANDLER = "_handle_events"
# Bytes that are looked for at once; what is beyond is there the next time.
_MOST = 1 << 10


class Loop(asyncio.SelectorEventLoop):
    """asyncio's own, but for gRPC's socket."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *arguments: Any) -> None:  # type: ignore[override]
        """See asyncio's loop.add_reader."""
        if isinstance(fd, socket.socket) and _HANDLER in repr(callback):
            arguments, callback = (fd, bytearray(_MOST), callback, *arguments), _all_but_one
        super().add_reader(fd, callback, *arguments)


def _all_but_one(waked: socket.socket, room: bytearray, callback: Callable[..., Any], *arguments: Any) -> None:
    # Each event is in the queue before its byte is written, so no byte that is taken here is of an event to come.
    try:
        waiting = waked.recv_into(room, 0, socket.MSG_PEEK)
    except BlockingIOError:
        waiting = 0
    if waiting > 1:
        waked.recv_into(room, waiting - 1)
    callback(*arguments)
