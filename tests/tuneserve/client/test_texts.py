"""The calls about texts by both clients, to the real server on fake engines."""

import asyncio
from itertools import repeat
from typing import Any

import pytest

from tuneserve.client import AsyncClient, Client, DeadlineExceeded, InvalidInput, NotFound, WrongState, results


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
    assert served.engines["sentiment"].tickets[-1].priority >> 16 == 3


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
    [prompted] = await ask("embed", "vectors", ["a film"], prompt_name="query")
    assert prompted.token_count == raw.token_count + 2


async def test_a_stream_answers_each_text_with_its_id(ask: Any) -> None:
    texts = ["a film", ("a film", "was good"), "the film was bad"] * 30
    found = await ask("classify_stream", "sentiment", texts, top_k=1)
    assert sorted(one.id for one in found) == list(range(90))
    by_id = {one.id: one for one in found}
    assert [by_id[id_].result.token_count for id_ in range(3)] == [4, 7, 6]
    assert all(len(one.result.labels) == 1 for one in found)
    [alone] = await ask("classify", "sentiment", [texts[2]], top_k=1)
    assert by_id[2].result == alone
    assert by_id[2].results.usage.prompt_tokens == 6
    assert by_id[2].results.model_version.startswith("sentiment@")


async def test_answers_of_a_stream_come_as_they_are_ready(ask: Any, served: Any) -> None:
    served.engines["topics"].delay = 0.2
    found = await ask("classify_stream", "topics", ["a film", ""])
    assert [one.id for one in found] == [1, 0]


async def test_a_text_of_a_stream_fails_alone(ask: Any) -> None:
    found = {one.id: one for one in await ask("classify_stream", "sentiment", ["good", "", "film " * 50, "bad"])}
    assert found[0].error is None
    assert found[3].result.labels
    for id_ in (1, 2):
        error = found[id_].error
        assert isinstance(error, InvalidInput)
        assert error.violations[0].field == "inputs[0].text" or id_ == 2
        assert error.request_id
        with pytest.raises(InvalidInput) as caught:
            _ = found[id_].result
        assert caught.value is error
    [unknown] = await ask("classify_stream", "nope", ["good"])
    assert isinstance(unknown.error, NotFound)
    assert (unknown.error.reason, unknown.results) == ("MODEL_NOT_FOUND", None)
    [other] = await ask("classify_stream", "ner", ["good"])
    assert isinstance(other.error, WrongState)


async def test_wrong_arguments_of_a_stream(ask: Any) -> None:
    with pytest.raises(TypeError, match="top_q"):
        await ask("classify_stream", "sentiment", ["good"], top_q=1)
    with pytest.raises(TypeError):
        await ask("classify_stream", "sentiment", [5])


async def test_a_stream_without_end_is_left(served: Any, until: Any) -> None:
    def leave() -> int:
        with Client(served.app.address, timeout=0.2) as client:
            for one in client.classify_stream("sentiment", repeat("good")):
                if one.id > 100:
                    return one.id
        raise AssertionError

    assert await asyncio.to_thread(leave) > 100
    async with AsyncClient(served.app.address) as client:
        async with client.classify_stream("sentiment", repeat("good")) as answers:
            assert (await anext(aiter(answers))).result.labels
        await until(lambda: served.engines["sentiment"].running == 0)


async def test_a_stream_has_no_deadline_but_its_own(asking: Any, served: Any) -> None:
    served.engines["topics"].delay = 0.4
    ask = asking(served.app.address, timeout=0.1)
    [found] = await ask("classify_stream", "topics", ["good"])
    assert found.error is None
    with pytest.raises(DeadlineExceeded):
        await ask("classify_stream", "topics", ["good"], timeout=0.1)
