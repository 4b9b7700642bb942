"""The server's file changes while it runs, and the models and aliases follow."""

import asyncio
import logging
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tuneserve.server import app
from tuneserve.server.config import ConfigFile
from tuneserve.server.engine.interface import EngineFailed
from tuneserve.server.models import memory
from tuneserve.v1 import classification_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub

from ..conftest import PORTS, Models, Served
from ..test_app import scrape

GOOD = [classification_pb2.ClassifyInput(text="good")]


class File:
    """The server's file, as somebody edits it."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.settings = PORTS | {"reload_models": True} | settings
        self.write()

    def write(self, text: str | None = None, **settings: Any) -> None:
        self.settings |= settings
        new = self.path.with_suffix(".new")
        new.write_text(yaml.safe_dump(self.settings) if text is None else text)
        new.replace(self.path)


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not look at the file by itself."""
    monkeypatch.setattr(app, "_RELOAD_SECONDS", 3600)


@pytest.fixture
def models(make_bert: Callable[..., Path], make_llama: Callable[..., Path]) -> dict[str, dict[str, Any]]:
    """Entries for the file: classifiers of two and of three labels, and a chat model."""
    paths = {"two": make_bert(), "three": make_bert(labels=["neg", "pos", "mixed"]), "chat": make_llama()}
    return {name: {"path": str(path)} for name, path in paths.items()}


@pytest.fixture
def file(tmp_path: Path, models: dict[str, dict[str, Any]]) -> File:
    return File(tmp_path / "server.yaml", models={"a": models["two"]}, models_root=str(tmp_path), drain_seconds=5)


@pytest.fixture
async def server(serve_config, file: File) -> AsyncIterator[Served]:
    followed = ConfigFile(file.path)
    async with serve_config(followed.load(), file=followed) as served:
        yield served


@pytest.fixture
def labels(server: Served) -> Callable[[str], Any]:
    """How many labels the model has that answers to a name."""
    stub = ClassificationServiceStub(server.channel)

    async def run(model: str) -> int:
        answer = await stub.Classify(classification_pb2.ClassifyRequest(model=model, inputs=GOOD))
        return len(answer.results[0].labels)

    return run


@pytest.fixture
def reload(caplog: pytest.LogCaptureFixture) -> Callable[[Served], Any]:
    """Makes a server look at its file; returns what the log says."""
    caplog.set_level(logging.INFO)

    async def run(server: Served) -> str:
        caplog.clear()
        await server.app._config_file.reload_if_changed()
        [said] = [message for message in caplog.messages if message.startswith("server.yaml ")]
        return said

    return run


async def versions(server: Served) -> list[str]:
    """The names of all versions."""
    return [model.name for model in (await Models(server.admin).ListModels(model_pb2.ListModelsRequest())).models]


async def gauge(server: Served) -> float:
    [sample] = (await scrape(server.app))["tuneserve_last_reload_successful"]
    assert sample.labels == {"file": "config"}
    return sample.value


async def test_a_new_model_is_loaded_and_one_that_left_is_drained(server, file, models, labels, reload, until):
    engine = server.engines["a"]
    engine.delay = 0.3
    running = asyncio.create_task(labels("a"))
    await until(lambda: engine.running)
    file.write(models={"b": models["three"], "chat": models["chat"]})
    assert await reload(server) == "server.yaml reloaded"
    assert await running == 2, "it was answered"
    assert engine.closed
    assert await labels("b") == 3
    assert await versions(server) == ["b", "chat"]
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await labels("a")


async def test_no_call_fails_while_a_model_gets_other_content(server, file, models, labels, reload):
    seen: Counter[int] = Counter()
    done = asyncio.Event()

    async def call() -> None:
        while not done.is_set():
            seen[await labels("a")] += 1

    callers = [asyncio.create_task(call()) for _ in range(4)]
    for kind in ("three", "two", "three"):
        file.write(models={"a": models[kind]})
        assert await reload(server) == "server.yaml reloaded"
    done.set()
    await asyncio.gather(*callers)
    assert set(seen) == {2, 3}
    assert await versions(server) == ["a"]


