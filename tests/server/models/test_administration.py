"""Versions, aliases and adapters of a running server, over the wire."""

import asyncio
import json
import math
import shutil
from collections import Counter

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from safetensors.numpy import save_file

from tuneserve.server.call.errors import WrongState
from tuneserve.server.config import ModelConfig
from tuneserve.server.models import memory, shadow
from tuneserve.v1 import classification_pb2, generation_pb2, model_admin_pb2, model_pb2
from tuneserve.v1.classification_pb2_grpc import ClassificationServiceStub
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import Models, loopback

GOOD = classification_pb2.ClassifyRequest(model="sentiment", inputs=[classification_pb2.ClassifyInput(text="good")])


def make_adapter(directory, *, rank: int = 4, scale: float = 1.0, kind: str = "LORA"):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": rank}))
    save_file({"a": np.full((2, 2), scale, dtype=np.float32)}, directory / "adapter_model.safetensors")
    return directory


@pytest.fixture
async def server(serve_config, make_bert, make_llama, tmp_path):
    """A sentiment model and a chat model, and a folder `new` below models_root: other weights for the first."""
    first = make_bert()
    second = make_bert(labels=["neg", "pos", "mixed"])
    root = tmp_path / "root"
    root.mkdir()
    second.rename(root / "new")
    make_adapter(root / "polite")
    config = loopback(
        {
            "sentiment": ModelConfig(path=first, max_queue=99),
            "chat": ModelConfig(path=make_llama(), max_adapters=2, max_adapter_rank=8),
        },
        models_root=root,
        drain_seconds=5,
    )
    async with serve_config(config) as served:
        yield served


@pytest.fixture
def admin(server):
    return Models(server.admin)


@pytest.fixture
def classify(server):
    stub = ClassificationServiceStub(server.channel)

    async def run(model: str = "sentiment") -> tuple[str, int]:
        """Returns which version answered, and how many labels it has."""
        call = stub.Classify(classification_pb2.ClassifyRequest(model=model, inputs=GOOD.inputs))
        answer = await call
        return dict(await call.trailing_metadata())["x-model-version"], len(answer.results[0].labels)

    return run


async def load_new(admin, **settings) -> model_pb2.Model:
    return await admin.load("sentiment", "new", **settings)


def target(model: model_pb2.Model, weight: int = 1) -> model_pb2.AliasTarget:
    return model_pb2.AliasTarget(model=model.id, weight=weight)


async def old_version(admin) -> model_pb2.Model:
    return (await admin.GetModel(model_pb2.GetModelRequest(model="sentiment"))).model


async def test_a_version_is_loaded_beside_the_old_and_takes_over(admin, classify, server, refused):
    old = await old_version(admin)
    new = await load_new(admin, max_inputs=7)
    assert new.state == model_pb2.MODEL_STATE_READY
    assert new.limits.max_inputs == 7
    assert new.limits.max_queue == 99, "as the version before it"
    assert await classify() == (f"sentiment@{old.version}", 2), "the alias did not move by itself"
    assert await classify(f"sentiment@{new.version}") == (f"sentiment@{new.version}", 3)
    alias = model_pb2.Alias(name="sentiment", targets=[target(new)])
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias, unload_unused=True))
    assert await classify() == (f"sentiment@{new.version}", 3)
    listed = await admin.ListModels(model_pb2.ListModelsRequest())
    assert [model.version for model in listed.models if model.name == "sentiment"] == [new.version]
    error = await refused(classify(f"sentiment@{old.version}"), grpc.StatusCode.NOT_FOUND)
    assert new.version in error.details()


async def test_no_call_fails_while_the_alias_moves(admin, classify, server):
    old, new = await old_version(admin), await load_new(admin)
    seen: Counter[str] = Counter()
    moved = asyncio.Event()

    async def call() -> None:
        while not moved.is_set():
            seen[(await classify())[0]] += 1

    callers = [asyncio.create_task(call()) for _ in range(4)]
    for _ in range(10):
        for version in (new, old):
            alias = model_pb2.Alias(name="sentiment", targets=[target(version)])
            await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias))
    alias = model_pb2.Alias(name="sentiment", targets=[target(new)])
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias, unload_unused=True))
    moved.set()
    await asyncio.gather(*callers)
    assert set(seen) == {f"sentiment@{old.version}", f"sentiment@{new.version}"}


