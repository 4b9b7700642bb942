"""Connections: a client that is gone is noticed, and none lives for ever, while the calls on it may."""

import asyncio

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.server.config import ServerConfig
from tuneserve.server.transport import connections
from tuneserve.v1 import generation_pb2, model_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

from ..conftest import loopback


@pytest.fixture
def config(make_llama) -> ServerConfig:
    return loopback({"chat": make_llama()}, drain_seconds=3)


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


async def test_idle_connections_keep_probes_out_for_seconds_only(config, serve_config, raw):
    """The health port takes few connections, and anybody can open them."""
    async with serve_config(config.model_copy(update={"health_listen": "127.0.0.1:0"})) as server:
        idle = [await raw(server.app.health_address) for _ in range(connections.MOST_BESIDE)]
        # None of theirs is ever closed by anything else.
        assert not any(one.closed for one in idle)
        async with grpc.aio.insecure_channel(server.app.health_address) as channel:
            probe = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True
            )
            assert (await probe).status == health_pb2.HealthCheckResponse.SERVING


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
