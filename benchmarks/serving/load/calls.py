"""One call of each kind: what is sent, and what is counted of the answer. The content of answers is not checked.

No input is sent twice, in this run or another, so that no prefix cache can answer for the model: each begins with a
running number of eight digits, which starts at random. That costs a few tokens per input.
"""

import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc

from tuneserve.benchmarks.serving.load import texts as samples
from tuneserve.benchmarks.serving.load.tally import Answer, Tally
from tuneserve.client.endpoint import Endpoint
from tuneserve.v1 import checkpoint_pb2 as checkpoint
from tuneserve.v1 import classification_pb2 as classification
from tuneserve.v1 import common_pb2 as common
from tuneserve.v1 import generation_pb2 as generation
from tuneserve.v1 import model_pb2 as models
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

Item = TypeVar("Item")
# Makes a call and counts it. Its times count from the second argument: when it was due, or is sent.
Call = Callable[[Tally, float], Awaitable[None]]


@dataclass(frozen=True)
class Settings:
    """What to send, where, and for how long. Times are seconds."""

    server: Endpoint
    model: str
    connections: int = 8
    seconds: float = 10.0
    warmup: float = 2.0
    rate: float | None = None  # calls a second, in an open loop; None is a closed loop
    burstiness: float = 1.0  # of the arrivals: 1 is a Poisson process, less comes in bursts
    goodput: Mapping[str, float] = field(default_factory=dict)  # milliseconds that a good call takes at most, by name
    seed: int = 0  # of the arrivals
    batch: int = 1  # texts of one call; generation takes 1
    texts: Path | None = None  # one input a line; built-in ones when None
    max_tokens: int = 64  # of each answer
    stream: bool = True  # GenerateStream, or the unary Generate
    processes: int = 1  # of the client, that share the connections


@dataclass(frozen=True)
class Share:
    """The calls of one of several client processes: number `index`, `index` + `of`, and so on."""

    index: int = 0
    of: int = 1
    number: int = field(default_factory=lambda: random.randrange(10**7, 9 * 10**7))  # the run's first running number

    def deal(self, items: Iterable[Item]) -> Iterator[Item]:
        """Returns those of this process."""
        return itertools.islice(items, self.index, None, self.of)


def calls_of(served: models.GetModelResponse, settings: Settings, share: Share) -> Callable[[grpc.aio.Channel], Call]:
    """Returns a function that makes a connection's call for the model's task.

    All connections take their inputs from one endless iterator. Raises UserError if the file of texts can't be read.
    """
    task = served.model.task
    given = samples.read(settings.texts) if settings.texts else None
    if task == checkpoint.TASK_GENERATION:
        texts = _numbered(given or samples.PROMPTS, share)
        prompts = (_prompt(text, as_chat=bool(served.checkpoint.chat_template_sha256)) for text in texts)
        return lambda channel: _generate(channel, prompts, settings)
    sentences = _numbered(given or samples.SENTENCES, share)
    batches = iter(lambda: list(itertools.islice(sentences, settings.batch)), [])
    classify = _classify if task == checkpoint.TASK_SEQUENCE_CLASSIFICATION else _classify_tokens
    return lambda channel: classify(channel, batches, settings)


def _numbered(texts: list[str], share: Share) -> Iterator[str]:
    return (f"{number} {text}" for number, text in share.deal(enumerate(itertools.cycle(texts), share.number)))


def _prompt(text: str, as_chat: bool) -> generation.Prompt:
    if not as_chat:
        return generation.Prompt(text=text)
    return generation.Prompt(chat=generation.Chat(messages=[generation.ChatMessage(role="user", content=text)]))


def _classify(channel: grpc.aio.Channel, batches: Iterator[list[str]], settings: Settings) -> Call:
    stub = ClassificationServiceStub(channel)

    async def call(tally: Tally, started: float) -> None:
        inputs = [classification.ClassifyInput(text=text) for text in next(batches)]
        request = classification.ClassifyRequest(model=settings.model, inputs=inputs, truncation=common.TRUNCATION_END)
        response = await stub.Classify(request, **settings.server.options)
        tally.finish(Answer(started, len(inputs), response.usage.prompt_tokens), time.perf_counter())

    return call


def _classify_tokens(channel: grpc.aio.Channel, batches: Iterator[list[str]], settings: Settings) -> Call:
    stub = ClassificationServiceStub(channel)

    async def call(tally: Tally, started: float) -> None:
        texts = next(batches)
        request = classification.ClassifyTokensRequest(
            model=settings.model, texts=texts, truncation=common.TRUNCATION_END
        )
        response = await stub.ClassifyTokens(request, **settings.server.options)
        tally.finish(Answer(started, len(texts), response.usage.prompt_tokens), time.perf_counter())

    return call


def _generate(channel: grpc.aio.Channel, prompts: Iterator[generation.Prompt], settings: Settings) -> Call:
    stub = GenerationServiceStub(channel)
    sampling = generation.SamplingParams(max_tokens=settings.max_tokens, temperature=0, ignore_eos=True)

    async def responses() -> AsyncIterator[generation.GenerateStreamResponse | generation.GenerateResponse]:
        model, prompt = settings.model, next(prompts)
        if settings.stream:
            request = generation.GenerateRequest(model=model, prompt=prompt, sampling=sampling)
            async for response in stub.GenerateStream(request, **settings.server.options):
                yield response
        else:
            unary = generation.GenerateRequest(model=model, prompt=prompt, sampling=sampling)
            yield await stub.Generate(unary, **settings.server.options)

    async def call(tally: Tally, started: float) -> None:
        answer = Answer(started, inputs=1)
        async for response in responses():
            now = time.perf_counter()
            answer.prompt_tokens += response.usage.prompt_tokens
            if tokens := sum(len(completion.token_ids) for completion in response.completions):
                answer.arrivals.append((now, tokens))
                tally.token(now, tokens)
        tally.finish(answer, time.perf_counter())

    return call
