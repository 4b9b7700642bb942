"""Versions: an alias answers while one of its versions does, a failed model takes no other out of service, and which
version a call of an administrator meets is not left to chance.
"""

import asyncio
import json

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.numpy import save_file

from tuneserve.oip import inference_pb2
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.server.models import supervisor
from tuneserve.v1 import classification_pb2, generation_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import Models, loopback

CLASSIFY = classification_pb2.ClassifyRequest(
    model="sentiment", inputs=[classification_pb2.ClassifyInput(text="the film was good")]
)
CHAT = generation_pb2.GenerateRequest(model="chat", prompt=generation_pb2.Prompt(text="the"))
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
CLASSIFICATION, GENERATION = "tuneserve.v1.ClassificationService", "tuneserve.v1.GenerationService"


@pytest.fixture
async def server(serve_config, make_bert, make_llama, tmp_path, monkeypatch):
    """Two models, and a second version of each, `sentiment` and `chat` below models_root, with an adapter `polite`."""
    monkeypatch.setattr(supervisor, "_PING_SECONDS", 0.01)
    # What fails stays so.
    monkeypatch.setattr(supervisor, "_BACK_OFF_SECONDS", (600.0, 600.0))
    root = tmp_path / "root"
    (root / "polite").mkdir(parents=True)
    make_bert(labels=["neg", "pos", "mixed"]).rename(root / "sentiment")
    make_llama("{{ messages[0].content }}").rename(root / "chat")
    (root / "polite" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    save_file({"a": np.ones((2, 2), dtype=np.float32)}, root / "polite" / "adapter_model.safetensors")
    config = loopback(
        {
            "sentiment": make_bert(),
            "chat": ModelConfig(path=make_llama(), max_adapters=2),
        },
        models_root=root,
        drain_seconds=5,
    )
    async with serve_config(config) as served:
        yield served


@pytest.fixture
def admin(server):
    return Models(server.admin)


async def health(server, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(server.channel).Check(request)).status


def target(model: model_pb2.Model, weight: int = 0) -> model_pb2.AliasTarget:
    return model_pb2.AliasTarget(model=model.id, weight=weight)


async def alias(admin, name: str, *targets: model_pb2.AliasTarget, shadow: str = "") -> None:
    wanted = model_pb2.Alias(name=name, targets=targets, shadow=shadow)
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=wanted))


async def versions(admin, name: str) -> tuple[model_pb2.Model, model_pb2.Model]:
    """The version that the server began with, and another one that is loaded now."""
    old = (await admin.GetModel(model_pb2.GetModelRequest(model=name))).model
    return old, await admin.load(name, name)


async def test_a_dead_canary_costs_neither_calls_nor_health(admin, server, until):
    old, new = await versions(admin, "sentiment")
    await alias(admin, "sentiment", target(old, 1), target(new, 1))
    dead = server.app.models.latest("sentiment")
    server.engines["sentiment"].broken = EngineFailed("gone")
    await until(lambda: dead.state == model_pb2.MODEL_STATE_FAILED)
    answered = set()
    for _ in range(20):
        call = ClassificationServiceStub(server.channel).Classify(CLASSIFY)
        await call
        answered.add(dict(await call.trailing_metadata())["x-model-version"])
    assert answered == {f"sentiment@{old.version}"}, "its share was moved"
    for service in ("", CLASSIFICATION, "models/sentiment"):
        assert await health(server, service) == SERVING, service
    ready = inference_pb2.ServerReadyRequest()
    assert (await GRPCInferenceServiceStub(server.channel).ServerReady(ready)).ready


async def test_readiness_is_the_servers_and_not_one_models(server, until):
    chat, sentiment = (server.app.models.latest(name) for name in ("chat", "sentiment"))
    server.engines["chat"].broken = EngineFailed("gone")
    await until(lambda: chat.state == model_pb2.MODEL_STATE_FAILED)
    assert (await ClassificationServiceStub(server.channel).Classify(CLASSIFY)).results
    for service, expected in (
        ("", SERVING),
        (CLASSIFICATION, SERVING),
        ("models/sentiment", SERVING),
        ("models/chat", NOT_SERVING),
        (GENERATION, NOT_SERVING),
    ):
        assert await health(server, service) == expected, service
    # By the Open Inference Protocol the server is ready when all models are.
    ready = inference_pb2.ServerReadyRequest()
    assert not (await GRPCInferenceServiceStub(server.channel).ServerReady(ready)).ready
    server.engines["sentiment"].broken = EngineFailed("gone")
    await until(lambda: sentiment.state == model_pb2.MODEL_STATE_FAILED)
    assert await health(server) == NOT_SERVING, "no model of it answers"


