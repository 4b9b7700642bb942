"""Whose call is next, when one caller has made very many."""

import asyncio
import subprocess
import sys
import time
from collections import Counter

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tuneserve.server.call.errors import Overloaded
from tuneserve.server.call.tenants import hashed
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.transport import accepting, intake
from tuneserve.server.transport.accepting import Server, Services
from tuneserve.v1 import classification_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

from ..conftest import loopback

_CALLS, _CONNECTIONS = 600, 3


@pytest.fixture
def config(make_bert, tmp_path) -> ServerConfig:
    keys = ", ".join(f"{name}: {{keys: ['{hashed(name)}']}}" for name in ("many", "one"))
    (tmp_path / "tenants.yaml").write_text(f"tenants: {{{keys}}}")
    return loopback({"sentiment": ModelConfig(path=make_bert(), max_queue=_CALLS)}, tenants=tmp_path / "tenants.yaml")


_CLIENT = """
import sys, time, grpc
address, data, calls, connections = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
own = [("grpc.use_local_subchannel_pool", 1)]
channels = [grpc.insecure_channel(address, own) for _ in range(connections + 1)]
for channel in channels:
    grpc.channel_ready_future(channel).result(20)
print("ready", flush=True)
input()
done = []
def call(channel, key):
    begun = channel.unary_unary("/tuneserve.v1.ClassificationService/Classify").future(
        data, metadata=(("x-api-key", key),), timeout=60
    )
    begun.add_done_callback(lambda ended: done.append(key if ended.code() == grpc.StatusCode.OK else ended.details()))
    return begun
begun = [call(channels[index % connections], "many") for index in range(calls)]
time.sleep(0.2)  # they are sent
begun.append(call(channels[-1], "one"))
for one in begun:
    one.exception()
while len(done) < len(begun):
    time.sleep(0.01)
print(*done, sep="\\n")
"""


async def _answered(served) -> list[str]:
    """Whose calls are answered, in turn: one caller's many, and one that another makes after them."""
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=[{"text": "the film was good"}])
    data = request.SerializeToString().hex()
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _CLIENT, served.app.address, data, str(_CALLS), str(_CONNECTIONS)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert client.stdout is not None
    await client.stdout.readline()
    # Holds the loop: gRPC has all of them, before the server has any.
    client.stdin.write(b"\n")
    await client.stdin.drain()
    time.sleep(1)  # noqa: ASYNC251
    out, _ = await client.communicate()
    return out.decode().splitlines()


async def test_a_caller_with_many_calls_is_not_before_others(config, serve_config):
    async with serve_config(config) as served:
        done = await _answered(served)
    assert sorted(done) == ["many"] * _CALLS + ["one"]
    # On asyncio's own loop, which takes wakeups one by one, most of them; on the server's loop a quarter.
    assert done.index("one") < _CALLS


async def test_where_too_many_wait_one_is_refused_before_its_turn(config, serve_config, monkeypatch):
    monkeypatch.setattr(intake, "_MOST_WAITING", 64)
    async with serve_config(config) as served:
        done = Counter(line.partition(" (request ")[0] for line in await _answered(served))
        assert set(done) == {"many", "one", "too many calls wait already"}
        rejected = served.app.metrics.rejections.labels("", "calls")._value.get()
    assert done["one"] == 1
    assert done["many"] == _CALLS - rejected


@pytest.mark.parametrize("where", ["before its turn", "in a handler", "with another grpcio"])
async def test_a_call_of_no_service_of_ours_ends_with_the_details_of_an_error_too(where, monkeypatch):
    error = Overloaded("too many", "CALLS", 1000)

    class Refusing(accepting._Open):
        def look(self, context):
            if where != "in a handler":
                raise error

    async def method(requests, context):
        raise error

    if where == "with another grpcio":
        monkeypatch.setattr(accepting, "_HANDLE", ("method_name",))
    services = Services(intake=Refusing())
    handlers = {"Do": grpc.stream_unary_rpc_method_handler(method)}
    services.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", handlers),))
    server = Server(services, [])
    address = f"127.0.0.1:{server.port.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        for _ in range(2):  # gRPC's own server takes one in
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/a/Do")(b"", metadata=(("x-request-id", "mine"),), timeout=20)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            status = rpc_status.from_call(caught.value)
            assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
            trailing = dict(caught.value.trailing_metadata())
            assert (trailing["x-request-id"], trailing["grpc-retry-pushback-ms"]) == ("mine", "1000")
    await server.stop(1)


async def test_who_is_cancelled_while_too_many_wait_is_told_nothing(config, serve_config, monkeypatch, caplog):
    monkeypatch.setattr(intake, "_MOST_WAITING", 4)
    request = classification_pb2.ClassifyRequest(model="sentiment", inputs=[{"text": "the film was good"}])
    async with serve_config(config) as served:
        classify = ClassificationServiceStub(served.channel).Classify
        given_up = [classify(request, metadata=(("x-api-key", "many"),)) for _ in range(100)]
        await asyncio.sleep(0.01)
        for call in given_up:
            call.cancel()
        await asyncio.wait([asyncio.create_task(call.code()) for call in given_up])
        await classify(request, metadata=(("x-api-key", "one"),), timeout=20)
    assert "never retrieved" not in caplog.text


async def test_with_another_grpcio_all_calls_are_answered(config, serve_config, monkeypatch, caplog):
    monkeypatch.setattr(accepting, "_HANDLE", ("method_name",))
    async with serve_config(config) as served:
        assert sorted(await _answered(served)) == ["many"] * _CALLS + ["one"]
    assert f"grpcio {grpc.__version__}" in caplog.text
