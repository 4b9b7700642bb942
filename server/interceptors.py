"""Around every call of ours: its request id, its metrics, and errors turned into statuses.

Health and reflection pass through untouched: probes would drown the calls in the metrics.
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import grpc
from grpc_status import rpc_status

from tuneserve.server import context as calls
from tuneserve.server.errors import CallError, InvalidInput, Overloaded, Unavailable, to_status
from tuneserve.server.metrics import Metrics
from tuneserve.server.seam import EngineFailed, RequestRefused

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

OURS = "/tuneserve."


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of our services."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(OURS):
            return handler
        wire = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream, details), **wire)
        return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, details), **wire)

    def _unary(self, method: Callable[..., Awaitable[Any]], details: grpc.HandlerCallDetails) -> Any:
        async def answer(request: Any, context: Context) -> Any:
            with self._call("unary", details, context) as call:
                try:
                    response = await method(request, context)
                    call.code = grpc.StatusCode.OK
                    return response
                except Exception as error:
                    await call.fail(error)

        return answer

    def _stream(self, method: Callable[..., AsyncIterator[Any]], details: grpc.HandlerCallDetails) -> Any:
        async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._call("server_stream", details, context) as call:
                try:
                    # Closed here, not by the garbage collector: closing is what frees the engine's slot.
                    async with aclosing(method(request, context)) as messages:  # type: ignore[type-var]
                        async for message in messages:
                            yield message
                    call.code = grpc.StatusCode.OK
                except Exception as error:
                    await call.fail(error)

        return answer

    @contextmanager
    def _call(self, kind: str, details: grpc.HandlerCallDetails, context: Context) -> "Iterator[_Call]":
        _, service, method = details.method.split("/", 2)
        labels = (kind, service, method)
        call = _Call(calls.begin(details.invocation_metadata), details.method, context)
        context.set_trailing_metadata(((calls.HEADER, call.request_id),))
        started = time.monotonic()
        self._metrics.started.labels(*labels).inc()
        try:
            yield call
        finally:
            # Whatever ended it: an answer, an error, a cancellation or a closed generator.
            self._metrics.handled.labels(*labels, call.final_code().name).inc()
            self._metrics.handling.labels(*labels).observe(time.monotonic() - started)


class _Call:
    """One call's outcome."""

    def __init__(self, request_id: str, method: str, context: Context) -> None:
        self.request_id = request_id
        self.code: grpc.StatusCode | None = None
        self._method = method
        self._context = context

    def final_code(self) -> grpc.StatusCode:
        """The status that was sent, or what the call's end without one means."""
        if self.code is not None:
            return self.code
        remaining = self._context.time_remaining()
        expired = remaining is not None and remaining <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED

    async def fail(self, error: Exception) -> None:
        """Ends the call with the status that the error stands for."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        shown = _caller_error(error)
        status = rpc_status.to_status(to_status(shown, self.request_id))
        self.code = status.code
        if not isinstance(shown, CallError):
            logger.error("request %s: %s failed", self.request_id, self._method, exc_info=error)
        metadata = [*status.trailing_metadata, (calls.HEADER, self.request_id)]
        if isinstance(shown, Overloaded):
            metadata.append(("grpc-retry-pushback-ms", str(shown.retry_ms)))
        await self._context.abort(status.code, status.details, tuple(metadata))


def _caller_error(error: Exception) -> Exception:
    """What the seam raises, as the errors callers may see."""
    if isinstance(error, RequestRefused):
        return InvalidInput("sampling", str(error))
    if isinstance(error, EngineFailed):
        return Unavailable("the model's engine failed")
    return error
