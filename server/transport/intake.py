"""Where calls come in: whose each of them is, and its turn to begin.

All of this is before a call costs anything else: what one caller sends at once waits here, and holds up nobody.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from tuneserve.server import turns
from tuneserve.server.call import context as calls
from tuneserve.server.call.draining import Running
from tuneserve.server.call.errors import Overloaded, Unauthenticated, Unavailable
from tuneserve.server.call.shares import share
from tuneserve.server.call.tenants import ANYBODY, Tenant
from tuneserve.server.metrics import Metrics
from tuneserve.server.transport.authentication import Authentication
from tuneserve.server.turns import Entrance

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Calls that wait for their turns: of all callers together. Each has some kilobytes, of which gRPC's are the most.
_MOST_WAITING = 8192
_RETRY_MS = 1000


@dataclass(frozen=True)
class Intake:
    """Of one port."""

    metrics: Metrics
    running: Running
    entrance: Entrance
    everybody: Tenant = ANYBODY  # who calls, where there are no keys
    authentication: Authentication | None = None  # where there are keys

    def look(self, context: Context) -> calls.Call:
        """Returns a call that came, and finds out whose it is.

        Raises Unavailable where its connection was closed, and Overloaded where too many wait.
        """
        metadata: dict[str, str] = {}
        for key, value in context.invocation_metadata() or ():
            if isinstance(value, str):
                # Of one that comes twice no value is chosen: two keys are none.
                metadata[key] = f"{metadata[key]},{value}" if key in metadata else value
        call = calls.Call(calls.request_id(metadata), "", self.everybody, metadata, self.metrics)
        call.enter = self.entrance.enter
        # Without keys all have one name.
        call.caller = context.peer()
        if self.authentication:
            self._identify(call, context, self.authentication)
        waiting = self.entrance.waiting
        is_full = len(waiting.get(call.caller, ())) >= share(waiting, call.caller, _MOST_WAITING)
        if is_full and not self.running.draining:
            self.metrics.rejections.labels("", "calls").inc()
            raise Overloaded("too many calls wait already", "CALLS", _RETRY_MS)
        return call

    async def wait(self, call: calls.Call) -> None:
        """Returns when it is the call's turn. When the server stops, all have theirs at once."""
        if not self.running.draining:
            await self.entrance.enter(call.caller)

    @staticmethod
    def begin(call: calls.Call) -> None:
        """Makes a call the current one of this task."""
        turns.belongs_to(call.caller)
        calls.begin(call)

    @staticmethod
    def _identify(call: calls.Call, context: Context, authentication: Authentication) -> None:
        try:
            authentication.identify(call, context)
        except Unauthenticated as error:
            call.refused = error.with_traceback(None)
            if not authentication.strangers.may_ask(context.peer()):
                raise Unavailable("too many calls without a key on one connection") from None
