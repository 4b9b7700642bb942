"""Connections without a key: few, few calls on each, and then they are closed. Those with a key are never closed."""

import asyncio
import contextlib
import gc
import sys
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import ServerConfig
from tuneserve.server.transport import crowd, unauthenticated
from tuneserve.v1 import classification_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import loopback

SERVICE = "/tuneserve.v1.ClassificationService"
CLASSIFY = f"{SERVICE}/Classify"
KEY = (("x-api-key", "key"),)
CALLS = unauthenticated._CONNECTION[0]


@pytest.fixture
def config(make_bert, tmp_path) -> ServerConfig:
    (tmp_path / "tenants.yaml").write_text(
        f"tenants: {{a: {{keys: ['{hashed('key')}']}}, b: {{keys: ['{hashed('b')}']}}}}"
    )
    return loopback({"sentiment": make_bert()}, tenants=tmp_path / "tenants.yaml", max_calls=20)


@pytest.fixture
async def server(config, serve_config):
    async with serve_config(config) as served:
        yield served


def classify(channel: grpc.aio.Channel, **options):
    inputs = [classification_pb2.ClassifyInput(text="the film was good")]
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs)
    return ClassificationServiceStub(channel).Classify(request, timeout=20, **options)


async def test_a_flood_costs_few_calls(server, raw):
    """The streams of four connections, in which nobody shows a key, beside a caller who does."""
    for _ in range(5):
        assert (await classify(server.channel, metadata=KEY)).results
    floods = [await raw(server.app.address) for _ in range(4)]
    for number in range(200):
        for flood in floods:
            flood.open(2 * number + 1, CLASSIFY, end=True)
    for flood in floods:
        assert await flood.until(lambda flood=flood: flood.closed)
    assert (await classify(server.channel, metadata=KEY)).results
    started = server.app.metrics.started.labels("unary", *CLASSIFY[1:].split("/"))._value.get()
    # 64 each, and 8 a second; what was handed over behind those costs little.
    assert started <= 4 * (CALLS + 40) + 6 < 4 * 200
    assert server.app.metrics.hung_up._value.get() == 4


@pytest.mark.parametrize("metadata", [(), KEY], ids=["no key", "a key"])
async def test_calls_of_connections_that_are_closed_at_once_are_left_out(server, raw, monkeypatch, until, metadata):
    """Each connection sends what it may at once, and is gone before that is looked at."""
    monkeypatch.setattr(crowd, "_MANY", 50)
    monkeypatch.setattr(unauthenticated, "_OPENED", (30, 2.0))
    monkeypatch.setattr(unauthenticated, "_OPENED_WITH_KEY", (30, 2.0))
    these = server.app._authentication.unauthenticated
    assert (await classify(server.channel, metadata=KEY)).results
    before = server.app.metrics.started.labels("unary", *CLASSIFY[1:].split("/"))._value.get()
    # From some connection on, Linux drops what the address sends.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while not these.ignored:
                flood = await raw(server.app.address, own_host="127.0.0.2")
                for number in range(100):
                    flood.open(2 * number + 1, CLASSIFY, *metadata, end=True)
                await flood.close()
    await until(lambda: [str(one) for one in these.ignored] == ["127.0.0.2/32"])
    assert (await classify(server.channel, metadata=KEY)).results
    left_out = server.app.metrics.refused.labels("CANCELLED")._value
    await until(lambda: left_out.get() > 1000)
    started = server.app.metrics.started.labels("unary", *CLASSIFY[1:].split("/"))._value.get() - before
    assert started < 2000
    # A connection of another address is accepted meanwhile.
    async with grpc.aio.insecure_channel(server.app.address, [("grpc.use_local_subchannel_pool", 1)]) as other:
        assert (await classify(other, metadata=KEY)).results


@pytest.mark.parametrize("method", ["Classify", "ClassifyStream"])
async def test_calls_that_are_refused_before_their_turn_are_counted(server, raw, method):
    flood = await raw(server.app.address)
    for number in range(CALLS + 50):
        flood.open(2 * number + 1, f"{SERVICE}/{method}", end=True)
    assert await flood.until(lambda: flood.closed)
    told = sum(b"too many calls without a key" in answer for answer in flood.answers.values())
    refused = server.app.metrics.refused.labels("UNAVAILABLE")._value.get()
    # Of the last ones, the connection may have been closed before their answers.
    assert 0 < told <= refused <= 50


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Check",
        "/no.Such/Method",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_what_anybody_may_call_counts_too(server, raw, path):
    flood = await raw(server.app.address)
    for number in range(200):
        flood.open(2 * number + 1, path, end=True)
    assert await flood.until(lambda: flood.closed)
    assert (await classify(server.channel, metadata=KEY)).results


async def test_probes_and_a_caller_with_a_wrong_key_are_answered(server):
    health = health_pb2_grpc.HealthStub(server.channel)
    for _ in range(CALLS // 2):
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=20)).status
        assert await classify(server.channel).code() == grpc.StatusCode.UNAUTHENTICATED
    # Behind a proxy, calls without a key come on a connection that has others, too.
    assert (await classify(server.channel, metadata=KEY)).results
    for _ in range(3 * CALLS):
        assert await classify(server.channel).code() == grpc.StatusCode.UNAUTHENTICATED
    unknown = server.channel.unary_unary("/no.Such/Method")
    assert await unknown(b"", timeout=20).code() == grpc.StatusCode.UNIMPLEMENTED


