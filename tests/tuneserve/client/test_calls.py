"""Every call by both clients, to the real server on fake engines."""

import asyncio
import inspect
import json
from typing import Any

import pytest

from tuneserve.client import AsyncClient, Client, generation, results, texts


@pytest.fixture
async def ask(asking: Any, served: Any) -> Any:
    return asking(served.app.address)


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


async def test_generate(ask: Any, served: Any) -> None:
    found = await ask("generate", "chat", "the film", max_tokens=3, n=2, logprobs=1, temperature=0.5, stop="x")
    assert [one.text for one in found.completions] == ["ababab"] * 2
    assert (found.text, found.finish_reason) == ("ababab", "length")
    first = found.completions[0]
    assert (first.token_ids, first.stop_text, first.stop_token_id) == ((7, 7, 7), "", None)
    assert (first.logprobs[0].token_id, first.logprobs[0].logprob) == (7, -0.5)
    assert len(first.logprobs[0].alternatives) == 1
    assert found.usage.completion_tokens == 6
    sampled = served.engines["chat"].sampled[-1]
    assert (sampled.temperature, sampled.stop) == (0.5, ["x"])
    ids = await ask("generate", "chat", [5, 6, 7], max_tokens=1, prompt_logprobs=0)
    assert [one.token_id for one in ids.prompt_logprobs] == [6, 7]


async def test_chat(ask: Any) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    found = await ask("chat", "chat", messages, max_tokens=2)
    assert (found.text, found.model_version.partition("@")[0]) == ("abab", "chat")
    with pytest.raises(ValueError, match=r"not a conversation.*contents"):
        await ask("chat", "chat", [{"role": "user", "contents": "b"}])


async def test_stream(ask: Any) -> None:
    for prompt in ("the film", [5, 6], [{"role": "user", "content": "a"}]):
        texts, result = await ask("stream", "chat", prompt, max_tokens=4, logprobs=0)
        assert "".join(texts) == result.text == "ab" * 4
        assert (result.completions[0].token_ids, result.finish_reason) == ((7,) * 4, "length")
        assert result.usage.completion_tokens == 4
        assert result.model_version.startswith("chat@")
    for wrong in ({"n": 2}, {"max_token": 1}):
        with pytest.raises(TypeError, match=f"unexpected keyword argument: {next(iter(wrong))}"):
            await ask("stream", "chat", "a", **wrong)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"json_schema": '{"type": "object"}'}, "json_schema"),
        ({"regex": "a+"}, "regex"),
        ({"choice": ["a", "b"]}, "choice"),
        ({"grammar": "root ::= 'a'"}, "grammar"),
    ],
)
def test_forms_of_an_answer(form: dict[str, Any], kind: str) -> None:
    sent: Any = generation.generate("m", "a", **form).request
    assert sent.sampling.structured_output.WhichOneof("constraint") == kind
    if kind == "json_schema":
        assert json.loads(sent.sampling.structured_output.json_schema) == {"type": "object"}
    with pytest.raises(ValueError, match="give one of them"):
        generation.generate("m", "a", **form | {"regex" if kind != "regex" else "choice": "b"})


def test_what_is_not_given_is_not_sent() -> None:
    sent: Any = generation.generate("m", "a").request
    assert sent.sampling.ByteSize() == 0
    assert not sent.HasField("priority")
    sent = texts.classify("m", "a").request
    assert {field.name for field, _ in sent.ListFields()} == {"model", "inputs", "truncation", "offset_unit"}


async def test_leaving_a_stream_early_frees_its_place(served: Any, until: Any) -> None:
    engine = served.engines["chat"]
    engine.delay = 0.05

    def leave() -> None:
        with Client(served.app.address) as client:
            for _ in client.stream("chat", "a", max_tokens=50):
                break
            with client.stream("chat", "a", max_tokens=50) as stream:
                assert next(iter(stream)) == "ab"
            client.stream("chat", "a", max_tokens=50).close()
            assert client.models()

    await asyncio.to_thread(leave)
    async with AsyncClient(served.app.address) as client:
        async for _ in client.stream("chat", "a", max_tokens=50):
            break
        async with client.stream("chat", "a", max_tokens=50) as stream:
            assert await anext(aiter(stream)) == "ab"
        await until(lambda: engine.running == 0)
        assert stream.result.finish_reason == ""


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


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_methods_look_like_their_calls(kind: type[Any]) -> None:
    built = [texts.classify, texts.find_entities, texts.rank, texts.embed]
    built += [generation.generate, generation.chat, generation.stream]
    for call in built:
        method = getattr(kind, call.__name__)
        assert method.__doc__ == call.__doc__
        parameters = list(inspect.signature(method).parameters)
        assert parameters == ["self", *inspect.signature(call).parameters]
        assert inspect.iscoroutinefunction(method) == (kind is AsyncClient and call is not generation.stream)