async def test_the_old_version_finishes_what_it_has(admin, classify, server, until):
    old_engine = server.engines["sentiment"]
    new = await load_new(admin)
    old_engine.delay = 0.3
    running = asyncio.create_task(classify())
    await until(lambda: old_engine.running)
    alias = model_pb2.Alias(name="sentiment", targets=[target(new)])
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias, unload_unused=True))
    assert old_engine.closed
    assert (await running)[1] == 2


async def test_traffic_is_split_by_weight(admin, classify):
    old, new = await old_version(admin), await load_new(admin)
    alias = model_pb2.Alias(name="sentiment", targets=[target(old, 3), target(new, 1)])
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias))
    seen = Counter([(await classify())[0] for _ in range(400)])
    share = seen[f"sentiment@{new.version}"] / 400
    # Five standard deviations of a fair draw: 0.25 +- 0.108.
    assert 0.14 < share < 0.36


async def test_a_shadow_is_compared_and_counted_and_never_seen(admin, classify, server, until):
    old, new = await old_version(admin), await load_new(admin)
    alias = model_pb2.Alias(name="sentiment", targets=[target(old)], shadow=new.id)
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias))
    assert await classify() == (f"sentiment@{old.version}", 2)
    shadowing = ("sentiment", new.version)
    counted = server.app.metrics.shadow.labels

    # "good" has 3 tokens: class 3 % 2 of two labels, 3 % 3 of three.
    await until(lambda: counted("sentiment", *shadowing, "different")._value.get() == 1)
    server.engines["sentiment"].broken = RuntimeError("broken shadow")
    assert await classify() == (f"sentiment@{old.version}", 2)
    await until(lambda: counted("sentiment", *shadowing, "error")._value.get() == 1)
    assert server.app.metrics.texts.labels("sentiment")._value.get() == 2, "only what callers sent"


async def test_copies_for_a_shadow_are_bounded_in_bytes(admin, classify, server, until, monkeypatch):
    old, new = await old_version(admin), await load_new(admin)
    alias = model_pb2.Alias(name="sentiment", targets=[target(old)], shadow=new.id)
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias))
    counted = server.app.metrics.shadow.labels
    monkeypatch.setattr(shadow, "_MOST_BYTES", 10)
    await classify()
    assert counted("sentiment", "sentiment", new.version, "dropped")._value.get() == 1
    monkeypatch.setattr(shadow, "_MOST_BYTES", 1000)
    for count in (1, 2):
        await classify()
        await until(
            lambda count=count: counted("sentiment", "sentiment", new.version, "different")._value.get() == count
        )
        await until(lambda: not server.app._shadows._bytes)


async def test_what_an_alias_needs_is_not_unloaded(admin, refused):
    old = await old_version(admin)
    request = model_admin_pb2.UnloadModelRequest(model=old.id)
    error = await refused(admin.UnloadModel(request), grpc.StatusCode.FAILED_PRECONDITION)
    assert "alias" in error.details()
    new = await load_new(admin)
    await admin.UnloadModel(model_admin_pb2.UnloadModelRequest(model=new.id))
    await refused(admin.UnloadModel(request), grpc.StatusCode.FAILED_PRECONDITION)


async def test_aliases_are_removed_and_checked(admin, refused, classify):
    old = await old_version(admin)
    alias = model_pb2.Alias(name="mood", targets=[target(old)])
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias))
    assert (await classify("mood"))[1] == 2
    await admin.DeleteAlias(model_admin_pb2.DeleteAliasRequest(name="mood"))
    await refused(classify("mood"), grpc.StatusCode.NOT_FOUND)
    gone = admin.DeleteAlias(model_admin_pb2.DeleteAliasRequest(name="mood"))
    assert "alias 'mood' is not served here" in (await refused(gone, grpc.StatusCode.NOT_FOUND)).details()
    for bad, code in (
        (model_pb2.Alias(name="mood"), grpc.StatusCode.INVALID_ARGUMENT),
        (
            model_pb2.Alias(name="a", targets=[model_pb2.AliasTarget(model="sentiment", weight=1)]),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (model_pb2.Alias(name="a", targets=[target(old)], shadow="sentiment"), grpc.StatusCode.INVALID_ARGUMENT),
        (model_pb2.Alias(name=""), grpc.StatusCode.INVALID_ARGUMENT),
        (model_pb2.Alias(name="a@b", targets=[target(old)]), grpc.StatusCode.INVALID_ARGUMENT),
        (model_pb2.Alias(name="a\nb", targets=[target(old)]), grpc.StatusCode.INVALID_ARGUMENT),
        (model_pb2.Alias(name="a" * 64, targets=[target(old)]), grpc.StatusCode.INVALID_ARGUMENT),
        (model_pb2.Alias(name="a", targets=[target(old, 0)]), grpc.StatusCode.INVALID_ARGUMENT),
        (
            model_pb2.Alias(name="a", targets=[model_pb2.AliasTarget(model="nope@x", weight=1)]),
            grpc.StatusCode.NOT_FOUND,
        ),
    ):
        await refused(admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=bad)), code)
    chat = (await admin.GetModel(model_pb2.GetModelRequest(model="chat"))).model
    mixed = model_pb2.Alias(name="a", targets=[target(old), target(chat)])
    await refused(admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=mixed)), grpc.StatusCode.INVALID_ARGUMENT)


