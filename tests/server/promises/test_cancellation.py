"""Whatever ends a call, its place is free within a second: cancelled in the queue, in its first step, in the middle of
a stream, held back by a client that does not read, or with its client's connection gone; or its deadline passed.

`make soak` cancels 1,000 calls; TUNESERVE_CANCELS sets another number.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

import grpc
import psutil
import pytest

from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.interface import Delta
from tuneserve.server.models.admission import Turn
from tuneserve.v1 import classification_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

CANCELS = int(os.environ.get("TUNESERVE_CANCELS", "100"))
AT_ONCE = 5
FOREVER = 600.0

CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)
PROMPT = generation_pb2.Prompt(text="the film was")
SAMPLING = generation_pb2.SamplingParams(max_tokens=40)

METHODS = ("Generate", "GenerateStream", "Classify", "ClassifyStream")
PHASES = ("queued", "first step", "mid-stream", "slow reader", "client gone")
# A single answer has no middle, and a classification is never large enough to hold its stream back.
CASES = [
    (method, phase)
    for method in METHODS
    for phase in PHASES
    if not (phase == "mid-stream" and method in ("Generate", "Classify"))
    and not (phase == "slow reader" and method != "GenerateStream")
]


@pytest.fixture
async def server(serve_config, make_bert, make_llama):
    """Two models with room for two sequences each, and a long queue."""
    settings = {"max_queue": 100, "max_num_seqs": 2}
    config = loopback(
        {
            "sentiment": ModelConfig(path=make_bert(), **settings),
            "chat": ModelConfig(path=make_llama(), **settings),
        },
        stall_seconds=FOREVER,
        drain_seconds=3,
    )
    async with serve_config(config) as served:
        for engine in served.engines.values():
            engine.ping = _alive
        yield served


async def _alive() -> None:
    """However long an engine's steps take here, it is no dead one."""


async def one_then_wait() -> AsyncIterator[classification_pb2.ClassifyStreamRequest]:
    yield classification_pb2.ClassifyStreamRequest(id=1, request=CLASSIFY)
    await asyncio.sleep(FOREVER)


def begin(channel: grpc.aio.Channel, method: str, **options):
    """Starts a call."""
    if method == "Classify":
        return ClassificationServiceStub(channel).Classify(CLASSIFY, **options)
    if method == "ClassifyStream":
        return ClassificationServiceStub(channel).ClassifyStream(one_then_wait(), **options)
    if method == "Generate":
        request = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=SAMPLING)
        return GenerationServiceStub(channel).Generate(request, **options)
    request = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=SAMPLING)
    return GenerationServiceStub(channel).GenerateStream(request, **options)


def model_of(server, method: str):
    name = "sentiment" if method.startswith("Classify") else "chat"
    [model] = [model for model in server.app.models if model.name == name]
    return model, server.engines[name]


def speak_at_length(engine) -> None:
    """Makes an engine's messages so large that a few of them fill every buffer on their way."""

    async def generate(ticket, token_ids, sampling, stream):
        engine.running += 1
        try:
            for _ in range(sampling.max_tokens):
                await asyncio.sleep(0)
                yield Delta(0, "x" * 500_000, [7])
        finally:
            engine.running -= 1

    engine.generate = generate


async def within(seconds: float, condition, found=lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s {found()}"
        await asyncio.sleep(0.005)


async def cancel(server, method: str, phase: str) -> None:
    """Starts a few calls, ends them in a phase of their lives, and waits for their places to be free."""
    model, engine = model_of(server, method)
    channel = grpc.aio.insecure_channel(server.app.address) if phase == "client gone" else server.channel
    plain, engine.delay = engine.generate, FOREVER
    holders = []
    if phase == "queued":
        # The classifier's queue lets two batches ahead of each other in.
        holders = [begin(server.channel, method) for _ in range(model.admission._sequences.size)]
        await within(5, lambda: engine.running == len(holders))
    if phase == "mid-stream":
        engine.delay = 0.005
    if phase == "slow reader":
        speak_at_length(engine)
    calls = [begin(channel, method) for _ in range(AT_ONCE)]
    if phase == "queued":
        await within(5, lambda: model.admission.waiting == AT_ONCE)
    elif phase in ("mid-stream", "slow reader"):
        await asyncio.gather(*(call.read() for call in calls[: engine.max_num_seqs]))
    else:
        await within(5, lambda: engine.running == min(AT_ONCE, model.admission._sequences.size))
    if phase == "slow reader":
        await asyncio.sleep(0.05)
        assert engine.running == engine.max_num_seqs, "they wait to be read"
    if phase == "client gone":
        await channel.close()
    for call in calls:
        call.cancel()
    await within(1, lambda: model.admission.calls == len(holders) and not model.admission.waiting)
    for holder in holders:
        holder.cancel()
    await within(1, lambda: not (engine.running or model.admission.calls or model.admission.running))
    assert model.admission.waiting_tokens == 0
    engine.delay, engine.generate = 0.0, plain
    for call in (*calls, *holders):
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await (call.read() if method.endswith("Stream") and phase == "queued" else _code(call))


async def _code(call) -> None:
    code = await call.code()
    assert code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE), code
    raise asyncio.CancelledError


