"""Crashed and hung engines: no call hangs, health says so, other models go on, the engine comes back."""

import asyncio
import itertools
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tuneserve.errors import StepFailed
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.server.models import supervisor
from tuneserve.v1 import classification_pb2, generation_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

GOOD = classification_pb2.ClassifyRequest(model="sentiment", inputs=[classification_pb2.ClassifyInput(text="good")])
CHAT = generation_pb2.GenerateRequest(model="chat", prompt=generation_pb2.Prompt(text="the"))
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def config(make_bert, make_llama, monkeypatch):
    monkeypatch.setattr(supervisor, "_PING_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "_BACK_OFF_SECONDS", (0.05, 0.2))
    config = loopback({"sentiment": make_bert(), "chat": make_llama()})
    return config.model_copy(update={"watchdog_seconds": 0.3})  # less than a file may say


async def health(server, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(server.channel).Check(request)).status


async def test_a_crashed_engine_is_replaced(config, serve_config, refused, until):
    made = []

    def later(name, engine) -> None:
        engine.starts = len(made) < len(config.models)
        made.append(engine)

    async with serve_config(config, later) as server:
        stub, model = ClassificationServiceStub(server.channel), server.app.models.latest("sentiment")
        dead = server.engines["sentiment"]
        dead.broken = EngineFailed("gone")
        await refused(stub.Classify(GOOD), grpc.StatusCode.UNAVAILABLE)
        await until(lambda: not model.is_ready)
        assert await health(server, "tuneserve.v1.ClassificationService") == NOT_SERVING
        assert await health(server, "models/sentiment") == NOT_SERVING
        assert await health(server, "tuneserve.v1.GenerationService") == SERVING
        error = await refused(stub.Classify(GOOD), grpc.StatusCode.UNAVAILABLE)
        assert "model 'sentiment': its engine died and is being restarted" in error.details()
        assert (await GenerationServiceStub(server.channel).Generate(CHAT)).completions, "other models go on"
        await until(lambda: server.engines["sentiment"] is not dead)
        server.engines["sentiment"].starts = True
        await until(lambda: model.is_ready)
        assert server.engines["sentiment"] is not dead
        assert dead.killed.is_set(), "what was left of it was ended"
        assert dead.closed
        assert (await stub.Classify(GOOD)).results
        assert await health(server) == SERVING
        assert server.app.metrics.restarts.labels("sentiment")._value.get() == 1


@pytest.mark.parametrize("share", [0.0, 0.03], ids=["stopped", "blocked, while a helpers tick"])
async def test_a_hung_engine_is_killed_and_no_call_hangs_with_it(config, serve_config, until, share):
    async with serve_config(config) as server:
        stub, model = ClassificationServiceStub(server.channel), server.app.models.latest("sentiment")
        hung = server.engines["sentiment"]
        hung.share, hung.hangs = share, True
        # Without a deadline of its own: only the watchdog can end it.
        call = asyncio.ensure_future(_await(stub.Classify(GOOD)))
        await until(lambda: hung.running)
        await until(lambda: not model.is_ready)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call, 5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        told = "model 'sentiment': its engine gave no sign of life for 0.3 s and is being restarted"
        assert told in caught.value.details()
        await until(lambda: model.is_ready)
        assert (await stub.Classify(GOOD)).results


async def test_a_step_may_take_longer_than_the_watchdog_while_the_engine_computes(config, serve_config, caplog):
    async with serve_config(config) as server:
        slow = server.engines["sentiment"]
        slow.delay = 4 * config.watchdog_seconds
        assert (await ClassificationServiceStub(server.channel).Classify(GOOD)).results
        assert server.engines["sentiment"] is slow
        assert not slow.killed.is_set()
        assert await health(server, "models/sentiment") == SERVING
        assert "computes one step for over 0.3 s" in caplog.text


async def test_an_engine_that_stops_computing_is_killed_though_it_was_slow_before(config, serve_config, until):
    async with serve_config(config) as server:
        engine = server.engines["sentiment"]
        used = itertools.chain(range(15), itertools.repeat(15))
        engine.cpu_seconds = lambda: {1: next(used)}
        engine.hangs = True
        await until(engine.killed.is_set)


async def test_a_step_without_an_end_is_ended(config, serve_config, until):
    async with serve_config(config.model_copy(update={"watchdog_seconds": 0.1})) as server:
        spinning = server.engines["sentiment"]
        spinning.share, spinning.hangs = 1.0, True
        call = asyncio.ensure_future(_await(ClassificationServiceStub(server.channel).Classify(GOOD)))
        await until(spinning.killed.is_set)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert "its engine computed one step for over 1 s and is being restarted" in caught.value.details()


async def test_attempts_go_on_with_more_time_between_them(config, serve_config, until, monkeypatch):
    async with serve_config(config) as server:
        model = server.app.models.latest("sentiment")
        attempts: list[float] = []
        load = type(model).load

        async def failing(self, make_engine):
            attempts.append(time.monotonic())
            if len(attempts) < 4:
                raise StepFailed("no memory")
            await load(self, make_engine)

        monkeypatch.setattr(type(model), "load", failing)
        server.engines["sentiment"].broken = EngineFailed("gone")
        await until(lambda: len(attempts) == 4 and model.is_ready)
        first, second, third = (b - a for a, b in itertools.pairwise(attempts))
        # Doubled each time, up to the longest. Only ever later than that, on a busy machine.
        assert first >= 0.1
        assert second >= 0.2
        assert third >= 0.2


async def test_the_process_ends_where_that_was_asked_for(config, serve_config, until):
    async with serve_config(config.model_copy(update={"on_engine_failure": "exit"})) as server:
        serving = asyncio.create_task(server.app._serve())
        server.engines["sentiment"].broken = EngineFailed("gone")
        with pytest.raises(StepFailed, match=r"model sentiment@.*: its engine died and the server ends"):
            await asyncio.wait_for(serving, 5)
        assert server.app.models.latest("sentiment").state == model_pb2.MODEL_STATE_FAILED


async def _await(call):
    return await call
