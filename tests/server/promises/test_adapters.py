"""An adapter is one object a content: loaded once, kept while calls use it, and its copy is gone when it is."""

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import save_file

from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.interface import RequestRefused
from tuneserve.server.models import adapters
from tuneserve.v1 import generation_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import Models, loopback

FILES = ("adapter_config.json", "adapter_model.safetensors")


def make_adapter(directory: Path, scale: float = 1.0) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILES[0]).write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    save_file({"a": np.full((2, 2), scale, dtype=np.float32)}, directory / FILES[1])
    return directory


def load(name: str, path: str = "polite") -> model_admin_pb2.LoadAdapterRequest:
    return model_admin_pb2.LoadAdapterRequest(model="chat", adapter=name, path=path)


def unload(name: str) -> model_admin_pb2.UnloadAdapterRequest:
    return model_admin_pb2.UnloadAdapterRequest(model="chat", adapter=name)


def using(name: str, tokens: int = 2) -> generation_pb2.GenerateRequest:
    sampling = generation_pb2.SamplingParams(max_tokens=tokens)
    prompt = generation_pb2.Prompt(text="the")
    return generation_pb2.GenerateRequest(model="chat", prompt=prompt, sampling=sampling, adapter=name)


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """What the server has copied, and not deleted."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return lambda: [str(path.relative_to(folder)) for path in folder.glob("tuneserve-adapters-*/*")]


@pytest.fixture
async def server(serve_config, make_llama, tmp_path, copies):
    make_adapter(tmp_path / "root" / "polite")
    make_adapter(tmp_path / "root" / "rude", scale=2.0)
    config = loopback(
        {"chat": ModelConfig(path=make_llama(), max_adapters=2, max_adapter_rank=8)},
        models_root=tmp_path / "root",
        drain_seconds=5,
    )
    async with serve_config(config) as served:
        yield served
    assert not list((tmp_path / "tmp").glob("tuneserve-*"))


@pytest.fixture
def admin(server):
    return Models(server.admin)


async def test_loaded_twice_it_stays_for_the_calls_that_use_it(server, admin, copies, until):
    engine, chat = server.engines["chat"], GenerationServiceStub(server.channel)
    await admin.LoadAdapter(load("a"))
    engine.delay = 0.05
    messages = aiter(chat.GenerateStream(using("a", tokens=20)))
    await anext(messages)
    await admin.LoadAdapter(load("a"))
    unloading = asyncio.ensure_future(_await(admin.UnloadAdapter(unload("a"))))
    await until(lambda: not server.app.models.latest("chat").adapters)
    await admin.GetModel(model_pb2.GetModelRequest(model="chat"))
    assert engine.adapters, "a call uses it"
    assert len([message async for message in messages]) == 19
    await unloading
    assert not engine.adapters
    assert not copies()


async def test_two_names_are_one_adapter(server, admin, copies, until):
    engine = server.engines["chat"]
    first = (await admin.LoadAdapter(load("a"))).adapter
    second = (await admin.LoadAdapter(load("b"))).adapter
    assert (first.name, second.name, first.version) == ("a", "b", second.version)
    await admin.UnloadAdapter(unload("a"))
    assert list(engine.adapters) == [f"adapter-{second.version}"]
    assert [message async for message in GenerationServiceStub(server.channel).GenerateStream(using("b"))]
    await admin.LoadAdapter(load("b", "rude"))
    assert len(copies()) == len(engine.adapters) == 1
    await admin.UnloadAdapter(unload("b"))
    assert not engine.adapters
    assert not copies()


@pytest.mark.parametrize("names", [["a"] * 8, [f"a{index}" for index in range(8)]], ids=["one name", "many"])
async def test_loads_at_once(server, admin, copies, names):
    answers = await asyncio.gather(*(_await(admin.LoadAdapter(load(name))) for name in names))
    assert len({answer.adapter.version for answer in answers}) == 1
    assert len(copies()) == len(server.engines["chat"].adapters) == 1
    for name in set(names):
        await admin.UnloadAdapter(unload(name))
    assert not copies()


async def test_what_the_engine_refuses_or_nobody_waits_for_leaves_no_copy(server, admin, copies, refused, until):
    engine = server.engines["chat"]
    works, asked = engine.load_adapter, asyncio.Event()

    async def refuse(name, directory):
        raise RequestRefused("adapter")

    async def wait(name, directory):
        asked.set()
        await asyncio.Event().wait()

    engine.load_adapter = refuse
    await refused(admin.LoadAdapter(load("a")), grpc.StatusCode.INVALID_ARGUMENT)
    assert not copies()
    engine.load_adapter = wait
    call = admin.LoadAdapter(load("a"))
    await until(asked.is_set)
    call.cancel()
    await until(lambda: not copies())
    engine.load_adapter = works
    await admin.LoadAdapter(load("a"))


async def test_a_load_that_is_given_up_behind_another_leaves_no_copy(server, admin, copies, until):
    engine = server.engines["chat"]
    works, asked, go_on = engine.load_adapter, asyncio.Event(), asyncio.Event()

    async def wait(name, directory):
        asked.set()
        await go_on.wait()
        await works(name, directory)

    engine.load_adapter = wait
    first = admin.LoadAdapter(load("a"))
    await until(asked.is_set)
    second = admin.LoadAdapter(load("b", "rude"))
    await until(lambda: len(copies()) == 2)
    await asyncio.sleep(0.05)  # it waits for the first
    second.cancel()
    await until(lambda: len(copies()) == 1)
    go_on.set()
    assert (await first).adapter.name == "a"
    await admin.UnloadAdapter(unload("a"))
    assert not copies()


async def test_unloading_that_was_given_up_goes_on(server, admin, copies, until):
    engine, chat = server.engines["chat"], GenerationServiceStub(server.channel)
    await admin.LoadAdapter(load("a"))
    engine.delay = 0.05
    messages = aiter(chat.GenerateStream(using("a", tokens=20)))
    await anext(messages)
    call = admin.UnloadAdapter(unload("a"))
    await until(lambda: not server.app.models.latest("chat").adapters)
    call.cancel()
    assert len([message async for message in messages]) == 19
    await until(lambda: not engine.adapters and not copies())


async def test_an_adapter_is_what_its_version_says_also_when_its_source_changes(tmp_path):
    """Somebody replaces its weights over and over while it is copied."""
    source, store = make_adapter(tmp_path / "source"), adapters.Store()
    others = [make_adapter(tmp_path / str(scale), scale) / FILES[1] for scale in range(2)]
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            for other in others:
                shutil.copyfile(other, source / "new")
                os.replace(source / "new", source / FILES[1])

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(200):
            copy = store.take(source, max_rank=8)
            hashes = [hashlib.sha256((copy.directory / file).read_bytes()).hexdigest() for file in FILES]
            assert copy.version == hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]
            store.release(copy)
    finally:
        ended.set()
        changing.join()
        store.close()


async def _await(call):
    return await call
