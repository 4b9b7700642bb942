"""Nobody reads: answers that wait to be read are bounded in bytes, counted in a gauge, and waited for in a drain; those
of one message, and those of streams.
"""

import asyncio
import ctypes
import gc
from collections import Counter

import grpc
import psutil
import pytest

from tuneserve.server.call import departures
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.interface import Delta
from tuneserve.v1 import generation_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

MIB = 1 << 20
CALLS = 300
UNARY = "/tuneserve.v1.GenerationService/Generate"
PROMPT = generation_pb2.Prompt(text="the film was")
SAMPLING = generation_pb2.SamplingParams(max_tokens=8)


def writing(size: int):
    """What an engine does that writes so many bytes at once."""

    async def generate(ticket, token_ids, sampling, stream):
        yield Delta(0, "x" * size, [7], finish="length")

    return generate


@pytest.fixture
async def server(serve_config, make_llama):
    config = loopback(
        {"chat": ModelConfig(path=make_llama(), max_queue=2 * CALLS)}, max_streams=2 * CALLS, drain_seconds=20
    ).model_copy(update={"stall_seconds": 0.5})  # less than a file may say
    async with serve_config(config) as served:
        served.engines["chat"].generate = writing(MIB)
        yield served


def channel(server) -> grpc.aio.Channel:
    """A connection of its own, whose client takes in no more than it is asked to."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    return grpc.aio.insecure_channel(server.app.address, options=options)


def unread(channel: grpc.aio.Channel):
    """A call of one answer, which is read only if somebody says so."""
    request = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=SAMPLING)
    multi = channel.unary_stream(
        UNARY,
        request_serializer=generation_pb2.GenerateRequest.SerializeToString,
        response_deserializer=generation_pb2.GenerateResponse.FromString,
    )
    return multi(request)


def stream(channel: grpc.aio.Channel):
    request = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=SAMPLING)
    return GenerationServiceStub(channel).GenerateStream(request)


async def generate(channel: grpc.aio.Channel) -> generation_pb2.GenerateResponse:
    request = generation_pb2.GenerateRequest(model="chat", prompt=PROMPT, sampling=SAMPLING)
    return await GenerationServiceStub(channel).Generate(request)


def value(server, name: str, **labels: str) -> float:
    return server.app.metrics.registry.get_sample_value(name, labels) or 0.0


def handled(server) -> Counter:
    """Calls that the server is through with, by code."""
    found = Counter()
    for metric in server.app.metrics.handled.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                found[sample.labels["grpc_code"]] += int(sample.value)
    return found


async def test_answers_that_nobody_reads_are_bounded(server, until):
    async with channel(server) as lazy:
        before = psutil.Process().memory_info().rss
        calls = [unread(lazy) for _ in range(CALLS)]
        await until(lambda: handled(server).total() == CALLS)
        held = value(server, "tuneserve_unread_bytes")
        assert 0 < held <= server.app._departures.shares.most_of_one
        codes = handled(server)
        assert codes["OK"] < 33
        assert codes["RESOURCE_EXHAUSTED"] == CALLS - codes["OK"]
        assert value(server, "tuneserve_admission_rejections_total", model="", reason="unread") > 0
        # gRPC copies what it takes. What was freed may be the process's still.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        grown = psutil.Process().memory_info().rss - before
        assert grown < 8 * server.app._departures.shares.most_of_one, f"{grown >> 20} MiB"
        # Refused before any work, on that connection; on others nothing has changed.
        asked = value(server, "tuneserve_prompt_tokens_total", model="chat")
        refused = [call for call in calls if call.done()]
        assert {await call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len((await generate(server.channel)).completions[0].text) == MIB
        assert value(server, "tuneserve_prompt_tokens_total", model="chat") > asked
        kept = [call for call in calls if not call.done()]
        # They are whole, for whoever reads them after all.
        assert len((await kept[0].read()).completions[0].text) == MIB
        assert await kept[0].code() == grpc.StatusCode.OK
        await until(lambda: value(server, "tuneserve_unread_bytes") < held)
        for call in kept:
            call.cancel()
    # The client is gone, and what it left unread with it.
    await until(lambda: value(server, "tuneserve_unread_bytes") == 0)
    assert server.app._departures.shares.none.is_set()
    assert not server.app._departures.shares._by_caller


async def test_who_leaves_much_unread_is_given_no_more_work(server, monkeypatch, until, refused):
    monkeypatch.setattr(server.app._departures.shares, "most_of_one", 2 * MIB)
    async with channel(server) as lazy:
        # One answer is larger than all that a caller may have unread: it gets it, and nothing more.
        server.engines["chat"].generate = writing(3 * MIB)
        stuck = unread(lazy)
        await until(lambda: handled(server)["OK"] == 1)
        asked = value(server, "tuneserve_prompt_tokens_total", model="chat")
        error = await refused(generate(lazy), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert "wait to be read" in error.details()
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert value(server, "tuneserve_prompt_tokens_total", model="chat") == asked
        assert len((await stuck.read()).completions[0].text) == 3 * MIB
        await until(lambda: value(server, "tuneserve_unread_bytes") == 0)
        await generate(lazy)


@pytest.mark.parametrize("ask", [generate, lambda channel: stream(channel).read()], ids=["one answer", "stream"])
async def test_an_answer_that_is_too_large_is_said_to_be(server, monkeypatch, refused, until, ask):
    """gRPC's own limit is the same; it would end the call without a word of ours, and we would count it as answered."""
    assert departures.LARGEST == 32 * MIB
    monkeypatch.setattr(departures, "LARGEST", MIB)
    error = await refused(ask(server.channel), grpc.StatusCode.INVALID_ARGUMENT)
    assert f"allowed: {MIB}; ask for less" in error.details()
    await until(lambda: handled(server) == {"INVALID_ARGUMENT": 1})


