"""A stream's parts joined are the whole answer, and tool calls go back as a chat template expects them."""

import json

import pytest

from tuneserve.client import ToolCall, answers, generation, sampling
from tuneserve.v1 import generation_pb2 as pb


def part(**fields) -> pb.GenerateStreamResponse:
    return pb.GenerateStreamResponse(completions=[pb.Completion(**fields)])


def test_the_parts_of_a_stream_are_joined():
    parts = answers.Parts()
    texts = [
        parts.add(one)
        for one in (
            part(reasoning="Rain", token_ids=[1]),
            part(reasoning=" likely.", token_ids=[2]),
            part(text="I'll ", token_ids=[3]),
            part(text="look.", tool_calls=[pb.ToolCall(index=0, id="a", name="weather", arguments='{"city":')]),
            part(tool_calls=[pb.ToolCall(index=0, arguments=' "Oslo"}'), pb.ToolCall(index=1, id="b", name="time")]),
            part(tool_calls=[pb.ToolCall(index=1, arguments="{}")], finish_reason=pb.FINISH_REASON_TOOL_CALLS),
        )
    ]
    assert texts == ["", "", "I'll ", "look.", "", ""]
    [made] = answers.generation(parts.joined()).completions
    assert (made.text, made.reasoning, made.finish_reason) == ("I'll look.", "Rain likely.", "tool_calls")
    assert made.tool_calls == (ToolCall("a", "weather", '{"city": "Oslo"}'), ToolCall("b", "time", "{}"))
    assert answers.generation(parts.joined()).completions == (made,), "also when it is asked for again"


def test_a_call_goes_back_as_a_message_has_it():
    call = ToolCall("a", "weather", '{"city": "Oslo"}')
    turns = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [call.as_message()]},
        {"role": "tool", "tool_call_id": "a", "content": "Yes."},
    ]
    chat = generation.chat("chat", turns, tools=[{"name": "weather"}], tool_choice="weather").request.prompt.chat
    assert chat.messages[1].tool_calls[0]["function"]["arguments"]["city"] == "Oslo"
    assert chat.tool_choice == pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_REQUIRED, name="weather")
    with pytest.raises(json.JSONDecodeError):
        ToolCall("a", "weather", '{"city": "Os').as_message()


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_choice_of_tools(choice):
    chat = sampling.prompt([{"role": "user", "content": "Rain?"}], tool_choice=choice).chat
    assert pb.ToolChoiceMode.Name(chat.tool_choice.mode) == f"TOOL_CHOICE_MODE_{choice.upper()}"
