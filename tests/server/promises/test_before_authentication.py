"""What an unauthenticated client costs: bounded memory, streams, connections and calls."""

import asyncio
import gzip
import json
import logging
import statistics
import time

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from grpc_status import rpc_status

from tuneserve.server.call import arrivals
from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import ServerConfig
from tuneserve.server.engine import hardware
from tuneserve.server.transport import connections, unauthenticated
from tuneserve.server.transport.intake import Intake
from tuneserve.v1 import classification_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import loopback

MIB = 1 << 20
CLASSIFY = "/tuneserve.v1.ClassificationService/Classify"
STREAM = "/tuneserve.v1.GenerationService/GenerateStream"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
MOST_STREAMS, WINDOW = 3, 4  # settings of HTTP/2
KEY = (("x-api-key", "key"),)
GOOD = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)


@pytest.fixture
def config(make_bert) -> ServerConfig:
    return loopback({"sentiment": make_bert()}, health_listen="127.0.0.1:0", drain_seconds=3)


@pytest.fixture
def start(config, serve_config, tmp_path):
    """A server of these settings, with a key or without."""

    def started(keys: bool = False, **settings):
        if keys:
            (tmp_path / "tenants.yaml").write_text(f"tenants: {{a: {{keys: ['{hashed('key')}']}}}}")
            settings["tenants"] = tmp_path / "tenants.yaml"
        return serve_config(config.model_copy(update=settings))

    return started


def status(code: grpc.StatusCode) -> bytes:
    """A code as it stands among the headers of an answer."""
    number = str(code.value[0])
    return b"grpc-status" + bytes([len(number)]) + number.encode()


def classify(channel: grpc.aio.Channel, **options):
    return ClassificationServiceStub(channel).Classify(GOOD, timeout=20, **options)


def check(channel: grpc.aio.Channel, service: str = ""):
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=20)


class Memory:
    """How much more memory the process has at most while the block runs, in MiB."""

    async def __aenter__(self) -> "Memory":
        self.grown, self._before = 0.0, psutil.Process().memory_info().rss
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            self.grown = max(self.grown, (psutil.Process().memory_info().rss - self._before) / MIB)
            await asyncio.sleep(0.01)


async def test_what_is_compressed_is_not_expanded(start, raw):
    bomb = gzip.compress(bytes(128 * MIB), 1)
    async with start(keys=True) as server, Memory() as memory:
        client = await raw(server.app.address)
        client.open(1, CLASSIFY, ("grpc-encoding", "gzip"))
        await client.send(1, bomb, compressed=True)
        assert await client.until(lambda: 1 in client.reset)
        assert status(grpc.StatusCode.UNIMPLEMENTED) in client.answers[1]
        assert memory.grown < 64
        # An honest client is told what is wrong.
        call = classify(server.channel, metadata=KEY, compression=grpc.Compression.Gzip)
        assert await call.code() == grpc.StatusCode.UNIMPLEMENTED
        assert (await classify(server.channel, metadata=KEY)).results


async def test_calls_that_grpc_has_ended_already_cost_little(start, raw, monkeypatch):
    """Their peer is not known any more, so they count for no connection."""
    looked: list[object] = []
    look = Intake.look
    monkeypatch.setattr(Intake, "look", lambda self, context: (looked.append(1), look(self, context))[1])
    async with start(keys=True) as server:
        client = await raw(server.app.address)
        for number in range(200):
            client.open(2 * number + 1, CLASSIFY, ("grpc-encoding", "gzip"), end=True)
        assert await client.until(lambda: len(client.answers) == 200)
        assert all(status(grpc.StatusCode.UNIMPLEMENTED) in answer for answer in client.answers.values())
        assert len(looked) < 20, "some are looked at before they end"
        assert (await classify(server.channel, metadata=KEY)).results


@pytest.mark.parametrize("path", [CLASSIFY, STREAM])
async def test_without_a_key_no_message_is_taken_in(start, raw, path):
    async with start(keys=True) as server:
        client = await raw(server.app.address)
        client.open(1, path)
        assert await client.send(1, bytes(32 * MIB)) < MIB
        assert status(grpc.StatusCode.UNAUTHENTICATED) in client.answers[1]
        client.open(3, path, ("x-api-key", "a wrong one"))
        assert await client.until(lambda: 3 in client.reset), "refused before its message is here"


async def test_what_nobody_asked_for_stays_with_its_sender(start, raw):
    """A call that was told no, and goes on to send: on each of its streams a window's worth, and one in all."""
    async with start(keys=True) as server:
        client = await raw(server.app.address)
        assert client.settings[WINDOW] <= 65_535


