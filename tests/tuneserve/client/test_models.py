"""The calls about what is served by both clients, to the real server on fake engines."""

from typing import Any

import pytest

from tuneserve.client import NotFound


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
