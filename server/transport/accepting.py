"""Accepts calls from gRPC, many at a time, so that callers can take turns.

gRPC's own server accepts one call in two iterations of the event loop. While the loop is busy, calls wait inside gRPC,
first come first served, where their callers are not known: a caller's next call waits for a thousand calls of another.
So this server accepts more calls at a time, and they wait for their turns before gRPC creates a handler for them. It
uses private functions of grpcio 1.81; with another grpcio, calls wait inside gRPC.
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
from tuneserve.server.transport.crowd import Crowd

logger = logging.getLogger(__name__)

_AT_ONCE = 32
_HANDLE = ("generic_handlers", "interceptors", "rpc_state", "loop", "concurrency_exceeded")


class Intake(Protocol):
    """What happens to a call before gRPC creates a handler for it."""

    def look(self, context: Any) -> Any:
        """Returns a call that was accepted, as the other methods take it. Raises CallError if it is refused."""

    def leave_out(self, peer: str) -> None:
        """Called for each call whose connection was found closed."""

    async def wait(self, call: Any) -> None:
        """Waits until it is the call's turn."""

    def begin(self, call: Any) -> None:
        """Called in the call's task, before its handler."""


class _Open:
    """Lets all calls begin at once."""

    def look(self, context: Any) -> None:
        pass

    def leave_out(self, peer: str) -> None:
        pass

    async def wait(self, call: Any) -> None:
        pass

    def begin(self, call: Any) -> None:
        pass


_OPEN = _Open()


class Services(grpc.GenericRpcHandler):
    """The services of a port. The generated `add_…_to_server` functions take it as their server."""

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
        """See grpc.aio.Server. These are the same methods again."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """See grpc.GenericRpcHandler."""
        if details.method in self._wrapped:
            return self._wrapped[details.method]
        for one in self._handlers:
            if (handler := one.service(details)) is not None:
                wrapped = self._wrapped[details.method] = _after(self.intake, self._wrap(details.method, handler))
                return wrapped
        return None  # not cached, because clients can send any name


class Server:
    """The gRPC server of one port."""

    def __init__(self, services: Services, options: list[tuple[str, int]]) -> None:
        self.port = grpc.aio.server(handlers=[services], options=options)
        self._services = [services]  # as gRPC wants them
        self._intake = services.intake
        self._accepting: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[None]] = set()  # the loop keeps only weak references
        self._stopping = False
        self.crowd = Crowd(lambda call: self._look(*call), services.intake.leave_out)

    async def start(self) -> None:
        """Starts to accept calls."""
        await self.port.start()
        if _is_known():
            self._accepting = [asyncio.create_task(self._accept()) for _ in range(_AT_ONCE)]
        else:
            told = "grpcio %s: callers can't take turns, and a call may wait for all calls of another caller"
            logger.warning(told, grpc.__version__)

    async def stop(self, seconds: float) -> None:
        """Stops accepting calls. Running calls have `seconds` to end; calls that wait for their turn are dropped."""
        self._stopping = True
        await self.port.stop(seconds)
        self.crowd.close()
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
                return  # the server stops
            if self._stopping:
                continue
            context = cygrpc._ServicerContext(state, None, None, loop)
            # gRPC knows no peer of a call that it has ended already, for example because of its encoding.
            if (peer := context.peer()) and not self.crowd.takes(peer, (state, context)):
                self._look(state, context)

    def _look(self, state: Any, context: Any) -> None:
        loop = asyncio.get_running_loop()
        try:
            call = self._intake.look(context)
        except CallError as error:
            answer = _refuse(error, state, context, loop)
        else:
            answer = self._answer(call, state, loop)
        task = loop.create_task(answer)
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
    # Fails if the client has cancelled the call.
    with suppress(cygrpc.ExecuteBatchError):
        await cygrpc._send_error_status_from_server(state, code.value[0], details, trailing, first, loop)


# Whether `Server` accepted the current call. gRPC's own server accepts some calls, too.
_is_in: ContextVar[bool] = ContextVar("is_in", default=False)


async def _begun(begin: Callable[[], None], handled: Coroutine[Any, Any, None]) -> None:
    # Runs in the call's own task: gRPC's other tasks are in reference cycles, which would keep the call in memory.
    _is_in.set(True)
    begin()
    await handled


def _after(intake: Intake, handler: Any) -> Any:
    """Wraps a handler of a stream of requests: calls that `Server` did not accept pass the intake first.

    It also breaks a reference cycle. gRPC keeps the error that aborts a call, and its traceback refers to frames with
    the call and its request, which would stay in memory until the garbage collector runs.
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
    """Returns how a call ends that is not of our services, or was refused before its turn."""
    sent = {key: value for key, value in context.invocation_metadata() or () if key == calls.HEADER}
    request_id = calls.request_id(sent)
    return failures.ending(error, to_status(error, request_id), request_id)


def _is_known() -> bool:
    handle = getattr(cygrpc, "_handle_rpc", None)
    return handle is not None and tuple(inspect.signature(handle).parameters) == _HANDLE