async def test_few_messages_may_take_long(start, raw):
    async with start() as server:
        client = await raw(server.app.address)
        streams = range(1, 81, 2)
        for stream in streams:
            client.open(stream, CLASSIFY)
            await client.send(stream, bytes(1000), length=MIB)
        assert await client.until(lambda: len(client.reset) >= len(streams) - 16)
        assert all(status(grpc.StatusCode.UNAVAILABLE) in client.answers[stream] for stream in client.reset)
        assert (await classify(server.channel)).results, "one that is sent at once gets in"
        assert len(client.reset) == len(streams) - 16, "the others still have their places"


async def test_no_message_may_take_for_ever(start, raw):
    async with start(stall_seconds=1) as server:
        client = await raw(server.app.address)
        for stream, path in ((1, CLASSIFY), (3, STREAM), (5, CHECK), (7, WATCH)):
            client.open(stream, path)
            await client.send(stream, b"\n", length=MIB)
        assert await client.until(lambda: client.reset == {1, 3, 5, 7})
        assert all(status(grpc.StatusCode.UNAVAILABLE) in answer for answer in client.answers.values())
        assert not server.app._running._limits


async def test_what_is_on_its_way_ends_when_memory_is_short(start, raw, monkeypatch, caplog):
    """A message may be sent faster than all limits of time: gRPC looks at its size when it is whole."""
    free = 10 << 30
    monkeypatch.setattr(hardware, "available_memory", lambda: free)
    async with start() as server:
        client = await raw(server.app.address)
        for stream, path in ((1, CLASSIFY), (3, STREAM), (5, f"{CLASSIFY}Stream")):
            client.open(stream, path)
            await client.send(stream, bytes(1000), length=1 << 30)
        assert not await client.until(lambda: client.reset, 1.0)
        free = 100 << 20
        assert await client.until(lambda: client.reset == {1, 3, 5})
        assert all(status(grpc.StatusCode.UNAVAILABLE) in answer for answer in client.answers.values())
        assert "memory is short: 3 calls were ended" in caplog.text
        # No longer short: on a busy machine this call, too, may be on its way for a moment.
        free = 10 << 30
        assert (await classify(server.channel)).results


async def test_a_call_without_a_message(start, raw):
    async with start() as server:
        client = await raw(server.app.address)
        client.open(1, CLASSIFY, end=True)
        assert await client.until(lambda: 1 in client.reset)
        assert status(grpc.StatusCode.INVALID_ARGUMENT) in client.answers[1]


async def test_health_is_asked_in_few_bytes(start, raw, monkeypatch):
    # How long they take on a busy machine is another limit: of more than sixteen slow ones, the oldest is ended.
    monkeypatch.setattr(arrivals, "_SOON_SECONDS", 30.0)
    async with start(keys=True) as server, Memory() as memory:
        client = await raw(server.app.address)
        name = b"\n\x80\x80\xc0\x01" + b"x" * (3 * MIB)
        for stream in range(1, 61, 2):
            client.open(stream, WATCH)
            await client.send(stream, name)
        assert await client.until(lambda: len(client.reset) == 30)
        other = [one for one in client.answers.values() if status(grpc.StatusCode.INVALID_ARGUMENT) not in one]
        assert not other
        assert memory.grown < 120, "MiB, of 90 that were sent and are in no message of ours"


async def test_a_connection_watches_few_names(start):
    async with start() as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=f"{number}")) for number in range(32)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert await stub.Watch(health_pb2.HealthCheckRequest()).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await check(server.channel)).status == health_pb2.HealthCheckResponse.SERVING
        async with grpc.aio.insecure_channel(server.app.health_address) as other:
            watch = health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        for watch in watches:
            watch.cancel()


async def test_who_leaves_takes_no_other_watcher_along(start, until):
    async with start() as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        one, other = (stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2))
        for watch in (one, other):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        one.cancel()
        await until(lambda: server.app._health.servicer._watches.total() == 1)
        await server.app._health.drain()
        answer = await asyncio.wait_for(other.read(), 10)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        other.cancel()


async def test_reflection_is_for_a_few_at_a_time(start, raw):
    async with start(keys=True) as server:
        client = await raw(server.app.address)
        for stream in range(1, 41, 2):
            client.open(stream, REFLECT)
        assert await client.until(lambda: len(client.reset) == 20 - 8)
        assert all(status(grpc.StatusCode.UNAVAILABLE) in client.answers[stream] for stream in client.reset)


async def test_reflection_answers_at_a_bounded_rate(start):
    async with start(keys=True) as server:
        stub = ServerReflectionStub(server.channel)
        asked = [ServerReflectionRequest(file_containing_symbol="tuneserve.v1.GenerationService")] * 1000
        answers, began = 0, time.monotonic()
        call = stub.ServerReflectionInfo(iter(asked))
        while answers < 20:
            assert (await call.read()).file_descriptor_response.file_descriptor_proto
            answers += 1
        assert time.monotonic() - began >= 19 * 0.01
        call.cancel()


