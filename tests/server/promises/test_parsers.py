"""What a model writes, a caller may have it write: whatever parser reads it, no loop is held and no call fails."""

import json
from typing import get_args

import grpc
import pytest

from tuneserve.server.config import ToolParser
from tuneserve.server.text import answers
from tuneserve.v1 import generation_pb2 as pb

from ..api.test_chat import TOOL, TOOLS_TEMPLATE, said, struct
from ..api.test_tool_calls import scripted
from ..conftest import loopback

METHOD = "/tuneserve.v1.GenerationService/"
TOKENS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "<parameter=", "</parameter>"),
    # Without which some parsers are not made.
    *("<tool_calls>", "</tool_calls>", "<|python_tag|>", "[TOOL_CALLS]"),
    # As many characters for a token as tokenizers of real models have.
    "a(b=1), ",
]
LENGTH = 32_000
CALL = '{"name": "weather", "arguments": {"city": "Lisbon"}}'
# Each again and again, as the whole answer.
HOSTILE = {
    "openings": "<tool_call>",
    "closings": "</tool_call>",
    "empty calls": "<tool_call></tool_call>",
    "calls": f"<tool_call>{CALL}</tool_call>",
    "half calls": '<tool_call>{"name": "a", "arguments": {',
    "thoughts": "<think></think>",
    "thoughts in calls": "<tool_call><think></think>",
    "arrays": "[",
    "objects": '{"a":',
    "escapes": '<tool_call>{"name": "\\',
    "angles": "<",
    "functions": "<tool_call><function=a><parameter=b>",
    "parameters": "<parameter=b></parameter>",
    "lists of calls": "[a(b=1), ",
}
PARSERS = {name: None for name in get_args(ToolParser)} | {"hermes": "deepseek_r1", "qwen3_coder": "qwen3"}


@pytest.fixture(scope="module", params=PARSERS.items(), ids=PARSERS)
async def server(request, serve_config, make_llama, make_parsers):
    directory = make_llama(TOOLS_TEMPLATE, TOKENS, max_position_embeddings=1 << 16, vocab_size=320)

    def prepared(name: str, engine) -> None:
        engine.vocab_size = 320
        engine.parsers, engine.tokenizer = make_parsers(directory, *request.param)

    async with serve_config(loopback({"chat": directory}), prepared) as served:
        yield served


def asked() -> bytes:
    chat = pb.Chat(messages=[said("Weather?")], tools=[struct(**TOOL)])
    sampling = pb.SamplingParams(max_tokens=LENGTH)
    return pb.GenerateRequest(model="chat", prompt=pb.Prompt(chat=chat), sampling=sampling).SerializeToString()


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_answer_holds_nothing_up(server, written, soon, send, monkeypatch, name, method):
    # What is never in time is given up sooner here.
    monkeypatch.setattr(answers, "_MOST_SECONDS", 0.5)
    monkeypatch.setattr(answers, "_MOST_A_TOKEN", 0.0)
    engine = server.engines["chat"]
    unit = HOSTILE[name]
    engine.writes = scripted(written(engine.tokenizer, unit * (LENGTH // len(unit)), size=64))
    message = asked()
    code, details = await soon(lambda: send(server.app.address, METHOD + method, [message]))
    assert code == grpc.StatusCode.OK, details


PYTHON = "[" + "a(b=1), " * 32_000 + "a(b=1)]"
WRITTEN_IN_PYTHON = {
    "pythonic": PYTHON,
    "llama4_pythonic": f"<|python_start|>{PYTHON}<|python_end|>",
    "olmo3": f"<function_calls>{PYTHON}</function_calls>",
}


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_thousands_of_calls_written_in_python_hold_nothing_up(request, server, written, soon, send, method):
    """Python's own parser is not interrupted, by anything."""
    engine = server.engines["chat"]
    if (name := request.node.callspec.params["server"][0]) not in WRITTEN_IN_PYTHON:
        return
    engine.writes = scripted(written(engine.tokenizer, WRITTEN_IN_PYTHON[name], size=4096))
    message = asked()
    code, details = await soon(lambda: send(server.app.address, METHOD + method, [message]), name)
    assert code == grpc.StatusCode.OK, details


FILE = "".join(f"line {number} < {number * 7}\n" for number in range(200))
LONG_CALLS = {
    "hermes": f"<tool_call>{json.dumps({'name': 'write', 'arguments': {'text': FILE}})}</tool_call>",
    "qwen3_coder": f"<tool_call><function=write><parameter=text>\n{FILE}\n</parameter></function></tool_call>",
}


async def test_a_long_call_is_read_to_its_end(request, server, written):
    """One that holds a file, as models write them: within the time that parsers have."""
    engine, model = server.engines["chat"], server.app.models.latest("chat")
    name = request.node.callspec.params["server"][0]
    if name not in LONG_CALLS:
        return
    answer = f"<think>I write.</think>{LONG_CALLS[name]}"
    parsing = engine.parsers.chat([{"type": "function", "function": {"name": "write"}}], {}, [])
    reader = answers.Answers(parsing, model.parsing, pytest.fail)
    pieces = [await reader.more(delta) for delta in written(engine.tokenizer, answer)]
    arguments = "".join(call.arguments for piece in pieces for call in piece.tool_calls)
    assert json.loads(arguments) == {"text": FILE}
