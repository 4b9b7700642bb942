"""Versions that are loaded while the server runs: watched, one at a time, cancelled, failed and loaded again."""

import asyncio

import grpc
import pytest
from prometheus_client import generate_latest

from tuneserve.server.call.errors import WrongState
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.server.models import memory
from tuneserve.v1 import classification_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

from ..conftest import Models, loopback

LOADING, READY, FAILED = model_pb2.MODEL_STATE_LOADING, model_pb2.MODEL_STATE_READY, model_pb2.MODEL_STATE_FAILED
WAITING, STARTING, WARMING_UP = (
    model_pb2.LOAD_STEP_WAITING,
    model_pb2.LOAD_STEP_STARTING,
    model_pb2.LOAD_STEP_WARMING_UP,
)

STARTED_NOT = "its engine did not start; the server's log says why"


@pytest.fixture
def made():
    """Every engine that is made; `starts` and `hangs` say how those to come begin."""

    class Made(list):
        starts, hangs, broken = True, False, None

        def __call__(self, name, engine) -> None:
            engine.starts, engine.hangs, engine.broken = self.starts, self.hangs, self.broken
            self.append(engine)

    return Made()


@pytest.fixture
async def server(serve_config, make_bert, tmp_path, made):
    """A sentiment model, and below models_root `new` and `newer`, other weights for it."""
    for name, labels in (("new", ["neg", "pos", "mixed"]), ("newer", ["neg", "pos", "mixed", "none"])):
        make_bert(labels=labels).rename(tmp_path / name)
    config = loopback({"sentiment": make_bert()}, models_root=tmp_path, drain_seconds=5)
    async with serve_config(config, made) as served:
        yield served


@pytest.fixture
def admin(server):
    return Models(server.admin)


async def begun(admin, path: str = "new", model: str = "sentiment") -> model_pb2.Model:
    return (await admin.LoadModel(model_admin_pb2.LoadModelRequest(model=model, path=path))).model


def watch(admin, model: model_pb2.Model):
    return aiter(admin.WatchModel(model_pb2.WatchModelRequest(model=model.id)))


async def listed(admin) -> dict[str, model_pb2.Model]:
    return {model.id: model for model in (await admin.ListModels(model_pb2.ListModelsRequest())).models}


def cancel(admin, model: model_pb2.Model):
    return admin.CancelLoad(model_admin_pb2.CancelLoadRequest(model=model.id))


def classify(server, model: str):
    request = classification_pb2.ClassifyRequest(model=model, inputs=[classification_pb2.ClassifyInput(text="good")])
    return ClassificationServiceStub(server.channel).Classify(request)


async def test_a_load_answers_at_once_and_is_watched_to_its_end(admin, server, made, refused):
    made.starts, made.hangs = False, True
    model = await begun(admin, model="mood")
    assert model.state == LOADING
    watching = watch(admin, model)
    steps = [(await anext(watching)).model.load_step]
    if steps == [WAITING]:
        steps.append((await anext(watching)).model.load_step)
    assert steps[-1] == STARTING
    error = await refused(classify(server, model.id), grpc.StatusCode.UNAVAILABLE)
    assert "is loading" in error.details()
    await refused(classify(server, "mood"), grpc.StatusCode.NOT_FOUND)
    made[-1].starts = True
    assert (await anext(watching)).model.load_step == WARMING_UP
    engine = made[-1]
    engine.hangs = False
    engine.killed.set()  # what a hanging step waits for
    engine.killed = asyncio.Event()
    *_, last = [update async for update in watching]
    assert (last.model.state, last.model.load_step, last.model.failure) == (READY, 0, "")
    assert (await classify(server, "mood")).model_version == model.id


async def test_who_hears_that_it_is_ready_calls_it_by_its_alias(admin, server):
    for _ in range(10):
        model = await begun(admin, model="mood")
        async for update in watch(admin, model):
            if update.model.state == READY:
                assert (await classify(server, "mood")).model_version == model.id
        await admin.DeleteAlias(model_admin_pb2.DeleteAliasRequest(name="mood", unload_unused=True))


async def test_one_is_loaded_at_a_time_in_the_order_of_the_calls(admin, server, made, until):
    made.starts = False
    first, second = await begun(admin, "new"), await begun(admin, "newer")
    await until(lambda: len(made) == 2)
    states = await listed(admin)
    assert (states[first.id].load_step, states[second.id].load_step) == (STARTING, WAITING)
    made.starts = made[1].starts = True
    *_, last = [update async for update in watch(admin, second)]
    assert last.model.state == READY
    assert (await listed(admin))[first.id].state == READY


