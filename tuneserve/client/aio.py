"""The client for asyncio: the same calls, awaited. It belongs to the event loop that runs when it is made."""

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from tuneserve.client import errors, generation, models, texts
from tuneserve.client.answers import Parts
from tuneserve.client.base import Base, like
from tuneserve.client.call import Call
from tuneserve.client.endpoint import Endpoint
from tuneserve.client.results import Generation, Model

P = ParamSpec("P")
R = TypeVar("R")


class AsyncStream:
    """The text of a completion as it is made: iterate once. An `async with` block, or `close`, ends the call early."""

    def __init__(self, messages: Any, read: Callable[[Any], Generation]) -> None:
        self._messages, self._read, self._parts = messages, read, Parts()

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            async for message in self._messages:
                if text := self._parts.add(message):
                    yield text
        except grpc.RpcError as error:
            raise errors.of(error) from None
        finally:
            self.close()

    @property
    def result(self) -> Generation:
        """All that has come: the whole answer, with its usage, once the loop has ended."""
        return self._read(self._parts.joined())

    def close(self) -> None:
        """Ends the call, and frees its place in the engine."""
        self._messages.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()


def _method(build: Callable[P, Call[R]]) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, R]]:
    @like(build)
    async def method(self: "AsyncClient", /, *arguments: P.args, **options: P.kwargs) -> R:
        call = build(*arguments, **options)
        try:
            answer = await self._send(call)
        except grpc.RpcError as error:
            raise errors.of(error) from None
        return call.read(answer)

    return method


def _streaming(build: Callable[P, Call[Generation]]) -> Callable[Concatenate["AsyncClient", P], AsyncStream]:
    @like(build, returns=AsyncStream)
    def method(self: "AsyncClient", /, *arguments: P.args, **options: P.kwargs) -> AsyncStream:
        call = build(*arguments, **options)
        return AsyncStream(self._send(call), call.read)

    return method


class AsyncClient(Base[grpc.aio.Channel]):
    """Calls a server. Every method raises CallError, or a class below it (errors.py)."""

    classify = _method(texts.classify)
    find_entities = _method(texts.find_entities)
    rank = _method(texts.rank)
    embed = _method(texts.embed)
    generate = _method(generation.generate)
    chat = _method(generation.chat)
    stream = _streaming(generation.stream)
    _page = _method(models.list_models)

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """Returns every version of every model that the caller may use, by name and version."""
        found, token = await self._page("", timeout)
        while token:
            more, token = await self._page(token, timeout)
            found += more
        return found

    async def close(self) -> None:
        """Closes the connections; calls that run are ended."""
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def _open(self, endpoint: Endpoint) -> grpc.aio.Channel:
        return endpoint.open_async()