async def test_an_alias_names_each_version_once(admin, refused):
    old, new = await old_version(admin), await load_new(admin)
    for alias, told in (
        (
            model_pb2.Alias(name="a", targets=[target(old), target(new), target(old, 2)]),
            "alias.targets[2].model: is a duplicate of alias.targets[0].model",
        ),
        (
            model_pb2.Alias(name="a", targets=[target(old), target(new)], shadow=new.id),
            "alias.shadow: is a duplicate of alias.targets[1].model",
        ),
    ):
        call = admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias))
        error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
        assert told in error.details()


async def test_a_version_leaves_whatever_becomes_of_others(admin, classify, server, until, refused):
    old, old_engine = await old_version(admin), server.engines["sentiment"]
    new = await load_new(admin)

    async def fail() -> None:
        raise RuntimeError("its engine does not end")

    server.engines["sentiment"].close = fail
    both = model_pb2.Alias(name="both", targets=[target(old), target(new)])
    await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=both))
    await admin.DeleteAlias(model_admin_pb2.DeleteAliasRequest(name="sentiment"))
    old_engine.delay = 1.0
    running = asyncio.create_task(classify(old.id))
    await until(lambda: old_engine.running)
    deleting = admin.DeleteAlias(model_admin_pb2.DeleteAliasRequest(name="both", unload_unused=True))
    await until(lambda: len(list(server.app.models)) == 2)
    alias = model_pb2.Alias(name="late", targets=[target(old)])
    await refused(admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=alias)), grpc.StatusCode.FAILED_PRECONDITION)
    assert not running.done()
    await refused(deleting, grpc.StatusCode.INTERNAL)
    assert await running
    listed = await admin.ListModels(model_pb2.ListModelsRequest())
    assert [model.name for model in listed.models] == ["chat"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (model_admin_pb2.LoadModelRequest(model="sentiment", path=""), "path"),
        (model_admin_pb2.LoadModelRequest(model="sentiment", path="../elsewhere"), "path"),
        (model_admin_pb2.LoadModelRequest(model="sentiment", path="/etc"), "path"),
        (model_admin_pb2.LoadModelRequest(model="sentiment", path="polite"), "path"),
        (model_admin_pb2.LoadModelRequest(model="bad name", path="new"), "model"),
    ],
)
async def test_bad_loads_name_the_field_and_no_path(admin, refused, request_, field, tmp_path):
    error = await refused(admin.LoadModel(request_), grpc.StatusCode.INVALID_ARGUMENT)
    detail = error_details_pb2.BadRequest()
    rpc_status.from_call(error).details[0].Unpack(detail)
    assert detail.field_violations[0].field == field
    assert str(tmp_path) not in error.details()