async def test_nothing_serves_before_each_model_was_warmed_up(server):
    chat = server.app.models.latest("chat")
    for state, expected in ((model_pb2.MODEL_STATE_LOADING, NOT_SERVING), (model_pb2.MODEL_STATE_READY, SERVING)):
        chat.state = state
        await server.app._health.publish()
        assert await health(server) == expected
        assert await health(server, CLASSIFICATION) == SERVING


async def test_a_removed_alias_is_unknown(admin, server, refused):
    old = (await admin.GetModel(model_pb2.GetModelRequest(model="sentiment"))).model
    await alias(admin, "mood", target(old, 1))
    assert await health(server, "models/mood") == SERVING
    watching = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(service="models/mood"))
    assert (await watching.read()).status == SERVING
    await admin.DeleteAlias(model_admin_pb2.DeleteAliasRequest(name="mood"))
    assert (await asyncio.wait_for(watching.read(), 10)).status == UNKNOWN
    await refused(health(server, "models/mood"), grpc.StatusCode.NOT_FOUND)
    await alias(admin, "mood", target(old, 1))
    assert (await asyncio.wait_for(watching.read(), 10)).status == SERVING
    watching.cancel()


async def test_a_watcher_that_leaves_costs_the_others_nothing(server, until):
    stub, request = health_pb2_grpc.HealthStub(server.channel), health_pb2.HealthCheckRequest(service="models/chat")
    leaving, staying = stub.Watch(request), stub.Watch(request)
    assert [(await one.read()).status for one in (leaving, staying)] == [SERVING, SERVING]
    leaving.cancel()
    # Until the server knows of it.
    await health(server)
    server.engines["chat"].broken = EngineFailed("gone")
    assert (await asyncio.wait_for(staying.read(), 10)).status == NOT_SERVING
    staying.cancel()


async def classify(server, version: model_pb2.Model) -> classification_pb2.ClassifyResponse:
    request = classification_pb2.ClassifyRequest(model=f"sentiment@{version.version}", inputs=CLASSIFY.inputs)
    return await ClassificationServiceStub(server.channel).Classify(request)


def unload(version: model_pb2.Model) -> model_admin_pb2.UnloadModelRequest:
    return model_admin_pb2.UnloadModelRequest(model=version.id)


async def test_a_version_whose_unloading_was_given_up_answers_again(admin, server, refused, until):
    _, new = await versions(admin, "sentiment")
    model, engine = server.app.models.latest("sentiment"), server.engines["sentiment"]
    engine.delay = 1.0
    running = asyncio.create_task(classify(server, new))
    await until(lambda: model.admission.running)
    await refused(admin.UnloadModel(unload(new), timeout=0.2), grpc.StatusCode.DEADLINE_EXCEEDED)
    await until(lambda: model.state != model_pb2.MODEL_STATE_DRAINING)
    assert (await running).results
    engine.delay = 0.0
    assert (await classify(server, new)).results
    assert not engine.closed
    await admin.UnloadModel(unload(new))
    assert engine.closed


async def test_an_engine_that_is_being_ended_is_ended_though_nobody_waits(admin, server, refused, until):
    _, new = await versions(admin, "sentiment")
    engine, go, closing = server.engines["sentiment"], asyncio.Event(), asyncio.Event()

    async def close() -> None:
        closing.set()
        await go.wait()
        engine.closed = True

    engine.close = close
    unloading = asyncio.ensure_future(admin.UnloadModel(unload(new)))
    await asyncio.wait_for(closing.wait(), 10)
    unloading.cancel()
    # Behind it on the same connection: then the server knows.
    await admin.ListModels(model_pb2.ListModelsRequest())
    go.set()
    await until(lambda: engine.closed)
    # The next change waits for the end of this one.
    await refused(admin.UnloadModel(unload(new)), grpc.StatusCode.NOT_FOUND)
    listed = (await admin.ListModels(model_pb2.ListModelsRequest())).models
    assert new.version not in {model.version for model in listed}


