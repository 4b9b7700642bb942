"""Limits connections without a valid API key: how many there are, and how many calls each of them makes.

Every call costs gRPC about 0.1 ms and some kilobytes, even if it is refused, and a client sends one in fifteen bytes.
So connections beyond the limits are closed, and who opens too many of them can open no more for some seconds. A
connection that was ever authenticated is never closed, because a proxy may put calls of many clients on it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress
from typing import TypeVar

from tuneserve.server import concurrency
from tuneserve.server.call.quota import Bucket
from tuneserve.server.transport import peers
from tuneserve.server.transport.peers import File, Network, address, network

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)

# Calls at once, and a second: of one connection, and of all connections of an address. Probes need one now and then.
_CONNECTION = (64, 8.0)
_ADDRESS = (512, 64.0)
# New connections at once, and a second, of an address: of those without a key, and of all if one showed a key.
_OPENED = (64, 8.0)
_OPENED_WITH_KEY = (1024, 64.0)
# Connections without a key, and how often they are counted: sooner when there are some to close.
_MOST_CONNECTIONS = 128
_COUNT_SECONDS = 1.0
_SOON_SECONDS = 0.1
# A client sends its key with its first call, and a busy server may look at that call late.
_FIRST_CALL_SECONDS = 10.0
# After this time, no call of a closed connection waits any more.
_FORGET_SECONDS = 60.0
# How long an address is trusted for a key that one of its connections showed: others there may connect for each call.
_TRUST_SECONDS = 600.0
# Networks that are ignored at once: each packet for a new connection is compared with all of them.
_MOST_IGNORED = 64


class UnauthenticatedConnections:
    """The connections of one port."""

    def __init__(
        self,
        closed: Callable[[], object] = lambda: None,
        ignoring: Callable[[int], object] = lambda networks: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`closed` is called for each connection that is, `ignoring` with the number of networks that are ignored."""
        self.port = 0  # that they come to, once it is known
        self.ignored: set[Network] = set()  # whose new connections are dropped
        self._tell = closed
        self._tell_ignored = ignoring
        self._clock = clock
        self._known: set[str] = set()
        # Closed, or to be closed when connections are next counted, and since when: calls of theirs still come.
        self._closed: dict[str, float] = {}
        self._to_close: set[str] = set()
        self._to_ignore: set[Network] = set()
        self._to_ignore_with_key: set[Network] = set()
        self._is_urgent = asyncio.Event()  # there are some to close or to ignore
        self._trusted: dict[Network, float] = {}  # and when a connection of theirs showed a key last
        self._hung_up: dict[str, File] = {}
        self._connections: dict[str, Bucket] = {}
        self._addresses: dict[str, Bucket] = {}
        self._opened: dict[Network, Bucket] = {}
        self._opened_with_key: dict[Network, Bucket] = {}
        self._files: dict[str, File] = {}  # by peer, in the order of their coming, as they were when last looked at
        self._since: dict[str, float] = {}  # when these were first seen
        self._silent: set[str] = set()  # without any call when they were looked at the second time

    def authenticated(self, peer: str) -> None:
        """A call on a connection showed a key."""
        if peer not in self._known:
            self._known.add(peer)
            self._trust(peer)
            self._count_opened_with_key(peer)
        # The port is in use again: an earlier connection from this port was closed.
        self._closed.pop(peer, None)

    def was_closed(self, peer: str) -> None:
        """Counts a connection that was closed before its first call was looked at."""
        if peer not in self._known and peer not in self._connections:
            _takes(self._connections, peer, _CONNECTION, self._now())
            self._count_opened(peer)
            self._count_opened_with_key(peer)

    def may_ask(self, peer: str) -> bool:
        """Counts a call without a key. The first one of a connection always may; where one may not, the connection is
        closed soon.
        """
        # gRPC knows no peer of a call that has ended already, for example one of a wrong encoding.
        if not peer or peer in self._closed:
            return False
        if peer in self._known:
            return True
        now, is_first, host = self._now(), peer not in self._connections, address(peer)
        if is_first:
            self._count_opened(peer)
        of_all = _takes(self._addresses, host, _ADDRESS, now)
        of_one = _takes(self._connections, peer, _CONNECTION, now)
        if is_first or (of_all and of_one):
            return True
        self._closed[peer] = self._clock()
        # Not here: to find its file takes a system call for each file that is open.
        self._to_close.add(peer)
        self._is_urgent.set()
        return False

    async def keep_few(self) -> None:
        """Closes connections that made too many calls without a key, and the oldest without a key while there are too
        many; ignores who opens too many; and forgets those that are gone. Does not return.
        """
        failing = set[str]()
        while True:
            await asyncio.sleep(_SOON_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_urgent.wait(), _COUNT_SECONDS - _SOON_SECONDS)
            self._is_urgent.clear()
            for step in (self._ignore, self._count):
                try:
                    await step()
                    failing.discard(step.__name__)
                except OSError as error:
                    # For example when no file is left to list the files with.
                    if step.__name__ not in failing:
                        logger.warning("connections without a key can't be limited: %s", error.strerror)
                    failing.add(step.__name__)

    async def _count(self) -> None:
        to_close, self._to_close = self._to_close, set()
        # Connections that come, and show their keys, while the files are listed are not among those.
        before = self._known.copy(), set(self._connections)
        try:
            found = await concurrency.apart(peers.connected, self.port)
        except OSError:
            self._to_close |= to_close
            raise
        for peer in before[0] - found.keys():
            self._known.remove(peer)
            self._trust(peer)
        for peer in before[1] - found.keys():
            self._connections.pop(peer, None)
        self._look(found, to_close)
        now = self._clock()
        self._closed = {peer: at for peer, at in self._closed.items() if now - at < _FORGET_SECONDS}
        self._hung_up = {peer: file for peer, file in self._hung_up.items() if peer in self._closed}
        self._addresses = _not_full(self._addresses, _ADDRESS, self._now())
        for peer in self.without_key()[:-_MOST_CONNECTIONS]:
            self._close(peer)

    def without_key(self) -> list[str]:
        """Connections that sent a call without a valid key, or none within ten seconds; the oldest first."""
        late = self._clock() - _FIRST_CALL_SECONDS
        unknown = (peer for peer in self._files if peer not in self._known)
        return [peer for peer in unknown if peer in self._connections or self._since[peer] <= late]

    def _trust(self, peer: str) -> None:
        if net := network(address(peer)):
            self._trusted[net] = self._clock()

    def _now(self) -> int:
        return round(self._clock() * 1e9)

    def _count_opened(self, peer: str) -> None:
        """Counts a new connection without a key."""
        self._opens(peer, self._opened, _OPENED, self._to_ignore)

    def _count_opened_with_key(self, peer: str) -> None:
        """Counts a new connection with a key, or one that may have had one."""
        self._opens(peer, self._opened_with_key, _OPENED_WITH_KEY, self._to_ignore_with_key)

    def _opens(self, peer: str, opened: dict[Network, Bucket], rate: tuple[int, float], too_many: set[Network]) -> None:
        if (net := network(address(peer))) and not _takes(opened, net, rate, self._now()):
            too_many.add(net)
            self._is_urgent.set()

    def _look(self, found: dict[str, File], to_close: Collection[str] = ()) -> None:
        # Those that were there before, and sent no call meanwhile: a call counts its connection itself.
        for peer in (found.keys() & self._files.keys()) - self._known - self._connections.keys() - self._silent:
            self._silent.add(peer)
            self._count_opened(peer)
        self._silent &= found.keys()
        old = {peer: found[peer] for peer in self._files if peer in found}
        self._files = old | found
        now = self._clock()
        self._since = {peer: self._since.get(peer, now) for peer in self._files}
        for peer in self._closed.keys() & found.keys():
            if peer in to_close and peer not in self._known:
                self._close(peer)
            elif peer not in self._to_close and self._hung_up.get(peer) != found[peer]:
                # Another connection, from the same port.
                del self._closed[peer]
                self._connections.pop(peer, None)

    def _close(self, peer: str) -> None:
        if peers.hang_up(self._files[peer]):
            self._closed[peer] = self._clock()
            self._hung_up[peer] = self._files[peer]
            self._tell()

    async def _ignore(self) -> None:
        """Ignores the networks that open too many connections, until they could open as many again. Where a connection
        of a network showed a key, far more are too many: many callers may share an address.
        """
        now = self._clock()
        self._trusted = {net: at for net, at in self._trusted.items() if now - at < _TRUST_SECONDS}
        self._opened = _not_full(self._opened, _OPENED, self._now())
        self._opened_with_key = _not_full(self._opened_with_key, _OPENED_WITH_KEY, self._now())
        wanted = (self.ignored | self._to_ignore) & self._opened.keys()
        self._to_ignore.clear()
        if wanted:
            wanted -= self._trusted.keys() | {network(address(peer)) for peer in self._known}
        self._to_ignore_with_key &= self._opened_with_key.keys()
        wanted = set(list(wanted | self._to_ignore_with_key)[:_MOST_IGNORED])
        if wanted == self.ignored:
            return
        await concurrency.apart(peers.ignore, self.port, wanted)
        if not self.ignored:
            those = ", ".join(map(str, wanted))
            logger.warning("too many new connections: those from %s are ignored for some seconds", those)
        self.ignored = wanted
        self._tell_ignored(len(wanted))


def _takes(among: dict[Key, Bucket], key: Key, rate: tuple[int, float], now: int) -> bool:
    """Takes a unit out of a key's bucket. Returns whether there was one."""
    if (bucket := among.get(key)) is None:
        bucket = among[key] = Bucket(rate[1], rate[0])
    if bucket.wait(1, now):
        return False
    bucket.take(1, now)
    return True


def _not_full(among: dict[Key, Bucket], rate: tuple[int, float], now: int) -> dict[Key, Bucket]:
    """Returns the buckets that are not full: a full one is like a new one."""
    return {key: one for key, one in among.items() if one.wait(rate[0], now)}
