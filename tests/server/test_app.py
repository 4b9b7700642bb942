import asyncio
import json
import signal
import urllib.request

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from tuneserve import checkpoint
from tuneserve.errors import CheckpointError, StepFailed, UserError
from tuneserve.server.app import App, serve
from tuneserve.server.engine import fork_server
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.server.transport import connections
from tuneserve.v1 import classification_pb2, generation_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from .conftest import loopback
from .troubled_engine import TroubledEngine

GOOD = classification_pb2.ClassifyRequest(model="sentiment", inputs=[classification_pb2.ClassifyInput(text="good")])
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return response.status


async def scrape(app: App) -> dict[str, list]:
    def fetch() -> str:
        with urllib.request.urlopen(f"http://{app.metrics_address}/metrics", timeout=10) as response:
            return response.read().decode()

    text = await asyncio.to_thread(fetch)
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


async def test_health_and_calls_while_loading(make_bert, refused):
    go = asyncio.Event()

    async def slow_engine(name, config, manifest):
        await go.wait()
        raise EngineFailed("never starts")

    config = loopback({"sentiment": make_bert()})
    app = App(config, slow_engine)
    starting = asyncio.create_task(app.start())
    async with grpc.aio.insecure_channel(app.address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        assert await health(channel) == NOT_SERVING
        error = await refused(ClassificationServiceStub(channel).Classify(GOOD), grpc.StatusCode.UNAVAILABLE)
        assert "loading" in error.details()
    go.set()
    with pytest.raises(StepFailed, match="model sentiment: the engine did not start: never starts"):
        await starting
    await app.stop()


async def test_one_of_several_processes_gets_no_calls_before_its_models_are_loaded(make_bert):
    go = asyncio.Event()

    async def slow_engine(name, config, manifest):
        await go.wait()
        return TroubledEngine(len(manifest.labels))

    [kept] = connections.sockets("127.0.0.1:0", "listen", shared=True)
    address = f"127.0.0.1:{kept.getsockname()[1]}"
    app = App(
        loopback({"sentiment": make_bert()}, listen=address, health_listen="127.0.0.1:0", processes=2), slow_engine
    )
    starting = asyncio.create_task(app.start())
    with kept:
        async with grpc.aio.insecure_channel(app.health_address) as probes:
            await asyncio.wait_for(probes.channel_ready(), 10)
            assert await health(probes) == NOT_SERVING
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address.split(":"))
        go.set()
        await starting
        async with grpc.aio.insecure_channel(address) as channel:
            assert (await ClassificationServiceStub(channel).Classify(GOOD)).results
    await app.stop()


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_server_that_is_told_to_stop_while_it_loads_stops(make_bert, processes):
    async def endless(name, config, manifest):
        await asyncio.Event().wait()

    app = App(loopback({"sentiment": make_bert()}, processes=processes), endless)
    running = asyncio.create_task(app.run())
    await asyncio.sleep(0.1)
    app._end(signal.SIGTERM)
    await asyncio.wait_for(running, 20)


async def test_a_full_queue_says_when_to_come_back(served, refused, until):
    served.engines["sentiment"].delay = 0.5
    stub = ClassificationServiceStub(served.channel)
    running = [asyncio.create_task(_await(stub.Classify(GOOD))) for _ in range(4)]
    await until(lambda: served.engines["sentiment"].running == 4)
    error = await refused(stub.Classify(GOOD), grpc.StatusCode.RESOURCE_EXHAUSTED)
    detail = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(error).details[0].Unpack(detail)
    assert detail.retry_delay.ToMilliseconds() == int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    # Other models are not concerned, and those that got in are answered.
    await GenerationServiceStub(served.channel).Generate(
        generation_pb2.GenerateRequest(model="chat", prompt=generation_pb2.Prompt(text="the"))
    )
    for answer in await asyncio.gather(*running):
        assert answer.results


async def _await(call):
    return await call