async def test_what_is_being_unloaded_gets_no_alias_and_is_unloaded_once(admin, server, refused, until):
    _, new = await versions(admin, "sentiment")
    server.engines["sentiment"].delay = 0.3
    running = asyncio.create_task(classify(server, new))
    await until(lambda: server.engines["sentiment"].running)
    first = asyncio.ensure_future(admin.UnloadModel(unload(new)))
    await until(lambda: server.app.models.latest("sentiment").state == model_pb2.MODEL_STATE_DRAINING)
    error = await refused(alias(admin, "sentiment", target(new, 1)), grpc.StatusCode.FAILED_PRECONDITION)
    assert f"{new.name}@{new.version} is being unloaded" in error.details()
    await refused(admin.UnloadModel(unload(new)), grpc.StatusCode.FAILED_PRECONDITION)
    await asyncio.gather(first, running)
    await refused(alias(admin, "sentiment", target(new, 1)), grpc.StatusCode.NOT_FOUND)
    assert (await ClassificationServiceStub(server.channel).Classify(CLASSIFY)).results


async def test_an_alias_is_moved_and_a_version_unloaded_while_another_loads(admin, server, monkeypatch):
    """However long that takes, or if it hangs: this is how a bad version is taken back."""
    old, new = await versions(admin, "sentiment")
    await alias(admin, "sentiment", target(new, 1))

    async def hangs(_):
        await asyncio.Event().wait()

    monkeypatch.setattr(server.app.supervisor, "load", hangs)
    load = await admin.LoadModel(model_admin_pb2.LoadModelRequest(model="chat", path="chat"))
    wanted = model_pb2.Alias(name="sentiment", targets=[target(old, 1)])
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=wanted, unload_unused=True), timeout=30)
    call = ClassificationServiceStub(server.channel).Classify(CLASSIFY)
    await call
    assert dict(await call.trailing_metadata())["x-model-version"] == f"sentiment@{old.version}"
    listed = (await admin.ListModels(model_pb2.ListModelsRequest())).models
    assert new.version not in {model.version for model in listed}
    states = {model.id: model.state for model in listed}
    assert states[load.model.id] == model_pb2.MODEL_STATE_LOADING


async def test_only_inference_is_mirrored(admin, server, until):
    first = server.engines["chat"]
    old, new = await versions(admin, "chat")
    second = server.engines["chat"]
    assert first is not second
    await alias(admin, "chat", target(old, 1), shadow=new.id)
    await admin.LoadAdapter(model_admin_pb2.LoadAdapterRequest(model="chat", adapter="polite", path="polite"))
    described = (await admin.GetModel(model_pb2.GetModelRequest(model="chat"))).model
    assert (described.version, [one.name for one in described.adapters]) == (old.version, ["polite"])
    before = len(second.tickets)
    await GenerationServiceStub(server.channel).Generate(CHAT)
    await until(lambda: len(second.tickets) > before)
    await until(lambda: not server.app._shadows._tasks)
    assert first.adapters
    assert not second.adapters, "the adapter was loaded onto what was named, and nothing else"
    await admin.UnloadAdapter(model_admin_pb2.UnloadAdapterRequest(model="chat", adapter="polite"))
    results = {
        sample.labels["result"]: sample.value
        for metric in server.app.metrics.shadow.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    assert sum(results.values()) == 1, results


async def test_a_split_alias_is_described_whole_and_takes_no_adapter(admin, server, refused):
    old, new = await versions(admin, "chat")
    await alias(admin, "chat", target(old, 1), target(new, 3))
    for _ in range(20):
        response = await admin.GetModel(model_pb2.GetModelRequest(model="chat"))
        assert response.model.version == new.version, "the one with the largest share, every time"
        assert [other.model.version for other in response.others] == [old.version]
        assert response.others[0].checkpoint.files or response.others[0].checkpoint.architecture
    load = model_admin_pb2.LoadAdapterRequest(model="chat", adapter="polite", path="polite")
    for call in (
        admin.LoadAdapter(load),
        admin.UnloadAdapter(model_admin_pb2.UnloadAdapterRequest(model="chat", adapter="polite")),
    ):
        error = await refused(call, grpc.StatusCode.FAILED_PRECONDITION)
        assert f"chat@{old.version}" in error.details()
        assert f"chat@{new.version}" in error.details()
    for version in (old, new):
        load.model = f"chat@{version.version}"
        await admin.LoadAdapter(load)
        response = await admin.GetModel(model_pb2.GetModelRequest(model=load.model))
        assert [one.name for one in response.model.adapters] == ["polite"]
        assert not response.others
