"""Generation over the wire: what reaches the engine, what comes back, and what is refused."""

import asyncio
import json
import sys
from collections import Counter
from dataclasses import replace

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from safetensors.numpy import save_file

from tuneserve.server.call import request_log
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.engine.interface import Delta, Sampling, StructuredOutput
from tuneserve.v1 import common_pb2
from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback

TEXT = pb.Prompt(text="the film was")
IDS = pb.Prompt(token_ids=pb.TokenIds(ids=[5] * 9))


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
    request = pb.GenerateRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(max_tokens=5))
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


@pytest.mark.parametrize(
    ("unit", "encoded"),
    [
        (common_pb2.OFFSET_UNIT_UTF8_BYTE, lambda text: text.encode()),
        (common_pb2.OFFSET_UNIT_UTF16, lambda text: text.encode("utf-16-le")),
    ],
)
async def test_tokenize_counts_in_the_caller_s_unit(served, unit, encoded):
    text, width = "née 🎬 good", 2 if unit == common_pb2.OFFSET_UNIT_UTF16 else 1
    stub, prompt = GenerationServiceStub(served.channel), pb.Prompt(text=text)
    points = await stub.Tokenize(pb.TokenizeRequest(model="chat", prompt=prompt))
    units = await stub.Tokenize(pb.TokenizeRequest(model="chat", prompt=prompt, offset_unit=unit))
    assert points.tokens[-1].end == len(text)
    for point, one in zip(points.tokens, units.tokens, strict=True):
        assert one.start * width == len(encoded(text[: point.start]))
        assert one.end * width == len(encoded(text[: point.end]))


async def test_every_answer_says_which_version_gave_it(served):
    stub = GenerationServiceStub(served.channel)
    version = next(model.id for model in served.app.models if model.name == "chat")
    request = pb.GenerateRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(max_tokens=3))
    assert (await stub.Generate(request)).model_version == version
    assert (await stub.Tokenize(pb.TokenizeRequest(model="chat", prompt=TEXT))).model_version == version
    first, *others = [message.model_version async for message in stub.GenerateStream(request)]
    assert (first, set(others)) == (version, {""})


async def test_prompt_logprobs(served):
    sampling = pb.SamplingParams(max_tokens=1, prompt_logprobs=0)
    prompt = pb.Prompt(token_ids=pb.TokenIds(ids=[5, 6, 7]))
    response = await GenerationServiceStub(served.channel).Generate(
        pb.GenerateRequest(model="chat", prompt=prompt, sampling=sampling)
    )
    assert [entry.token_id for entry in response.prompt_logprobs] == [6, 7]


async def test_every_sampling_field_reaches_the_engine(served):
    values = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 9,
        "min_p": 0.25,
        "presence_penalty": -0.5,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.25,
        "seed": 7,
        "n": 3,
        "stop": ["END", "\n"],
        "stop_token_ids": [4],
        "min_tokens": 2,
        "ignore_eos": True,
        "logprobs": 2,
        "prompt_logprobs": 1,
        "logit_bias": {5: -100.0, 6: 0.5},
        "allowed_token_ids": [5, 6, 7],
        "bad_words": ["bad"],
        "include_stop_text": True,
        "skip_special_tokens": False,
    }
    form = pb.StructuredOutput(choice=pb.Choice(options=["yes", "no"]))
    request = pb.GenerateRequest(
        model="chat", prompt=TEXT, sampling=pb.SamplingParams(**values, structured_output=form)
    )
    await GenerationServiceStub(served.channel).Generate(request)
    expected = Sampling(**values, structured=StructuredOutput("choice", ["yes", "no"]))
    # One completion at a time, and the prompt's log probabilities once.
    each = [replace(expected, n=1, seed=7 + i, prompt_logprobs=None if i else 1) for i in range(3)]
    assert served.engines["chat"].sampled == each


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
        ("stop_token_ids", [5] * 65),
        ("allowed_token_ids", [5] * 1025),
        # More tokens than letters, and each with a space before, too.
        ("bad_words", ["é" * 300]),
        ("bad_words", ["qz" * 5] * 128),
        ("seed", -1),
        ("top_k", -1),
        ("min_tokens", -1),
        ("max_tokens", -1),
        ("logprobs", -1),
        ("stop_token_ids", [5, -1]),
        ("logit_bias", {-1: 1.0}),
        ("stop", ["x"] * 65),
        ("stop", ["x" * 1025]),
        ("logit_bias", {300: 1.0}),
        ("logit_bias", {5: 100.5}),
        ("logit_bias", {5: NAN}),
        ("allowed_token_ids", [5, 300]),
        ("bad_words", ["good", ""]),
        ("bad_words", [" "]),
        ("bad_words", ["x"] * 129),
        ("structured_output", pb.StructuredOutput()),
        ("structured_output", pb.StructuredOutput(json_schema="{")),
        ("structured_output", pb.StructuredOutput(regex="(")),
        ("structured_output", pb.StructuredOutput(grammar=" ")),
        ("structured_output", pb.StructuredOutput(choice=pb.Choice())),
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


