"""The way of a call from gRPC to us: many at a time, so that callers and not connections wait for their turns.

gRPC's own server asks for the next call when the loop has come round twice. While the loop is busy, calls wait in gRPC,
first come first served, and nothing of ours knows whose they are: one caller's thousand calls are before everybody
else's next one. So more of them are asked for at a time, and wait for their turns before gRPC makes anything of them.
That takes what grpcio has for itself alone (1.81); with another grpcio, calls wait as they did.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from tuneserve.server.call import context as calls
from tuneserve.server.call import failures
from tuneserve.server.call.errors import CallError, to_status

logger = logging.getLogger(__name__)

_AT_ONCE = 32
_HANDLE = ("generic_handlers", "interceptors", "rpc_state", "loop", "concurrency_exceeded")


class Intake(Protocol):
    """What is done with a call before gRPC makes anything of it."""

    def look(self, context: Any) -> Any:
        """Returns what is known of a call that came. Raises CallError, as handlers may, where it is refused."""

    async def wait(self, call: Any) -> None:
        """Returns when it is to begin."""

    def begin(self, call: Any) -> None:
        """Is called first in its task."""


class _Open:
    """Takes in all calls, at once."""

    def look(self, context: Any) -> None:
        pass

    async def wait(self, call: Any) -> None:
        pass

    def begin(self, call: Any) -> None:
        pass


_OPEN = _Open()


class Services(grpc.GenericRpcHandler):
    """What a port serves: `add_…_to_server` takes it for the server."""

    def __init__(
        self,
        wrap: Callable[[str, Any], Any] = lambda method, handler: handler,
        intake: Intake = _OPEN,
    ) -> None:
        """`wrap` gives the handler that gRPC calls in the place of a method's own."""
        self.intake = intake
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
        for one in self._handlers:
            if (handler := one.service(details)) is not None:
                wrapped = self._wrapped[details.method] = _after(self.intake, self._wrap(details.method, handler))
                return wrapped
        return None  # and not remembered: anybody can make up names


class Server:
    """A port of gRPC's."""

    def __init__(self, services: Services, options: list[tuple[str, int]]) -> None:
        self.port = grpc.aio.server(handlers=[services], options=options)
        self._services = [services]  # as gRPC wants them
        self._intake = services.intake
        self._accepting: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[None]] = set()  # the loop alone would forget them
        self._stopping = False

    async def start(self) -> None:
        """Takes calls from now on."""
        await self.port.start()
        if _is_known():
            self._accepting = [asyncio.create_task(self._accept()) for _ in range(_AT_ONCE)]
        else:
            told = "grpcio %s: of calls that come at once, one caller's may have to wait for all of another's"
            logger.warning(told, grpc.__version__)

    async def stop(self, seconds: float) -> None:
        """Takes none any more; those that run have so long, and those that wait are left to gRPC."""
        self._stopping = True
        await self.port.stop(seconds)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._accepting, *self._calls, return_exceptions=True)

    async def _accept(self) -> None:
        server: Any = self.port._server  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        while True:
            try:
                state = await server._request_call()
            except (cygrpc._RequestCallError, cygrpc.InternalError):
                return  # it stops
            if self._stopping:
                continue
            context = cygrpc._ServicerContext(state, None, None, loop)
            try:
                call = self._intake.look(context)
            except CallError as error:
                # No more is done for it, so that refusing thousands is quick.
                await _refuse(error, state, context, loop)
                continue
            task = loop.create_task(self._answer(call, state, loop))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _answer(self, call: Any, state: Any, loop: asyncio.AbstractEventLoop) -> None:
        await self._intake.wait(call)
        if not self._stopping:
            handled = cygrpc._handle_rpc(self._services, (), state, loop, False)
            await cygrpc._schedule_rpc_coro(_begun(partial(self._intake.begin, call), handled), state, loop)


async def _refuse(error: CallError, state: Any, context: Any, loop: asyncio.AbstractEventLoop) -> None:
    code, details, trailing = _ending(error, context)
    first = cygrpc.SendInitialMetadataOperation(None, 0)
    # One that was cancelled can't be told.
    with suppress(cygrpc.ExecuteBatchError):
        await cygrpc._send_error_status_from_server(state, code.value[0], details, trailing, first, loop)


# Whether a Server of ours took the current call in. gRPC's own takes some beside it.
_is_in: ContextVar[bool] = ContextVar("is_in", default=False)


async def _begun(begin: Callable[[], None], handled: Coroutine[Any, Any, None]) -> None:
    # In the task that gRPC makes for the call: others of its tasks wait for the collector, with all that they know.
    _is_in.set(True)
    begin()
    await handled


def _after(intake: Intake, handler: Any) -> Any:
    """A handler of a stream of requests whose calls are taken in, if they were not before gRPC called it.

    Nothing of it is left when its call is over. gRPC keeps the error that aborts a call with the call, and it knows its
    way through frames that know the call, the request and what was made of it: all would wait for the collector.
    """
    method = handler.stream_unary or handler.stream_stream
    make = grpc.stream_unary_rpc_method_handler if handler.stream_unary else grpc.stream_stream_rpc_method_handler

    async def answer(requests: Any, context: Any) -> Any:
        aborted: BaseException
        try:
            try:
                if not _is_in.get():
                    call = intake.look(context)
                    await intake.wait(call)
                    intake.begin(call)
                return await method(requests, context)
            except CallError as error:
                ending = _ending(error, context)
            await context.abort(*ending)
        except grpc.aio.AbortError as error:
            aborted = error
        del requests, context
        aborted.__context__ = None
        try:
            raise aborted.with_traceback(None)
        finally:
            del aborted

    return make(answer, handler.request_deserializer, handler.response_serializer)


def _ending(error: CallError, context: Any) -> failures.Ending:
    """How a call ends that has no request of ours, or never began."""
    sent = {key: value for key, value in context.invocation_metadata() or () if key == calls.HEADER}
    request_id = calls.request_id(sent)
    return failures.ending(error, to_status(error, request_id), request_id)


def _is_known() -> bool:
    handle = getattr(cygrpc, "_handle_rpc", None)
    return handle is not None and tuple(inspect.signature(handle).parameters) == _HANDLE
