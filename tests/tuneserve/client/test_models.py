"""The calls about what is served by both clients, to the real server on fake engines."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save_file

from tuneserve.client import CallError, NotAllowed, NotFound, WrongState, models
from tuneserve.server.config import ModelConfig

from ...server.conftest import Served, loopback, served_by


@pytest.fixture
async def server(make_bert: Any, make_llama: Any, tmp_path: Path) -> AsyncIterator[Served]:
    """A sentiment model and a chat model; below models_root other weights for the first, whose engines of ten
    sequences wait with their start, and an adapter.
    """
    make_bert(labels=["neg", "pos", "mixed"]).rename(tmp_path / "new")
    (tmp_path / "polite").mkdir()
    (tmp_path / "polite" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    save_file({"a": np.ones((2, 2), dtype=np.float32)}, tmp_path / "polite" / "adapter_model.safetensors")
    config = loopback(
        {
            "sentiment": ModelConfig(path=make_bert(), max_queue=99),
            "chat": ModelConfig(path=make_llama(), max_adapters=2),
        },
        models_root=tmp_path,
    )

    def made(name: str, engine: Any) -> None:
        engine.starts = engine.max_num_seqs != 10

    async with served_by(config, made) as served:
        yield served


@pytest.fixture
async def admin(asking: Any, server: Served) -> Any:
    return asking(server.app.admin_address)


async def test_a_version_takes_over(admin: Any) -> None:
    [old] = [model.id for model in await admin("models") if model.name == "sentiment"]
    loaded = await admin("load_model", "sentiment", "new", max_inputs=7, redact=["email"])
    assert (loaded.name, loaded.state) == ("sentiment", "loading")
    *_, ready = await admin("watch_model", loaded.id)
    assert (ready.id, ready.state, ready.load_step) == (loaded.id, "ready", "")
    assert (ready.limits.max_inputs, ready.limits.max_queue) == (7, 99)

    shadowed = await admin("set_alias", "sentiment", old, shadow=ready.id)
    assert shadowed.shadow == ready.id
    split = await admin("set_alias", "sentiment", {old: 9, ready.id: 1})
    assert {target.model: target.weight for target in split.targets} == {old: 9, ready.id: 1}
    assert split in await admin("aliases")
    with pytest.raises(WrongState):
        await admin("unload_model", ready.id)

    moved = await admin("set_alias", "sentiment", ready.id, etag=split.etag, unload_unused=True)
    assert (moved.name, moved.shadow, len(moved.targets)) == ("sentiment", "", 1)
    assert [model.id for model in await admin("models") if model.name == "sentiment"] == [ready.id]
    with pytest.raises(CallError) as caught:
        await admin("set_alias", "sentiment", ready.id, etag=split.etag)
    assert caught.value.code == grpc.StatusCode.ABORTED


async def test_what_is_not_needed_goes(admin: Any) -> None:
    [chat] = [alias for alias in await admin("aliases") if alias.name == "chat"]
    assert await admin("delete_alias", "chat", etag=chat.etag) is None
    assert "chat" not in [alias.name for alias in await admin("aliases")]
    assert await admin("unload_model", chat.targets[0].model) is None
    assert "chat" not in [model.name for model in await admin("models")]
    with pytest.raises(NotFound):
        await admin("unload_model", chat.targets[0].model)
    await admin("delete_alias", "sentiment", unload_unused=True)
    assert await admin("models") == []


async def test_a_load_is_watched_and_cancelled(admin: Any, server: Served, until: Any) -> None:
    loaded = await admin("load_model", "sentiment", "new", max_num_seqs=10)
    watching = asyncio.create_task(admin("watch_model", loaded.id))
    await until(lambda: server.engines["sentiment"].max_num_seqs == 10)
    [seen] = [model for model in await admin("models") if model.id == loaded.id]
    assert (seen.state, seen.load_step) == ("loading", "starting")
    assert await admin("cancel_load", loaded.id) is None
    assert loaded.id not in [model.id for model in await admin("models")]
    watched = await watching
    assert [model.state for model in watched[:-1]] == ["loading"] * (len(watched) - 1)
    assert watched[-1].state == "failed"
    with pytest.raises(NotFound):
        await admin("cancel_load", loaded.id)


async def test_adapters(admin: Any, asking: Any, server: Served) -> None:
    ask = asking(server.app.address)
    loaded = await admin("load_adapter", "chat", "kind", "polite")
    assert (loaded.name, len(loaded.version)) == ("kind", 12)
    [adapters] = [model.adapters for model in await admin("models") if model.name == "chat"]
    assert adapters == ("kind",)
    await ask("generate", "chat", "the film", adapter="kind", max_tokens=1)
    assert await admin("unload_adapter", "chat", "kind") is None
    with pytest.raises(NotFound):
        await ask("generate", "chat", "the film", adapter="kind", max_tokens=1)


async def test_only_administrators_may(asking: Any, server: Served) -> None:
    with pytest.raises(NotAllowed):
        await asking(server.app.address)("delete_alias", "chat")


def test_settings_are_those_of_the_message() -> None:
    message = models.pb.ModelSettings.DESCRIPTOR
    assert models.ModelSettings.__annotations__.keys() == set(message.fields_by_name)
    sent: Any = models.load_model("m", "p", max_inputs=3, engine={"seed": 5}, redact=["email"]).request
    assert (sent.settings.max_inputs, sent.settings.engine.seed, sent.settings.redact.kinds) == (3, 5, ["email"])
    assert not sent.settings.HasField("max_queue")
    sent = models.load_model("m", "p").request
    assert not sent.HasField("settings")
    with pytest.raises(TypeError, match="unexpected keyword argument: max_input"):
        models.load_model("m", "p", max_input=3)  # type: ignore[call-arg]


async def test_models(ask: Any) -> None:
    found = {model.name: model for model in await ask("models")}
    assert found.keys() == {"sentiment", "topics", "ner", "chat", "vectors"}
    sentiment = found["sentiment"]
    assert (sentiment.task, sentiment.state, sentiment.labels) == ("sequence-classification", "ready", ("neg", "pos"))
    assert sentiment.failure == ""
    assert sentiment.id == f"sentiment@{sentiment.version}"
    assert (sentiment.limits.max_inputs, sentiment.limits.max_queue) == (8, 4)
    assert {found[name].task for name in ("ner", "chat", "vectors")} == {
        "token-classification",
        "generation",
        "embedding",
    }


async def test_aliases(ask: Any) -> None:
    found = {alias.name: alias for alias in await ask("aliases")}
    assert found.keys() == {"sentiment", "topics", "ner", "chat", "vectors"}
    [target] = found["chat"].targets
    assert (target.model.partition("@")[0], target.weight) == ("chat", 1)
    assert (found["chat"].shadow, len(found["chat"].etag)) == ("", 16)


async def test_watching_ends_where_nothing_loads(ask: Any) -> None:
    [model] = await ask("watch_model", "sentiment")
    assert (model.id.partition("@")[0], model.state, model.load_step) == ("sentiment", "ready", "")
    with pytest.raises(NotFound):
        await ask("watch_model", "nope")
