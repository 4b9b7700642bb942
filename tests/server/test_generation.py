import asyncio
import sys

import grpc
import pytest

from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

TEXT = pb.Prompt(text="the film was")


def chat(*turns: tuple[str, str], **fields) -> pb.Prompt:
    messages = [pb.ChatMessage(role=role, content=content) for role, content in turns]
    return pb.Prompt(chat=pb.Chat(messages=messages, **fields))


async def test_generate(served):
    request = pb.GenerateRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(max_tokens=3, n=2))
    response = await GenerationServiceStub(served.channel).Generate(request)
    assert [one.index for one in response.completions] == [0, 1]
    assert response.completions[0].text == "ababab"
    assert response.completions[0].finish_reason == pb.FINISH_REASON_LENGTH
    assert response.usage.completion_tokens == 6
    assert response.usage.prompt_tokens > 0


async def test_stream_sends_deltas_then_usage_once(served):
    request = pb.GenerateStreamRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(max_tokens=5))
    messages = [message async for message in GenerationServiceStub(served.channel).GenerateStream(request)]
    assert "".join(message.completions[0].text for message in messages) == "ab" * 5
    assert [message.HasField("usage") for message in messages] == [False] * 4 + [True]
    assert messages[-1].completions[0].finish_reason == pb.FINISH_REASON_LENGTH
    assert messages[-1].usage.completion_tokens == 5


async def test_max_tokens_defaults_to_what_is_left(served):
    tokens = await GenerationServiceStub(served.channel).Tokenize(pb.TokenizeRequest(model="chat", prompt=TEXT))
    await GenerationServiceStub(served.channel).Generate(pb.GenerateRequest(model="chat", prompt=TEXT))
    assert served.engines["chat"].sampled[-1].max_tokens == 64 - len(tokens.tokens)


async def test_chat_goes_through_the_checkpoints_template(served):
    stub = GenerationServiceStub(served.channel)
    response = await stub.Tokenize(pb.TokenizeRequest(model="chat", prompt=chat(("user", "the film"))))
    assert response.text == "<|user|>the film<|end|><|assistant|>"
    closed = await stub.Tokenize(
        pb.TokenizeRequest(model="chat", prompt=chat(("user", "the film"), add_generation_prompt=False))
    )
    assert closed.text == "<|user|>the film<|end|>"


async def test_tokenize_gives_offsets_and_takes_ids_back(served):
    stub = GenerationServiceStub(served.channel)
    response = await stub.Tokenize(pb.TokenizeRequest(model="chat", prompt=TEXT))
    assert "".join(response.text[token.start : token.end] for token in response.tokens) == TEXT.text
    ids = [token.id for token in response.tokens]
    again = await stub.Tokenize(pb.TokenizeRequest(model="chat", prompt=pb.Prompt(token_ids=pb.TokenIds(ids=ids))))
    assert [token.id for token in again.tokens] == ids


async def test_prompt_logprobs(served):
    sampling = pb.SamplingParams(max_tokens=1, prompt_logprobs=0)
    prompt = pb.Prompt(token_ids=pb.TokenIds(ids=[5, 6, 7]))
    response = await GenerationServiceStub(served.channel).Generate(
        pb.GenerateRequest(model="chat", prompt=prompt, sampling=sampling)
    )
    assert [entry.token_id for entry in response.prompt_logprobs] == [6, 7]


NAN = float("nan")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", NAN),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", NAN),
        ("min_p", NAN),
        ("min_p", -1),
        ("presence_penalty", 2.5),
        ("frequency_penalty", NAN),
        ("repetition_penalty", 0),
        ("repetition_penalty", NAN),
        ("max_tokens", 0),
        ("top_k", 1000),
        ("n", 0),
        ("n", 1000),
        ("logprobs", 21),
        ("min_tokens", 65),
        ("stop", [""]),
        ("stop_token_ids", [300]),
        ("seed", 1 << 63),
    ],
)
async def test_bad_sampling_values_are_named(served, refused, field, value):
    sampling = pb.SamplingParams(**{field: value})
    stub = GenerationServiceStub(served.channel)
    error = await refused(
        stub.Generate(pb.GenerateRequest(model="chat", prompt=TEXT, sampling=sampling)),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert f"sampling.{field}" in error.details()
    assert served.engines["chat"].sampled == []


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (pb.Prompt(), "prompt"),
        (pb.Prompt(text=""), "prompt.text"),
        (pb.Prompt(token_ids=pb.TokenIds()), "prompt.token_ids.ids"),
        (pb.Prompt(token_ids=pb.TokenIds(ids=[1, 300])), "prompt.token_ids.ids[1]"),
        (chat(), "prompt.chat.messages"),
        (chat(("", "hi")), "prompt.chat.messages[0].role"),
        (chat(("robot", "hi")), "prompt.chat.messages"),
        (pb.Prompt(text="the " * 200), "prompt"),
    ],
)
async def test_bad_prompts_are_named(served, refused, prompt, field):
    error = await refused(
        GenerationServiceStub(served.channel).Generate(pb.GenerateRequest(model="chat", prompt=prompt)),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert error.details().startswith(f"{field}: ")


async def test_streams_refuse_prompt_logprobs(served, refused):
    request = pb.GenerateStreamRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(prompt_logprobs=1))

    async def read():
        return [message async for message in GenerationServiceStub(served.channel).GenerateStream(request)]

    error = await refused(read(), grpc.StatusCode.INVALID_ARGUMENT)
    assert "sampling.prompt_logprobs" in error.details()


async def test_cancelling_a_stream_frees_the_slot(served, until):
    engine = served.engines["chat"]
    engine.delay = 0.05
    call = GenerationServiceStub(served.channel).GenerateStream(
        pb.GenerateStreamRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(max_tokens=50))
    )
    await call.read()
    assert engine.running == 1
    call.cancel()
    await until(lambda: engine.running == 0)
    await until(lambda: served.app.models.get("chat")._calls == 0)


async def test_a_deadline_frees_the_slot(served, refused, until):
    engine = served.engines["chat"]
    engine.delay = 5
    stub = GenerationServiceStub(served.channel)
    await refused(
        stub.Generate(pb.GenerateRequest(model="chat", prompt=TEXT), timeout=0.2), grpc.StatusCode.DEADLINE_EXCEEDED
    )
    await until(lambda: engine.running == 0)


CLIENT = """
import grpc, sys
from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
request = pb.GenerateStreamRequest(model="chat", prompt=pb.Prompt(text="the"), sampling=pb.SamplingParams(max_tokens=9))
for message in GenerationServiceStub(grpc.insecure_channel(sys.argv[1])).GenerateStream(request):
    print("message", flush=True)
"""


async def test_a_killed_client_frees_the_slot(served, until):
    engine = served.engines["chat"]
    engine.delay = 0.5
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, served.app.address, stdout=asyncio.subprocess.PIPE
    )
    assert client.stdout is not None
    assert await client.stdout.readline() == b"message\n"
    assert engine.running == 1
    client.kill()
    await until(lambda: engine.running == 0)
    await client.communicate()
