"""Who makes a call: by its API key, or by the certificate of its connection."""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc

from tuneserve.server.call.context import Call
from tuneserve.server.call.errors import Overloaded
from tuneserve.server.call.tenants import Tenants
from tuneserve.server.transport.strangers import Strangers

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_SAN = "x509_subject_alternative_name"


@dataclass(frozen=True)
class Authentication:
    """Of one port: the tenants that may call, and the connections on which nobody has shown a key yet."""

    tenants: Tenants
    strangers: Strangers

    def identify(self, call: Call, context: Context) -> None:
        """Finds out who makes a call, and takes what it does from that tenant's quota. Raises Unauthenticated."""
        call.caller = context.peer().rpartition(":")[0]
        call.names = _names(context) if self.tenants.by_certificate else ()
        call.tenant = self.tenants.authenticate(call.metadata, call.names)
        call.caller = call.tenant.name
        self.strangers.authenticated(context.peer())
        call.charge = partial(self.tenants.charge, call.tenant)
        call.admit = partial(self._admit, call)

    def _admit(self, call: Call) -> None:
        """Counts a request against its caller's quota; one whose key was taken away is known no more."""
        try:
            self.tenants.admit(self.tenants.authenticate(call.metadata, call.names))
        except Overloaded as error:
            call.metrics.rejections.labels("", error.reason.lower()).inc()
            raise


def _names(context: Context) -> tuple[str, ...]:
    """The names of the certificate that the client showed; it was asked for one of the right authority."""
    return tuple(name.decode(errors="replace") for name in context.auth_context().get(_SAN, ()))