@pytest.mark.parametrize("waits", [True, False])
async def test_a_load_is_cancelled(admin, server, made, until, refused, waits):
    made.starts = False
    first, second = await begun(admin, "new"), await begun(admin, "newer")
    await until(lambda: len(made) == 2)
    gone, other = (second, first) if waits else (first, second)
    watching = watch(admin, gone)
    await anext(watching)
    made.starts = True
    await cancel(admin, gone)
    assert gone.id not in await listed(admin)
    last = [update async for update in watching][-1].model
    assert (last.state, last.failure) == (FAILED, "its engine was stopped: loading was cancelled")
    await refused(cancel(admin, gone), grpc.StatusCode.NOT_FOUND)
    if not waits:
        assert made[1].closed
    made[1].starts = True
    *_, last = [update async for update in watch(admin, other)]
    assert last.model.state == READY
    assert gone.version not in generate_latest(server.app.metrics.registry).decode()


async def test_what_is_not_being_loaded_is_not_cancelled(admin, server, refused):
    [model] = (await listed(admin)).values()
    error = await refused(cancel(admin, model), grpc.StatusCode.FAILED_PRECONDITION)
    assert "is not being loaded" in error.details()
    await refused(
        admin.CancelLoad(model_admin_pb2.CancelLoadRequest(model="sentiment")), grpc.StatusCode.INVALID_ARGUMENT
    )


async def test_what_could_not_be_loaded_says_so_until_it_is_loaded_again(admin, server, made, refused):
    made.broken = EngineFailed("gone")
    model = await admin.load("sentiment", "new", max_inputs=7)
    assert (model.state, model.failure) == (FAILED, STARTED_NOT)
    assert (await listed(admin))[model.id].failure == STARTED_NOT
    target = model_pb2.AliasTarget(model=model.id, weight=1)
    alias = model_pb2.Alias(name="sentiment", targets=[target])
    error = await refused(
        admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias)), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert "was not loaded yet" in error.details()
    assert (await classify(server, "sentiment")).results
    made.broken = None
    again = await admin.load("sentiment", "new")
    assert (again.id, again.state, again.limits.max_inputs) == (model.id, READY, 1024)
    await refused(begun(admin, "new"), grpc.StatusCode.ALREADY_EXISTS)


async def test_what_could_not_be_loaded_is_unloaded(admin, server, made):
    made.broken = EngineFailed("gone")
    model = await admin.load("mood", "new")
    await admin.UnloadModel(model_admin_pb2.UnloadModelRequest(model=model.id))
    assert model.id not in await listed(admin)


async def test_what_is_being_loaded_is_neither_unloaded_nor_loaded_twice_nor_aliased(admin, server, made, refused):
    made.starts = False
    model = await begun(admin)
    await refused(
        admin.UnloadModel(model_admin_pb2.UnloadModelRequest(model=model.id)), grpc.StatusCode.FAILED_PRECONDITION
    )
    await refused(begun(admin), grpc.StatusCode.ALREADY_EXISTS)
    alias = model_pb2.Alias(name="mood", targets=[model_pb2.AliasTarget(model=model.id, weight=1)])
    await refused(admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias)), grpc.StatusCode.FAILED_PRECONDITION)


async def test_memory_is_looked_at_again_when_a_load_has_its_turn(admin, server, made, monkeypatch, until):
    made.starts = False
    await begun(admin, "new")
    second = await begun(admin, "newer")
    await until(lambda: len(made) == 2)

    def full(config, manifest):
        raise WrongState("the model needs about 9.0 GiB and 1.0 GiB are free", "NO_MEMORY")

    monkeypatch.setattr(memory, "check", full)
    made[1].starts = True
    *_, last = [update async for update in watch(admin, second)]
    assert "9.0 GiB" in last.model.failure
    assert len(made) == 2


async def test_a_fault_of_ours_is_a_failure_too(admin, server, monkeypatch, caplog):
    async def broken(model):
        raise ValueError("a secret")

    monkeypatch.setattr(server.app.supervisor, "load", broken)
    model = await admin.load("mood", "new")
    assert "internal error" in model.failure
    assert "ValueError at" in caplog.text
    assert "a secret" not in caplog.text


async def test_who_watches_is_told_when_the_server_ends(serve_config, server, admin, made):
    made.starts = False
    model = await begun(admin)
    watching = watch(admin, model)
    await anext(watching)
    stopping = asyncio.create_task(server.app.stop())
    last = [update async for update in watching][-1].model
    assert last.state == FAILED
    await stopping