@pytest.mark.parametrize(("method", "phase"), CASES)
async def test_a_cancelled_call_frees_its_place(server, unharmed, method, phase):
    async with unharmed(server):
        for _ in range(max(1, CANCELS // AT_ONCE // len(CASES))):
            await cancel(server, method, phase)


async def test_cancelled_calls_keep_no_memory(server, unharmed):
    rounds = max(3, CANCELS // AT_ONCE // len(CASES))
    async with unharmed(server):
        for number in range(rounds):
            for method, phase in CASES:
                if phase != "slow reader":  # whose megabytes come and go
                    await cancel(server, method, phase)
            if number == rounds // 3:
                before = psutil.Process().memory_info().rss
    grown = psutil.Process().memory_info().rss - before
    assert grown < 8 << 20, f"{grown >> 10} KiB after {rounds} rounds"


@pytest.mark.parametrize("method", METHODS)
async def test_a_deadline_that_passes_in_the_queue_never_reaches_the_engine(server, method):
    model, engine = model_of(server, method)
    # Long enough for all of them to be in the queue at the same time, on a busy machine too.
    engine.delay = 2.0
    holders = [begin(server.channel, method) for _ in range(model.admission._sequences.size)]
    await within(5, lambda: engine.running == len(holders))
    late = [begin(server.channel, method, timeout=1.5) for _ in range(AT_ONCE)]
    await within(5, lambda: model.admission.waiting == AT_ONCE)
    assert [await call.code() for call in late] == [grpc.StatusCode.DEADLINE_EXCEEDED] * AT_ONCE
    for holder in holders:
        await (holder.read() if method.endswith("Stream") else holder)
        holder.cancel()
    await within(1, lambda: not (engine.running or model.admission.calls))
    assert len(engine.tickets) == len(holders) + 1, "and the warm-up's"


async def test_a_deadline_that_passes_while_the_server_is_busy_never_reaches_the_engine(server):
    """The call has its place already, and the server has not heard yet that nobody waits for it any more."""
    model, engine = model_of(server, "Classify")
    engine.delay = 0.2
    release = model.admission.release

    def busy(turn: Turn) -> None:
        release(turn)
        model.admission.release = release
        time.sleep(0.5)

    holders = [begin(server.channel, "Classify") for _ in range(model.admission._sequences.size)]
    await within(5, lambda: engine.running == len(holders))
    model.admission.release = busy
    late = [begin(server.channel, "Classify", timeout=0.4) for _ in range(AT_ONCE)]
    assert [await call.code() for call in late] == [grpc.StatusCode.DEADLINE_EXCEEDED] * AT_ONCE
    await asyncio.gather(*holders)
    await within(1, lambda: not model.admission.calls)
    assert len(engine.tickets) == len(holders) + 1, "and the warm-up's"


@pytest.mark.parametrize("method", METHODS)
async def test_a_deadline_that_passes_in_the_engine_frees_it(server, unharmed, method):
    model, engine = model_of(server, method)
    async with unharmed(server):
        engine.delay = FOREVER
        calls = [begin(server.channel, method, timeout=0.2) for _ in range(2)]
        await within(5, lambda: engine.running == 2)
        assert [await call.code() for call in calls] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
        await within(1, lambda: not (engine.running or model.admission.calls))
        engine.delay = 0.0


async def test_a_client_that_reads_nothing_loses_its_stream(serve_config, make_llama, unharmed):
    config = loopback({"chat": make_llama()}, drain_seconds=3)
    config = config.model_copy(update={"stall_seconds": 0.3})  # less than a file may say
    async with serve_config(config) as server:
        model, engine = model_of(server, "GenerateStream")
        before, plain = asyncio.all_tasks(), engine.generate
        speak_at_length(engine)
        stuck = begin(server.channel, "GenerateStream")
        await within(5, lambda: engine.running == 1)
        await within(5, lambda: not (engine.running or model.admission.calls))
        read = 0
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in stuck:
                read += 1
        assert await stuck.code() == grpc.StatusCode.UNAVAILABLE
        assert "read nothing" in await stuck.details()
        assert read < SAMPLING.max_tokens
        engine.generate = plain
        answers = [one async for one in begin(server.channel, "GenerateStream")]
        assert answers[-1].HasField("usage"), "one that reads is answered"
        del stuck
        await within(2, lambda: len(asyncio.all_tasks()) <= len(before), lambda: asyncio.all_tasks() - before)
