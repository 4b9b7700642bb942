"""Drain: with streams under way, health flips first; each stream ends with its last message or with UNAVAILABLE, in the
time there is for it, and none hangs.
"""

import asyncio
import time
from collections import Counter

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.server.config import ModelConfig
from tuneserve.v1 import classification_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

STREAMS = 50
BUDGET = 4.0
STEP = 0.1
CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)


@pytest.fixture
async def server(serve_config, make_bert, make_llama):
    config = loopback(
        {
            "sentiment": make_bert(),
            "chat": ModelConfig(path=make_llama(), max_num_seqs=2 * STREAMS),
        },
        drain_seconds=BUDGET,
    )
    async with serve_config(config) as served:
        yield served


async def read(call) -> tuple[str, bool]:
    """Reads a stream to its end: its code, and whether its last message, or our own word for its end, came."""
    last = None
    try:
        while (one := await call.read()) is not grpc.aio.EOF:
            last = one
    except grpc.aio.AioRpcError as error:
        return error.code().name, "the server shuts down" in (error.details() or "")
    return "OK", last is not None and last.HasField("usage")


def stream(server, tokens: int):
    sampling = generation_pb2.SamplingParams(max_tokens=tokens)
    prompt = generation_pb2.Prompt(text="the film was")
    request = generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=sampling)
    return GenerationServiceStub(server.channel).GenerateStream(request)


async def watch(server, flipped: asyncio.Event) -> None:
    call = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
    try:
        async for one in call:
            if one.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                flipped.set()
                return
    finally:
        call.cancel()


async def endless(server, silent: asyncio.Event) -> str:
    """A ClassifyStream whose client never ends it. Returns its code."""

    async def requests():
        yield classification_pb2.ClassifyStreamRequest(id=1, request=CLASSIFY)
        await silent.wait()

    call = ClassificationServiceStub(server.channel).ClassifyStream(requests())
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_fifty_streams_end_in_time(server, until):
    engine, flipped, silent = server.engines["chat"], asyncio.Event(), asyncio.Event()
    engine.delay = STEP
    # Half of them have a second left, the others six.
    calls = [stream(server, 10 if number % 2 else 60) for number in range(STREAMS)]
    await asyncio.gather(*(call.read() for call in calls))
    reading = [asyncio.create_task(read(call)) for call in calls]
    watching = asyncio.create_task(watch(server, flipped))
    open_ended = asyncio.create_task(endless(server, silent))
    await until(lambda: server.engines["sentiment"].tickets[1:])
    began = time.monotonic()
    stopping = asyncio.create_task(server.app.stop())
    await asyncio.wait_for(flipped.wait(), 1)
    assert not any(task.done() for task in reading), "health flips before the first stream ends"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(stream(server, 1).read(), 2)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    ends = await asyncio.wait_for(asyncio.gather(*reading), BUDGET + 2)
    assert Counter(ends) == {("OK", True): STREAMS // 2, ("UNAVAILABLE", True): STREAMS // 2}
    assert await asyncio.wait_for(open_ended, 2) == "UNAVAILABLE"
    await asyncio.wait_for(stopping, 2)
    assert time.monotonic() - began < BUDGET + 2
    assert engine.running == 0
    assert engine.closed
    silent.set()
    await watching


async def test_no_caller_is_told_that_it_cancelled(server, until):
    """CANCELLED is what gRPC answers to calls that arrive as it stops; only UNAVAILABLE is tried again."""
    server.engines["sentiment"].delay = 0.02
    stub, ends = ClassificationServiceStub(server.channel), Counter()

    async def knock() -> None:
        while not server.engines["sentiment"].closed:
            try:
                await stub.Classify(CLASSIFY)
                ends["OK"] += 1
            except grpc.aio.AioRpcError as error:
                ends[error.code().name] += 1

    knocking = [asyncio.create_task(knock()) for _ in range(64)]
    running = stream(server, 20)
    await running.read()
    await until(lambda: ends["OK"] > 100)
    stopping = asyncio.create_task(server.app.stop())
    assert await asyncio.wait_for(read(running), BUDGET) == ("OK", True)
    await asyncio.wait_for(stopping, BUDGET)
    await asyncio.wait_for(asyncio.gather(*knocking), BUDGET)
    assert ends["UNAVAILABLE"]
    assert set(ends) == {"OK", "UNAVAILABLE"}, ends
