"""Calls of tools, by a small model that was shown how: written as Hermes models do, and read by vLLM's parser."""

import json

import pytest
from google.protobuf import json_format, struct_pb2

from tuneserve.v1 import generation_pb2 as pb

pytestmark = pytest.mark.engine

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SHOWN = ["Paris", "Rome", "Madrid", "Vienna", "Berlin", "Athens"]


def test_a_call_that_must_be_made(real):
    parameters = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
    tools = [TOOL, {"name": "forecast", "parameters": {**parameters, "additionalProperties": False}}]
    chat = pb.Chat(
        messages=[pb.ChatMessage(role="user", content="Hello!")],
        tools=[json_format.ParseDict(tool, struct_pb2.Struct()) for tool in tools],
        tool_choice=pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED, name="forecast"),
    )
    request = pb.GenerateRequest(
        model="chat", prompt=pb.Prompt(chat=chat), sampling=pb.SamplingParams(max_tokens=64, temperature=0)
    )
    [completion] = real.generation.Generate(request).completions
    [call] = completion.tool_calls
    assert (call.name, completion.finish_reason) == ("forecast", pb.FINISH_REASON_TOOL_CALLS)
    assert isinstance(json.loads(call.arguments)["days"], int)


def asked(city: str, *, tools: bool = True) -> pb.GenerateRequest:
    messages = []
    for shown in SHOWN:
        call = json.dumps({"name": "weather", "arguments": {"city": shown}})
        messages += [
            pb.ChatMessage(role="user", content=f"What is the weather in {shown}?"),
            pb.ChatMessage(role="assistant", content=f"<tool_call>\n{call}\n</tool_call>"),
        ]
    messages.append(pb.ChatMessage(role="user", content=f"What is the weather in {city}?"))
    chat = pb.Chat(messages=messages, tools=[json_format.ParseDict(TOOL, struct_pb2.Struct())] if tools else [])
    sampling = pb.SamplingParams(max_tokens=60, temperature=0)
    return pb.GenerateRequest(model="chat", prompt=pb.Prompt(chat=chat), sampling=sampling)


def test_a_call_is_read(real):
    [completion] = real.generation.Generate(asked("London")).completions
    [call] = completion.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "London"})
    assert (completion.text, completion.finish_reason) == ("", pb.FINISH_REASON_TOOL_CALLS)
    [plain] = real.generation.Generate(asked("London", tools=False)).completions
    assert plain.text.startswith("<tool_call>")
    assert not plain.tool_calls


def test_a_call_is_read_as_it_comes(real):
    pieces = [piece for message in real.generation.GenerateStream(asked("London")) for piece in message.completions]
    calls = [call for piece in pieces for call in piece.tool_calls]
    assert [call.name for call in calls if call.id] == ["weather"]
    assert json.loads("".join(call.arguments for call in calls)) == {"city": "London"}
    assert pieces[-1].finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert not any(piece.text.strip() for piece in pieces)
