"""Identifies the caller of a call: by its API key, or by the client certificate of its connection."""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc

from tuneserve.server.call.context import Call
from tuneserve.server.call.errors import Overloaded
from tuneserve.server.call.tenants import Tenants
from tuneserve.server.transport.peers import address
from tuneserve.server.transport.unauthenticated import UnauthenticatedConnections

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_SAN = "x509_subject_alternative_name"


@dataclass(frozen=True)
class Authentication:
    """The authentication of one port: its tenants, and the connections that have not shown a key yet."""

    tenants: Tenants
    unauthenticated: UnauthenticatedConnections

    def identify(self, call: Call, context: Context) -> None:
        """Finds the tenant of a call, and charges the call to that tenant's quota. Raises Unauthenticated."""
        peer = context.peer()
        call.caller = address(peer)
        call.names = _names(context) if self.tenants.by_certificate else ()
        call.tenant = self.tenants.authenticate(call.metadata, call.names)
        call.caller = call.tenant.name
        self.unauthenticated.authenticated(peer)
        call.charge = partial(self.tenants.charge, call.tenant)
        call.admit = partial(self._admit, call)

    def _admit(self, call: Call) -> None:
        """Counts a request against its caller's quota. Authenticates again: the key may have been revoked."""
        try:
            self.tenants.admit(self.tenants.authenticate(call.metadata, call.names))
        except Overloaded as error:
            call.metrics.rejections.labels("", error.reason.lower()).inc()
            raise


def _names(context: Context) -> tuple[str, ...]:
    """The names in the client's certificate, which TLS has verified against the client CA."""
    return tuple(name.decode(errors="replace") for name in context.auth_context().get(_SAN, ()))
