"""A restart is watched, verified and leaks nothing: so is every other load of an engine."""

import asyncio
import itertools
import os
import shutil
import time

import pytest

from tuneserve import checkpoint
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.server.models import supervisor
from tuneserve.v1 import classification_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.model_admin_pb2_grpc import ModelAdminServiceStub

from ..conftest import Models, loopback

GOOD = classification_pb2.ClassifyRequest(model="sentiment", inputs=[classification_pb2.ClassifyInput(text="good")])
LOAD = model_admin_pb2.LoadModelRequest(model="sentiment", path="new")


@pytest.fixture
def config(make_bert, tmp_path, monkeypatch):
    """One model, and a folder `new` below models_root: other weights for it."""
    monkeypatch.setattr(supervisor, "_PING_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "_BACK_OFF_SECONDS", (0.02, 0.05))
    make_bert(labels=["neg", "pos", "mixed"]).rename(tmp_path / "new")
    config = loopback({"sentiment": make_bert()}, models_root=tmp_path)
    return config.model_copy(update={"watchdog_seconds": 0.3})  # less than a file may say


class Made(list):
    """Every engine that was made. The first is sound, and those after it are as `later` makes them."""

    def __init__(self, later=lambda index, engine: None) -> None:
        super().__init__()
        self._later = later

    def __call__(self, name, engine) -> None:
        if self:
            self._later(len(self), engine)
        self.append(engine)

    def closed(self) -> list[bool]:
        return [engine.closed for engine in self]


def breaks(index, engine) -> None:
    engine.broken = EngineFailed("gone")


def hangs(index, engine) -> None:
    engine.hangs = True


async def test_attempts_that_fail_leave_no_engine(config, serve_config, until):
    made = Made(breaks)
    async with serve_config(config, made) as server:
        made[0].broken = EngineFailed("gone")
        await until(lambda: len(made) > 5)
        assert made.closed()[:5] == [True] * 5
        assert not server.app.models.latest("sentiment").is_ready
    assert all(made.closed()), "also the one that was on its way when the server stopped"


async def test_a_version_that_fails_its_warm_up_leaves_no_engine(config, serve_config):
    made = Made(breaks)
    async with serve_config(config, made) as server:
        loaded = await Models(server.admin).load("sentiment", "new")
        assert loaded.state == model_pb2.MODEL_STATE_FAILED
        assert made.closed() == [False, True]
        assert (await ClassificationServiceStub(server.channel).Classify(GOOD)).results


@pytest.mark.parametrize("where", ["start", "warm-up"])
async def test_a_load_that_was_cancelled_leaves_no_engine(config, serve_config, until, where):
    def later(index, engine) -> None:
        engine.hangs, engine.starts = where == "warm-up", where != "start"

    made = Made(later)
    async with serve_config(config, made) as server:
        admin = ModelAdminServiceStub(server.admin)
        model = (await admin.LoadModel(LOAD)).model
        await until(lambda: len(made) > 1 and (made[1].running or not made[1].starts))
        await admin.CancelLoad(model_admin_pb2.CancelLoadRequest(model=model.id))
        assert made.closed() == [False, True]


async def test_a_server_that_stops_ends_what_it_loads(config, serve_config, until):
    def later(index, engine) -> None:
        engine.starts = False

    made = Made(later)
    async with serve_config(config, made) as server:
        await ModelAdminServiceStub(server.admin).LoadModel(LOAD)
        await until(lambda: len(made) > 1)
        started = time.monotonic()
    assert made.closed() == [True, True]
    assert time.monotonic() - started < config.drain_seconds


async def test_a_server_that_is_told_to_stop_while_it_starts_leaves_no_engine(config, serve_config, until):
    made = Made()

    def never_ready(name, engine) -> None:
        engine.hangs = True
        made.append(engine)

    async def start_and_stop() -> None:
        async with serve_config(config, never_ready):
            raise AssertionError("it never starts")

    starting = asyncio.create_task(start_and_stop())
    await until(lambda: made and made[0].running)
    starting.cancel()
    await asyncio.wait((starting,))
    assert made.closed() == [True]


async def test_a_process_that_has_only_started_is_a_sign_of_life(config, serve_config, until):
    """It waited for the server's own first, and has not computed for the whole time that the watchdog looks back."""

    def later(index, engine) -> None:
        engine.starts = False
        looks = itertools.count()
        # Its first process computes for a moment, its second is started while that one waits, late in the time.
        engine.cpu_seconds = lambda: {1: 0.1} if next(looks) < 9 else {1: 0.1, 2: 0.0}

    made = Made(later)
    async with serve_config(config, made) as server:
        loading = asyncio.ensure_future(Models(server.admin).load("sentiment", "new"))
        await until(lambda: len(made) > 1)
        # The first time that the watchdog could judge, and then some.
        await asyncio.sleep(1.5 * supervisor._PATIENCE * config.watchdog_seconds)
        assert not made[1].closed
        made[1].starts = True
        del made[1].cpu_seconds
        assert (await loading).state == model_pb2.MODEL_STATE_READY


async def test_what_hangs_while_it_is_loaded_is_ended_and_loaded_again(config, serve_config, until):
    def later(index, engine) -> None:
        engine.starts, engine.hangs = index != 1, index == 2

    made = Made(later)
    async with serve_config(config, made) as server:
        model = server.app.models.latest("sentiment")
        made[0].broken = EngineFailed("gone")
        await until(lambda: len(made) == 4 and model.is_ready)
        assert made.closed() == [True, True, True, False]
        assert (await ClassificationServiceStub(server.channel).Classify(GOOD)).results


async def test_loading_that_computes_for_ever_is_ended(config, serve_config):
    def later(index, engine) -> None:
        engine.starts, engine.share = False, 1.0

    made = Made(later)
    async with serve_config(config.model_copy(update={"load_seconds": 1}), made) as server:
        loaded = await Models(server.admin).load("sentiment", "new")
        assert loaded.failure == "its engine did not start; the server's log says why"
        assert made.closed() == [False, True]


@pytest.mark.parametrize("change", ["weights", "pickle"])
async def test_only_the_same_files_are_loaded_again(config, serve_config, until, caplog, change):
    made, directory = Made(), config.models["sentiment"].path
    async with serve_config(config, made) as server:
        model = server.app.models.latest("sentiment")
        if change == "weights":
            path = next(directory.glob("*.safetensors"))
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        else:
            (directory / "training_args.bin").write_bytes(b"")
        made[0].broken = EngineFailed("gone")
        await until(lambda: "its files are not those that were loaded" in caplog.text)
        assert len(made) == 1
        assert not model.is_ready
        assert str(directory) not in caplog.text
        if change == "pickle":
            (directory / "training_args.bin").unlink()
            await until(lambda: model.is_ready)


@pytest.mark.parametrize("change", ["weights", "pickle", "weights with the same time"])
async def test_only_the_files_that_were_verified_are_loaded_after_a_wait(config, serve_config, tmp_path, until, change):
    """LoadModel verifies them, and then waits until other versions are loaded."""
    made = Made(lambda index, engine: setattr(engine, "starts", index != 1))
    (tmp_path / "other").mkdir()
    shutil.copytree(tmp_path / "new", tmp_path / "other", dirs_exist_ok=True)
    async with serve_config(config, made) as server:
        admin = Models(server.admin)
        await admin.LoadModel(model_admin_pb2.LoadModelRequest(model="first", path="other"))
        await until(lambda: len(made) == 2)
        waiting = (await admin.LoadModel(LOAD)).model
        weights = next((tmp_path / "new").glob("*.safetensors"))
        times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
        if change == "pickle":
            (tmp_path / "new" / "training_args.bin").write_bytes(b"")
        else:
            weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        if change.endswith("time"):
            os.utime(weights, ns=times)
        made[1].starts = True
        *_, last = [update async for update in admin.WatchModel(model_pb2.WatchModelRequest(model=waiting.id))]
        assert last.model.state == model_pb2.MODEL_STATE_FAILED
        assert last.model.failure == "its engine was not started: its files have changed, or can't be read"
        assert len(made) == 2


async def test_files_that_stay_as_they_are_are_read_once_for_a_load(config, serve_config, monkeypatch):
    """They may be many gigabytes."""
    read = []
    sha256_file = checkpoint.sha256_file
    monkeypatch.setattr(checkpoint, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))
    async with serve_config(config) as server:
        read.clear()
        loaded = await Models(server.admin).load("sentiment", "new")
        assert loaded.state == model_pb2.MODEL_STATE_READY
        assert read.count("model.safetensors") == 1


async def test_no_engine_is_blamed_for_an_event_loop_that_is_held(config, serve_config, until):
    """The answer goes through several turns of the loop, and each of them takes longer than a look at the engine."""
    made = Made()
    async with serve_config(config.model_copy(update={"watchdog_seconds": 1}), made):
        asked = []

        async def ping() -> None:
            asked.append(0)
            for _ in range(30):
                await asyncio.sleep(0)

        made[0].ping, made[0].cpu_seconds = ping, lambda: {1: 5.0}
        for _ in range(100):
            time.sleep(0.15)  # noqa: ASYNC251 - what is tested
            await asyncio.sleep(0)
            if len(asked) > 1:
                break
        assert len(asked) > 1
        assert len(made) == 1
        assert not made[0].killed.is_set()
        made[0].hangs, made[0].ping = True, type(made[0]).ping.__get__(made[0])
        await until(made[0].killed.is_set)
