"""The calls to a monitor by both clients, to the real server on fake engines."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tuneserve.client import InvalidInput, NotFound


async def test_each_text_is_answered_with_its_id(ask: Any) -> None:
    texts = ["good", "", "film " * 50, "a film"]
    found = {one.id: one for one in await ask("observe", "news", texts)}
    assert sorted(found) == [0, 1, 2, 3]
    result = found[0].result
    assert [topic.label for topic in result.topics] == ["a", "b", "c"]
    assert (result.sentiment.label, result.sentiment.score) == ("pos", pytest.approx(0.8808, abs=1e-3))
    assert (result.truncated, result.usage.prompt_tokens) == (False, 6)
    assert result.topic_model_version.startswith("topics@")
    assert result.sentiment_model_version.startswith("sentiment@")
    for id_ in (1, 2):
        assert isinstance(found[id_].error, InvalidInput)
        assert found[id_].error.violations[0].field == "text"
        with pytest.raises(InvalidInput):
            _ = found[id_].result
    [cut] = await ask("observe", "news", ["film " * 50], truncation="end", priority=3)
    assert cut.result.truncated


async def test_the_last_texts_come_with_their_times(ask: Any) -> None:
    for text in ("good", "film"):
        await ask("observe", "news", [text])
    found = await ask("examples", "news", "a", "pos")
    assert [one.text for one in found][:2] == ["film", "good"]
    assert abs(found[0].time - datetime.now(UTC)) < timedelta(minutes=1)
    with pytest.raises(InvalidInput, match="is not a topic of the monitor"):
        await ask("examples", "news", "x", "pos")
    with pytest.raises(NotFound):
        await ask("examples", "nobody", "a", "pos")
