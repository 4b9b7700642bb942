"""Limits connections without a valid API key: how many there are, and how many calls each of them makes.

Every call costs gRPC about 0.1 ms and some kilobytes, even if it is refused, and a client sends one in fifteen bytes.
So connections beyond the limits are closed. A connection that was ever authenticated is never closed, because a proxy
may put calls of many clients on it.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tuneserve.server.call.quota import Bucket

# Calls at once, and a second: of one connection, and of all connections of an address. Probes need one now and then.
_CONNECTION = (64, 8.0)
_ADDRESS = (512, 64.0)
# Connections, and how often they are counted.
_MOST_CONNECTIONS = 128
_COUNT_SECONDS = 1.0
# A client sends its key with its first call, and a busy server may look at that call late.
_FIRST_CALL_SECONDS = 10.0
# After this time, no call of a closed connection waits any more.
_FORGET_SECONDS = 60.0


class Strangers:
    """The connections of one port. Peers are named as gRPC does: ipv4:127.0.0.1:4711, or ipv6:%5B::1%5D:4711."""

    def __init__(self, closed: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        """`closed` is told of each connection that is."""
        self.port = 0  # that they come to, once it is known
        self._tell = closed
        self._clock = clock
        self._known: set[str] = set()
        self._closed: dict[str, float] = {}  # and when: calls of theirs still come
        self._connections: dict[str, Bucket] = {}
        self._addresses: dict[str, Bucket] = {}
        self._files: dict[str, int] = {}  # by peer, in the order of their coming, as they were when last looked at
        self._since: dict[str, float] = {}  # when these were first seen

    def authenticated(self, peer: str) -> None:
        """A call on a connection showed a key."""
        self._known.add(peer)
        # The port is in use again: an earlier connection from this port was closed.
        self._closed.pop(peer, None)

    def has_closed(self, peer: str) -> bool:
        """Whether a connection was closed."""
        return peer in self._closed

    def may_ask(self, peer: str) -> bool:
        """Counts a call without a key. The first one of a connection always may; where one may not, the connection is
        closed.
        """
        if peer in self._closed:
            return False
        if peer in self._known:
            return True
        now, is_first = round(self._clock() * 1e9), peer not in self._connections
        of_all = _takes(self._addresses, address(peer), _ADDRESS, now)
        of_one = _takes(self._connections, peer, _CONNECTION, now)
        if is_first or (of_all and of_one):
            return True
        # Looked at again: its file may have been another connection's before, or it may be gone already.
        if not self._close(peer):
            self._look(_files(self.port))
            self._close(peer)
        self._closed[peer] = self._clock()
        return False

    async def keep_few(self) -> None:
        """Closes the oldest connections without a key while there are too many, and forgets those that are gone. Does
        not return.
        """
        while True:
            await asyncio.sleep(_COUNT_SECONDS)
            self._look(await asyncio.to_thread(_files, self.port))
            self._known &= self._files.keys()
            for peer in self._connections.keys() - self._files.keys():
                del self._connections[peer]
            now = self._clock()
            # One that is full again is as a new one.
            self._addresses = {
                key: one for key, one in self._addresses.items() if one.wait(_ADDRESS[0], round(now * 1e9))
            }
            self._closed = {peer: at for peer, at in self._closed.items() if now - at < _FORGET_SECONDS}
            for peer in self.without_key()[:-_MOST_CONNECTIONS]:
                self._close(peer)

    def without_key(self) -> list[str]:
        """Connections that sent a call without a valid key, or none within ten seconds; the oldest first."""
        late = self._clock() - _FIRST_CALL_SECONDS
        unknown = (peer for peer in self._files if peer not in self._known)
        return [peer for peer in unknown if peer in self._connections or self._since[peer] <= late]

    def _look(self, found: dict[str, int]) -> None:
        old = {peer: found[peer] for peer in self._files if peer in found}
        self._files = old | found
        now = self._clock()
        self._since = {peer: self._since.get(peer, now) for peer in self._files}
        # gRPC soon closes the file of a connection that was shut down: a peer that is found now is another connection,
        # from the same port.
        for peer in self._closed.keys() & found.keys():
            del self._closed[peer]
            self._connections.pop(peer, None)

    def _close(self, peer: str) -> bool:
        # gRPC has no call for it.
        file = self._files.get(peer)
        if file is None or not _shut_down(file, peer):
            return False
        self._closed[peer] = self._clock()
        self._tell()
        return True


def address(peer: str) -> str:
    """Returns a peer without its port."""
    return peer.rpartition(":")[0]


def _takes(among: dict[str, Bucket], key: str, rate: tuple[int, float], now: int) -> bool:
    """Takes one call out of a bucket, if there is one in it."""
    if (bucket := among.get(key)) is None:
        bucket = among[key] = Bucket(rate[1], rate[0])
    if bucket.wait(1, now):
        return False
    bucket.take(1, now)
    return True


def _files(port: int) -> dict[str, int]:
    """Returns the file numbers of the connections to one of our ports, by their peers."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), _opened(int(name)) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == port:
                found[_peer(one)] = int(name)
    return found


def _shut_down(file: int, peer: str) -> bool:
    """Closes a connection, if the file is still the one to that peer."""
    with suppress(OSError), _opened(file) as one:
        if _peer(one) == peer:
            one.shutdown(socket.SHUT_RDWR)
            return True
    return False


@contextmanager
def _opened(file: int) -> Iterator[socket.socket]:
    """A file as a socket, of our own: it stays the same connection, whatever becomes of the number. Raises OSError."""
    copy = os.dup(file)
    try:
        one = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with one:
        yield one


def _peer(one: socket.socket) -> str:
    """Returns whom a socket of the internet is connected to, as gRPC writes it. Raises OSError where it is not."""
    host, port = one.getpeername()[:2]
    host = host.removeprefix("::ffff:")
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
