"""The calls about texts by both clients, to the real server on fake engines."""

from typing import Any

import pytest

from tuneserve.client import results


async def test_classify(ask: Any) -> None:
    found = await ask("classify", "sentiment", ["a film", "the film was bad"])
    assert len(found) == 2
    for result in found:
        assert {one.label for one in result.labels} == {"neg", "pos"}
        assert result.best.score == max(one.score for one in result.labels)
        assert sum(one.score for one in result.labels) == pytest.approx(1)
        assert (result.truncated, result.windows, result.weights) == (False, 1, ())
    assert [one.token_count for one in found] == [4, 6]
    assert found.usage == results.Usage(prompt_tokens=10, completion_tokens=0)
    assert found.model_version.startswith("sentiment@")
    assert found[1] == found.items[1]


async def test_one_text_may_stand_alone(ask: Any) -> None:
    assert len(await ask("classify", "sentiment", "a film")) == 1
    assert len(await ask("find_entities", "ner", "angela")) == 1
    assert len(await ask("embed", "vectors", "a film")) == 1
    assert [one.text for one in await ask("rank", "sentiment", "a", "the film", label="pos")] == ["the film"]


async def test_classify_options(ask: Any, served: Any) -> None:
    [pair] = await ask("classify", "sentiment", [("a film", "was good")], top_k=1)
    assert (len(pair.labels), pair.token_count) == (1, 7)
    [raw] = await ask("classify", "sentiment", "a film", raw_scores=True)
    assert {one.score for one in raw.labels} == {0, 2}
    [none] = await ask("classify", "topics", "a film", thresholds={"a": 1, "b": 1, "c": 1})
    assert none.labels == ()
    with pytest.raises(IndexError):
        _ = none.best
    [cut] = await ask("classify", "sentiment", "film " * 50, truncation="end")
    assert (cut.truncated, cut.token_count) == (True, 32)
    [windows] = await ask(
        "classify", "sentiment", "film " * 50, truncation="windows", window_overlap=4, window_pooling="max"
    )
    assert windows.windows == 2
    await ask("classify", "sentiment", "a film", priority=3)
    assert served.engines["sentiment"].tickets[-1].priority == 3


async def test_words_are_explained_at_their_characters(ask: Any) -> None:
    text = "🙂 née was good"
    [result] = await ask("classify", "sentiment", text, explain=True, max_explained_words=8)
    assert [word.text for word in result.weights][-1] == "good"
    assert all(text[word.start : word.end] == word.text for word in result.weights)


async def test_labels_of_the_callers_own(ask: Any, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.engines["chat"], "max_length", 400)
    [result] = await ask("classify", "chat", "a", labels=["x", "y"], instruction="I", examples=[("b", "x")])
    assert {one.label for one in result.labels} == {"x", "y"}


async def test_entities_are_at_their_characters(ask: Any) -> None:
    text = "🙂 angela merkel in 東京, née in hamburg"
    for aggregation in ("simple", "first", "average", "max"):
        [result] = await ask("find_entities", "ner", [text], aggregation=aggregation)
        assert len(result) == len(result.entities) > 0
        assert all(text[one.start : one.end] == one.text for one in result)
        assert {one.label for one in result} <= {"PER", "LOC"}


async def test_rank(ask: Any) -> None:
    candidates = ["good", "a good film", "the film was good"]
    found = await ask("rank", "sentiment", "a film", candidates, label="pos")
    assert [candidates[one.index] for one in found] == [one.text for one in found]
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len(await ask("rank", "sentiment", "a film", candidates, label="pos", top_k=1)) == 1


async def test_embed(ask: Any) -> None:
    [raw] = await ask("embed", "vectors", ["a film"], normalize=False)
    assert raw.values == (3, 4, 4)
    [whole] = await ask("embed", "vectors", ["a film"])
    assert sum(value**2 for value in whole.values) == pytest.approx(1)
    [short] = await ask("embed", "vectors", ["a film"], dimensions=2)
    assert short.values == pytest.approx((0.6, 0.8))
