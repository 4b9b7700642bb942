"""The calls of generation models by both clients, to the real server on fake engines."""

import asyncio
from typing import Any

import pytest

from tuneserve.client import AsyncClient, Client


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


async def test_tokenize(ask: Any) -> None:
    text = "the 🙂 film"
    found = await ask("tokenize", "chat", text)
    assert (found.text, found.model_version.partition("@")[0]) == (text, "chat")
    assert (found.tokens[0].start, found.tokens[-1].end) == (0, len(text)), "in characters"
    assert len(found) == len(found.tokens) > 2
    again = await ask("tokenize", "chat", [one.id for one in found])
    assert [one.id for one in again] == [one.id for one in found]
    assert again.text == ""
    chat = await ask("tokenize", "chat", [{"role": "user", "content": "a"}])
    assert chat.text == "<|user|>a<|end|><|assistant|>"


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
