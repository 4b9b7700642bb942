"""One request of the Open Inference Protocol in our terms: what it takes and gives, and how errors name its parts."""

import json

import pytest

from tuneserve.oip import inference_pb2 as pb
from tuneserve.server.call import context
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.call.tenants import Tenant
from tuneserve.server.engine.interface import RequestRefused
from tuneserve.server.metrics import Metrics
from tuneserve.server.open_inference.job import FORMS, Job
from tuneserve.v1 import checkpoint_pb2, classification_pb2, common_pb2, generation_pb2

CLASSIFIES, GENERATES = checkpoint_pb2.TASK_SEQUENCE_CLASSIFICATION, checkpoint_pb2.TASK_GENERATION
STOP, LENGTH = generation_pb2.FINISH_REASON_STOP, generation_pb2.FINISH_REASON_LENGTH


def texts(name: str, *values: str) -> pb.ModelInferRequest.InferInputTensor:
    contents = pb.InferTensorContents(bytes_contents=[value.encode() for value in values])
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[len(values)], contents=contents)


def flag(name: str, value: bool) -> pb.ModelInferRequest.InferInputTensor:
    contents = pb.InferTensorContents(bool_contents=[value])
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype="BOOL", shape=[1], contents=contents)


def job(*inputs: pb.ModelInferRequest.InferInputTensor, task: int = GENERATES, most: int = 8, **fields) -> Job:
    return Job.of(pb.ModelInferRequest(model_name="m", inputs=inputs, **fields), "m@1", task, most, None)


def wrong(task: int) -> pb.ModelInferRequest.InferInputTensor:
    return texts("text_pair" if task == CLASSIFIES else "sampling_parameters", "{}")


def test_every_task_of_a_checkpoint_has_a_form():
    assert set(FORMS) == set(checkpoint_pb2.Task.values()) - {checkpoint_pb2.TASK_UNSPECIFIED}


@pytest.mark.parametrize(("task", "name"), [(CLASSIFIES, "text"), (GENERATES, "text_input")])
def test_the_first_input_is_needed(task, name):
    assert job(texts(name, "a", "b"), task=task).texts.values == ["a", "b"]
    with pytest.raises(InvalidInput, match=f"^inputs: has no {name}; a tensor of that name is needed"):
        job(wrong(task), task=task)
    with pytest.raises(InvalidInput):
        job(texts(name, "a", "b"), task=task, most=1)


def test_all_outputs_are_given_unless_some_are_named():
    assert list(job(texts("text_input", "a")).names) == ["text_output", "finish_reason", "num_output_tokens"]
    some = [pb.ModelInferRequest.InferRequestedOutputTensor(name="finish_reason")]
    assert list(job(texts("text_input", "a"), outputs=some).names) == ["finish_reason"]


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_has_a_default(value):
    given, absent = job(texts("text_input", "a"), flag("stream", value)), job(texts("text_input", "a"))
    assert (given.flag("stream"), given.flag("stream", default=True)) == (value, value)
    assert (absent.flag("stream"), absent.flag("stream", default=True)) == (False, True)


def test_options_come_from_parameters_and_a_tensor_which_goes_first():
    one = job(texts("text_input", "a"), texts("sampling_parameters", json.dumps({"max_tokens": 3, "top_k": 2})))
    one.request.parameters["max_tokens"].int64_param = 5
    one.request.parameters["priority"].int64_param = 7
    with one.generation(generation_pb2.GenerateRequest()) as message:
        assert (message.model, message.priority) == ("m@1", 7)
        assert (message.sampling.max_tokens, message.sampling.top_k) == (3, 2)


