"""Tensors of the Open Inference Protocol: what is written is read again, and everything else is refused by name."""

import asyncio
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneserve.oip import inference_pb2 as pb
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.open_inference import tensors
from tuneserve.server.open_inference.tensors import Input, Output, Spec

SPECS = (Spec("text"), Spec("flag", "BOOL", (1,)), Spec("note", "BYTES", (1,)))
MOST = 5


def raw_bytes(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def request(name="text", datatype="BYTES", shape=(2,), raw=None, **contents) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    return pb.ModelInferRequest(inputs=[tensor], raw_input_contents=[] if raw is None else [raw])


def read(sent: pb.ModelInferRequest) -> dict[str, Input]:
    with Violations() as wrong:
        return tensors.read(wrong, sent, SPECS, MOST)


def wanted(sent: pb.ModelInferRequest) -> list[str]:
    with Violations() as wrong:
        return tensors.wanted(wrong, sent, SPECS)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_raw_and_typed_are_read_alike(shape):
    values = ["a", "grüße\x00"]
    encoded = [value.encode() for value in values]
    for one in (request(shape=shape, raw=raw_bytes(*encoded)), request(shape=shape, bytes_contents=encoded)):
        found = read(one)["text"]
        assert list(found.values) == values
        assert found.path == "inputs[0] (text)"
    for one in (request("flag", "BOOL", (1,), raw=b"\x01"), request("flag", "BOOL", (1,), bool_contents=[True])):
        assert read(one)["flag"].values[0]


@pytest.mark.parametrize(
    ("bad", "where", "what"),
    [
        (request(raw=raw_bytes(b"a")), "inputs[0] (text)", "has 1 elements where its shape says 2"),
        (request(raw=raw_bytes(b"a", b"b", b"c")), "inputs[0] (text)", "more raw bytes than 2 elements"),
        (request(raw=raw_bytes(b"a", b"b") + b"\x00"), "inputs[0] (text)", "more raw bytes"),
        (request(raw=raw_bytes(b"a", b"bc")[:-1]), "inputs[0] (text)[1]", "is cut off"),
        (request(raw=raw_bytes(b"a") + b"\x01\x00"), "inputs[0] (text)[1]", "is cut off"),
        (request(raw=b"\xff\xff\xff\xff"), "inputs[0] (text)[0]", "is cut off"),
        (request(raw=raw_bytes(b"a", b"\xff")), "inputs[0] (text)[1]", "is not UTF-8"),
        (request(bytes_contents=[b"a"]), "inputs[0] (text)", "has 1 elements where its shape says 2"),
        (request(fp32_contents=[1, 2]), "inputs[0] (text)", "has 0 elements where its shape says 2"),
        (request(), "inputs[0] (text)", "has 0 elements where its shape says 2"),
        (request(datatype="FP32"), "inputs[0] (text)", "another datatype; allowed: BYTES"),
        (request(datatype=""), "inputs[0] (text)", "another datatype; allowed: BYTES"),
        (request(shape=()), "inputs[0] (text)", "another shape; allowed: [N] or [N, 1]"),
        (request(shape=(1, 2)), "inputs[0] (text)", "another shape"),
        (request(shape=(2, 1, 1)), "inputs[0] (text)", "another shape"),
        (request(shape=(0,)), "inputs[0] (text)", "has 0 elements; allowed: 1 to 5"),
        (request(shape=(-1,)), "inputs[0] (text)", "has -1 elements"),
        (request(shape=(2**62,), raw=b"\x00" * 64), "inputs[0] (text)", "allowed: 1 to 5"),
        (request(shape=(6,), bytes_contents=[b"a"] * 6), "inputs[0] (text)", "has 6 elements; allowed: 1 to 5"),
        (request("note", shape=(2,), bytes_contents=[b"a"] * 2), "inputs[0] (note)", "has 2 elements; allowed: 1"),
        (request("flag", "BOOL", (1,), raw=b"\x01\x00"), "inputs[0] (flag)", "has 2 elements where its shape says 1"),
        (request("flag", "BOOL", (1,), raw=b""), "inputs[0] (flag)", "has 0 elements where its shape says 1"),
        (request("secret"), "inputs[0].name", "is not an input of this model; allowed: text, flag, note"),
    ],
)
def test_a_bad_tensor_is_refused_by_name(bad, where, what):
    with pytest.raises(InvalidInput) as caught:
        read(bad)
    assert caught.value.field == where
    assert what in caught.value.description
    assert "secret" not in str(caught.value)


def test_a_request_whose_parts_contradict_each_other_is_refused():
    both = request(raw=raw_bytes(b"a", b"b"), bytes_contents=[b"a", b"b"])
    twice = request(bytes_contents=[b"a", b"b"])
    twice.inputs.append(twice.inputs[0])
    uneven = request(raw=raw_bytes(b"a", b"b"))
    uneven.raw_input_contents.append(b"")
    shared = request(bytes_contents=[b"a", b"b"])
    shared.inputs[0].parameters["shared_memory_region"].string_param = "secret"
    expected = ["inputs[0] (text)", "inputs[1] (text)", "raw_input_contents", "inputs[0] (text)"]
    for bad, where in zip((both, twice, uneven, shared), expected, strict=True):
        with pytest.raises(InvalidInput) as caught:
            read(bad)
        assert caught.value.field == where
        assert "secret" not in str(caught.value)


def test_all_bad_tensors_are_named():
    bad, note = request("secret", bytes_contents=[b"a"]), request("note", shape=(1,), bytes_contents=[b"\xff"])
    for more in (request("flag", "FP32"), request("flag", "BOOL"), note):
        bad.inputs.extend(more.inputs)
    with pytest.raises(InvalidInput) as caught:
        read(bad)
    assert [field for field, _ in caught.value.violations] == [
        *("inputs[0].name", "inputs[1] (flag)", "inputs[2] (flag)", "inputs[3] (note)[0]")
    ]
    many = outputs("x", "text", "text", "note")
    many.outputs[3].parameters["classification"].int64_param = 3
    with pytest.raises(InvalidInput) as caught:
        wanted(many)
    assert [field for field, _ in caught.value.violations] == [
        *("outputs[0].name", "outputs[2] (text)", "outputs[3] (note)")
    ]


def test_hints_of_other_servers_are_passed_over():
    hinted = request(bytes_contents=[b"a", b"b"])
    hinted.inputs[0].parameters["content_type"].string_param = "str"
    assert list(read(hinted)["text"].values) == ["a", "b"]


def outputs(*names: str, **parameters) -> pb.ModelInferRequest:
    found = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names]
    for name, value in parameters.items():
        found[0].parameters[name].int64_param = value
    return pb.ModelInferRequest(outputs=found)


