"""The calls that run: so many at once, and each can end, or be ended, before the server stops."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Hashable

from tuneserve.server.call.errors import Overloaded, Unavailable
from tuneserve.server.call.shares import share, subtract
from tuneserve.server.call.tenants import ADMINISTRATOR, ANYBODY, Tenant

SHUTS_DOWN = "the server shuts down"
_HOLDS, _HOLD_SECONDS = 10, 0.05
_RETRY_MS = 1000


class Running:
    """Every call of one server, on whichever port."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limits: dict[asyncio.Timeout, Hashable] = {}  # with whoever calls
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
        """Whether calls are refused that come now."""
        return self._draining

    async def begin(self, limit: asyncio.Timeout, tenant: Tenant, caller: Hashable) -> None:
        """A call begins. Raises Unavailable when the server drains, and Overloaded when too many run: those of one
        tenant leave half of the places to others; who has less than a share of them still gets one, up to twice as
        many in all; and whoever calls on `admin_listen` always does.
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
                raise Overloaded(f"{min(running, most)} calls run already", "CALLS", _RETRY_MS)
        self._limits[limit] = caller
        self._by_caller[caller] += 1

    def end(self, limit: asyncio.Timeout) -> None:
        """A call ended, if it ever began."""
        if (caller := self._limits.pop(limit, None)) is not None:
            subtract(self._by_caller, caller, 1)
        if self._draining and not self._limits:
            self._ended.set()

    async def drain(self, seconds: float) -> None:
        """Refuses calls from now on and returns when none runs; those that still do after `seconds` are ended."""
        self._draining = True
        if self._limits:
            ending = asyncio.get_running_loop().call_later(seconds, self._end_all)
            await self._ended.wait()
            ending.cancel()

    async def hold(self) -> None:
        """Lets the calls that come now wait for their refusal, and returns when no more come, or after half a second.

        gRPC takes up calls one by one, and when it stops it answers CANCELLED to those that still wait for that.
        No client tries such a call again. So none may wait then.
        """
        self._refusing.clear()
        refused = -1
        for _ in range(_HOLDS):
            if refused == self._refused:
                return
            refused = self._refused
            await asyncio.sleep(_HOLD_SECONDS)

    def release(self) -> None:
        """Refuses those that were held."""
        self._refusing.set()

    def _end_all(self) -> None:
        for limit in self._limits:
            # One of which only the status is on its way can't be ended any more.
            with contextlib.suppress(RuntimeError):
                limit.reschedule(asyncio.get_running_loop().time())
