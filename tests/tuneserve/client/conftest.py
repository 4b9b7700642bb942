"""Both clients, by one way to call them, and a server that fails as a test wants."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import pytest

from tuneserve.client import Answers, AsyncAnswers, AsyncClient, AsyncStream, Client, Stream
from tuneserve.v1 import (
    classification_pb2,
    classification_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_admin_pb2,
    model_admin_pb2_grpc,
)

# The real server on fake engines.
from ...server.conftest import served, shared_server, until  # noqa: F401

Ask = Callable[..., Awaitable[Any]]


async def _gathered(found: Any) -> Any:
    if not isinstance(found, AsyncAnswers):
        return await found
    answers = [answer async for answer in found]
    return (answers, found.result) if isinstance(found, AsyncStream) else answers


def _gather(found: Any) -> Any:
    if not isinstance(found, Answers):
        return found
    answers = list(found)
    return (answers, found.result) if isinstance(found, Stream) else answers


@pytest.fixture(params=[Client, AsyncClient])
async def asking(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Ask]]:
    """Makes a client, of the one kind or the other: `ask = asking(address)`. Then `await ask("classify", ...)`.

    Of several answers, `ask` returns them in a list, and with them the result of a stream.
    """
    clients: list[Any] = []

    def make(*arguments: Any, **options: Any) -> Ask:
        client = request.param(*arguments, **options)
        clients.append(client)

        async def ask(method: str, *arguments: Any, **options: Any) -> Any:
            call = partial(getattr(client, method), *arguments, **options)
            if isinstance(client, AsyncClient):
                return await _gathered(call())
            # In a thread, as the event loop serves.
            return await asyncio.to_thread(lambda: _gather(call()))

        return ask

    yield make
    for client in clients:
        if isinstance(client, AsyncClient):
            await client.close()
        else:
            client.close()


@pytest.fixture
async def ask(asking: Any, served: Any) -> Any:  # noqa: F811  # pytest's fixture, imported above
    return asking(served.app.address)


@dataclass
class Failing(
    classification_pb2_grpc.ClassificationServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
    model_admin_pb2_grpc.ModelAdminServiceServicer,
):
    """Answers, once all of `failures` were raised: each a code, and the pause in ms that it asks for, or None."""

    failures: list[tuple[grpc.StatusCode, int | None]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # of a stream, sent before its failure
    times: list[float] = field(default_factory=list)  # when a call came
    metadata: dict[str, Any] = field(default_factory=dict)  # of the last one
    address: str = ""

    def Classify(self, request: Any, context: Any) -> classification_pb2.ClassifyResponse:
        self._take(context)
        self._fail(context)
        label = classification_pb2.LabelScore(label=self.address, score=1)
        return classification_pb2.ClassifyResponse(results=[classification_pb2.Classification(labels=[label])])

    def GenerateStream(self, request: Any, context: Any) -> Iterator[generation_pb2.GenerateStreamResponse]:
        self._take(context)
        for text in self.parts:
            yield generation_pb2.GenerateStreamResponse(completions=[generation_pb2.Completion(text=text)])
        self._fail(context)

    def DeleteAlias(self, request: Any, context: Any) -> model_admin_pb2.DeleteAliasResponse:
        self._take(context)
        self._fail(context)
        return model_admin_pb2.DeleteAliasResponse()

    def _take(self, context: Any) -> None:
        self.times.append(time.monotonic())
        self.metadata = dict(context.invocation_metadata())

    def _fail(self, context: Any) -> None:
        if self.failures:
            code, pause = self.failures.pop(0)
            if pause is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pause)),))
            context.abort(code, "not now")


@pytest.fixture
def failing() -> Iterator[Callable[..., Any]]:
    """Starts one: `with failing(...) as server`."""

    @contextmanager
    def start(*failures: Any, credentials: grpc.ServerCredentials | None = None, **options: Any) -> Iterator[Failing]:
        servicer = Failing(list(failures), **options)
        server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
        model_admin_pb2_grpc.add_ModelAdminServiceServicer_to_server(servicer, server)
        place = "127.0.0.1:0"
        port = server.add_secure_port(place, credentials) if credentials else server.add_insecure_port(place)
        servicer.address = f"127.0.0.1:{port}"
        server.start()
        yield servicer
        server.stop(None).wait()

    return start