async def test_aliases_change(server, file, models, labels, reload):
    both = {"a": models["two"], "b": models["three"]}
    file.write(models=both, aliases={"reviews": {"targets": {"a": 1}}})
    await reload(server)
    assert await labels("reviews") == 2
    file.write(aliases={"reviews": {"targets": {"a": 1, "b": 1}}, "a": {"targets": {"b": 1}, "shadow": "a"}})
    await reload(server)
    assert {await labels("reviews") for _ in range(100)} == {2, 3}
    assert await labels("a") == 3, "a model's own name may stand for another one"
    [a, *_] = (await Models(server.admin).ListAliases(model_pb2.ListAliasesRequest())).aliases
    assert (a.name, a.shadow.partition("@")[0]) == ("a", "a")
    file.write(models=both | {"c": models["chat"]}, aliases={"c": {"targets": {"a": 1}}})
    await reload(server)
    assert await versions(server) == ["a", "b", "c"], "also one that has no alias"
    file.write(models=both, aliases={})
    await reload(server)
    assert await labels("a") == 2
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await labels("reviews")


async def test_aliases_are_there_from_the_start(serve_config, tmp_path, models):
    aliases = {"reviews": {"targets": {"a": 9, "b": 1}}}
    file = File(tmp_path / "server.yaml", models={"a": models["two"], "b": models["three"]}, aliases=aliases)
    async with serve_config(ConfigFile(file.path).load()) as served:
        [*_, reviews] = (await Models(served.admin).ListAliases(model_pb2.ListAliasesRequest())).aliases
        assert [target.weight for target in reviews.targets] == [9, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_calls": 7}, "max_calls: can't be changed while the server runs; restart it"),
        ({"models": {"a": {"path": "two", "max_queue": 7}}}, "models.a.max_queue: can't be changed while a@"),
        ({"models": {"a": {"path": "missing"}}}, "models.a.path: missing is not a directory"),
        ({"models": {"a": {"path": "two", "redact": ["mail"]}}}, "models.a.redact"),
        ({"reload_models": False}, "reload_models: can't be changed while the server runs; restart it"),
        ({"modles": {}}, "server.yaml: unknown key 'modles'"),
        ({"aliases": {"x": {"targets": {"c": 1}}}}, "server.yaml: aliases.x.targets.c: c is not a model of this file"),
        (
            {
                "models": {"a": {"path": "three"}, "c": {"path": "chat"}},
                "aliases": {"x": {"targets": {"a": 1, "c": 1}}},
            },
            "aliases.x: its models are of different tasks",
        ),
    ],
)
async def test_what_is_refused_changes_nothing(server, file, models, labels, reload, change, said):
    good = dict(file.settings)
    for model in change.get("models", {}).values():
        model["path"] = models.get(model["path"], {"path": "/srv/secret/missing"})["path"]
    file.write(**change)
    told = await reload(server)
    assert told.startswith(f"server.yaml not reloaded, the old configuration stays: {said}")
    assert "/" not in told, "a log has no paths of the server"
    assert await gauge(server) == 0
    assert (await versions(server), await labels("a")) == (["a"], 2)
    file.write(yaml.safe_dump(good | {"models": {"a": models["three"]}}))
    assert await reload(server) == "server.yaml reloaded"
    assert (await gauge(server), await labels("a")) == (1, 3)


@pytest.mark.parametrize("text", ["models: [", "", None])
async def test_a_broken_file_changes_nothing(server, file, labels, reload, text):
    file.path.unlink() if text is None else file.write(text)
    assert (await reload(server)).startswith("server.yaml not reloaded")
    assert (await gauge(server), await labels("a")) == (0, 2)


