import pytest
from google.protobuf.struct_pb2 import ListValue

from tuneserve.server.call import wire
from tuneserve.server.call.errors import InvalidInput
from tuneserve.v1 import classification_pb2, generation_pb2

LARGE = "x" * (1 << 19)


def classify(texts: int) -> classification_pb2.ClassifyRequest:
    inputs = [classification_pb2.ClassifyInput(text="good")] * texts
    return classification_pb2.ClassifyRequest(model=LARGE, inputs=inputs)


def test_a_message_may_have_as_many_fields_as_are_allowed():
    # Of each input, itself and its text; and the name.
    fits = (wire._MOST_FIELDS - 1) // 2
    read = wire.lenient(classification_pb2.ClassifyRequest.FromString)
    assert wire.readable(read(classify(fits).SerializeToString())) == classify(fits)
    with pytest.raises(InvalidInput, match="request: has too many fields"):
        wire.readable(read(classify(fits + 1).SerializeToString()))


def test_fields_count_however_deep_they_are_and_numbers_do_not():
    read = wire.lenient(generation_pb2.GenerateRequest.FromString)
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=range(1 << 20)))
    numbers = generation_pb2.GenerateRequest(prompt=prompt)
    assert wire.readable(read(numbers.SerializeToString())) == numbers
    deep = generation_pb2.GenerateRequest(model=LARGE)
    values = ListValue(values=[{"number_value": 1.0}] * wire._MOST_FIELDS)
    deep.prompt.chat.tools.add().fields["a"].list_value.CopyFrom(values)
    with pytest.raises(InvalidInput, match="request: has too many fields"):
        wire.readable(read(deep.SerializeToString()))


@pytest.mark.parametrize(
    "data",
    [b"\xff" * (1 << 19), b"\x0a\xff\xff\xff\xff\x0f" * (1 << 17), b"\x12\x80" * (1 << 18)],
)
def test_what_is_no_message_is_told_soon(data):
    with pytest.raises(InvalidInput, match="request: "):
        wire.readable(wire.lenient(classification_pb2.ClassifyRequest.FromString)(data))
