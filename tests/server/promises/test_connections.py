"""Connections: a client that is gone is noticed, and none lives for ever, while the calls on it may."""

import asyncio
import socket

import grpc
import psutil
import pytest

from tuneserve.errors import UserError
from tuneserve.server.app import App
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.transport import connections
from tuneserve.v1 import generation_pb2, model_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub


@pytest.fixture
def config(make_llama) -> ServerConfig:
    return ServerConfig(
        models={"chat": ModelConfig(path=make_llama())},
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        drain_seconds=3,
    )


def stream(channel: grpc.aio.Channel, tokens: int):
    return GenerationServiceStub(channel).GenerateStream(
        generation_pb2.GenerateRequest(
            model="chat",
            prompt=generation_pb2.Prompt(text="the film was"),
            sampling=generation_pb2.SamplingParams(max_tokens=tokens),
        )
    )


def clients(server) -> set[int]:
    """The ports that connections to the server come from."""
    port = int(server.app.address.rsplit(":", 1)[1])
    found = psutil.Process().net_connections("tcp")
    return {one.raddr.port for one in found if one.laddr.port == port and one.status == "ESTABLISHED"}


async def test_a_client_that_vanished_is_noticed(config, serve_config, raw, until, monkeypatch):
    """It does not hang up: it is not there any more, and answers no ping."""
    monkeypatch.setattr(connections, "_PING_SECONDS", 1.0)
    async with serve_config(config.model_copy(update={"keepalive_seconds": 1})) as server:
        client = await raw(server.app.address)
        message = generation_pb2.GenerateRequest(
            model="chat",
            prompt=generation_pb2.Prompt(text="the film was"),
            sampling=generation_pb2.SamplingParams(max_tokens=30),
        )
        server.engines["chat"].delay = 600.0
        client.open(1, "/tuneserve.v1.GenerationService/GenerateStream")
        await client.send(1, message.SerializeToString())
        await until(lambda: server.engines["chat"].running == 1)
        client.vanish()
        await until(lambda: server.engines["chat"].running == 0)
        server.engines["chat"].delay = 0.0


async def test_a_connection_without_calls_ends(config, serve_config, raw):
    async with serve_config(config.model_copy(update={"max_connection_idle_seconds": 1})) as server:
        client = await raw(server.app.address)
        assert await client.until(lambda: client.closed)
        # One that gRPC made makes another.
        for _ in range(2):
            await ModelServiceStub(server.channel).ListModels(model_pb2.ListModelsRequest())
            await asyncio.sleep(1.5)


async def test_an_old_connection_ends_and_its_calls_do_not(config, serve_config, raw):
    async with serve_config(config.model_copy(update={"max_connection_age_seconds": 1})) as server:
        server.engines["chat"].delay = 0.15
        call, stub = stream(server.channel, 25), ModelServiceStub(server.channel)
        answers = [await call.read()]
        seen = clients(server)
        while (answer := await call.read()) is not grpc.aio.EOF:
            answers.append(answer)
            await stub.ListModels(model_pb2.ListModelsRequest())
            seen |= clients(server)
        assert answers[-1].HasField("usage")
        assert len(seen) > 1
        server.engines["chat"].delay = 0.0


async def test_a_port_that_is_taken_at_one_of_its_addresses(config):
    """localhost is two addresses, and gRPC is content with one of them."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for key in ("listen", "metrics_listen", "health_listen", "admin_listen"):
            with pytest.raises(UserError, match=f"{key}: can't bind localhost:{port}"):
                App(config.model_copy(update={key: f"localhost:{port}"}))


async def test_an_address_of_ipv6_keeps_its_brackets(config, serve_config):
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with serve_config(config.model_copy(update={"listen": "[::1]:0", "metrics_listen": "[::1]:0"})) as server:
        assert server.app.address.startswith("[::1]:")
        assert server.app.metrics_address.startswith("[::1]:")
        await ModelServiceStub(server.channel).ListModels(model_pb2.ListModelsRequest())


def test_an_address_that_is_nowhere():
    for address in ("no-such-host.invalid:80", "192.0.2.1:80"):
        with pytest.raises(UserError, match=r"listen: can't bind"):
            connections.sockets(address, "listen")
