"""Connections without a key: few, few calls on each, and then they are closed. Those with a key are never closed."""

import asyncio
import gc
import os
import socket
import sys
import threading
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.transport import strangers
from tuneserve.server.transport.strangers import Strangers
from tuneserve.v1 import classification_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

CLASSIFY = "/tuneserve.v1.ClassificationService/Classify"
KEY = (("x-api-key", "key"),)
CALLS, ADDRESS = strangers._CONNECTION[0], strangers._ADDRESS[0]


@pytest.fixture
def config(make_bert, tmp_path) -> ServerConfig:
    (tmp_path / "tenants.yaml").write_text(
        f"tenants: {{a: {{keys: ['{hashed('key')}']}}, b: {{keys: ['{hashed('b')}']}}}}"
    )
    return ServerConfig(
        models={"sentiment": ModelConfig(path=make_bert("ForSequenceClassification", ["neg", "pos"]))},
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        tenants=tmp_path / "tenants.yaml",
        max_calls=20,
    )


@pytest.fixture
async def server(config, serve_config):
    async with serve_config(config) as served:
        yield served


def classify(channel: grpc.aio.Channel, **options):
    inputs = [classification_pb2.ClassifyInput(text="the film was good")]
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=inputs)
    return ClassificationServiceStub(channel).Classify(request, timeout=20, **options)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection to us, ours first."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
        with ours, theirs:
            yield ours, theirs


def peer_of(ours: socket.socket) -> str:
    host, port = ours.getpeername()
    return f"ipv4:{host}:{port}"


def at(port: int, closed=lambda: None, clock=None) -> Strangers:
    found = Strangers(closed, clock or Clock())
    found.port = port
    return found


def test_a_connection_has_so_many_calls_and_is_closed(connected, clock):
    ours, theirs = connected
    closed: list[int] = []
    these, peer = at(ours.getsockname()[1], lambda: closed.append(1), clock), peer_of(ours)
    assert [these.may_ask(peer) for _ in range(CALLS)] == [True] * CALLS
    clock.now += 1 / strangers._CONNECTION[1]
    assert these.may_ask(peer), "one more after a while"
    assert not these.has_closed(peer)
    assert not these.may_ask(peer)
    assert these.has_closed(peer)
    assert theirs.recv(1) == b"", "it was hung up on"
    files = len(os.listdir("/proc/self/fd"))
    assert not these.may_ask(peer), "calls that were on their way"
    assert closed == [1]
    assert len(os.listdir("/proc/self/fd")) == files


def test_one_that_showed_a_key_is_never_closed(connected):
    ours, _ = connected
    these, peer = at(ours.getsockname()[1]), peer_of(ours)
    assert these.may_ask(peer)
    these.authenticated(peer)
    assert all(these.may_ask(peer) for _ in range(10 * CALLS))
    assert not these.has_closed(peer)


def test_an_address_has_so_many_and_each_of_its_connections_one(clock):
    these = at(1, clock=clock)
    asked = sum(these.may_ask(f"ipv4:10.0.0.1:{port}") for port in range(100) for _ in range(20))
    spent = ADDRESS // 20
    assert asked == pytest.approx(ADDRESS + 100 - spent, abs=1)
    assert these.may_ask("ipv4:10.0.0.2:1"), "another address"
    clock.now += 60
    assert these.may_ask("ipv4:10.0.0.1:99999")
    assert these.may_ask("ipv4:10.0.0.1:99999")


def test_a_connection_is_closed_only_while_it_is_that_peer_s(connected):
    """The number of its file may be another one's by now, and connections to other ports are not ours to close."""
    ours, theirs = connected
    these = at(ours.getsockname()[1])
    these._files = {"ipv4:127.0.0.1:1": ours.fileno()}
    for _ in range(CALLS + 2):
        these.may_ask("ipv4:127.0.0.1:1")
    elsewhere = at(1)
    for _ in range(CALLS + 2):
        elsewhere.may_ask(peer_of(ours))
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"


def test_addresses_of_both_kinds():
    for family, listen, host in ((socket.AF_INET6, "::", "127.0.0.1"), (socket.AF_INET6, "::1", "::1")):
        with socket.create_server((listen, 0), family=family, dualstack_ipv6=listen == "::") as listening:
            port = listening.getsockname()[1]
            with socket.create_connection((host, port)) as theirs:
                ours, _ = listening.accept()
                with ours:
                    number = theirs.getsockname()[1]
                    name = f"ipv6:%5B::1%5D:{number}" if host == "::1" else f"ipv4:127.0.0.1:{number}"
                    assert strangers._files(port) == {name: ours.fileno()}


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
    # Behind a proxy, strangers' calls come on a connection that has others, too.
    assert (await classify(server.channel, metadata=KEY)).results
    for _ in range(3 * CALLS):
        assert await classify(server.channel).code() == grpc.StatusCode.UNAUTHENTICATED
    unknown = server.channel.unary_unary("/no.Such/Method")
    assert await unknown(b"", timeout=20).code() == grpc.StatusCode.UNIMPLEMENTED


async def test_the_oldest_of_too_many_connections_goes(server, monkeypatch, until):
    monkeypatch.setattr(strangers, "_MOST_CONNECTIONS", 3)
    monkeypatch.setattr(strangers, "_FIRST_CALL_SECONDS", 0.0)
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


def test_who_has_not_been_looked_at_yet_is_no_stranger(clock):
    """A busy server is late to look at first calls: they may have keys."""
    these, now = at(1, clock=clock), "ipv4:10.0.0.1:1"
    these._look({now: 1, "ipv4:10.0.0.1:2": 2, "ipv4:10.0.0.1:3": 3})
    these.may_ask("ipv4:10.0.0.1:2")
    these.authenticated("ipv4:10.0.0.1:3")
    assert these.without_key() == ["ipv4:10.0.0.1:2"]
    clock.now += strangers._FIRST_CALL_SECONDS
    assert these.without_key() == [now, "ipv4:10.0.0.1:2"], "it had time enough"
