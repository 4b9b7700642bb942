"""Where calls come in: whose each of them is, and its turn to begin.

All of this is before a call costs anything else: what one caller sends at once waits here, and holds up nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc

from tuneserve.server import turns
from tuneserve.server.call import context as calls
from tuneserve.server.call.draining import Running
from tuneserve.server.call.errors import Overloaded, Unauthenticated
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

    async def take(self, context: Context) -> Callable[[], None] | None:
        """Waits for a call's turn. Returns what makes it the current one; None where its connection was closed.

        Raises Overloaded where too many wait.
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
        if self.authentication and not self._is_welcome(call, context, self.authentication):
            return None
        # When the server stops, nobody may wait for longer than it takes.
        if not self.running.draining:
            if self.entrance.is_full(call.caller, _MOST_WAITING):
                self.metrics.rejections.labels("", "calls").inc()
                raise Overloaded("too many calls wait already", "CALLS", _RETRY_MS)
            await self.entrance.enter(call.caller)
        return partial(_begin, call)

    def _is_welcome(self, call: calls.Call, context: Context, authentication: Authentication) -> bool:
        """Finds out who calls. Returns whether the connection is open; one on which nobody shows a key is closed."""
        if authentication.strangers.has_closed(context.peer()):
            return False
        try:
            authentication.identify(call, context)
        except Unauthenticated as error:
            call.refused = error.with_traceback(None)
            return authentication.strangers.may_ask(context.peer())
        return True


def _begin(call: calls.Call) -> None:
    turns.belongs_to(call.caller)
    calls.begin(call)
