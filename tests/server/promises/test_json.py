"""JSON objects of a conversation are counted before they are looked at: none hold the event loop."""

import grpc
import pytest
from google.protobuf import struct_pb2

from tuneserve.v1 import generation_pb2 as pb

from ..conftest import loopback

TOKENIZE = "/tuneserve.v1.GenerationService/Tokenize"
TEMPLATE = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ messages[0].content }}"


def value(number: float) -> struct_pb2.Value:
    return struct_pb2.Value(number_value=number)


def many(one: struct_pb2.Value, count: int) -> struct_pb2.Struct:
    numbers = struct_pb2.ListValue(values=[one] * count)
    return struct_pb2.Struct(fields={"a": struct_pb2.Value(list_value=numbers)})


def chat(*tools: struct_pb2.Struct) -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")], tools=tools)


@pytest.fixture(scope="module")
async def server(serve_config, make_llama):
    """A model that reads more tokens than JSON values are taken."""
    config = loopback({"chat": make_llama(TEMPLATE, max_position_embeddings=1 << 20)}, drain_seconds=3)
    async with serve_config(config) as served:
        yield served


VALUES, FIELDS = "the 16384 values", "allowed: 65536 in all"


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ([many(value(1e308), 180_000)], FIELDS),
        ([many(struct_pb2.Value(), 1_000_000)], FIELDS),
        ([struct_pb2.Struct(fields={f"key {index}": value(1.0) for index in range(100_000)})], FIELDS),
        ([struct_pb2.Struct()] * 1_000_000, FIELDS),
        ([many(value(1.0), 9_000)] * 2, VALUES),
    ],
    ids=["numbers", "nothing", "keys", "objects", "almost"],
)
async def test_megabytes_of_json_hold_nobody_up(server, soon, send, tools, said):
    request = pb.TokenizeRequest(model="chat", prompt=pb.Prompt(chat=chat(*tools)))
    message = request.SerializeToString()
    code, details = await soon(lambda: send(server.app.address, TOKENIZE, [message]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    assert said in details