async def test_bad_loads_name_everything_at_once(admin, refused):
    request = model_admin_pb2.LoadModelRequest(
        model="bad name",
        path="../elsewhere",
        settings={
            "dtype": "a secret",
            "tool_parser": "a secret",
            "redact": {"kinds": ["email", "a secret"]},
            "max_queue": 0,
            "max_inputs": 0,
            "engine": {"kv_cache_dtype": "a secret"},
        },
    )
    error = await refused(admin.LoadModel(request), grpc.StatusCode.INVALID_ARGUMENT)
    detail = error_details_pb2.BadRequest()
    rpc_status.from_call(error).details[0].Unpack(detail)
    assert sorted(one.field for one in detail.field_violations) == [
        *("model", "path", "settings", "settings", "settings.dtype", "settings.engine.kv_cache_dtype"),
        *("settings.redact.kinds[1]", "settings.tool_parser"),
    ]
    told = " ".join(one.description for one in detail.field_violations)
    assert "max_queue" in told
    assert "max_inputs" in told
    assert "secret" not in told + error.details()
    adapter = admin.LoadAdapter(model_admin_pb2.LoadAdapterRequest(model="chat", path="/etc"))
    error = await refused(adapter, grpc.StatusCode.INVALID_ARGUMENT)
    assert "adapter: is not a name" in error.details()
    assert "path: is not a directory" in error.details()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"tool_parser": "os.system"}, "settings.tool_parser"),
        ({"tool_parser": "hermes"}, "tool_parser"),
        ({"max_queue": 0}, "max_queue"),
        ({"max_wait_seconds": math.nan}, "max_wait_seconds"),
        ({"redact": {"kinds": ["email", "shoe size"]}}, "settings.redact.kinds[1]"),
        ({"engine": {"kv_cache_dtype": "a secret"}}, "settings.engine.kv_cache_dtype"),
        ({"engine": {"seed": 1 << 31}}, "seed"),
    ],
)
async def test_settings_are_checked_like_the_files(admin, server, settings, word):
    engine = server.engines["sentiment"]
    with pytest.raises((grpc.aio.AioRpcError, ValueError)) as caught:
        await load_new(admin, **settings)
    if isinstance(caught.value, grpc.aio.AioRpcError):
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert word in caught.value.details()
        assert "shoe" not in caught.value.details()
    assert server.engines["sentiment"] is engine, "no engine was started"


def test_what_is_set_while_the_server_runs_is_of_the_files_and_reaches_no_code_or_file():
    settings = set(model_admin_pb2.ModelSettings.DESCRIPTOR.fields_by_name)
    assert ModelConfig.model_fields.keys() - settings == {"path", "adapters"}
    assert settings <= ModelConfig.model_fields.keys()
    for message in (model_admin_pb2.ModelSettings, model_admin_pb2.EngineOptions):
        texts = {name for name, one in message.DESCRIPTOR.fields_by_name.items() if one.type == one.TYPE_STRING}
        assert texts <= {"dtype", "kv_cache_dtype", "tool_parser", "reasoning_parser"}, "each one of a few words"


async def test_settings_are_those_of_the_version_before_and_0_chooses_anew(admin, server):
    root = server.app.config.models_root
    first = await load_new(admin, max_length=16, max_inputs=7, redact={"kinds": ["email"]})
    assert (first.limits.max_inputs, first.limits.max_queue) == (7, 99)
    shutil.copytree(root / "new", root / "newer")
    config = root / "newer" / "config.json"
    config.write_text(config.read_text() + "\n")
    second = await admin.load("sentiment", "newer", max_length=0)
    assert (second.version == first.version, second.limits.max_inputs) == (False, 7)
    now = server.app.models.latest("sentiment").config
    assert (now.max_length, now.redact) == (None, ("email",))
    assert not server.app.models.latest("sentiment").load_failed


async def test_options_of_the_engine_are_added_to_the_files(admin, server):
    old = server.app.models.latest("sentiment")
    old.config = old.config.model_copy(update={"engine": {"revision": "of the file", "seed": 1}})
    await load_new(admin, engine={"seed": 2, "enable_prefix_caching": False})
    assert server.app.models.latest("sentiment").config.engine == {
        "revision": "of the file",
        "seed": 2,
        "enable_prefix_caching": False,
    }


async def test_the_same_content_is_not_loaded_twice(admin, refused):
    await load_new(admin)
    request = model_admin_pb2.LoadModelRequest(model="sentiment", path="new")
    await refused(admin.LoadModel(request), grpc.StatusCode.ALREADY_EXISTS)