async def test_all_bad_values_are_named_at_once(served, refused):
    sampling = pb.SamplingParams(temperature=-1, top_p=2, n=0)
    error = await refused(
        GenerationServiceStub(served.channel).Generate(
            pb.GenerateRequest(model="chat", prompt=TEXT, sampling=sampling)
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    bad = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(bad)
    fields = [violation.field for violation in bad.field_violations]
    assert fields == ["sampling.temperature", "sampling.top_p", "sampling.n"]


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (pb.Prompt(), "prompt"),
        (pb.Prompt(text=""), "prompt.text"),
        (pb.Prompt(token_ids=pb.TokenIds()), "prompt.token_ids.ids"),
        (pb.Prompt(token_ids=pb.TokenIds(ids=[1, 300])), "prompt.token_ids.ids[1]"),
        (chat(), "prompt.chat.messages"),
        (chat(("", "hi")), "prompt.chat.messages[0].role"),
        (chat(("robot", "hi")), "prompt.chat"),
        (pb.Prompt(text="the " * 70), "prompt.text"),
        (pb.Prompt(text="the " * 2000), "prompt.text"),
    ],
)
async def test_bad_prompts_are_named(served, refused, prompt, field):
    error = await refused(
        GenerationServiceStub(served.channel).Generate(pb.GenerateRequest(model="chat", prompt=prompt)),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert error.details().startswith(f"{field}: ")


async def test_streams_refuse_prompt_logprobs(served, refused):
    request = pb.GenerateRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(prompt_logprobs=1))

    async def read():
        return [message async for message in GenerationServiceStub(served.channel).GenerateStream(request)]

    error = await refused(read(), grpc.StatusCode.INVALID_ARGUMENT)
    assert "sampling.prompt_logprobs" in error.details()