def test_outputs_are_chosen_by_name():
    assert wanted(outputs()) == ["text", "flag", "note"]
    assert wanted(outputs("note", "text")) == ["note", "text"]
    for bad, where in [
        (outputs("text", "secret"), "outputs[1].name"),
        (outputs("text", "text"), "outputs[1] (text)"),
        (outputs("text", classification=3), "outputs[0] (text)"),
        (outputs("text", shared_memory_region=3), "outputs[0] (text)"),
    ]:
        with pytest.raises(InvalidInput) as caught:
            wanted(bad)
        assert caught.value.field == where
        assert "secret" not in str(caught.value)


MADE = [
    Output(Spec("text"), (2,), ["grüße".encode(), b""]),
    Output(Spec("scores", "FP32", (-1, -1)), (2, 2), [0.5, 1.5, -2.0, 3.0]),
    Output(Spec("count", "UINT32"), (2,), [7, 2**32 - 1]),
]


async def test_outputs_are_written_raw_or_typed():
    raw, typed = pb.ModelInferResponse(), pb.ModelInferResponse()
    await tensors.write(raw, MADE, ["count", "text", "scores"], raw=True)
    await tensors.write(typed, MADE, ["count", "text", "scores"], raw=False)
    assert [(one.name, one.datatype, list(one.shape)) for one in raw.outputs] == [
        ("count", "UINT32", [2]),
        ("text", "BYTES", [2]),
        ("scores", "FP32", [2, 2]),
    ]
    assert not any(one.HasField("contents") for one in raw.outputs)
    counts, texts, scores = raw.raw_output_contents
    assert counts == b"\x07\x00\x00\x00\xff\xff\xff\xff"
    assert texts == b"\x07\x00\x00\x00gr\xc3\xbc\xc3\x9fe\x00\x00\x00\x00"
    assert np.frombuffer(scores, "<f4").tolist() == [0.5, 1.5, -2.0, 3.0]
    assert not typed.raw_output_contents
    assert list(typed.outputs[0].contents.uint_contents) == [7, 2**32 - 1]
    assert list(typed.outputs[1].contents.bytes_contents) == ["grüße".encode(), b""]
    assert list(typed.outputs[2].contents.fp32_contents) == [0.5, 1.5, -2.0, 3.0]


