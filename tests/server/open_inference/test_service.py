"""The Open Inference Protocol over the wire: the real tritonclient unmodified, and bytes that no client would send."""

import asyncio
import base64
import json
import struct
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tuneserve.oip import inference_pb2 as pb
from tuneserve.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tuneserve.server.engine.interface import RequestRefused
from tuneserve.v1 import generation_pb2, model_pb2
from tuneserve.v1.generation_pb2_grpc import GenerationServiceStub
from tuneserve.v1.model_pb2_grpc import ModelServiceStub

CLIENT = Path(__file__).with_name("triton_client.py")
CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


async def triton(served, *calls: dict) -> list:
    """What the real client makes of these calls; see triton_client.py."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CLIENT),
        served.app.address,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(json.dumps(calls).encode())
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


def infer(model: str, inputs: dict, **options) -> dict:
    return {"method": "infer", "model": model, "inputs": inputs, **options}


def prompt(text: str, stream: bool = True, **options) -> dict:
    inputs = {"text_input": [text], "stream": [stream], **options.pop("inputs", {})}
    return {"model": "chat", "inputs": inputs, **options}


async def version_of(served, model: str) -> str:
    response = await ModelServiceStub(served.channel).GetModel(model_pb2.GetModelRequest(model=model))
    return response.model.version


# The real client.


async def test_the_messages_are_tritons_own(served):
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    file.message_type.add(name="Nonsense").field.add(name="x", number=1, label=1, type=9)
    [unlike] = await triton(
        served, {"method": "unlike", "arguments": [base64.b64encode(file.SerializeToString()).decode()]}
    )
    # Triton lacks what KServe added, and nonsense.
    assert [one for one in unlike if "Nonsense" not in one and "roperties" not in one] == []
    assert len(unlike) == 4


async def test_health_and_metadata_through_tritonclient(served):
    version = await version_of(served, "sentiment")
    live, ready, model, by_version, unknown, server, metadata, missing, config = await triton(
        served,
        {"method": "is_server_live"},
        {"method": "is_server_ready"},
        {"method": "is_model_ready", "arguments": ["sentiment"]},
        {"method": "is_model_ready", "arguments": ["sentiment", version]},
        {"method": "is_model_ready", "arguments": ["nobody"]},
        {"method": "get_server_metadata"},
        {"method": "get_model_metadata", "arguments": ["sentiment"]},
        {"method": "get_model_metadata", "arguments": ["nobody"]},
        {"method": "get_model_config", "arguments": ["sentiment"]},
    )
    assert (live, ready, model, by_version, unknown) == (True, True, True, True, False)
    assert server["name"] == "tuneserve"
    assert server["version"]
    assert metadata["platform"] == "tuneserve_vllm"
    assert metadata["versions"] == [version]
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["inputs"]] == [
        ("text", "BYTES", ["-1"]),
        ("text_pair", "BYTES", ["-1"]),
    ]
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["outputs"]] == [
        ("label", "BYTES", ["-1"]),
        ("score", "FP32", ["-1"]),
        ("labels", "BYTES", ["-1", "-1"]),
        ("scores", "FP32", ["-1", "-1"]),
    ]
    assert missing["status"] == "StatusCode.NOT_FOUND"
    assert "sentiment" in missing["error"]
    assert config["status"] == "StatusCode.UNIMPLEMENTED"


async def test_classification_through_tritonclient(served):
    version = await version_of(served, "sentiment")
    texts = ["good", "good film", "bad"]
    whole, column, some, raw, by_version, pairs = await triton(
        served,
        infer("sentiment", {"text": texts}, request_id="seven"),
        infer("sentiment", {"text": [[text] for text in texts]}),
        infer("sentiment", {"text": texts}, outputs=["scores", "label"], parameters={"top_k": 1}),
        infer("sentiment", {"text": texts}, parameters={"raw_scores": True, "truncation": "end"}),
        infer("sentiment", {"text": texts}, model_version=version),
        infer("sentiment", {"text": ["good film"], "text_pair": ["bad movie"]}),
    )
    # The fake answers by the number of tokens: 3 and 4 with the special ones.
    assert whole["label"] == ["pos", "neg", "pos"]
    assert whole["labels"] == [["pos", "neg"], ["neg", "pos"], ["pos", "neg"]]
    best = float(np.exp(2) / (np.exp(2) + 1))
    assert whole["score"] == pytest.approx([best] * 3)
    assert np.array(whole["scores"]) == pytest.approx(np.array([[best, 1 - best]] * 3))
    assert (whole["id"], whole["version"]) == ("seven", version)
    assert whole["parameters"] == {"prompt_tokens": 10, "completion_tokens": 0}
    assert (column["label"], column["shapes"]["label"]) == (whole["label"], [3])
    assert some["shapes"] == {"scores": [3, 1], "label": [3]}
    assert raw["scores"] == [[2, 0]] * 3
    assert by_version["label"] == whole["label"]
    # [CLS] good film [SEP] bad movie [SEP]
    assert served.engines["sentiment"].pooled[-1].pair_start == 4
    assert pairs["label"] == ["pos"]


async def test_spans_and_vectors_through_tritonclient(served):
    text = "angela merkel in hamburg 🙂"
    spans, units, vectors, plain, prompted = await triton(
        served,
        infer("ner", {"text": [text, "the film"]}),
        infer("ner", {"text": [text]}, parameters={"offset_unit": "utf8_byte"}),
        infer("vectors", {"text": ["good", "good film"]}),
        infer("vectors", {"text": ["good", "good film"]}, parameters={"normalize": False, "dimensions": 2}),
        infer("vectors", {"text": ["good"]}, parameters={"normalize": False, "prompt_name": "query"}),
    )
    found = [json.loads(one) for one in spans["spans"]]
    assert len(found) == 2
    assert found[0]
    for one in found[0]:
        assert set(one) == {"label", "score", "start", "end", "text"}
        assert one["text"] == text[one["start"] : one["end"]]
    in_bytes = json.loads(units["spans"][0])
    assert [text.encode()[one["start"] : one["end"]].decode() for one in in_bytes] == [one["text"] for one in found[0]]
    assert vectors["shapes"]["embedding"] == [2, 3]
    assert np.linalg.norm(np.array(vectors["embedding"]), axis=1) == pytest.approx([1, 1])
    assert plain["embedding"] == [[3, 4], [3, 4]]
    # The third number counts the tokens: two more are the prompt's.
    assert prompted["embedding"] == [[3, 4, 5]]


async def test_generation_through_tritonclient(served):
    sampling = json.dumps({"max_tokens": "3", "temperature": "0.5"})  # text for numbers, as in Triton's own sample
    whole, new, several, choices, grid = await triton(
        served,
        infer("chat", {"text_input": ["the film"], "sampling_parameters": [sampling]}),
        infer("chat", {"text_input": ["the film"], "exclude_input_in_output": [True]}, parameters={"max_tokens": 2}),
        infer("chat", {"text_input": ["a", "ü"], "exclude_input_in_output": [True]}, parameters={"max_tokens": 1}),
        infer("chat", {"text_input": ["a"]}, parameters={"max_tokens": 1, "n": 3}),
        infer("chat", {"text_input": ["a", "b"]}, parameters={"max_tokens": 1, "n": 3}),
    )
    assert whole["text_output"] == ["the filmababab"]  # the prompt comes first, as Triton's vLLM backend has it
    assert whole["finish_reason"] == ["length"]
    assert whole["num_output_tokens"] == [3]
    assert whole["parameters"]["completion_tokens"] == 3
    assert served.engines["chat"].sampled[0].temperature == 0.5
    assert new["text_output"] == ["abab"]
    assert several["text_output"] == ["ab", "ab"]
    assert choices["text_output"] == ["aab"] * 3
    assert grid["text_output"] == [["aab"] * 3, ["bab"] * 3]
    assert grid["parameters"]["completion_tokens"] == 6


async def test_tensor_options_go_before_the_calls_own(served):
    both = {"text_input": ["a"], "sampling_parameters": [json.dumps({"max_tokens": 2})]}
    [answer] = await triton(served, infer("chat", both, parameters={"max_tokens": 5, "seed": 7}))
    assert answer["num_output_tokens"] == [2]
    assert served.engines["chat"].sampled[-1].seed == 7


@pytest.mark.parametrize("method", ["stream", "aio_stream"])
async def test_streams_through_tritonclient(served, method):
    requests = [
        prompt("the film", request_id="one", parameters={"max_tokens": 3}),
        prompt("a movie", request_id="two", parameters={"max_tokens": 4}, outputs=["text_output"]),
        prompt("a", stream=False, request_id="whole", parameters={"max_tokens": 2}),
        prompt("a", request_id="bad", parameters={"max_tokens": 0}),
        prompt("a", request_id="several", parameters={"max_tokens": 2, "n": 2}),
        {"model": "sentiment", "inputs": {"text": ["good"]}, "request_id": "label"},
    ]
    [answers] = await triton(served, {"method": method, "requests": requests})
    by_id: dict[str, list] = {}
    for answer in answers:
        by_id.setdefault(answer.get("id", "bad"), []).append(answer)
    assert set(by_id) == {"one", "two", "whole", "bad", "several", "label"}
    assert [one["text_output"] for one in by_id["one"]] == [["ab"]] * 3
    assert [one["finish_reason"] for one in by_id["one"]] == [[""], [""], ["length"]]
    assert [one["parameters"]["triton_final_response"] for one in by_id["one"]] == [False, False, True]
    assert by_id["one"][-1]["parameters"]["completion_tokens"] == 3
    assert [list(one["shapes"]) for one in by_id["two"]] == [["text_output"]] * 4
    [whole] = by_id["whole"]
    assert whole["text_output"] == ["aabab"]
    assert whole["parameters"]["triton_final_response"]
    [bad] = by_id["bad"]
    assert "parameters.max_tokens: is 0; allowed: 1 or more" in bad["error"]
    assert ["".join(texts) for texts in zip(*(one["text_output"] for one in by_id["several"]), strict=True)] == [
        "abab"
    ] * 2
    [label] = by_id["label"]
    assert label["label"] == ["pos"]


async def test_a_stream_that_tritonclient_cancels_frees_its_place(served, until):
    served.engines["chat"].delay = 0.01
    request = prompt("a", parameters={"max_tokens": 60})
    assert await triton(served, {"method": "cancelled_stream", "request": request, "after": 3}) == [3]
    await until(lambda: served.engines["chat"].running == 0)
    await until(lambda: all(model.admission.calls == 0 for model in served.app.models))
    assert len(served.engines["chat"].tickets) == 1


# Bytes of our own.


def raw(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def request(model="sentiment", name="text", values=(b"good",), shape=None, **fields) -> pb.ModelInferRequest:
    """A request with one input of typed contents."""
    tensor = pb.ModelInferRequest.InferInputTensor(
        name=name,
        datatype="BYTES",
        shape=[len(values)] if shape is None else shape,
        contents=pb.InferTensorContents(bytes_contents=values),
    )
    return pb.ModelInferRequest(model_name=model, inputs=[tensor], **fields)


def options(**values) -> dict[str, pb.InferParameter]:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return {name: pb.InferParameter(**{kinds[type(value)]: value}) for name, value in values.items()}


def stub(served) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(served.channel)


async def test_an_answer_comes_as_its_request_did(served):
    typed = await stub(served).ModelInfer(request(values=[b"good", b"good film"]))
    assert list(typed.outputs[0].contents.bytes_contents) == [b"pos", b"neg"]
    assert len(typed.outputs[3].contents.fp32_contents) == 4
    assert not typed.raw_output_contents
    bare = request(values=[b"good", b"good film"], raw_input_contents=[raw(b"good", b"good film")])
    bare.inputs[0].ClearField("contents")
    untyped = await stub(served).ModelInfer(bare)
    assert untyped.raw_output_contents[0] == raw(b"pos", b"neg")
    assert np.frombuffer(untyped.raw_output_contents[3], "<f4").tolist() == list(
        typed.outputs[3].contents.fp32_contents
    )
    assert not any(output.HasField("contents") for output in untyped.outputs)


LONG = b" ".join([b"good"] * 40)
STREAMED = pb.ModelInferRequest.InferInputTensor(
    name="stream", datatype="BOOL", shape=[1], contents=pb.InferTensorContents(bool_contents=[True])
)


def with_input(base: pb.ModelInferRequest, *more: pb.ModelInferRequest.InferInputTensor) -> pb.ModelInferRequest:
    base.inputs.extend(more)
    return base


def with_text(base: pb.ModelInferRequest, name: str, *values: bytes) -> pb.ModelInferRequest:
    return with_input(base, request(name=name, values=values).inputs[0])


@pytest.mark.parametrize(
    ("bad", "field", "what"),
    [
        (request(""), "model_name", "is empty"),
        (pb.ModelInferRequest(model_name="sentiment"), "inputs", "has no text"),
        (request(values=[b"good", b" "]), "inputs[0] (text)[1]", "is empty"),
        (request(values=[b"good", LONG]), "inputs[0] (text)[1]", "has 42 tokens"),
        (request(values=[b"good"] * 9), "inputs[0] (text)", "has 9 elements; allowed: 1 to 8"),
        (request(shape=[3]), "inputs[0] (text)", "has 1 elements where its shape says 3"),
        (request(name="texts"), "inputs[0].name", "allowed: text, text_pair"),
        (with_text(request(), "text_pair", b" "), "inputs[1] (text_pair)[0]", "is empty"),
        (with_text(request(), "text_pair", b"a", b"b"), "inputs[1] (text_pair)", "has 2 elements for 1 of text"),
        (request(parameters=options(top_k=0)), "parameters.top_k", "is 0"),
        (request(parameters=options(top_k="x")), "parameters.top_k", "is not a whole number"),
        (request(parameters=options(truncation="middle")), "parameters.truncation", "reject, end, windows"),
        (request(parameters=options(max_tokens=3)), "parameters.max_tokens", "allowed: top_k, truncation"),
        (request(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="x")]), "outputs[0].name", "label"),
        (request("ner", values=[b"in", b""]), "inputs[0] (text)[1]", "is empty"),
        (request("ner", parameters=options(aggregation="most")), "parameters.aggregation", "simple, first"),
        (request("vectors", values=[LONG]), "inputs[0] (text)[0]", "has 42 tokens"),
        (request("vectors", parameters=options(truncation="windows")), "parameters.truncation", "TRUNCATION_WINDOWS"),
        (request("chat"), "inputs[0].name", "allowed: text_input, stream"),
        (request("chat", "text_input", [b"a", b""]), "inputs[0] (text_input)[1]", "is empty"),
        (request("chat", "text_input", [b"a" * 80]), "inputs[0] (text_input)[0]", "has 80 tokens"),
        (request("chat", "text_input", parameters=options(top_p=2.0)), "parameters.top_p", "at most 1"),
        (request("chat", "text_input", parameters=options(logprobs=2)), "parameters.logprobs", "is not an option"),
        (with_input(request("chat", "text_input"), STREAMED), "inputs[1] (stream)", "only ModelStreamInfer"),
        (
            with_text(request("chat", "text_input"), "sampling_parameters", b"{"),
            "inputs[1] (sampling_parameters)",
            "is not JSON",
        ),
        (
            with_text(request("chat", "text_input"), "sampling_parameters", b'{"top_p": 3}'),
            "inputs[1] (sampling_parameters).top_p",
            "at most 1",
        ),
        (
            with_text(request("chat", "text_input"), "sampling_parameters", b'{"stop": ["a", ""]}'),
            "inputs[1] (sampling_parameters).stop[1]",
            "1 to",
        ),
        (
            with_text(request("chat", "text_input"), "sampling_parameters", b'{"structured_outputs": {"json": "{"}}'),
            "inputs[1] (sampling_parameters).structured_outputs.json_schema",
            "",
        ),
    ],
)
async def test_what_is_wrong_is_named_as_the_caller_named_it(served, refused, bad, field, what):
    error = await refused(stub(served).ModelInfer(bad), grpc.StatusCode.INVALID_ARGUMENT)
    violations = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(violations)
    assert violations.field_violations[0].field == field
    assert what in violations.field_violations[0].description


@pytest.mark.parametrize(("refusal", "field"), [("seed", "parameters.seed"), ("", "parameters")])
async def test_what_the_engine_refuses_is_named_too(served, refused, refusal, field):
    served.engines["chat"].broken = RequestRefused(refusal)
    error = await refused(
        stub(served).ModelInfer(request("chat", "text_input", parameters=options(seed=3))),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert f"{field}: the engine can't do this" in error.details()


async def test_streams_refuse_what_they_cannot_give(served):
    excluded = pb.ModelInferRequest.InferInputTensor(
        name="exclude_input_in_output", datatype="BOOL", shape=[1], contents=pb.InferTensorContents(bool_contents=[0])
    )
    bad = [
        with_input(request("chat", "text_input", [b"a", b"b"], id="1"), STREAMED),
        with_input(request("chat", "text_input", id="2"), STREAMED, excluded),
        request("nobody", id="3"),
        request(id="4", parameters=options(top_k=0)),
    ]
    answers = {one.infer_response.id: one async for one in stub(served).ModelStreamInfer(iter(bad))}
    assert "inputs[0] (text_input): has 2 elements" in answers["1"].error_message
    assert "inputs[2] (exclude_input_in_output): is false" in answers["2"].error_message
    assert "'nobody' is not served here" in answers["3"].error_message
    assert "parameters.top_k: is 0" in answers["4"].error_message
    for one in answers.values():
        assert one.infer_response.parameters["triton_final_response"].bool_param
        assert not one.infer_response.outputs


async def test_a_dead_engine_ends_no_stream(own_server):
    own_server.engines["chat"].kill()
    requests = [request("chat", "text_input", id="dead"), request(id="alive")]
    answers = {one.infer_response.id: one async for one in stub(own_server).ModelStreamInfer(iter(requests))}
    assert answers["dead"].error_message
    assert not answers["alive"].error_message


async def test_a_timeout_counts_while_the_call_waits(served, refused):
    late = request("chat", "text_input", parameters=options(timeout=0))
    await refused(stub(served).ModelInfer(late), grpc.StatusCode.DEADLINE_EXCEEDED)
    in_time = request("chat", "text_input", parameters=options(timeout=60_000_000))
    assert (await stub(served).ModelInfer(in_time)).outputs
    assert len(served.engines["chat"].tickets) == 1


async def test_prompts_of_one_call_are_answered_as_ours_are(served):
    prompts = ["the film", "a movie", "good"]
    answer = await stub(served).ModelInfer(
        request("chat", "text_input", [one.encode() for one in prompts], parameters=options(max_tokens=2))
    )
    ours = [
        await GenerationServiceStub(served.channel).Generate(
            generation_pb2.GenerateRequest(
                model="chat",
                prompt=generation_pb2.Prompt(text=one),
                sampling=generation_pb2.SamplingParams(max_tokens=2),
            )
        )
        for one in prompts
    ]
    assert [text.decode() for text in answer.outputs[0].contents.bytes_contents] == [
        one + other.completions[0].text for one, other in zip(prompts, ours, strict=True)
    ]
    assert answer.parameters["prompt_tokens"].int64_param == sum(one.usage.prompt_tokens for one in ours)


async def test_one_refused_prompt_ends_the_others(served, refused, until):
    served.engines["chat"].delay = 30
    bad = request("chat", "text_input", [b"a", b"b", b""])
    await refused(stub(served).ModelInfer(bad), grpc.StatusCode.INVALID_ARGUMENT)
    await until(lambda: served.engines["chat"].running == 0)


async def test_readiness_follows_the_models(own_server):
    assert (await stub(own_server).ServerReady(pb.ServerReadyRequest())).ready
    [chat] = [model for model in own_server.app.models if model.name == "chat"]
    chat.state = model_pb2.MODEL_STATE_FAILED
    assert not (await stub(own_server).ServerReady(pb.ServerReadyRequest())).ready
    assert not (await stub(own_server).ModelReady(pb.ModelReadyRequest(name="chat"))).ready
    assert (await stub(own_server).ModelReady(pb.ModelReadyRequest(name="ner"))).ready
    assert (await stub(own_server).ServerLive(pb.ServerLiveRequest())).live


async def test_every_kind_of_model_describes_itself(served):
    for model in served.engines:
        answer = await stub(served).ModelMetadata(pb.ModelMetadataRequest(name=model))
        assert answer.name == model
        assert answer.inputs[0].name == ("text_input" if model == "chat" else "text")
        assert answer.outputs
        assert int(answer.properties["max_inputs"]) > 0
        assert isinstance(json.loads(answer.properties["labels"]), list)


# What no client would send.

tensors = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["text", "text_pair", "text_input", "stream", "sampling_parameters", "", "x"]).map(
        lambda name: name * 20_000 if name == "x" else name
    ),
    datatype=st.sampled_from(["BYTES", "BYTES", "BYTES", "BOOL", "FP32", ""]),
    shape=st.one_of(st.just([1]), st.lists(st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1)), max_size=3)),
    contents=st.none()
    | st.builds(
        pb.InferTensorContents,
        bytes_contents=st.lists(
            st.one_of(st.sampled_from([b"good", b'{"max_tokens": 1}', b"good " * 40]), st.binary(max_size=8)),
            max_size=2,
        ),
        bool_contents=st.lists(st.booleans(), max_size=1),
        fp32_contents=st.lists(st.floats(width=32), max_size=2),
    ),
)
parameters = st.one_of(
    st.just(pb.InferParameter()),
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(pb.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(pb.InferParameter, double_param=st.floats()),
    st.builds(pb.InferParameter, bool_param=st.booleans()),
    st.builds(pb.InferParameter, string_param=st.text(max_size=8) | st.sampled_from(["end", "windows", "-1", "1e400"])),
)
names = st.sampled_from(
    [
        "top_k",
        "truncation",
        "raw_scores",
        "priority",
        "max_tokens",
        "n",
        "seed",
        "stop",
        "structured_outputs",
        "timeout",
    ]
)
anything = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from(["sentiment", "ner", "vectors", "chat", "chat", "nobody", "", "@", "chat@x"]),
    model_version=st.sampled_from(["", "", "", "1", "@"]),
    id=st.text(max_size=4),
    parameters=st.dictionaries(st.one_of(names, names, st.text(max_size=4)), parameters, max_size=2),
    inputs=st.lists(tensors, max_size=3),
    outputs=st.lists(
        st.builds(
            pb.ModelInferRequest.InferRequestedOutputTensor,
            name=st.sampled_from(["label", "scores", "text_output", "embedding", "spans", ""]),
        ),
        max_size=2,
    ),
    raw_input_contents=st.one_of(
        st.just([]), st.lists(st.one_of(st.just(raw(b"good")), st.just(b"\x01"), st.binary(max_size=12)), max_size=3)
    ),
)


def changed(good: pb.ModelInferRequest, change: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """A good request with something more in it."""
    both = pb.ModelInferRequest()
    both.CopyFrom(good)
    both.MergeFrom(change)
    return both


GOOD_OPTIONS = [
    {},
    options(priority=3),
    options(truncation="end"),
    options(max_tokens="2"),
    options(temperature=0.5, stop="a"),
]
# Requests that are nothing in particular, and good ones with something added.
fuzzed = st.one_of(
    anything,
    st.builds(
        changed,
        st.sampled_from([request(), request("ner"), request("vectors"), request("chat", "text_input")]),
        st.one_of(
            st.builds(pb.ModelInferRequest, parameters=st.dictionaries(names, parameters, max_size=1)),
            st.builds(pb.ModelInferRequest, parameters=st.sampled_from(GOOD_OPTIONS)),
            st.builds(pb.ModelInferRequest, inputs=st.lists(tensors, max_size=1)),
            st.builds(pb.ModelInferRequest, raw_input_contents=st.lists(st.binary(max_size=9), max_size=1)),
        ),
    ),
)
everything = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="session")
def blocking(shared_server):
    """A channel for tests that hypothesis runs, which can't wait as the others do."""
    with grpc.insecure_channel(shared_server.app.address) as channel:
        yield GRPCInferenceServiceStub(channel)