async def test_the_oldest_of_too_many_connections_goes(server, monkeypatch, until):
    monkeypatch.setattr(unauthenticated, "_MOST_CONNECTIONS", 3)
    monkeypatch.setattr(unauthenticated, "_FIRST_CALL_SECONDS", 0.0)
    assert (await classify(server.channel, metadata=KEY)).results
    idle = [await asyncio.open_connection(*server.app.address.rsplit(":", 1)) for _ in range(5)]
    await until(lambda: server.app.metrics.hung_up._value.get() == 2)
    gone = [reader.at_eof() for reader, _ in idle]
    for reader, _ in idle[:2]:
        async with asyncio.timeout(10):
            await reader.read()
    assert not any(reader.at_eof() for reader, _ in idle[2:]), gone
    assert (await classify(server.channel, metadata=KEY)).results
    for _, writer in idle:
        writer.close()


async def test_one_tenant_leaves_half_of_the_calls_to_others(server, refused, until):
    async def nothing():
        await asyncio.sleep(600)
        yield

    stub = ClassificationServiceStub(server.channel)
    waiting = [stub.ClassifyStream(nothing(), metadata=KEY) for _ in range(10)]
    await until(lambda: len(server.app._running) == 10)
    error = await refused(classify(server.channel, metadata=KEY), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert b"CALLS" in rpc_status.from_call(error).details[1].value
    assert (await classify(server.channel, metadata=(("x-api-key", "b"),))).results
    for call in waiting:
        call.cancel()
    await until(lambda: not server.app._running)
    assert (await classify(server.channel, metadata=KEY)).results


async def test_no_collection_of_everything_while_calls_run(config, serve_config, until):
    """What Python does by itself, in the middle of many calls, goes through all that thousands of them hold."""
    full: list[int] = []

    def noted(phase: str, about: dict[str, int]) -> None:
        # Servers have it done themselves, also those of other tests: at the start in a thread, and when they are idle.
        by_itself = (
            threading.current_thread() is threading.main_thread() and sys._getframe(1).f_code.co_name != "_collect"
        )
        if phase == "stop" and about["generation"] == 2 and by_itself:
            full.append(1)

    async with serve_config(config) as server:
        await until(lambda: gc.get_threshold()[2] > 1_000_000)
        gc.callbacks.append(noted)
        try:
            model = ModelServiceStub(server.channel)
            kept = [[number] for number in range(300_000)]
            await model.ListModels(model_pb2.ListModelsRequest(), metadata=KEY)
            kept += [[number] for number in range(300_000)]
            assert len(kept) == 600_000
            assert not full
        finally:
            gc.callbacks.remove(noted)


@pytest.mark.parametrize("metadata", [KEY, ()], ids=["key", "none"])
async def test_a_port_that_comes_again_is_another_connection(server, raw, metadata):
    """Behind an address translation, the next connection from a port is somebody else's."""
    first = await raw(server.app.address)
    port = first.port
    for number in range(CALLS + 8):
        first.open(2 * number + 1, CLASSIFY, end=True)
    assert await first.until(lambda: first.closed)
    await first.close()
    again = await raw(server.app.address, port)
    again.open(1, CLASSIFY, *metadata, end=True)
    assert await again.until(lambda: 1 in again.answers), "it is answered"


async def test_who_opens_too_many_connections_is_ignored_for_a_while(server, raw, monkeypatch, until, caplog):
    """Each of them is gone before it can be closed. Others, at another address or with a key, still get in."""
    monkeypatch.setattr(unauthenticated, "_OPENED", (8, 2.0))
    these = server.app._authentication.unauthenticated
    for _ in range(20):
        await ask(await raw(server.app.address, own_host="127.0.0.2"))
    await until(lambda: these.ignored)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await raw(server.app.address, own_host="127.0.0.2")
    assert (await classify(server.channel, metadata=KEY)).results
    await ask(await raw(server.app.address), *KEY)
    assert "those from 127.0.0.2/32 are ignored" in caplog.text
    assert server.app.metrics.ignored._value.get() == 1
    await until(lambda: not these.ignored)
    await ask(await raw(server.app.address, own_host="127.0.0.2"))


async def test_an_address_with_a_key_is_not_ignored(server, raw, monkeypatch):
    monkeypatch.setattr(unauthenticated, "_OPENED", (8, 2.0))
    keyed = await raw(server.app.address)
    await ask(keyed, *KEY)
    for _ in range(40):
        other = await raw(server.app.address)
        await ask(other)
        await other.close()
    await asyncio.sleep(3 * unauthenticated._SOON_SECONDS)
    await ask(await raw(server.app.address))


async def ask(client, *metadata) -> None:
    client.open(1, CLASSIFY, *metadata, end=True)
    assert await client.until(lambda: 1 in client.answers)
