"""The client that waits for each answer. Several threads may use one."""

from collections.abc import Callable, Iterator
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


class Stream:
    """The text of a completion as it is made: iterate once. A `with` block, or `close`, ends the call early."""

    def __init__(self, messages: Any, read: Callable[[Any], Generation]) -> None:
        self._messages, self._read, self._parts = messages, read, Parts()

    def __iter__(self) -> Iterator[str]:
        try:
            for message in self._messages:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _method(build: Callable[P, Call[R]]) -> Callable[Concatenate["Client", P], R]:
    @like(build)
    def method(self: "Client", /, *arguments: P.args, **options: P.kwargs) -> R:
        call = build(*arguments, **options)
        try:
            answer = self._send(call)
        except grpc.RpcError as error:
            raise errors.of(error) from None
        return call.read(answer)

    return method


def _streaming(build: Callable[P, Call[Generation]]) -> Callable[Concatenate["Client", P], Stream]:
    @like(build, returns=Stream)
    def method(self: "Client", /, *arguments: P.args, **options: P.kwargs) -> Stream:
        call = build(*arguments, **options)
        return Stream(self._send(call), call.read)

    return method


class Client(Base[grpc.Channel]):
    """Calls a server, and waits for its answers. Every method raises CallError, or a class below it (errors.py)."""

    classify = _method(texts.classify)
    find_entities = _method(texts.find_entities)
    rank = _method(texts.rank)
    embed = _method(texts.embed)
    generate = _method(generation.generate)
    chat = _method(generation.chat)
    stream = _streaming(generation.stream)
    _page = _method(models.list_models)

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """Returns every version of every model that the caller may use, by name and version."""
        found, token = self._page("", timeout)
        while token:
            more, token = self._page(token, timeout)
            found += more
        return found

    def close(self) -> None:
        """Closes the connections; calls that run are ended."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, endpoint: Endpoint) -> grpc.Channel:
        return endpoint.open()