def code_of(call, message) -> tuple[grpc.StatusCode, str]:
    """How a call ends."""
    try:
        call(message, timeout=60)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


@pytest.fixture
def in_thread():
    """Runs hypothesis beside the server, which needs the event loop."""
    return asyncio.to_thread


async def test_no_request_is_an_internal_error(served, blocking, in_thread):
    seen: set[grpc.StatusCode] = set()

    @everything
    @given(fuzzed)
    @example(request())
    @example(request("nobody"))
    def ask(one: pb.ModelInferRequest) -> None:
        code, details = code_of(blocking.ModelInfer, one)
        assert code in CODES, details
        seen.add(code)

    await in_thread(ask)
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND} <= seen


async def test_no_request_ends_a_stream(served, blocking, in_thread):
    @settings(everything, max_examples=40)
    @given(st.lists(fuzzed, min_size=1, max_size=5))
    def ask(many: list[pb.ModelInferRequest]) -> None:
        for index, one in enumerate(many):
            one.id = str(index)
        answers = list(blocking.ModelStreamInfer(iter(many), timeout=60))
        final = [
            one.infer_response.id
            for one in answers
            if one.infer_response.parameters["triton_final_response"].bool_param
        ]
        assert sorted(final) == [str(index) for index in range(len(many))]

    await in_thread(ask)
