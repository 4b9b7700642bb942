"""The calls about what is served by both clients, to the real server on fake engines."""

from typing import Any


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
