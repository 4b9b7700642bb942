"""An event loop that gRPC can always wake up.

A gRPC thread puts events for the loop into a queue, and for each event writes a byte to a socket that the loop reads.
The loop reads one byte an iteration, though it handles all queued events then. On Linux the socket has room for some
270 bytes: once it is full, the thread blocks, and the loop gets only one event an iteration, for all ports together.
Calls are then accepted one by one, tens of milliseconds apart, whoever makes them. So this loop first reads all bytes
but the last. (grpcio 1.81, `completion_queue.pyx.pxi`.)

If that fails, a byte is written again, because events may be left in the queue: all event loops of a process read the
same socket, and another one may have taken the last byte; and gRPC stops at an event whose own loop is closed.
"""

import asyncio
import gc
import socket
from collections.abc import Callable
from typing import Any

_HANDLER = "_handle_events"
# Bytes that are read at once; the rest are read in the next iteration.
_MOST = 1 << 10


class Loop(asyncio.SelectorEventLoop):
    """asyncio's own event loop, except for gRPC's socket."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *arguments: Any) -> None:  # type: ignore[override]
        """See asyncio's loop.add_reader."""
        if isinstance(fd, socket.socket) and (other := _other_end(fd, callback)):
            arguments, callback = (fd, other, bytearray(_MOST), callback, *arguments), _all_but_one
        super().add_reader(fd, callback, *arguments)


def _other_end(waked: socket.socket, callback: Any) -> socket.socket | None:
    """Returns the socket that gRPC's thread writes to, if the callback is gRPC's."""
    handler = getattr(callback, "func", callback)  # it may be partial
    if getattr(handler, "__name__", "") != _HANDLER:
        return None
    found = [one for one in gc.get_referents(handler.__self__) if isinstance(one, socket.socket) and one is not waked]
    return found[0] if len(found) == 1 else None


def _all_but_one(
    waked: socket.socket, other: socket.socket, room: bytearray, callback: Callable[..., Any], *arguments: Any
) -> None:
    # Each event is queued before its byte is written, so the bytes read here belong to events that are queued already.
    try:
        if (waiting := waked.recv_into(room, 0, socket.MSG_PEEK)) > 1:
            waked.recv_into(room, waiting - 1)
        callback(*arguments)
    except BlockingIOError:
        # Another loop has read the last byte, maybe before an event was queued whose byte was read here.
        other.send(b"1")
    except BaseException:
        other.send(b"1")
        raise