async def test_if_one_model_does_not_start_none_is_taken(serve_config, file, models, reload):
    def made(name: str, engine: Any) -> None:
        async def start() -> None:
            raise EngineFailed("never starts")

        if name == "c":
            engine.start = start

    followed = ConfigFile(file.path)
    async with serve_config(followed.load(), made, file=followed) as server:
        file.write(models={"b": models["three"], "c": models["chat"]}, aliases={"a": {"targets": {"b": 1}}})
        assert "model c@" in (told := await reload(server))
        assert "did not start" in told
        assert await versions(server) == ["a"]
        aliases = (await Models(server.admin).ListAliases(model_pb2.ListAliasesRequest())).aliases
        assert [alias.name for alias in aliases] == ["a"]
        assert server.engines["b"].closed
        assert not server.engines["a"].closed


async def test_without_memory_for_both_the_old_one_stays(server, file, models, labels, reload, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    file.write(models={"a": models["three"]})
    assert "0.0 GiB are free" in await reload(server)
    assert await labels("a") == 2


async def test_administrators_come_first(server, file, models, labels, reload, tmp_path):
    """What they loaded is taken over, and what they moved stays."""
    admin = Models(server.admin)
    shutil.move(models["three"]["path"], tmp_path / "next")
    new = await admin.load("a", "next")
    alias = model_pb2.Alias(name="a", targets=[model_pb2.AliasTarget(model=new.id, weight=1)])
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias, unload_unused=True))
    engine = server.engines["a"]
    file.write(models={"a": file.settings["models"]["a"], "chat": models["chat"]})
    await reload(server)
    assert await labels("a") == 3
    file.write(models={"a": file.settings["models"]["a"]}, aliases={"b": {"targets": {"a": 1}}})
    assert "models.a: a@" in (told := await reload(server))
    assert "was unloaded by an administrator" in told
    file.write(models={"a": {"path": str(tmp_path / "next"), "max_adapter_rank": 16}})
    await reload(server)
    assert await labels("a") == await labels("b") == 3
    assert server.engines["a"] is engine


async def test_kubernetes_swaps_a_link_to_a_directory(serve_config, tmp_path, models, reload):
    for folder, kind in (("one", "two"), ("other", "three")):
        (tmp_path / folder).mkdir()
        File(tmp_path / folder / "server.yaml", models={"a": models[kind]})
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "server.yaml").symlink_to("..data/server.yaml")
    file = ConfigFile(tmp_path / "server.yaml")
    async with serve_config(file.load(), file=file) as server:
        (tmp_path / "..data_tmp").symlink_to("other")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        assert await reload(server) == "server.yaml reloaded"
        assert server.engines["a"].labels == 3


async def test_a_change_before_the_server_was_up_is_seen(serve_config, file, models, reload):
    followed = ConfigFile(file.path)
    config = followed.load()
    file.write(models={"a": models["three"]})
    async with serve_config(config, file=followed) as server:
        assert await reload(server) == "server.yaml reloaded"


async def test_flags_stay_in_force(serve_config, file, models, reload):
    followed = ConfigFile(file.path, {"drain_seconds": 2.0})
    async with serve_config(followed.load(), file=followed) as server:
        file.write(models={"a": models["three"]})
        assert await reload(server) == "server.yaml reloaded"
        assert server.app.config.drain_seconds == 2.0


async def test_the_server_stops_while_a_model_is_loaded(serve_config, file, models, until, monkeypatch):
    monkeypatch.setattr(app, "_RELOAD_SECONDS", 0.01)
    engines: list[Any] = []

    def made(name: str, engine: Any) -> None:
        engine.starts = not engines
        engines.append(engine)

    followed = ConfigFile(file.path)
    async with serve_config(followed.load(), made, file=followed):
        file.write(models={"a": models["three"]})
        await until(lambda: len(engines) == 2)
    assert all(engine.closed for engine in engines)
