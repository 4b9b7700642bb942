"""Our own API: ModelService.GetModel tells the task, and each kind of call has its RPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from tuneserve.benchmarks.serving.load.calls import Message, Refused, Send, Served, default_call
from tuneserve.benchmarks.serving.load.inputs import Request
from tuneserve.benchmarks.serving.load.settings import Settings
from tuneserve.call.channel import failure
from tuneserve.checkpoint.tasks import TASK_NAMES
from tuneserve.errors import UserError
from tuneserve.v1 import classification_pb2 as classification
from tuneserve.v1 import common_pb2 as common
from tuneserve.v1 import embedding_pb2 as embedding
from tuneserve.v1 import generation_pb2 as generation
from tuneserve.v1 import model_pb2 as models
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

CONNECT_SECONDS = 10.0
# Otherwise channels with equal targets would share one connection.
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Served, list[Send]]]:
    """Yields what is served, and a sender for each connection."""
    async with channels(settings) as each:
        request = models.GetModelRequest(model=settings.model)
        found = await asked(ModelServiceStub(each[0]).GetModel, request, settings)
        await connected(each, settings)
        task = TASK_NAMES[found.model.task]
        served = Served(
            task=task,
            call=settings.call or default_call(task, is_chat=bool(found.checkpoint.chat_template_sha256)),
            version=found.model.version,
            quantization=found.model.quantization,
            max_inputs=found.model.limits.max_inputs,
        )
        # A model with several labels ranks by one of them.
        label = found.model.labels[-1] if len(found.model.labels) > 1 else None
        yield served, [_sender(channel, served.call, label, settings) for channel in each]


@asynccontextmanager
async def channels(settings: Settings) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Yields a channel for each connection."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(settings.server.open_async(OWN_CONNECTION))
            for _ in range(settings.connections)
        ]


async def connected(each: list[grpc.aio.Channel], settings: Settings) -> None:
    """Waits until all channels are connected. Raises UserError."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.gather(*(channel.channel_ready() for channel in each))
    except TimeoutError:
        raise UserError(
            f"--target {settings.server.target}: does not accept {len(each)} connections", "use fewer --connections"
        ) from None


async def asked(call: Any, request: Any, settings: Settings) -> Any:
    """Returns what a server says of a model. Raises CallFailed."""
    timeout = min(CONNECT_SECONDS, settings.server.timeout)
    try:
        return await call(request, **settings.server.options | {"timeout": timeout})
    except grpc.aio.AioRpcError as error:
        raise failure(error, settings.server) from None


async def answered(call: Any, request: Any, settings: Settings) -> Any:
    """Makes a call with one answer, and returns that. Raises Refused."""
    try:
        return await call(request, **settings.server.options)
    except grpc.aio.AioRpcError as error:
        raise refused(error) from None


def refused(error: grpc.aio.AioRpcError) -> Refused:
    """Returns an error of gRPC as one of any API."""
    return Refused(error.code().name, error.details() or "")


def _sender(channel: grpc.aio.Channel, call: str, label: str | None, settings: Settings) -> Send:
    model, truncation, classifier = settings.model, common.TRUNCATION_END, ClassificationServiceStub(channel)

    def classify(request: Request) -> classification.ClassifyRequest:
        inputs = [classification.ClassifyInput(text=text) for text in request.texts]
        return classification.ClassifyRequest(model=model, inputs=inputs, truncation=truncation)

    def tokens(request: Request) -> classification.ClassifyTokensRequest:
        return classification.ClassifyTokensRequest(model=model, texts=request.texts, truncation=truncation)

    def rank(request: Request) -> classification.RankRequest:
        return classification.RankRequest(
            model=model, query=request.query, candidates=request.texts, label=label, truncation=truncation
        )

    def embed(request: Request) -> embedding.EmbedRequest:
        return embedding.EmbedRequest(model=model, texts=request.texts, truncation=truncation)

    if call == "classify":
        return _pooling(classifier.Classify, classify, settings)
    if call == "tokens":
        return _pooling(classifier.ClassifyTokens, tokens, settings)
    if call == "rank":
        return _pooling(classifier.Rank, rank, settings)
    if call == "embed":
        return _pooling(EmbeddingServiceStub(channel).Embed, embed, settings)
    return _generating(GenerationServiceStub(channel), call == "chat", settings)


def _pooling(call: Any, message: Callable[[Request], Any], settings: Settings) -> Send:
    async def send(request: Request) -> AsyncIterator[Message]:
        yield Message((await answered(call, message(request), settings)).usage.prompt_tokens)

    return send


def _generating(stub: GenerationServiceStub, is_chat: bool, settings: Settings) -> Send:
    def message(request: Request) -> generation.GenerateRequest:
        sampling = generation.SamplingParams(max_tokens=request.max_tokens, temperature=0, ignore_eos=True)
        prompt = generation.Prompt(chat=_chat(request)) if is_chat else generation.Prompt(text=request.texts[0])
        return generation.GenerateRequest(model=settings.model, prompt=prompt, sampling=sampling)

    async def send(request: Request) -> AsyncIterator[Message]:
        if not settings.stream:
            yield _message(await answered(stub.Generate, message(request), settings))
            return
        try:
            async for response in stub.GenerateStream(message(request), **settings.server.options):
                yield _message(response)
        except grpc.aio.AioRpcError as error:
            raise refused(error) from None

    return send


def _chat(request: Request) -> generation.Chat:
    return generation.Chat(
        messages=[generation.ChatMessage(role=role, content=text) for role, text in request.messages]
    )


def _message(response: generation.GenerateStreamResponse | generation.GenerateResponse) -> Message:
    completions = response.completions
    return Message(
        prompt_tokens=response.usage.prompt_tokens,
        tokens=sum(len(completion.token_ids) for completion in completions),
        text="".join(completion.text for completion in completions),
    )