async def test_no_memory_is_said_before_anything_is_touched(admin, classify, server, monkeypatch):
    def full(*_):
        raise WrongState("the model needs about 9.0 GiB and 1.0 GiB are free", "NO_MEMORY")

    monkeypatch.setattr(memory, "check", full)
    engine = server.engines["sentiment"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await load_new(admin)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "GiB are free" in caught.value.details()
    assert server.engines["sentiment"] is engine, "no engine was started"
    assert (await classify())[1] == 2


async def test_adapters_come_and_go(admin, server, refused, tmp_path):
    chat = GenerationServiceStub(server.channel)
    request = generation_pb2.GenerateRequest(model="chat", prompt=generation_pb2.Prompt(text="the"), adapter="polite")
    await refused(chat.Generate(request), grpc.StatusCode.NOT_FOUND)
    load = model_admin_pb2.LoadAdapterRequest(model="chat", adapter="polite", path="polite")
    first = (await admin.LoadAdapter(load)).adapter
    engine = server.engines["chat"]
    # Read from a copy that later changes do not reach.
    [(name, directory)] = engine.adapters.items()
    assert directory.is_relative_to(tmp_path) is False
    await chat.Generate(request)
    assert engine.tickets[-1].adapter == name == f"adapter-{first.version}"
    listed = (await admin.GetModel(model_pb2.GetModelRequest(model="chat"))).model
    assert [(one.name, one.version) for one in listed.adapters] == [("polite", first.version)]

    make_adapter(tmp_path / "root" / "polite", scale=2.0)
    second = (await admin.LoadAdapter(load)).adapter
    assert second.version != first.version
    assert list(engine.adapters) == [f"adapter-{second.version}"], "the one it replaces is gone"

    await admin.UnloadAdapter(model_admin_pb2.UnloadAdapterRequest(model="chat", adapter="polite"))
    assert not engine.adapters
    await refused(chat.Generate(request), grpc.StatusCode.NOT_FOUND)


async def test_an_adapter_in_use_is_kept_until_its_calls_end(admin, server, until):
    chat, engine = GenerationServiceStub(server.channel), server.engines["chat"]
    await admin.LoadAdapter(model_admin_pb2.LoadAdapterRequest(model="chat", adapter="polite", path="polite"))
    engine.delay = 0.05
    request = generation_pb2.GenerateRequest(
        model="chat",
        prompt=generation_pb2.Prompt(text="the"),
        sampling=generation_pb2.SamplingParams(max_tokens=6),
        adapter="polite",
    )
    messages = aiter(chat.GenerateStream(request))
    await anext(messages)
    unloading = asyncio.ensure_future(
        admin.UnloadAdapter(model_admin_pb2.UnloadAdapterRequest(model="chat", adapter="polite"))
    )
    await until(lambda: not server.app.models.latest("chat").adapters)
    assert engine.adapters
    assert len([message async for message in messages]) == 5
    await unloading
    assert not engine.adapters


async def test_adapters_that_are_none_are_refused(admin, refused, tmp_path):
    root = tmp_path / "root"
    make_adapter(root / "wide", rank=64)
    make_adapter(root / "ia3", kind="IA3")
    (root / "empty").mkdir()
    for path, word in (("wide", "rank 64"), ("ia3", "IA3"), ("empty", "adapter_config.json"), ("../x", "models_root")):
        load = model_admin_pb2.LoadAdapterRequest(model="chat", adapter="a", path=path)
        error = await refused(admin.LoadAdapter(load), grpc.StatusCode.INVALID_ARGUMENT)
        assert word in error.details()
        assert str(root) not in error.details()
    load = model_admin_pb2.LoadAdapterRequest(model="sentiment", adapter="a", path="polite")
    error = await refused(admin.LoadAdapter(load), grpc.StatusCode.FAILED_PRECONDITION)
    assert "max_adapters" in error.details()


async def test_an_alias_is_moved_only_as_it_was_seen(admin, refused, classify):
    """Two administrators at once: the later one is told, and what the first one did stays."""
    old, new = await old_version(admin), await load_new(admin)

    async def listed() -> dict[str, model_pb2.Alias]:
        return {alias.name: alias for alias in (await admin.ListAliases(model_pb2.ListAliasesRequest())).aliases}

    seen = (await listed())["sentiment"]
    moved = model_pb2.Alias(name="sentiment", targets=[target(new)], etag=seen.etag)
    now = (await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=moved))).alias
    assert now.etag != seen.etag
    for late in (
        admin.SetAlias(
            model_admin_pb2.SetAliasRequest(
                alias=model_pb2.Alias(name="sentiment", targets=[target(old)], etag=seen.etag)
            )
        ),
        admin.DeleteAlias(model_admin_pb2.DeleteAliasRequest(name="sentiment", etag=seen.etag)),
        admin.SetAlias(
            model_admin_pb2.SetAliasRequest(alias=model_pb2.Alias(name="mood", targets=[target(old)], etag=seen.etag))
        ),
    ):
        await refused(late, grpc.StatusCode.ABORTED)
    assert (await listed())["sentiment"] == now
    assert "mood" not in await listed()
    back = model_pb2.Alias(name="sentiment", targets=[target(old)], etag=now.etag)
    assert (await admin.SetAlias(model_admin_pb2.SetAliasRequest(alias=back))).alias.etag == seen.etag