async def test_connections_are_few_and_say_what_they_are(start, monkeypatch):
    monkeypatch.setattr(connections, "_HANDSHAKE_SECONDS", 1.0)
    async with start(max_connections=8) as server:
        host, port = server.app.address.rsplit(":", 1)
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(40)]
        answers = await asyncio.gather(*(asyncio.wait_for(reader.read(1), 10) for reader, _ in silent))
        assert sum(map(bool, answers)) == 8, "the server says hello to so many"
        async with grpc.aio.insecure_channel(server.app.health_address) as probe:
            assert (await check(probe)).status == health_pb2.HealthCheckResponse.SERVING
        # Those that stay silent are hung up on, and make room.
        await asyncio.gather(*(asyncio.wait_for(reader.read(), 10) for reader, _ in silent))
        assert (await classify(server.channel, wait_for_ready=True)).results
        for _, writer in silent:
            writer.close()


async def test_a_rapid_reset_holds_nobody_up(start, raw):
    """A neighbour's call is behind no more of an unauthenticated client's streams than one connection has at a time."""
    most = 64
    async with start(max_streams=most) as server:
        model = ModelServiceStub(server.channel)
        await model.ListModels(model_pb2.ListModelsRequest())
        client = await raw(server.app.address)
        assert client.settings[MOST_STREAMS] == most
        ahead: list[float] = []
        done = asyncio.Event()

        async def flood() -> None:
            for number in range(30_000):
                client.open(2 * number + 1, CLASSIFY)
                client.cancel(2 * number + 1)
                if number % 500 == 0:
                    await client.drain()
            done.set()

        def arrived() -> float:
            return server.app.metrics.started.labels("unary", *CLASSIFY[1:].split("/"))._value.get()

        flooding = asyncio.create_task(flood())
        while not done.is_set():
            before = arrived()
            await model.ListModels(model_pb2.ListModelsRequest(), timeout=60)
            ahead.append(arrived() - before)
        await flooding
        assert statistics.median(ahead) <= 2 * most
        assert max(ahead) <= 8 * most


async def test_a_client_in_a_hurry_is_not_refused(start):
    """A hundred calls at once on a new connection, and others as soon as they end, or are cancelled."""
    async with start() as server:
        model = ModelServiceStub(server.channel)

        async def one_after_the_other() -> list[grpc.StatusCode]:
            codes = []
            for number in range(6):
                call = model.ListModels(model_pb2.ListModelsRequest())
                if number % 3 == 1:
                    await asyncio.sleep(0)
                    call.cancel()
                codes.append(await call.code())
            return codes

        found = await asyncio.gather(*(one_after_the_other() for _ in range(100)))
        assert {code for codes in found for code in codes} <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
        assert [code for codes in found for code in codes].count(grpc.StatusCode.OK) >= 4 * 100


async def test_so_many_calls_at_once(start, refused, until):
    async def nothing():
        await asyncio.sleep(600)
        yield

    async with start(max_calls=3, admin_listen="127.0.0.1:0") as server:
        stub = ClassificationServiceStub(server.channel)
        waiting = [stub.ClassifyStream(nothing()) for _ in range(3)]
        await until(lambda: len(server.app._running._limits) == 3)
        error = await refused(classify(server.channel), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert b"CALLS" in rpc_status.from_call(error).details[1].value
        assert server.app.metrics.rejections.labels("", "calls")._value.get() == 1
        assert (await check(server.channel)).status == health_pb2.HealthCheckResponse.SERVING
        admin = ModelServiceStub(server.admin)
        assert (await admin.ListModels(model_pb2.ListModelsRequest())).models, "an administrator gets in"
        for call in waiting:
            call.cancel()
        await until(lambda: not server.app._running._limits)
        assert (await classify(server.channel)).results


async def test_calls_without_a_key_write_few_lines(start, caplog, monkeypatch):
    monkeypatch.setattr(unauthenticated, "_CONNECTION", (1000, 1.0))
    caplog.set_level(logging.INFO, "tuneserve.requests")
    async with start(keys=True) as server:
        for _ in range(300):
            assert await classify(server.channel).code() == grpc.StatusCode.UNAUTHENTICATED
        lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "tuneserve.requests"]
        refused = [line for line in lines if line["status"] == "UNAUTHENTICATED"]
        dropped = server.app.metrics.log_lines_dropped._value.get()
        assert len(refused) + dropped == 300
        assert 10 <= len(refused) < 150
        handled = server.app.metrics.handled.labels("unary", *CLASSIFY[1:].split("/"), "UNAUTHENTICATED")
        assert handled._value.get() == 300
        # Who is known has a line for each call.
        caplog.clear()
        for _ in range(30):
            await classify(server.channel, metadata=KEY)
        assert len([record for record in caplog.records if record.name == "tuneserve.requests"]) == 30