CANARY = "CANARY"


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        (pb.Prompt(text=CANARY * 20), {}),
        (chat(("CANARY", "CANARY")), {}),
        (chat(("user", CANARY * 20)), {}),
        (TEXT, {"stop": [CANARY, ""]}),
        (TEXT, {"bad_words": [CANARY, ""]}),
        (TEXT, {"structured_output": pb.StructuredOutput(json_schema='{"type": "CANARY"}')}),
        (TEXT, {"structured_output": pb.StructuredOutput(json_schema="{CANARY")}),
        (TEXT, {"structured_output": pb.StructuredOutput(regex="(CANARY")}),
        (TEXT, {"structured_output": pb.StructuredOutput(choice=pb.Choice(options=[CANARY, ""]))}),
    ],
)
async def test_a_refusal_repeats_nothing(served, refused, caplog, prompt, sampling):
    request = pb.GenerateRequest(model="chat", prompt=prompt, sampling=pb.SamplingParams(**sampling))
    error = await refused(GenerationServiceStub(served.channel).Generate(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert CANARY not in error.details() + str(error.trailing_metadata()) + caplog.text


async def test_a_malformed_constraint_fails_its_own_request_only(served, refused):
    stub = GenerationServiceStub(served.channel)
    served.engines["chat"].delay = 0.1
    good = pb.GenerateRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(max_tokens=2))
    bad = pb.GenerateRequest(model="chat", prompt=TEXT)
    bad.sampling.structured_output.json_schema = '{"type": "nothing"}'
    neighbour = stub.Generate(good)
    error = await refused(stub.Generate(bad), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("sampling.structured_output.json_schema: is not a JSON Schema: its 'type'")
    assert (await neighbour).completions[0].text == "abab"
    assert len(served.engines["chat"].sampled) == 1


async def test_unknown_adapters_are_not_found(served, refused):
    stub = GenerationServiceStub(served.channel)
    request = pb.GenerateRequest(model="chat", prompt=TEXT, adapter="polite")
    error = await refused(stub.Generate(request), grpc.StatusCode.NOT_FOUND)
    assert error.details().startswith("adapter 'polite' is not served here; served: none")
    info = error_details_pb2.ResourceInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    assert (info.resource_type, info.resource_name) == ("adapter", "polite")
    stream = stub.GenerateStream(pb.GenerateRequest(model="chat", prompt=TEXT, adapter="polite"))
    await refused(stream.read(), grpc.StatusCode.NOT_FOUND)
    assert served.engines["chat"].tickets == []


def alone(model: ModelConfig) -> ServerConfig:
    """A server with one chat model."""
    return loopback({"chat": model}, drain_seconds=5)


async def test_an_adapter_reaches_the_engine_by_its_content(serve_config, make_llama, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    save_file({"a": np.zeros((2, 2), dtype=np.float32)}, tmp_path / "adapter_model.safetensors")
    async with serve_config(
        alone(ModelConfig(path=make_llama(), adapters={"polite": tmp_path}, max_adapters=1))
    ) as served:
        stub, engine = GenerationServiceStub(served.channel), served.engines["chat"]
        [known] = engine.adapters
        engine.tickets.clear()
        for adapter in ("polite", ""):
            await stub.Generate(pb.GenerateRequest(model="chat", prompt=TEXT, adapter=adapter))
            [message async for message in stub.GenerateStream(pb.GenerateRequest(model="chat", prompt=TEXT))]
        assert [ticket.adapter for ticket in engine.tickets] == [known, "", "", ""]
        assert known != "polite"


async def test_lower_priority_goes_first_where_calls_wait(serve_config, make_llama, until):
    async with serve_config(alone(ModelConfig(path=make_llama(), max_num_seqs=1))) as served:
        stub, engine, [model] = GenerationServiceStub(served.channel), served.engines["chat"], served.app.models
        answers, may_answer = engine.generate, asyncio.Event()

        async def generate(*arguments):
            await may_answer.wait()
            async for output in answers(*arguments):
                yield output

        engine.generate = generate
        engine.tickets.clear()
        calls = []
        for number, priority in enumerate((0, 9, 5, 5, -3)):
            sampling = pb.SamplingParams(max_tokens=1 + number)
            request = pb.GenerateRequest(model="chat", prompt=TEXT, sampling=sampling, priority=priority)
            calls.append(stub.Generate(request))
            # One at a time, so that the order in which they came is known.
            await until(lambda number=number: model.admission.running == 1 and model.admission.waiting == number)
        may_answer.set()
        await asyncio.gather(*calls)
        # By priority, then in the order of arrival; -3 is no better than what everybody has.
        assert [sampling.max_tokens for sampling in engine.sampled[-5:]] == [1, 5, 3, 4, 2]
        assert [ticket.priority >> 16 for ticket in engine.tickets] == [0, 0, 5, 5, 9]


def sample(served, name: str) -> float:
    """The value of a metric of the chat model."""
    return served.app.metrics.registry.get_sample_value(name, {"model": "chat"}) or 0.0


async def test_a_streams_first_token_comes_at_once(served):
    served.engines["chat"].delay = 0.3
    request = pb.GenerateRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(max_tokens=50))
    call = GenerationServiceStub(served.channel).GenerateStream(request)
    first = await asyncio.wait_for(call.read(), 10)
    assert list(first.completions[0].token_ids) == [7]
    call.cancel()


async def test_what_the_engine_has_ready_is_one_message(own_server):
    async def generate(ticket, token_ids, sampling, stream):
        yield Delta(0, "a", [5])
        yield Delta(0, "cde", [7, 8, 9])
        yield Delta(0, "", [], finish="stop", stop_text="END")

    own_server.engines["chat"].generate = generate
    request = pb.GenerateRequest(model="chat", prompt=TEXT)
    call = GenerationServiceStub(own_server.channel).GenerateStream(request)
    messages = [message async for message in call]
    assert [[(one.index, one.text) for one in message.completions] for message in messages] == [
        [(0, "a")],
        [(0, "cde")],
        [(0, "")],
    ]
    assert [message.HasField("usage") for message in messages] == [False, False, True]
    assert messages[2].completions[0].stop_text == "END"
    assert messages[2].completions[0].finish_reason == pb.FINISH_REASON_STOP
    assert not messages[2].completions[0].HasField("stop_token_id")
    assert messages[2].usage.completion_tokens == 4
    # One first token, and a gap for each later message that brought tokens.
    assert sample(own_server, "tuneserve_time_to_first_token_seconds_count") == 1
    assert sample(own_server, "tuneserve_inter_token_seconds_count") == 1
    assert sample(own_server, "tuneserve_completion_tokens_total") == 4


async def test_the_completions_of_a_stream_end_one_by_one(served):
    request = pb.GenerateRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(n=3, max_tokens=4))
    messages = [message async for message in GenerationServiceStub(served.channel).GenerateStream(request)]
    texts = Counter[int]()
    for message in messages:
        [one] = message.completions
        texts[one.index] += len(one.text)
    assert texts == {0: 8, 1: 8, 2: 8}
    assert [message.HasField("usage") for message in messages] == [False] * 11 + [True]
    assert messages[-1].usage.completion_tokens == 12


@pytest.fixture
def ended(monkeypatch):
    """The calls that ended, as the log and the quotas see them."""
    calls = []
    monkeypatch.setattr(request_log, "log", lambda call, *_: calls.append(call))
    return calls


async def test_a_cancelled_stream_counts_what_was_made(own_server, ended, until):
    own_server.engines["chat"].delay = 0.02
    request = pb.GenerateRequest(model="chat", prompt=IDS, sampling=pb.SamplingParams(max_tokens=50))
    call = GenerationServiceStub(own_server.channel).GenerateStream(request)
    for _ in range(3):
        await call.read()
    call.cancel()
    await until(lambda: ended)
    assert ended[0].prompt_tokens == 9
    assert 3 <= ended[0].completion_tokens < 50
    assert sample(own_server, "tuneserve_prompt_tokens_total") == ended[0].prompt_tokens
    assert sample(own_server, "tuneserve_completion_tokens_total") == ended[0].completion_tokens


async def test_a_cancelled_answer_counts_its_prompt(own_server, ended, until):
    engine = own_server.engines["chat"]
    engine.delay = 5
    request = pb.GenerateRequest(model="chat", prompt=IDS)
    call = GenerationServiceStub(own_server.channel).Generate(request)
    await until(lambda: engine.running == 1)
    call.cancel()
    await until(lambda: ended)
    assert (ended[0].prompt_tokens, ended[0].completion_tokens) == (9, 0)
    assert sample(own_server, "tuneserve_prompt_tokens_total") == 9


async def test_what_never_reached_the_engine_is_not_counted(serve_config, make_llama, ended, until, refused):
    async with serve_config(alone(ModelConfig(path=make_llama(), max_num_seqs=1, max_wait_seconds=0.2))) as served:
        stub, engine = GenerationServiceStub(served.channel), served.engines["chat"]
        engine.delay = 1
        request = pb.GenerateRequest(model="chat", prompt=IDS)
        first = stub.Generate(request)
        await until(lambda: engine.running == 1)
        await refused(stub.Generate(request), grpc.StatusCode.RESOURCE_EXHAUSTED)
        await until(lambda: ended)
        assert ended[0].prompt_tokens == 0
        await first
        await until(lambda: len(ended) == 2)
        assert ended[1].prompt_tokens == 9


async def test_cancelling_a_stream_frees_the_slot(served, until):
    engine = served.engines["chat"]
    engine.delay = 0.05
    call = GenerationServiceStub(served.channel).GenerateStream(
        pb.GenerateRequest(model="chat", prompt=TEXT, sampling=pb.SamplingParams(max_tokens=50))
    )
    await call.read()
    assert engine.running == 1
    call.cancel()
    await until(lambda: engine.running == 0)
    await until(lambda: all(model.admission.calls == 0 for model in served.app.models))


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
request = pb.GenerateRequest(model="chat", prompt=pb.Prompt(text="the"), sampling=pb.SamplingParams(max_tokens=9))
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


async def test_content_is_logged_only_where_that_was_asked_for(serve_config, make_llama, caplog):
    """The prompt as the model sees it, and what it made; without `log_content` neither is in any line."""
    caplog.set_level("INFO", logger="tuneserve.requests")
    for asked in (False, True):
        config = loopback({"chat": make_llama()}, log_content=asked)
        caplog.clear()
        async with serve_config(config) as server:
            stub, prompt = GenerationServiceStub(server.channel), pb.Prompt(text="the film")
            sampling = pb.SamplingParams(max_tokens=2)
            await stub.Generate(pb.GenerateRequest(model="chat", prompt=prompt, sampling=sampling))
            request = pb.GenerateRequest(model="chat", prompt=prompt, sampling=sampling)
            async for _ in stub.GenerateStream(request):
                pass
        lines = [json.loads(record.message) for record in caplog.records if record.name == "tuneserve.requests"]
        unary, stream = [line for line in lines if line["method"].startswith("Generate")]
        if asked:
            assert unary["content"] == {"prompt": ["the film"], "output": ["abab"]}
            assert stream["content"] == {"prompt": ["the film"], "output": ["ab", "ab"]}
        else:
            assert "the film" not in json.dumps(lines)
