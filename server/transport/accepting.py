"""The way of a call from gRPC to us: many at a time, so that callers and not connections wait for their turns.

gRPC's own server asks for the next call when the loop has come round twice. While the loop is busy, calls wait in gRPC,
first come first served, and nothing of ours knows whose they are: one caller's thousand calls are before everybody
else's next one. So more of them are asked for at a time, and wait in concurrency.Entrance. That takes what grpcio has
for itself alone (1.81); with another grpcio, calls wait as they did.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)

_AT_ONCE = 32
_HANDLE = ("generic_handlers", "interceptors", "rpc_state", "loop", "concurrency_exceeded")


class Services(grpc.GenericRpcHandler):
    """What a port serves: `add_…_to_server` takes it for the server."""

    def __init__(self, wrap: Callable[[str, Any], Any] = lambda method, handler: handler) -> None:
        """`wrap` gives the handler that gRPC calls in the place of a method's own; None where there is none."""
        self._wrap = wrap
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._wrapped: dict[str, Any] = {}  # by method

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """See grpc.aio.Server."""
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """See grpc.aio.Server: the same methods once more."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """See grpc.GenericRpcHandler."""
        if details.method in self._wrapped:
            return self._wrapped[details.method]
        handler = next((found for one in self._handlers if (found := one.service(details)) is not None), None)
        wrapped = self._wrap(details.method, handler)
        # Anybody can make up names.
        if handler is not None:
            self._wrapped[details.method] = wrapped
        return wrapped


class Server:
    """A port of gRPC's."""

    def __init__(self, services: Services, options: list[tuple[str, int]]) -> None:
        self.port = grpc.aio.server(handlers=[services], options=options)
        self._services = [services]
        self._accepting: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[None]] = set()  # the loop alone would forget them

    async def start(self) -> None:
        """Takes calls from now on."""
        await self.port.start()
        if _is_known():
            self._accepting = [asyncio.create_task(self._accept()) for _ in range(_AT_ONCE - 1)]
        else:
            told = "grpcio %s: of calls that come at once, one caller's may have to wait for all of another's"
            logger.warning(told, grpc.__version__)

    async def stop(self, seconds: float) -> None:
        """Takes none any more; those that run have so long."""
        await self.port.stop(seconds)
        await asyncio.gather(*self._accepting)

    async def _accept(self) -> None:
        server: Any = self.port._server  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        while True:
            try:
                state = await server._request_call()
            except (cygrpc._RequestCallError, cygrpc.InternalError):
                return  # it stops
            handled = cygrpc._handle_rpc(self._services, (), state, loop, False)
            call = loop.create_task(cygrpc._schedule_rpc_coro(handled, state, loop))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)


def _is_known() -> bool:
    handle = getattr(cygrpc, "_handle_rpc", None)
    return handle is not None and tuple(inspect.signature(handle).parameters) == _HANDLE
