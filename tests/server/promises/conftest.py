"""What the attacks share: a server on fake engines, and the proof that it is as it was before."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
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
# The longest that a turn of the event loop may take, in seconds of its thread's CPU time.
_LONGEST_TURN = 0.1
_numbers = itertools.count()
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
    request = generation_pb2.GenerateRequest()
    request.CopyFrom(GENERATE)
    # Another each time, so that the process that checks them runs.
    request.sampling.structured_output.regex = f"{next(_numbers)}"
    assert (await GenerationServiceStub(served.channel).Generate(request, timeout=60)).completions


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


class Probe:
    """Measures the turns of the event loop in CPU time of its own thread: other work on the machine does not count.

    Callers must be in other threads, and their messages made before: what is measured is the server's.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        before = time.thread_time()
        while True:
            # Whatever is ready has its turn meanwhile, and nothing is waited for.
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest, before = max(self.longest, now - before), now


@asynccontextmanager
async def _unheld() -> AsyncIterator[Probe]:
    probe = Probe()
    watching = asyncio.create_task(probe.watch())
    try:
        yield probe
    finally:
        watching.cancel()
    assert probe.longest <= _LONGEST_TURN, f"the event loop was held for {probe.longest * 1000:.0f} ms"


@pytest.fixture
def unheld() -> Callable:
    """`async with unheld():` fails if the event loop was held for longer than is promised."""
    return _unheld


def _send(address: str, method: str, messages: Sequence[bytes], seconds: float) -> tuple[grpc.StatusCode, str]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:
        call = channel.stream_stream(method)(iter(messages), timeout=seconds)
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        return call.code(), call.details()


@pytest.fixture
def send() -> Callable:
    """`await send(address, method, [bytes])` makes a call of any kind in another thread, and returns its status."""

    async def run(address: str, method: str, messages: Sequence[bytes], seconds: float = 120.0):
        return await asyncio.to_thread(_send, address, method, messages, seconds)

    return run
