"""Generation's messages to what the engine takes, and back, without a server: what is counted, and what is refused."""

import json

import pytest
from google.protobuf import struct_pb2

from tuneserve.server.api import generation_messages as convert
from tuneserve.server.call.errors import InvalidInput
from tuneserve.v1 import generation_pb2 as pb


def value(number: float) -> struct_pb2.Value:
    return struct_pb2.Value(number_value=number)


def many(one: struct_pb2.Value, count: int) -> struct_pb2.Struct:
    numbers = struct_pb2.ListValue(values=[one] * count)
    return struct_pb2.Struct(fields={"a": struct_pb2.Value(list_value=numbers)})


def chat(*tools: struct_pb2.Struct, **fields) -> pb.Chat:
    messages = fields.pop("messages", [pb.ChatMessage(role="user", content="hi")])
    return pb.Chat(messages=messages, tools=tools, **fields)


NUMBERS = [1e308, -1e308, 1e21, 1e20, 123456789012345680.0, 1.5e300, 5e-324, -1.2345678901234567e-300, 0.1, 7.0]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_grow_little(number):
    given = chat(many(value(number), 1000))
    [tool] = convert.conversation(given, 4096).tools
    assert tool["a"] == [number] * 1000
    # Eleven bytes and those of the list around them; 24 characters are the longest that a double has.
    assert len(json.dumps(tool)) < 2.5 * given.ByteSize()


@pytest.mark.parametrize(
    ("number", "text"), [(7.0, "7"), (-3.0, "-3"), (2.0**53, "9007199254740992"), (1e20, "1" + "0" * 20), (0.5, "0.5")]
)
def test_whole_numbers_are_written_as_such(number, text):
    [tool] = convert.conversation(chat(many(value(number), 1)), 64).tools
    assert json.dumps(tool) == f'{{"a": [{text}]}}'


def nested(depth: int) -> struct_pb2.Struct:
    inner = struct_pb2.Struct()
    for _ in range(depth):
        inner = struct_pb2.Struct(fields={"a": struct_pb2.Value(struct_value=inner), "b": value(1.0)})
    return inner


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (chat(many(value(1.0), 60), many(value(1.0), 60)), "prompt.chat.tools[1]"),
        (chat(many(struct_pb2.Value(), 200)), "prompt.chat.tools[0]"),
        (chat(*[nested(8)] * 8), "prompt.chat.tools[5]"),
        (chat(documents=[many(value(1.0), 100)]), "prompt.chat.documents[0]"),
        (chat(template_arguments=many(value(1.0), 100)), "prompt.chat.template_arguments"),
        (
            chat(messages=[pb.ChatMessage(role="user", tool_calls=[many(value(1.0), 30)])] * 4),
            "prompt.chat.messages[3].tool_calls[0]",
        ),
    ],
)
def test_all_objects_of_a_call_are_counted_together(given, field):
    with pytest.raises(InvalidInput) as caught:
        convert.conversation(given, 100)
    assert caught.value.field == field
    assert "the 100 values" in caught.value.description
    assert convert.conversation(given, 1000)