def named(one: Job, error: Exception) -> str:
    """What the caller is told was wrong with one of our own requests."""
    with pytest.raises(InvalidInput) as caught, one.generation(generation_pb2.GenerateRequest()):
        raise error
    return caught.value.field


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("prompt", "inputs[0] (text_input)[0]"),
        ("prompt.token_ids.ids[3]", "inputs[0] (text_input)[0]"),
        ("sampling.max_tokens", "parameters.max_tokens"),
        ("sampling.top_k", "inputs[1] (sampling_parameters).top_k"),
        ("sampling.stop[2]", "inputs[1] (sampling_parameters).stop[2]"),
        ("sampling", "parameters"),
        ("adapter", "parameters.adapter"),
        ("model", "parameters.model"),
    ],
)
def test_a_field_of_ours_is_named_as_the_caller_wrote_it(field, path):
    given = texts("sampling_parameters", json.dumps({"top_k": 2, "stop": ["a", "b"]}))
    one = job(texts("text_input", "a"), given)
    one.request.parameters["max_tokens"].int64_param = 5
    assert named(one, InvalidInput(field, "is wrong")) == path


def test_what_the_engine_refuses_is_named_too():
    one = job(texts("text_input", "a"))
    one.request.parameters["top_k"].int64_param = 5
    assert named(one, RequestRefused("top_k")) == "parameters.top_k"


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("inputs", "inputs[1] (text)"),
        ("inputs[1].text", "inputs[1] (text)[1]"),
        ("inputs[0].text_pair", "inputs[0] (text_pair)[0]"),
        ("texts[1]", "inputs[1] (text)[1]"),
        ("thresholds[a.b]", "parameters.thresholds[a.b]"),
        ("windows.overlap", "parameters.windows.overlap"),
    ],
)
def test_a_text_is_named_by_its_tensor(field, path):
    one = job(texts("text_pair", "c", "d"), texts("text", "a", "b"), task=CLASSIFIES)
    request = classification_pb2.ClassifyRequest()
    with pytest.raises(InvalidInput) as caught, one.named((request, ("top_k",))):
        raise InvalidInput(field, "is wrong")
    assert (caught.value.field, caught.value.description) == (path, "is wrong")


def completion(text: str, finish: int = STOP) -> generation_pb2.Completion:
    return generation_pb2.Completion(text=text, token_ids=[1] * len(text), finish_reason=finish)


@pytest.mark.parametrize(
    ("made", "shape"),
    [([["a"]], (1,)), ([["a", "b"]], (2,)), ([["a"], ["b"]], (2,)), ([["a", "b", "c"], ["d", "e", "f"]], (2, 3))],
)
def test_completions_have_a_row_a_prompt_only_where_both_are_several(made, shape):
    one = job(texts("text_input", *("x" * len(made))))
    [written, *_] = outputs = one.completions([[completion(text) for text in row] for row in made], prepend=False)
    assert [tuple(output.shape) for output in outputs] == [shape] * 3
    assert written.values == [text.encode() for row in made for text in row]


def test_a_completion_is_a_text_why_it_ended_and_its_tokens():
    made = [[completion("ab", LENGTH)], [completion("c", generation_pb2.FINISH_REASON_UNSPECIFIED)]]
    text, why, count = job(texts("text_input", "é ", "x ")).completions(made, prepend=True)
    assert text.values == ["é ab".encode(), b"x c"]
    assert (why.values, count.values) == ([b"length", b""], [2, 1])


@pytest.mark.parametrize("raw", [True, False])
async def test_an_answer_comes_in_the_form_of_its_request(raw):
    call = context.Call("req-1", "ModelInfer", Tenant("acme"), {}, Metrics(), version="abc")
    context.begin(call)
    tensor = pb.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])
    one = job(tensor, id="7", raw_input_contents=[b"\1\0\0\0a"]) if raw else job(texts("text_input", "a"), id="7")
    outputs = one.completions([[completion("b")]], prepend=False)
    response = await one.response(outputs, common_pb2.Usage(prompt_tokens=3, completion_tokens=1))
    assert (response.model_name, response.model_version, response.id) == ("m", "abc", "7")
    assert bool(response.raw_output_contents) == raw
    assert [output.name for output in response.outputs] == list(one.names)
    counts = [response.parameters[f"{of}_tokens"].int64_param for of in ("prompt", "completion")]
    assert counts == [3, 1]
