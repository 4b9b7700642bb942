import pytest
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue

from tuneserve.oip import inference_pb2
from tuneserve.server.call import wire
from tuneserve.server.call.errors import InvalidInput
from tuneserve.v1 import classification_pb2, common_pb2, generation_pb2

LARGE = "x" * (1 << 19)


def classify(texts: int) -> classification_pb2.ClassifyRequest:
    inputs = [classification_pb2.ClassifyInput(text="good")] * texts
    return classification_pb2.ClassifyRequest(model=LARGE, inputs=inputs)


async def read(message: Message | bytes, kind: type[Message] = classification_pb2.ClassifyRequest) -> Message:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    await wire.size_of(data, kind.FromString)
    return await wire.readable(data, kind.FromString)


async def test_a_message_may_have_as_many_fields_as_are_allowed():
    # Of each input, itself and its text; and the name.
    fits = (wire._MOST_FIELDS - 1) // 2
    assert await read(classify(fits)) == classify(fits)
    with pytest.raises(InvalidInput, match="request: has too many fields"):
        await read(classify(fits + 1))


async def test_fields_count_however_deep_they_are_and_numbers_do_not():
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=range(1 << 18)))
    numbers = generation_pb2.GenerateRequest(model=LARGE, prompt=prompt)
    assert await read(numbers, generation_pb2.GenerateRequest) == numbers
    numbers.prompt.token_ids.ids.extend(range(1 << 18))
    with pytest.raises(InvalidInput, match="bytes of numbers in one list; allowed: 1048576"):
        await read(numbers, generation_pb2.GenerateRequest)
    deep = generation_pb2.GenerateRequest(model=LARGE)
    values = ListValue(values=[{"number_value": 1.0}] * wire._MOST_FIELDS)
    deep.prompt.chat.tools.add().fields["a"].list_value.CopyFrom(values)
    with pytest.raises(InvalidInput, match="request: has too many fields"):
        await read(deep, generation_pb2.GenerateRequest)


async def test_what_a_message_takes_is_known_before_it_is_made():
    empty = classification_pb2.ClassifyRequest(inputs=[{}] * 30_000)
    size = await wire.size_of(empty.SerializeToString(), classification_pb2.ClassifyRequest.FromString)
    assert size == 60_000 + 30_000 * wire._FIELD_BYTES
    text = classification_pb2.ClassifyRequest(model=LARGE)
    assert await wire.size_of(text.SerializeToString(), classification_pb2.ClassifyRequest.FromString) < 1.01 * len(
        LARGE
    )


@pytest.mark.parametrize(
    "data",
    [b"\xff" * (1 << 19), b"\x0a\xff\xff\xff\xff\x0f" * (1 << 17), b"\x12\x80" * (1 << 18), b"\xff" * 20],
)
async def test_what_is_no_message_is_told_soon(data):
    with pytest.raises(InvalidInput, match="request: "):
        await read(data)


def answers() -> list[Message]:
    entry = generation_pb2.TokenLogprob(
        token_id=7, logprob=-0.5, alternatives=[generation_pb2.TokenAlternative(token_id=8, text="é")] * 3
    )
    usage = common_pb2.Usage(prompt_tokens=300, completion_tokens=5)
    completions = [generation_pb2.Completion(index=i, text="ab" * i, logprobs=[entry] * i) for i in range(100)]
    results = [
        classification_pb2.Classification(labels=[classification_pb2.LabelScore(label="good", score=0.5)] * 3)
    ] * 1000
    classified = classification_pb2.ClassifyResponse(results=results, usage=usage)
    infer = inference_pb2.ModelInferResponse(model_name="m", raw_output_contents=[b"x", b"y" * 300])
    infer.parameters["a"].int64_param = 3
    for number in range(30):
        infer.outputs.add(name=str(number), shape=[1, 2]).contents.fp32_contents.extend([0.5, 2])
    return [
        classified,
        generation_pb2.GenerateResponse(completions=completions, usage=usage, prompt_logprobs=[entry] * 50),
        classification_pb2.ClassifyStreamResponse(id=5, response=classified),
        infer,
        inference_pb2.ModelStreamInferResponse(infer_response=infer),
        classification_pb2.ClassifyResponse(results=results[:2], usage=usage),
        classification_pb2.ClassifyResponse(),
    ]


@pytest.mark.parametrize("message", answers(), ids=lambda message: message.DESCRIPTOR.name)
async def test_a_long_answer_is_the_same_made_in_turns(message):
    data = await wire.serialized(message)
    assert type(message).FromString(data) == message
    assert len(data) == message.ByteSize()
