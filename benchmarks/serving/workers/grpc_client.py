"""Worker: does jobs by calling our server over gRPC; each caller has a channel with a connection of its own.

python -m tuneserve.benchmarks.serving.workers.grpc_client [PROCESSES]
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc

from tuneserve.benchmarks.serving.load.apis.ours import OWN_CONNECTION
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.benchmarks.serving.workers.several import several
from tuneserve.benchmarks.serving.workers.worker import drive, watch, work
from tuneserve.client.endpoint import Endpoint
from tuneserve.v1 import classification_pb2 as classification
from tuneserve.v1 import generation_pb2 as generation
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub


@asynccontextmanager
async def open_channels(target: str, connections: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Yields open channels."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(Endpoint(target).open_async(OWN_CONNECTION)) for _ in range(connections)
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        yield channels


@dataclass(frozen=True)
class Stubs:
    """The stubs of one channel: making them for each call would take the client's time."""

    classification: ClassificationServiceStub
    generation: GenerationServiceStub


@asynccontextmanager
async def connected(job: Job) -> AsyncIterator[list[Stubs]]:
    """Yields the stubs of each of a job's channels."""
    async with open_channels(job.target, job.connections) as channels:
        yield [Stubs(ClassificationServiceStub(channel), GenerationServiceStub(channel)) for channel in channels]


async def send(stubs: Stubs, job: Job, piece: Sequence[str] | Sequence[int], outcome: Outcome) -> None:
    """Makes one call."""
    if job.texts and job.stream:
        async for one in stubs.classification.ClassifyStream(_each(job, piece)):
            outcome.texts += len(one.response.results)
            outcome.prompt_tokens += one.response.usage.prompt_tokens
        return
    if job.texts:
        inputs = [classification.ClassifyInput(text=str(text)) for text in piece]
        response = await stubs.classification.Classify(classification.ClassifyRequest(model=job.model, inputs=inputs))
        outcome.texts += len(response.results)
        outcome.prompt_tokens += response.usage.prompt_tokens
        outcome.answers += [one.labels[0].label for one in response.results] if job.answers else []
        return
    prompt = generation.Prompt(token_ids=generation.TokenIds(ids=[int(id_) for id_ in piece]))
    sampling = generation.SamplingParams(max_tokens=job.max_tokens, temperature=0, ignore_eos=True)
    request = generation.GenerateRequest(model=job.model, prompt=prompt, sampling=sampling)
    if not job.stream:
        answer = await stubs.generation.Generate(request)
        outcome.output_tokens += len(answer.completions[0].token_ids)
        outcome.prompt_tokens += answer.usage.prompt_tokens
        outcome.answers += [answer.completions[0].text] if job.answers else []
        return

    async def tokens() -> AsyncIterator[int]:
        async for message in stubs.generation.GenerateStream(request):
            outcome.prompt_tokens += message.usage.prompt_tokens
            new = sum(len(completion.token_ids) for completion in message.completions)
            outcome.output_tokens += new
            yield new

    await watch(tokens(), outcome)


async def _each(job: Job, texts: Sequence[str] | Sequence[int]) -> AsyncIterator[classification.ClassifyStreamRequest]:
    for text in texts:
        request = classification.ClassifyRequest(model=job.model, inputs=[classification.ClassifyInput(text=str(text))])
        yield classification.ClassifyStreamRequest(request=request)


def do(job: Job) -> Outcome:
    """Does a job with this process alone."""
    return asyncio.run(drive(job, connected, send))


if __name__ == "__main__":
    work(lambda: several(do, int(sys.argv[1])) if sys.argv[1:] else do)
