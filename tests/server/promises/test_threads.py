"""What must not wait never does: not for work in threads either, whoever fills asyncio's own pool of them."""

import asyncio
import os
import threading

import grpc
import pytest

from tuneserve import checkpoint
from tuneserve.server.call.tenants import hashed
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.server.models import administration, supervisor
from tuneserve.v1 import classification_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

from ..conftest import Models, loopback

CLASSIFY = "/tuneserve.v1.ClassificationService/Classify"
GOOD = classification_pb2.ClassifyRequest(model="sentiment", inputs=[classification_pb2.ClassifyInput(text="good")])
KEY = (("x-api-key", "key"),)


@pytest.fixture
async def server(serve_config, make_bert, tmp_path, monkeypatch):
    """One model, a folder `new` below models_root, and a tenant who administers."""
    monkeypatch.setattr(supervisor, "_PING_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "_BACK_OFF_SECONDS", (0.02, 0.05))
    make_bert(labels=["neg", "pos", "mixed"]).rename(tmp_path / "new")
    (tmp_path / "tenants.yaml").write_text(f"tenants: {{a: {{keys: ['{hashed('key')}']}}}}")
    config = loopback({"sentiment": make_bert()}, models_root=tmp_path, tenants=tmp_path / "tenants.yaml")
    async with serve_config(config) as served:
        yield served


@pytest.fixture
async def full(server):
    """Fills asyncio's own pool of threads."""
    done, loop = threading.Event(), asyncio.get_running_loop()
    sleeping = [loop.run_in_executor(None, done.wait) for _ in range(2 * ((os.cpu_count() or 1) + 36))]
    yield
    done.set()
    await asyncio.gather(*sleeping)


async def test_an_engine_starts_again(server, full, until):
    dead = server.engines["sentiment"]
    dead.broken = EngineFailed("gone")
    model = server.app.models.latest("sentiment")
    await until(lambda: server.engines["sentiment"] is not dead and model.is_ready)
    assert (await ClassificationServiceStub(server.channel).Classify(GOOD, metadata=KEY)).results


async def test_a_version_is_loaded_and_unloaded(server, full):
    admin = Models(server.admin)
    async with asyncio.timeout(60):
        loaded = await admin.load("mood", "new")
        assert loaded.state == model_pb2.MODEL_STATE_READY
        await admin.DeleteAlias(model_admin_pb2.DeleteAliasRequest(name="mood", unload_unused=True))


async def test_connections_without_a_key_are_closed(server, full, raw):
    flood = await raw(server.app.address)
    for number in range(200):
        flood.open(2 * number + 1, CLASSIFY, end=True)
    assert await flood.until(lambda: flood.closed)


async def test_many_loads_take_few_threads(server, until, monkeypatch):
    """Each may hash gigabytes. Who gives up while it waits for a thread, no longer waits."""
    begun, done = [], threading.Event()
    load = checkpoint.load

    def slow(*given):
        begun.append(threading.current_thread())
        done.wait()
        return load(*given)

    monkeypatch.setattr(checkpoint, "load", slow)
    admin, most = Models(server.admin), administration._PREPARING
    request = model_admin_pb2.LoadModelRequest(model="mood", path="new")
    calls = [admin.LoadModel(request) for _ in range(most)]
    try:
        await until(lambda: len(begun) == most)
        calls += [admin.LoadModel(request) for _ in range(40)]
        await until(lambda: len(server.app._running) == len(calls))
        await asyncio.sleep(0.1)
        assert len(begun) == most
        for call in calls[most:]:
            call.cancel()
        await until(lambda: len(server.app._running) == most)
    finally:
        done.set()
    codes = [await call.code() for call in calls[:most]]
    assert sorted(code.name for code in codes) == ["ALREADY_EXISTS"] * (most - 1) + ["OK"]
    assert len(begun) == most
    assert {await call.code() for call in calls[most:]} == {grpc.StatusCode.CANCELLED}
