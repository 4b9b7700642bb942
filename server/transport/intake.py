"""What happens to a call first: its caller is identified, and it waits for its turn.

This comes before all other work for the call, so that the many calls of one caller do not delay those of others.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.rpc import code_pb2

from tuneserve.server import turns
from tuneserve.server.call import context as calls
from tuneserve.server.call.draining import Running
from tuneserve.server.call.errors import CallError, Overloaded, Unauthenticated, Unavailable
from tuneserve.server.call.shares import share
from tuneserve.server.call.tenants import ANYBODY, Tenant
from tuneserve.server.metrics import Metrics
from tuneserve.server.transport.authentication import Authentication
from tuneserve.server.turns import Entrance

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Calls that wait for their turns, of all callers. Each takes some kilobytes, most of them inside gRPC.
_MOST_WAITING = 8192
_RETRY_MS = 1000


@dataclass(frozen=True)
class Intake:
    """The intake of one port."""

    metrics: Metrics
    running: Running
    entrance: Entrance
    everybody: Tenant = ANYBODY  # the tenant of all calls, if there are no keys
    authentication: Authentication | None = None  # if there are keys

    def look(self, context: Context) -> calls.Call:
        """Returns a new call with its caller.

        Raises Unavailable if its connection sends too many calls without a key, and Overloaded if too many calls wait.
        """
        try:
            return self._accepted(context)
        except CallError as error:
            self.metrics.refused.labels(code_pb2.Code.Name(error.code)).inc()
            raise

    def leave_out(self, peer: str) -> None:
        """Counts a call of a connection that was found closed, whatever key it shows."""
        self.metrics.refused.labels("CANCELLED").inc()
        if self.authentication:
            self.authentication.unauthenticated.was_closed(peer)

    def _accepted(self, context: Context) -> calls.Call:
        metadata: dict[str, str] = {}
        for key, value in context.invocation_metadata() or ():
            if isinstance(value, str):
                # Repeated headers are joined, so that two API keys do not match any key.
                metadata[key] = f"{metadata[key]},{value}" if key in metadata else value
        call = calls.Call(calls.request_id(metadata), "", self.everybody, metadata, self.metrics)
        call.enter = self.entrance.enter
        # Without keys there is one tenant, and each connection counts as a caller.
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
        """Waits for the call's turn. While the server drains, calls do not wait."""
        if not self.running.draining:
            await self.entrance.enter(call.caller)

    @staticmethod
    def begin(call: calls.Call) -> None:
        """Makes the call the current one of this task."""
        turns.belongs_to(call.caller)
        calls.begin(call)

    @staticmethod
    def _identify(call: calls.Call, context: Context, authentication: Authentication) -> None:
        try:
            authentication.identify(call, context)
        except Unauthenticated as error:
            call.refused = error.with_traceback(None)
            if not authentication.unauthenticated.may_ask(context.peer()):
                raise Unavailable("too many calls without a key on one connection") from None
