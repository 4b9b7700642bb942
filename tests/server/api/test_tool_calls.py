"""Answers of models that call tools and reason, over the wire: vLLM's own parsers, and a script in place of a model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.interface import Delta, Parsing
from tuneserve.v1 import generation_pb2 as pb
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub

from ..conftest import loopback
from ..fake_model import pieces
from .test_chat import TOOL, TOOLS_TEMPLATE, said, struct

TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
CALLS = [("weather", {"city": "Lisbon", "days": 3}), ("weather", {"city": "東京", "note": 'a "b" </c>\n{'})]
REASONING, TEXT = "It may rain.\nLet me look.", "I look at the weather."


def call_text(name: str, arguments: dict) -> str:
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{text}\n</tool_call>"


ANSWER = f"<think>{REASONING}</think>{TEXT}" + "\n".join(call_text(*call) for call in CALLS)


def scripted(script: Sequence[Delta]) -> Callable[..., Sequence[Delta]]:
    """What an engine writes that keeps to a script: its pieces, or all of it at once."""
    text, ids = "".join(one.text for one in script), [id_ for one in script for id_ in one.token_ids]
    whole = [replace(script[-1], text=text, token_ids=ids)]
    return lambda token_ids, sampling, stream: script if stream else whole


@pytest.fixture(scope="module")
async def server(serve_config, make_llama, make_parsers):
    directory = make_llama(TOOLS_TEMPLATE, TOKENS, max_position_embeddings=4096, vocab_size=320)

    def prepared(name: str, engine) -> None:
        engine.vocab_size = 320
        if name != "plain":
            engine.parsers, engine.tokenizer = make_parsers(directory, "hermes", "deepseek_r1")

    config = loopback(
        {
            "chat": ModelConfig(path=directory, tool_parser="hermes", reasoning_parser="deepseek_r1"),
            "plain": directory,
        }
    )
    async with serve_config(config, prepared) as served:
        yield served


@pytest.fixture
def stub(server):
    return GenerationServiceStub(server.channel)


@pytest.fixture
def writes(server, written):
    """Has the model write a text, in pieces of some tokens."""
    engine = server.engines["chat"]

    def write(text: str, size: int = 1, finish: str = "stop") -> None:
        engine.writes = scripted(written(engine.tokenizer, text, size, finish))

    yield write
    engine.writes = pieces


def asked(*, tools: Sequence[dict] = (TOOL,), mode: int = 0, n: int = 1, model: str = "chat", **sampling):
    chat = pb.Chat(messages=[said("Weather?")], tools=[struct(**tool) for tool in tools], tool_choice={"mode": mode})
    return pb.GenerateRequest(
        model=model, prompt=pb.Prompt(chat=chat), sampling=pb.SamplingParams(n=n, max_tokens=2000, **sampling)
    )


async def streamed(stub, request: pb.GenerateRequest) -> list[pb.Completion]:
    """The pieces of a stream, joined as a client joins them."""
    found: dict[int, pb.Completion] = {}
    async for message in stub.GenerateStream(request):
        for piece in message.completions:
            whole = found.setdefault(piece.index, pb.Completion(index=piece.index))
            assert not whole.finish_reason
            whole.text += piece.text
            whole.reasoning += piece.reasoning
            whole.finish_reason = piece.finish_reason
            whole.token_ids.extend(piece.token_ids)
            for call in piece.tool_calls:
                if call.index == len(whole.tool_calls):
                    assert call.id
                    assert call.name
                    whole.tool_calls.add(index=call.index, id=call.id, name=call.name)
                else:
                    assert not call.id
                    assert not call.name
                whole.tool_calls[call.index].arguments += call.arguments
    return [found[index] for index in sorted(found)]


def shown(completion: pb.Completion) -> tuple:
    calls = [(call.name, json.loads(call.arguments)) for call in completion.tool_calls]
    return completion.reasoning, completion.text, calls, completion.finish_reason


async def test_an_answer_is_taken_apart(stub, writes):
    writes(ANSWER)
    [completion] = (await stub.Generate(asked())).completions
    assert shown(completion) == (REASONING, TEXT, CALLS, pb.FINISH_REASON_TOOL_CALLS)
    assert [call.index for call in completion.tool_calls] == [0, 1]
    assert len({call.id for call in completion.tool_calls} - {""}) == 2


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
async def test_a_stream_joined_is_the_whole_answer(stub, writes, size):
    writes(ANSWER, size)
    wholes = (await stub.Generate(asked(n=2))).completions
    for whole, joined in zip(wholes, await streamed(stub, asked(n=2)), strict=True):
        assert shown(joined) == shown(whole)
        assert joined.token_ids == whole.token_ids


async def test_arguments_come_in_pieces(stub, writes):
    writes(ANSWER)
    pieces = [
        call
        async for message in stub.GenerateStream(asked())
        for completion in message.completions
        for call in completion.tool_calls
    ]
    assert len([piece for piece in pieces if piece.index == 0 and piece.arguments]) > 5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"<think>{REASONING}</think>{TEXT}", (REASONING, TEXT, [], pb.FINISH_REASON_STOP)),
        (f"<think>{REASONING}", (REASONING, "", [], pb.FINISH_REASON_STOP)),
        (
            f"<think>{REASONING}</think>{call_text(*CALLS[0])}",
            (REASONING, "", CALLS[:1], pb.FINISH_REASON_TOOL_CALLS),
        ),
    ],
    ids=["no call", "reasoning alone", "no text"],
)
async def test_parts_may_be_missing(stub, writes, answer, expected):
    writes(answer)
    assert shown((await stub.Generate(asked())).completions[0]) == expected
    assert shown((await streamed(stub, asked()))[0]) == expected


async def test_a_call_that_was_cut_off_ends_for_its_length(stub, writes):
    writes(ANSWER[:-60], finish="length")
    [completion] = await streamed(stub, asked())
    assert completion.finish_reason == pb.FINISH_REASON_LENGTH
    assert json.loads(completion.tool_calls[0].arguments) == CALLS[0][1]


async def test_a_call_that_is_no_json_is_text(stub, writes):
    writes("<think>a</think><tool_call>weather in Lisbon</tool_call>")
    [completion] = (await stub.Generate(asked())).completions
    assert shown(completion) == ("a", "<tool_call>weather in Lisbon</tool_call>", [], pb.FINISH_REASON_STOP)


@pytest.mark.parametrize("kwargs", [{"tools": ()}, {"mode": pb.TOOL_CHOICE_MODE_NONE}], ids=["no tools", "none"])
async def test_without_tools_there_are_no_calls(stub, writes, kwargs):
    writes(f"<think>a</think>{call_text(*CALLS[0])}")
    for completion in (*(await stub.Generate(asked(**kwargs))).completions, *await streamed(stub, asked(**kwargs))):
        assert shown(completion) == ("a", call_text(*CALLS[0]), [], pb.FINISH_REASON_STOP)


async def test_the_template_sees_the_tools_unless_there_are_to_be_no_calls(stub):
    async def text(mode: int) -> str:
        return (await stub.Tokenize(pb.TokenizeRequest(model="chat", prompt=asked(mode=mode).prompt))).text

    assert "<tools>" in await text(pb.TOOL_CHOICE_MODE_AUTO)
    assert "<tools>" not in await text(pb.TOOL_CHOICE_MODE_NONE)


async def test_an_unknown_choice_is_refused(stub, refused):
    error = await refused(stub.Generate(asked(mode=99)), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith("prompt.chat.tool_choice.mode: ")


@pytest.mark.parametrize("kind", ["text", "structured"])
async def test_what_is_no_chat_or_has_a_form_is_text(stub, writes, kind):
    writes(ANSWER)
    request = asked()
    if kind == "text":
        request.prompt.text = "Weather?"
    else:
        request.sampling.structured_output.regex = ".*"
    [completion] = (await stub.Generate(request)).completions
    assert shown(completion) == ("", ANSWER, [], pb.FINISH_REASON_STOP)


async def test_a_model_without_parsers_gives_text(server, stub, written):
    server.engines["plain"].writes = scripted(written(server.engines["chat"].tokenizer, ANSWER))
    [completion] = (await stub.Generate(asked(model="plain"))).completions
    assert shown(completion) == ("", ANSWER, [], pb.FINISH_REASON_STOP)


async def test_special_tokens_are_kept_for_a_parser_that_reads_them(server, stub, writes):
    writes(ANSWER)
    await stub.Generate(asked(skip_special_tokens=True))
    await stub.Generate(asked(tools=()))
    assert [sampling.skip_special_tokens for sampling in server.engines["chat"].sampled[-2:]] == [False, True]


async def test_an_answer_goes_back_into_the_conversation(stub, writes):
    writes(ANSWER)
    [completion] = (await stub.Generate(asked())).completions
    calls = [
        struct(type="function", id=call.id, function={"name": call.name, "arguments": json.loads(call.arguments)})
        for call in completion.tool_calls
    ]
    turn = pb.ChatMessage(role="assistant", content=completion.text, tool_calls=calls)
    answer = said("Sunny.", role="tool", tool_call_id=completion.tool_calls[0].id)
    chat = pb.Chat(messages=[said("Weather?"), turn, answer])
    text = (await stub.Tokenize(pb.TokenizeRequest(model="chat", prompt=pb.Prompt(chat=chat)))).text
    assert call_text(*CALLS[0]) in text


def required(name: str = "", **kwargs) -> pb.GenerateRequest:
    request = asked(mode=pb.TOOL_CHOICE_MODE_REQUIRED, **kwargs)
    request.prompt.chat.tool_choice.name = name
    return request


@pytest.mark.parametrize("model", ["chat", "plain"])
async def test_calls_that_must_be_made_have_a_form(server, stub, written, model):
    text = json.dumps([{"name": name, "arguments": arguments} for name, arguments in CALLS])
    engine = server.engines[model]
    engine.writes = scripted(written(server.engines["chat"].tokenizer, text))
    try:
        request = required(model=model)
        [whole], [joined] = (await stub.Generate(request)).completions, await streamed(stub, request)
    finally:
        engine.writes = pieces
    assert shown(whole) == shown(joined) == ("", "", CALLS, pb.FINISH_REASON_TOOL_CALLS)
    assert len({call.id for call in whole.tool_calls}) == 2
    form = engine.sampled[-1].structured
    assert form.kind == "json"
    assert json.loads(form.value)["items"]["anyOf"][0]["properties"]["name"] == {"const": "weather"}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (required(tools=()), "prompt.chat.tools"),
        (required("later"), "prompt.chat.tool_choice.name"),
        (required(tools=[{"type": "retrieval"}]), "prompt.chat.tools[0]"),
        (required(tools=[{"name": "a", "parameters": {"minProperties": "x"}}]), "prompt.chat.tools"),
        (required(structured_output={"regex": "a"}), "prompt.chat.tool_choice.mode"),
        (
            pb.GenerateRequest(
                model="chat", prompt={"chat": {"messages": [said()], "tool_choice": {"name": "weather"}}}
            ),
            "prompt.chat.tool_choice.name",
        ),
    ],
    ids=["no tools", "another name", "no function", "no schema", "two forms", "a name alone"],
)
async def test_what_cannot_be_required_is_refused(stub, refused, request_, field):
    error = await refused(stub.Generate(request_), grpc.StatusCode.INVALID_ARGUMENT)
    assert error.details().startswith(f"{field}: ")


class Failing:
    """A parser that fails, and says what it read."""

    def whole(self, text, token_ids):
        raise ValueError(text)

    def more(self, text, token_ids, finished):
        raise ValueError(text)


@pytest.mark.parametrize("where", ["chat", "parser"])
async def test_a_parser_that_fails_fails_no_call(server, stub, writes, monkeypatch, caplog, where):
    class Parsers:
        def chat(self, tools, arguments, token_ids):
            if where == "chat":
                raise ValueError(ANSWER)
            return Parsing(Failing, special_tokens=True)

    writes(ANSWER)
    monkeypatch.setattr(server.engines["chat"], "parsers", Parsers())
    counted = unparsed(server.app.metrics.registry)
    for completion in (*(await stub.Generate(asked())).completions, *await streamed(stub, asked())):
        assert shown(completion) == ("", ANSWER, [], pb.FINISH_REASON_STOP)
    assert unparsed(server.app.metrics.registry) == counted + 2
    assert "an answer was not parsed, and is returned as text: ValueError" in caplog.text
    assert "Lisbon" not in caplog.text


def unparsed(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("tuneserve_answers_unparsed_total", {"model": "chat"}) or 0.0


async def test_stop_texts_and_log_probabilities_are_as_they_were(server, stub, written, writes):
    engine = server.engines["chat"]
    *script, last = written(engine.tokenizer, ANSWER)
    script.append(replace(last, stop_text="</tool_call>"))
    engine.writes = scripted(script)
    [completion] = (await stub.Generate(asked(stop=["</tool_call>"]))).completions
    assert completion.stop_text == "</tool_call>"
    assert list(completion.token_ids) == [id_ for delta in script for id_ in delta.token_ids]
