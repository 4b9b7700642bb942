"""What the attacks share: a server on fake engines, and the proof that it is as it was before."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.v1 import classification_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)
GENERATE = generation_pb2.GenerateRequest(
    model="chat",
    prompt=generation_pb2.Prompt(text="the film was"),
    sampling=generation_pb2.SamplingParams(max_tokens=2),
)
# Sockets of ours are closed at once, but the server hears of it a little later.
_CALM_SECONDS = 10.0


@dataclass(frozen=True)
class State:
    """What an attack may leave behind. Server and clients are in this process: both count."""

    tasks: int
    fds: int
    held: int  # sequences, calls and tokens in the engines and their queues

    @classmethod
    def of(cls, served) -> "State":
        models = list(served.app.models)
        inside = [m.admission.running + m.admission.calls + m.admission.waiting_tokens for m in models]
        # A client's writer of requests outlives its call until there is one to write.
        tasks = [task for task in asyncio.all_tasks() if "_consume_request_iterator" not in str(task.get_coro())]
        return cls(
            len(tasks),
            psutil.Process().num_fds(),
            sum(inside) + sum(engine.running for engine in served.engines.values()),
        )


async def _alive(served) -> None:
    response = await health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert response.status == health_pb2.HealthCheckResponse.SERVING
    assert (await ClassificationServiceStub(served.channel).Classify(CLASSIFY, timeout=10)).results
    assert (await GenerationServiceStub(served.channel).Generate(GENERATE, timeout=10)).completions


@asynccontextmanager
async def _unharmed(served) -> AsyncIterator[None]:
    await _alive(served)
    before = State.of(served)
    yield
    await _alive(served)
    for _ in range(round(_CALM_SECONDS / 0.02)):
        after = State.of(served)
        if after.tasks <= before.tasks and after.fds <= before.fds and not after.held:
            return
        await asyncio.sleep(0.02)
    tasks = "\n".join(str(task.get_coro()) for task in asyncio.all_tasks())
    raise AssertionError(f"before: {before}, {_CALM_SECONDS:g} s after: {after}\n{tasks}")


@pytest.fixture
def unharmed() -> Callable:
    """`async with unharmed(served)`: answers before and after, and neither tasks, files nor engine slots are left."""
    return _unharmed
