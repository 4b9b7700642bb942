"""The client that waits for each answer. Several threads may use one."""

from collections.abc import Callable, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import grpc
from google.protobuf.message import Message

from tuneserve.client import documents, errors, feedback, generation, models, monitors, texts
from tuneserve.client.answers import GenerationParts
from tuneserve.client.base import Base, like
from tuneserve.client.call import Call, Parts, Requests
from tuneserve.client.documents import AnswerParts
from tuneserve.client.endpoint import Endpoint
from tuneserve.client.results import Alias, Model

P = ParamSpec("P")
R = TypeVar("R")


class Answers(Generic[R]):
    """The answers to one call as they arrive: iterate once. A `with` block, or `close`, ends the call early."""

    def __init__(self, call: Call[Any], messages: Any, read: Callable[[Any], R | None]) -> None:
        """`read` returns None for a message without content."""
        self._call, self._messages, self._read = call, messages, read

    def __iter__(self) -> Iterator[R]:
        try:
            for message in self._messages:
                if (answer := self._read(message)) is not None:
                    yield answer
        except grpc.RpcError as error:
            raise errors.of(error) from None
        finally:
            self.close()
        if isinstance(self._call.request, Requests) and self._call.request.error:
            raise self._call.request.error

    def close(self) -> None:
        """Ends the call, and frees its place in the engine."""
        self._messages.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Stream(Answers[str], Generic[R]):
    """A text as it is generated."""

    def __init__(self, call: Call[R], messages: Any, parts: Parts) -> None:
        self._parts = parts
        super().__init__(call, messages, lambda message: self._parts.add(message) or None)

    @property
    def result(self) -> R:
        """Everything received so far; once the loop has ended, the whole answer with its usage."""
        answer: R = self._call.read(self._parts.joined())
        return answer


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


def _answering(build: Callable[P, Call[R]]) -> Callable[Concatenate["Client", P], Answers[R]]:
    @like(build, returns=Answers)
    def method(self: "Client", /, *arguments: P.args, **options: P.kwargs) -> Answers[R]:
        call = build(*arguments, **options)
        return Answers(call, self._send(call), call.read)

    return method


def _streaming(
    build: Callable[P, Call[R]], parts: Callable[[], Parts]
) -> Callable[Concatenate["Client", P], Stream[R]]:
    @like(build, returns=Stream)
    def method(self: "Client", /, *arguments: P.args, **options: P.kwargs) -> Stream[R]:
        call = build(*arguments, **options)
        return Stream(call, self._send(call), parts())

    return method


class Client(Base[grpc.Channel]):
    """Calls a server, and waits for its answers. Every method raises CallError, or a class below it (errors.py)."""

    classify = _method(texts.classify)
    classify_stream = _answering(texts.classify_stream)
    find_entities = _method(texts.find_entities)
    rank = _method(texts.rank)
    embed = _method(texts.embed)
    upsert_documents = _method(documents.upsert_documents)
    delete_documents = _method(documents.delete_documents)
    search = _method(documents.search)
    answer = _streaming(documents.answer, AnswerParts)
    generate = _method(generation.generate)
    chat = _method(generation.chat)
    stream = _streaming(generation.stream, GenerationParts)
    tokenize = _method(generation.tokenize)
    observe = _answering(monitors.observe)
    examples = _method(monitors.examples)
    label_feedback = _method(feedback.label_feedback)
    answer_feedback = _method(feedback.answer_feedback)
    click_feedback = _method(feedback.click_feedback)
    watch_model = _answering(models.watch_model)
    load_model = _method(models.load_model)
    cancel_load = _method(models.cancel_load)
    unload_model = _method(models.unload_model)
    load_adapter = _method(models.load_adapter)
    unload_adapter = _method(models.unload_adapter)
    set_alias = _method(models.set_alias)
    delete_alias = _method(models.delete_alias)
    _models = _method(models.list_models)
    _aliases = _method(models.list_aliases)

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """Returns every version of every model that the caller may use, by name and version. Raises CallError."""
        return _pages(self._models, timeout)

    def aliases(self, *, timeout: float | None = None) -> list[Alias]:
        """Returns every alias that the caller may use, by name. Raises CallError."""
        return _pages(self._aliases, timeout)

    def close(self) -> None:
        """Closes the connections, and ends running calls."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, endpoint: Endpoint) -> grpc.Channel:
        return endpoint.open()

    def _iterator(self, requests: Requests) -> Iterator[Message]:
        return iter(requests)


def _pages(page: Callable[[str, float | None], tuple[list[R], str]], timeout: float | None) -> list[R]:
    found, token = page("", timeout)
    while token:
        more, token = page(token, timeout)
        found += more
    return found
