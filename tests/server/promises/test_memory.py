"""A call takes memory by what it sends, not by how often something of it is used."""

import asyncio
import re
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest

from tuneserve.oip import inference_pb2
from tuneserve.server.call import shares
from tuneserve.server.config import ModelConfig
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import loopback

RANK, INFER = "/tuneserve.v1.ClassificationService/Rank", "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
async def server(serve_config, make_bert) -> AsyncIterator:
    """One with a classifier."""
    models = {"sentiment": ModelConfig(path=make_bert(labels=["negative", "positive"]))}
    async with serve_config(loopback(models)) as served:
        yield served


async def test_a_long_query_is_kept_once(server, send):
    """Not once for each candidate: a message of two megabytes took two gigabytes."""
    query = "the film was good " * 100_000
    message = pb.RankRequest(
        model="sentiment",
        query=query,
        candidates=["good"] * 500,
        label="positive",
        truncation=common_pb2.TRUNCATION_END,
    ).SerializeToString()
    tracemalloc.start()
    try:
        code, details = await send(server.app.address, RANK, [message])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert code == grpc.StatusCode.OK, details
    assert most < 20 * len(query)


async def test_an_id_that_each_answer_repeats_is_short(server, send):
    """A stream's every token would carry it: 78 MB of requests were answered with 1.8 GB."""
    request = inference_pb2.ModelInferRequest(model_name="sentiment", id="i" * 1025)
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"good")
    code, details = await send(server.app.address, INFER, [request.SerializeToString()])
    assert (code, details.split(" (")[0]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "id: has 1025 characters; allowed: 1024",
    )
    request.id = "i" * 1024
    code, details = await send(server.app.address, INFER, [request.SerializeToString()])
    assert code == grpc.StatusCode.OK, details


@pytest.mark.parametrize("count", [1, 5], ids=["one text", "several"])
async def test_a_text_is_looked_at_no_further_than_its_windows_may_show(server, send, count):
    """A text of 3.9 MB took a gigabyte, and 6 s, until it was refused."""
    text = "a " * (1_900_000 // count)
    message = pb.ClassifyRequest(model="sentiment", truncation=common_pb2.TRUNCATION_WINDOWS)
    message.inputs.extend([pb.ClassifyInput(text=text)] * count)
    tracemalloc.start()
    try:
        method = "/tuneserve.v1.ClassificationService/Classify"
        code, details = await send(server.app.address, method, [message.SerializeToString()])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("inputs: make 1025 windows or more; allowed: 1024 in one call")
    assert most < 10 * message.ByteSize()


@pytest.fixture
def large(server, monkeypatch):
    """Requests of 100 kB, where all may be 1 MiB, those of one caller 512 KiB, and one of each 256 KiB at any time."""
    monkeypatch.setattr(shares, "_LEAST", 1 << 18)
    monkeypatch.setattr(server.app._requests, "most", 1 << 20)
    monkeypatch.setattr(server.app._requests, "most_of_one", 1 << 19)
    inputs = [pb.ClassifyInput(text="the film was good " * 5556)]
    return pb.ClassifyRequest(model="sentiment", inputs=inputs, truncation=common_pb2.TRUNCATION_END)


def held(server) -> float:
    return server.app.metrics.registry.get_sample_value("tuneserve_request_bytes")


async def test_messages_of_no_bytes_leave_nothing(server):
    """Each connection's first would stay on the list of callers for good."""
    assert (await ModelServiceStub(server.channel).ListModels(model_pb2.ListModelsRequest())).models
    assert not server.app._requests._by_caller


async def codes(calls) -> Counter[str]:
    return Counter([(await call.code()).name for call in calls])


async def test_many_large_requests_are_refused_beyond_a_sum(server, large, until, monkeypatch):
    """Each took its size six times over while it waited: 512 calls of 4 MB, which a queue may hold, 12 GB."""
    monkeypatch.setattr(server.engines["sentiment"], "delay", 0.5)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(server.app.address, options=options) for _ in range(4)]
    first, *others = [ClassificationServiceStub(channel) for channel in channels]
    calls = [first.Classify(large) for _ in range(8)]
    assert await codes(calls) == {"OK": 5, "RESOURCE_EXHAUSTED": 3}
    [refused, *_] = [call for call in calls if await call.code() != grpc.StatusCode.OK]
    told = r"large requests run: 50\d{4} bytes for this connection; allowed now: 524288 \(request .*\)"
    assert re.fullmatch(told, await refused.details())
    assert dict(await refused.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    assert held(server) == 0

    # All callers together; small ones get through.
    calls = [stub.Classify(large) for stub in (first, *others) for _ in range(5)]
    await until(lambda: held(server) >= 10 * large.ByteSize())
    small = pb.ClassifyRequest(model="sentiment", inputs=[pb.ClassifyInput(text="good")])
    assert (await ClassificationServiceStub(server.channel).Classify(small)).results
    counts = await codes(calls)
    assert counts["OK"] >= 10
    assert counts["OK"] <= 2 * 5 + 2 * 2, "two callers their half, and the others what each may always have"
    assert counts["OK"] + counts["RESOURCE_EXHAUSTED"] == len(calls)
    assert held(server) == 0
    for channel in channels:
        await channel.close()


async def test_requests_of_a_stream_are_refused_one_by_one(server, large, until, monkeypatch):
    monkeypatch.setattr(server.engines["sentiment"], "delay", 0.5)
    items = [pb.ClassifyStreamRequest(id=index, request=large) for index in range(8)]
    answers = [answer async for answer in ClassificationServiceStub(server.channel).ClassifyStream(iter(items))]
    assert Counter(answer.error.code for answer in answers) == {0: 5, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: 3}
    assert held(server) == 0


async def test_a_call_that_is_given_up_holds_nothing(server, large, until, monkeypatch):
    monkeypatch.setattr(server.engines["sentiment"], "delay", 30)
    call = ClassificationServiceStub(server.channel).Classify(large)
    waiting = asyncio.ensure_future(call.code())
    await until(lambda: held(server) > large.ByteSize())
    call.cancel()
    await waiting
    await until(lambda: held(server) == 0)