async def test_small_answers_get_through_whatever_others_leave_unread(server, monkeypatch, until, refused):
    monkeypatch.setattr(server.app._departures.shares, "most", 4 * MIB)
    server.engines["chat"].generate = writing(MIB + 4096)
    lazy = [channel(server) for _ in range(6)]
    calls = [unread(one) for one in lazy]
    await until(lambda: handled(server).total() == len(calls))
    assert handled(server) == {"OK": 3, "RESOURCE_EXHAUSTED": 3}
    await refused(generate(server.channel), grpc.StatusCode.RESOURCE_EXHAUSTED)
    server.engines["chat"].generate = writing(1000)
    for _ in range(20):
        await generate(server.channel)
    for call in calls:
        call.cancel()
    await until(lambda: value(server, "tuneserve_unread_bytes") == 0)
    server.engines["chat"].generate = writing(MIB + 4096)
    await generate(server.channel)


@pytest.mark.parametrize("end", ["read", "cancelled"])
async def test_what_a_stream_leaves_unread_counts_until_it_is_gone(server, until, end):
    async with channel(server) as lazy:
        stuck = stream(lazy)
        await until(lambda: value(server, "tuneserve_unread_bytes") > MIB)
        # Its work is ended, and it runs no more; but gRPC has what was written.
        await until(lambda: not server.app.models.latest("chat").admission.calls)
        assert not server.app._running._limits
        assert value(server, "tuneserve_unread_bytes") > MIB
        if end == "read":
            await stuck.read()
            assert await stuck.code() == grpc.StatusCode.UNAVAILABLE
            assert "read nothing" in await stuck.details()
        else:
            stuck.cancel()
        await until(lambda: value(server, "tuneserve_unread_bytes") == 0)


async def test_a_drain_waits_for_answers_to_be_read(server, until):
    async with channel(server) as slow:
        call = unread(slow)
        await until(lambda: handled(server)["OK"] == 1)
        stopping = asyncio.create_task(server.app.stop())
        # Longer than gRPC is given to end what it has.
        await asyncio.sleep(3)
        assert not stopping.done()
        assert len((await call.read()).completions[0].text) == MIB
        assert await call.code() == grpc.StatusCode.OK
        await stopping


async def test_a_stream_that_is_stuck_keeps_no_other_from_its_end(serve_config, make_llama, until):
    config = loopback({"chat": ModelConfig(path=make_llama(), max_num_seqs=2)}, drain_seconds=4)
    config = config.model_copy(update={"stall_seconds": 0.2})  # less than a file may say
    async with serve_config(config) as server, channel(server) as lazy:
        engine = server.engines["chat"]
        plain, engine.generate = engine.generate, writing(MIB)
        stuck = stream(lazy)
        await until(lambda: server.app._departures.shares.bytes)
        await asyncio.sleep(0.5)
        engine.generate, engine.delay = plain, 600
        endless = stream(server.channel)
        await until(lambda: engine.running)
        await server.app.stop()
        assert await endless.code() == grpc.StatusCode.UNAVAILABLE
        assert "shuts down" in await endless.details()
        stuck.cancel()
