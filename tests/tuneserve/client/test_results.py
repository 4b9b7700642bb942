"""What calls return."""

import json

import pytest

from tuneserve.client import ToolCall, generation
from tuneserve.v1 import generation_pb2 as pb


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
