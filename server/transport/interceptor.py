"""Wraps every call of our services: its deadline and limits, its metrics, span and log line, and errors as statuses.

A call's message is received once its caller is known. Health and reflection, which anybody may call, have no log lines
and no metrics: probes would drown out the other calls.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc

from tuneserve.server.call import context as calls
from tuneserve.server.call import failures, request_log, wire
from tuneserve.server.call.arrivals import Arrivals
from tuneserve.server.call.departures import Departures
from tuneserve.server.call.draining import SHUTS_DOWN, Running
from tuneserve.server.call.errors import Unavailable
from tuneserve.server.call.records import Records
from tuneserve.server.call.shares import Shares, caller
from tuneserve.server.models.shadow import Shadows
from tuneserve.server.transport.writer import Writer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Method: TypeAlias = Callable[..., Any]

OURS = ("/tuneserve.", "/inference.")
REFLECTION = "/grpc.reflection."
# After each answer, in seconds: a tool asks for some tens of descriptions, and anybody may ask.
_REFLECTION_PAUSE = 0.01


@dataclass(frozen=True)
class CallInterceptor:
    """Wraps the handlers of one port's services."""

    records: Records
    running: Running
    shadows: Shadows
    stall_seconds: float
    arrivals: Arrivals
    reflecting: Arrivals  # for whole reflection calls
    departures: Departures
    requests: Shares  # bytes of running requests

    def wrap(self, method: str, handler: Any) -> Any:
        """Returns the handler that gRPC calls instead of a method's own."""
        if method.startswith(OURS):
            return self._wrap(handler, method)
        return self._reflect(handler) if method.startswith(REFLECTION) else handler

    def _wrap(self, handler: Any, name: str) -> Any:
        # All methods are registered as request streams, because then gRPC receives a message only when asked for it.
        make = grpc.stream_stream_rpc_method_handler
        if handler.unary_unary:
            answer, make = self._unary(handler, name), grpc.stream_unary_rpc_method_handler
        elif handler.unary_stream:
            answer = self._stream(handler.unary_stream, "server_stream", name, handler.request_deserializer)
        else:
            answer = self._stream(handler.stream_stream, "bidi_stream", name, handler.request_deserializer)
        # Without (de)serializers, so that parsing and serializing take turns, and the bytes of unread answers are
        # bounded.
        return make(answer)

    def _unary(self, handler: Any, name: str) -> Method:
        method, parse = handler.unary_unary, handler.request_deserializer

        async def answer(_: Any, context: Context) -> Any:
            async with self._call("unary", name, context):
                request = await self._request(parse, context)
                response = await method(request, context)
                self.shadows.mirror(method, request, response)
                data = await wire.serialized(response)
                self.departures.until_done(len(data), context)
                return data

        return answer

    def _stream(self, method: Method, kind: str, name: str, parse: wire.Parse) -> Method:
        async def answer(requests: Any, context: Context) -> None:
            # The generator is closed here, not by the garbage collector: closing it frees the engine's slot.
            async with (
                self._call(kind, name, context) as ended,
                self._arriving(kind, requests, parse, context) as request,
                aclosing(method(request, context)) as messages,
            ):

                async def end() -> None:
                    ended()
                    await messages.aclose()

                with closing(Writer(context, self.departures, self.stall_seconds, end)) as writer:
                    async for message in messages:
                        await writer.write(await wire.serialized(message))

        return answer

    @asynccontextmanager
    async def _arriving(self, kind: str, requests: Any, parse: wire.Parse, context: Context) -> AsyncIterator[Any]:
        """Yields the request of a call; for a stream of requests, an iterator over all of them."""
        if kind == "bidi_stream":
            async with self.arrivals.stream():
                yield wire.Messages(requests, parse)
        else:
            yield await self._request(parse, context)

    async def _request(self, parse: wire.Parse, context: Context) -> Any:
        data = await self.arrivals.read(context)
        calls.current().hold(await wire.size_of(data, parse))
        return await wire.readable(data, parse)

    def _reflect(self, handler: Any) -> Any:
        async def answer(requests: Any, context: Context) -> None:
            async with self.reflecting.place(), aclosing(handler.stream_stream(requests, context)) as messages:
                async for message in messages:
                    await context.write(message)
                    await asyncio.sleep(_REFLECTION_PAUSE)

        return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    @asynccontextmanager
    async def _call(self, kind: str, name: str, context: Context) -> AsyncIterator[Callable[[], object]]:
        """Wraps a call. Yields a function to call when its work has ended but the call is not over: a drain then does
        not wait for it.
        """
        call = calls.current()
        call.begin(name, kind, context.time_remaining())
        self.records.begin(call)
        code: grpc.StatusCode | None = None
        try:
            async with asyncio.timeout(None) as limit:
                await self._let_in(call, limit, context)
                with call.holding() as call.hold:
                    yield partial(self.running.end, limit)
            code = grpc.StatusCode.OK
            context.set_trailing_metadata(((calls.HEADER, call.request_id), *_measured(call)))
        except Exception as error:
            ending = _ending(call, error, limit)
            code = ending.code
            await context.abort(*ending)
        finally:
            # However the call ended: with an answer, an error, a cancellation or a closed generator.
            self.running.end(limit)
            self.records.end(call, code)

    async def _let_in(self, call: calls.Call, limit: asyncio.Timeout, context: Context) -> None:
        """Begins a call that may run. Raises why it may not: its caller is unknown, or at one of its limits."""
        if call.refused:
            raise call.refused
        await self.running.begin(limit, call.tenant, call.caller)
        self.records.trace(call)
        # The requests of a stream are counted one by one.
        if call.kind != "bidi_stream":
            call.admit()
        call.holding = partial(self.requests.holding, caller(context))
        self.departures.check(context)


def _ending(call: calls.Call, error: Exception, limit: asyncio.Timeout) -> failures.Ending:
    """Returns how a call ends that failed, or that a drain ended."""
    shown = Unavailable(SHUTS_DOWN) if limit.expired() else error
    ending = failures.ending(shown, failures.status(shown, call), call.request_id)
    # The frames in its traceback refer to it: that cycle would keep them until the garbage collector runs.
    failures.forget_frames(error)
    return ending._replace(trailing_metadata=(*ending.trailing_metadata, *_measured(call)))


def _measured(call: calls.Call) -> list[tuple[str, str]]:
    """Trailing metadata of an answer: the version that gave it, and where its time went."""
    pairs = []
    if call.version:
        pairs.append(("x-model-version", f"{call.model}@{call.version}"))
    if call.stages:
        pairs.append(("server-timing", request_log.server_timing(call)))
    return pairs
