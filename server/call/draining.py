"""Running calls: how many may run at once, and how each ends, or is ended, before the server stops."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Hashable

from tuneserve.server.call.errors import Overloaded, Unavailable
from tuneserve.server.call.shares import share, subtract
from tuneserve.server.call.tenants import ADMINISTRATOR, ANYBODY, Tenant

SHUTS_DOWN = "the server shuts down"
_HOLDS, _HOLD_SECONDS = 10, 0.05
_RETRY_MS = 1000


class Running:
    """All running calls of one server, on all its ports."""

    def __init__(self, most: int, rejected: Callable[[], object] = lambda: None) -> None:
        """At most `most` calls run. `rejected` is called for each that is one too many."""
        self._most = most
        self._rejected = rejected
        self._limits: dict[asyncio.Timeout, Hashable] = {}  # and the caller of each
        self._by_caller: Counter[Hashable] = Counter()
        self._draining = False
        self._ended = asyncio.Event()
        self._refusing = asyncio.Event()
        self._refusing.set()
        self._refused = 0

    def __len__(self) -> int:
        return len(self._limits)

    @property
    def draining(self) -> bool:
        """Whether new calls are refused."""
        return self._draining

    async def begin(self, limit: asyncio.Timeout, tenant: Tenant, caller: Hashable) -> None:
        """Begins a call. Raises Unavailable while the server drains, and Overloaded if too many calls run.

        One tenant gets at most half of the places. When all places are taken, a caller that has less than its share
        still gets one, up to twice as many calls in all. Calls on `admin_listen` are never refused.
        """
        if self._draining:
            self._refused += 1
            await self._refusing.wait()
            raise Unavailable(SHUTS_DOWN)
        if tenant is not ADMINISTRATOR:
            most = self._most if tenant is ANYBODY else max(1, self._most // 2)
            running, own = len(self._limits), self._by_caller[caller]
            more = own >= share(self._by_caller, caller, self._most)
            if own >= most or (running >= self._most * (1 if more else 2)):
                self._rejected()
                raise Overloaded(f"{min(running, most)} calls run already", "CALLS", _RETRY_MS)
        self._limits[limit] = caller
        self._by_caller[caller] += 1

    def end(self, limit: asyncio.Timeout) -> None:
        """Ends a call, if it ever began."""
        if (caller := self._limits.pop(limit, None)) is not None:
            subtract(self._by_caller, caller, 1)
        if self._draining and not self._limits:
            self._ended.set()

    async def drain(self, seconds: float) -> None:
        """Refuses new calls and returns when none runs; calls that still run after `seconds` are ended."""
        self._draining = True
        if self._limits:
            ending = asyncio.get_running_loop().call_later(seconds, self._end_all)
            await self._ended.wait()
            ending.cancel()

    async def hold(self) -> None:
        """Holds the refusals of new calls back, and returns when no more calls come, or after half a second.

        gRPC accepts calls one by one, and when it stops it answers CANCELLED to those that it has not accepted. Clients
        do not retry such calls. So no call may still wait to be accepted then.
        """
        self._refusing.clear()
        refused = -1
        for _ in range(_HOLDS):
            if refused == self._refused:
                return
            refused = self._refused
            await asyncio.sleep(_HOLD_SECONDS)

    def release(self) -> None:
        """Refuses the calls that were held."""
        self._refusing.set()

    def _end_all(self) -> None:
        for limit in self._limits:
            # A call that only has its status left to send can't be ended any more.
            with contextlib.suppress(RuntimeError):
                limit.reschedule(asyncio.get_running_loop().time())