lengths = st.one_of(st.integers(0, 12), st.sampled_from([2**31, 2**32 - 1]))
raws = st.one_of(
    st.binary(max_size=40),
    st.lists(st.tuples(lengths, st.binary(max_size=8)), max_size=6).map(
        lambda parts: b"".join(struct.pack("<I", length) + value for length, value in parts)
    ),
    st.lists(st.binary(max_size=8), max_size=7).map(lambda values: raw_bytes(*values)),
)
shapes = st.lists(st.one_of(st.integers(-1, 7), st.integers(-(2**63), 2**63 - 1)), max_size=3)
fuzzed_inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["text", "flag", "note", "other"]),
    datatype=st.sampled_from(["BYTES", "BOOL", "FP32", "", "bytes"]),
    shape=shapes,
    contents=st.none()
    | st.builds(
        pb.InferTensorContents,
        bytes_contents=st.lists(st.binary(max_size=4), max_size=6),
        bool_contents=st.lists(st.booleans(), max_size=2),
    ),
)
fuzzed_requests = st.builds(
    pb.ModelInferRequest, inputs=st.lists(fuzzed_inputs, max_size=3), raw_input_contents=st.lists(raws, max_size=3)
)


@given(fuzzed_requests)
def test_any_request_is_read_as_its_shape_says_or_refused(fuzzed):
    found, error = {}, None
    try:
        found = read(fuzzed)
    except InvalidInput as caught:
        error = caught
    assert error is None or error.field.startswith(("inputs", "raw_input_contents"))
    if error:
        return
    assert len(found) == len(fuzzed.inputs)
    for index, tensor in enumerate(fuzzed.inputs):
        values = found[tensor.name].values
        assert len(values) == tensor.shape[0] <= MOST
        if tensor.datatype == "BYTES" and fuzzed.raw_input_contents:
            assert raw_bytes(*(value.encode() for value in values)) == fuzzed.raw_input_contents[index]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=MOST))
def test_texts_survive_the_way_in_and_out(texts):
    encoded = [text.encode() for text in texts]
    found = read(request(shape=(len(texts),), raw=raw_bytes(*encoded)))["text"]
    assert list(found.values) == texts
    response = pb.ModelInferResponse()
    asyncio.run(tensors.write(response, [Output(Spec("text"), (len(texts),), encoded)], ["text"], raw=True))
    assert response.raw_output_contents[0] == raw_bytes(*encoded)


@pytest.mark.parametrize(
    "greedy",
    [
        request(shape=(8 << 20,), raw=bytes(32 << 20)),  # eight million empty texts, as the shape says
        request(shape=(5,), raw=bytes(32 << 20)),
        request("flag", "BOOL", (1,), raw=bytes(32 << 20)),
    ],
    ids=["many", "more than the shape", "flags"],
)
def test_a_large_message_takes_no_further_memory(greedy):
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput):
            read(greedy)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Reading a field of bytes copies it once; a list of its elements would be many times as much.
    assert peak < 70 << 20
