"""Servers in the event loop of a test that answer without a model."""

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving.command import bench_command
from tuneserve.benchmarks.serving.load.settings import Settings
from tuneserve.client.endpoint import Endpoint
from tuneserve.v1 import (
    checkpoint_pb2,
    classification_pb2,
    classification_pb2_grpc,
    common_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)

# The real server on fake engines.
from ...server.conftest import served as real_server  # noqa: F401
from ...server.conftest import shared_server  # noqa: F401

TASKS = {
    "sentiment": checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION,
    "ner": checkpoint_pb2.TASK_TOKEN_CLASSIFICATION,
    "chat": checkpoint_pb2.TASK_GENERATION,
    "plain": checkpoint_pb2.TASK_GENERATION,
}


class Engine:
    """What answers in a server's place: after `delay` seconds. It counts the calls that run."""

    delay = 0.005
    running = 0
    most_running = 0

    async def work(self) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.running -= 1


class Server(
    Engine,
    model_pb2_grpc.ModelServiceServicer,
    classification_pb2_grpc.ClassificationServiceServicer,
    generation_pb2_grpc.GenerationServiceServicer,
):
    """Answers after `delay` seconds; refuses every call whose running number `refuse` divides."""

    def __init__(self) -> None:
        self.refuse = 0
        self.key = ""
        self.requests: list[
            classification_pb2.ClassifyRequest
            | classification_pb2.ClassifyTokensRequest
            | generation_pb2.GenerateRequest
        ] = []
        self.peers: set[str] = set()

    async def GetModel(
        self, request: model_pb2.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> model_pb2.GetModelResponse:
        await self._let_in(context)
        if request.model not in TASKS:
            await context.abort(grpc.StatusCode.NOT_FOUND, "served: sentiment, ner, chat")
        return model_pb2.GetModelResponse(
            model=model_pb2.Model(
                name=request.model,
                task=TASKS[request.model],
                version="0123456789ab",
                quantization="w8a8",
                limits=model_pb2.Limits(max_inputs=8),
            ),
            checkpoint=checkpoint_pb2.Checkpoint(chat_template_sha256="f00" if request.model == "chat" else ""),
        )

    async def _let_in(self, context) -> None:
        if self.key and dict(context.invocation_metadata()).get("authorization") != f"Bearer {self.key}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

    async def _take(self, request, context) -> None:
        await self._let_in(context)
        self.requests.append(request)
        self.peers.add(context.peer())
        if self.refuse and len(self.requests) % self.refuse == 0:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        await self.work()

    async def Classify(self, request, context):
        await self._take(request, context)
        return classification_pb2.ClassifyResponse(usage=common_pb2.Usage(prompt_tokens=10 * len(request.inputs)))

    async def ClassifyTokens(self, request, context):
        await self._take(request, context)
        return classification_pb2.ClassifyTokensResponse(usage=common_pb2.Usage(prompt_tokens=7 * len(request.texts)))

    async def Generate(self, request, context):
        await self._take(request, context)
        tokens = list(range(request.sampling.max_tokens))
        return generation_pb2.GenerateResponse(
            completions=[generation_pb2.Completion(token_ids=tokens)], usage=common_pb2.Usage(prompt_tokens=5)
        )

    async def GenerateStream(self, request, context):
        """Sends one token, then the others in messages of at most two."""
        await self._take(request, context)
        left = request.sampling.max_tokens
        size = 1
        while left:
            size = min(size, left)
            left -= size
            yield generation_pb2.GenerateStreamResponse(
                completions=[generation_pb2.Completion(token_ids=[1] * size, text="ab")],
                usage=None if left else common_pb2.Usage(prompt_tokens=5),
            )
            await asyncio.sleep(0.002)
            size = 2


def on_grpc(servicer: Server) -> grpc.aio.Server:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    return server


@pytest.fixture
async def served() -> AsyncIterator[tuple[Server, str]]:
    servicer = Server()
    server = on_grpc(servicer)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


# Of a run: a machine with other work may stand still for half of it, and one call at least has to end.
SECONDS = 1.0


def settings(target: str, model: str, **others: object) -> Settings:
    usual = {"server": Endpoint(target), "connections": 4, "seconds": SECONDS, "warmup": 0.1, "max_tokens": 6}
    return Settings(model=model, **usual | others)


async def bench(target: str, *arguments: str) -> dict:
    """Runs the command, and returns its last line."""
    given = ["--target", target, "--model", "sentiment", "--seconds", "0.5", "--warmup", "0", *arguments]
    result = await asyncio.to_thread(CliRunner().invoke, bench_command, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


SERVICE_SECONDS = 0.02


class OneAtATime(classification_pb2_grpc.ClassificationServiceServicer):
    """Answers one call at a time, and lets two more wait."""

    def __init__(self) -> None:
        self.inside = 0
        self.turn = asyncio.Lock()
        self.batches: list[int] = []

    async def Classify(
        self, request: classification_pb2.ClassifyRequest, context
    ) -> classification_pb2.ClassifyResponse:
        if self.inside == 3:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("grpc-retry-pushback-ms", "100"),))
        self.batches.append(len(request.inputs))
        self.inside += 1
        try:
            async with self.turn:
                await asyncio.sleep(SERVICE_SECONDS)
        finally:
            self.inside -= 1
        context.set_trailing_metadata((("server-timing", "queue;dur=12.5, engine;dur=20"),))
        return classification_pb2.ClassifyResponse(results=[classification_pb2.Classification()] * len(request.inputs))


@pytest.fixture
async def one_at_a_time() -> AsyncIterator[tuple[OneAtATime, str]]:
    servicer = OneAtATime()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)