async def test_metrics_count_what_happened(own_server):
    stub = ClassificationServiceStub(own_server.channel)
    await stub.Classify(GOOD)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Classify(classification_pb2.ClassifyRequest(model="nope"))
    request = generation_pb2.GenerateRequest(
        model="chat", prompt=generation_pb2.Prompt(text="the"), sampling=generation_pb2.SamplingParams(max_tokens=4)
    )
    async for _ in GenerationServiceStub(own_server.channel).GenerateStream(request):
        pass
    families = await scrape(own_server.app)

    def value(family: str, name: str, **labels: str) -> float:
        [sample] = [
            sample for sample in families[family] if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sample.value

    assert value("grpc_server_handled", "grpc_server_handled_total", grpc_method="Classify", grpc_code="OK") == 1
    assert value("grpc_server_handled", "grpc_server_handled_total", grpc_method="Classify", grpc_code="NOT_FOUND") == 1
    assert value("grpc_server_handled", "grpc_server_handled_total", grpc_method="GenerateStream", grpc_code="OK") == 1
    assert value("tuneserve_texts_classified", "tuneserve_texts_classified_total", model="sentiment") == 1
    assert value("tuneserve_predictions", "tuneserve_predictions_total", model="sentiment", label="pos") == 1
    assert value("tuneserve_completion_tokens", "tuneserve_completion_tokens_total", model="chat") == 4
    assert (
        value("tuneserve_time_to_first_token_seconds", "tuneserve_time_to_first_token_seconds_count", model="chat") == 1
    )
    assert value("tuneserve_inter_token_seconds", "tuneserve_inter_token_seconds_count", model="chat") == 3
    assert value("tuneserve_queue_depth", "tuneserve_queue_depth", model="chat") == 0
    assert value("tuneserve_requests_waiting", "tuneserve_requests_waiting", model="chat") == 0
    assert value("tuneserve_engine_up", "tuneserve_engine_up", model="ner") == 1
    # Every engine's own metrics, under one name each.
    assert len(families["vllm:num_requests_running"]) == 5


async def test_metrics_are_there_while_models_load(serve_config, make_bert, monkeypatch):
    """A model that has not been loaded yet has no queue."""
    async with serve_config(loopback({"sentiment": make_bert()})) as server:
        [loaded] = server.app.models
        monkeypatch.setattr(loaded, "_admission", None)
        assert not (await scrape(server.app))["tuneserve_requests_waiting"]


async def test_stop_lets_running_calls_finish(own_server, until):
    own_server.engines["sentiment"].delay = 0.3
    running = asyncio.create_task(_await(ClassificationServiceStub(own_server.channel).Classify(GOOD)))
    await until(lambda: own_server.engines["sentiment"].running)
    await own_server.app.stop()
    assert (await running).results


async def test_a_tampered_checkpoint_never_loads(make_bert):
    from tuneserve.v1 import checkpoint_pb2

    config = loopback({"sentiment": make_bert()})
    directory = config.models["sentiment"].path
    checkpoint.seal(directory, checkpoint_pb2.Checkpoint(task=checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION))
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: content differs"):
        App(config)


async def test_ready_file_has_the_addresses(served, tmp_path):
    served.app._announce(tmp_path / "ready.json")
    assert json.loads((tmp_path / "ready.json").read_text()) == {
        "grpc": served.app.address,
        "metrics": served.app.metrics_address,
        "admin": served.app.admin_address,
        "health": "",
    }


def test_a_missing_folder_and_a_port_in_use_are_told_before_the_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(fork_server, "fork", lambda: pytest.fail("it imports"))
    with pytest.raises(UserError, match=r"models\.m\.path: .* is not a directory"):
        serve(loopback({"m": tmp_path / "missing"}))
    [used, *_] = connections.sockets("127.0.0.1:0", "listen")
    used.listen()
    config = loopback({"m": tmp_path}).model_copy(update={"listen": f"127.0.0.1:{used.getsockname()[1]}"})
    with used, pytest.raises(UserError, match="listen"):
        serve(config)
