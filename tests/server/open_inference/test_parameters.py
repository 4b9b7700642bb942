"""Options of the Open Inference Protocol: by our names and vLLM's, in whatever type a client can send."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tuneserve.oip import inference_pb2
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.open_inference import parameters as options
from tuneserve.v1 import classification_pb2, common_pb2, generation_pb2

NAMES = tuple(field.name for field in generation_pb2.SamplingParams.DESCRIPTOR.fields)


def sampling(**values) -> generation_pb2.SamplingParams:
    message = generation_pb2.SamplingParams()
    options.fill([(message, NAMES)], values, "parameters")
    return message


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        ({"max_tokens": 5, "temperature": 0.5}, {"max_tokens": 5, "temperature": 0.5}),
        ({"max_tokens": "100", "temperature": "0.1"}, {"max_tokens": 100, "temperature": 0.1}),  # as Triton's sample
        ({"max_tokens": 5.0, "temperature": 1}, {"max_tokens": 5, "temperature": 1}),
        ({"max_tokens": None, "stop": None, "structured_outputs": None}, {}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": "\n"}, {"stop": ["\n"]}),
        ({"stop": ["a", "b"], "stop_token_ids": [3]}, {"stop": ["a", "b"], "stop_token_ids": [3]}),
        ({"ignore_eos": True, "include_stop_str_in_output": True}, {"ignore_eos": True, "include_stop_text": True}),
        ({"logit_bias": {"5": -1.5}}, {"logit_bias": {5: -1.5}}),
    ],
)
def test_sampling_by_name(values, fields):
    assert sampling(**values) == generation_pb2.SamplingParams(**fields)


@pytest.mark.parametrize(
    ("given", "kind", "content"),
    [
        ({"json": {"type": "object"}}, "json_schema", '{"type": "object"}'),
        ({"json": '{"type": "object"}'}, "json_schema", '{"type": "object"}'),
        ({"regex": "a+"}, "regex", "a+"),
        ('{"regex": "a+"}', "regex", "a+"),  # Triton takes it as text
        ({"grammar": "root ::= x"}, "grammar", "root ::= x"),
        ({"choice": ["a", "b"]}, "choice", generation_pb2.Choice(options=["a", "b"])),
    ],
)
def test_structured_outputs_of_vllm(given, kind, content):
    structured = sampling(structured_outputs=given).structured_output
    assert structured.WhichOneof("constraint") == kind
    assert getattr(structured, kind) == content


@pytest.mark.parametrize(
    ("values", "where", "what"),
    [
        ({"max_token": 5}, "parameters.max_token", "is not an option of this model; allowed: max_tokens, temperature"),
        ({"a secret\n": 5}, "parameters", "is not an option"),
        ({"max_tokens": "many secrets"}, "parameters.max_tokens", "is not a whole number"),
        ({"max_tokens": 1.5}, "parameters.max_tokens", "is not a whole number"),
        ({"max_tokens": 1e300}, "parameters.max_tokens", "is not a whole number"),
        ({"max_tokens": True}, "parameters.max_tokens", "is not a whole number"),
        ({"temperature": [1]}, "parameters.temperature", "is not a number"),
        ({"ignore_eos": 1}, "parameters.ignore_eos", "is not true or false"),
        ({"stop": [1]}, "parameters.stop", "is not a list, each text"),
        ({"logit_bias": {"x": 1}}, "parameters.logit_bias", "is not a JSON object of numbers by token id"),
        ({"logit_bias": 3}, "parameters.logit_bias", "is not a JSON object of numbers by token id"),
        ({"include_stop_str_in_output": 3}, "parameters.include_stop_str_in_output", "is not true or false"),
        *(
            ({"structured_outputs": bad}, "parameters.structured_outputs", 'is not one of {"json": ...}')
            for bad in ("secret", "[1]", 3, {}, {"regex": 1}, {"regex": "a", "json": {}}, {"secret": 1}, {"choice": 3})
        ),
    ],
)
def test_what_is_no_option_is_refused_by_name(values, where, what):
    with pytest.raises(InvalidInput) as caught:
        sampling(**values)
    assert caught.value.field == where
    assert what in caught.value.description
    assert "secret" not in str(caught.value)


def test_all_bad_options_are_named():
    with pytest.raises(InvalidInput) as caught:
        sampling(max_token=5, temperature="warm", top_p=0.5, seed=True)
    assert [field for field, _ in caught.value.violations] == [
        *("parameters.max_token", "parameters.temperature", "parameters.seed")
    ]
    # Not looked at one by one.
    with pytest.raises(InvalidInput, match="has 65 entries; allowed: 64"):
        sampling(**{f"option{index}": 1 for index in range(65)})


@pytest.mark.parametrize("word", ["end", "END", "TRUNCATION_END", 2])
def test_an_enumeration_takes_the_short_word(word):
    message = classification_pb2.ClassifyRequest()
    paths = options.fill([(message, ("truncation", "top_k"))], {"truncation": word}, "parameters")
    assert message.truncation == common_pb2.TRUNCATION_END
    assert paths == {"truncation": "parameters.truncation"}
    with pytest.raises(InvalidInput, match=r"parameters\.truncation: is not one of reject, end, windows"):
        options.fill([(message, ("truncation",))], {"truncation": "ends"}, "parameters")


def test_each_option_goes_to_the_first_message_that_takes_it():
    params, request = generation_pb2.SamplingParams(), generation_pb2.GenerateRequest()
    targets = [(params, ("seed",)), (request, ("adapter", "priority"))]
    paths = options.fill(targets, {"seed": 3, "lora_name": "french", "priority": 2}, "parameters")
    assert (params.seed, request.adapter, request.priority) == (3, "french", 2)
    assert paths == {"seed": "parameters.seed", "adapter": "parameters.lora_name", "priority": "parameters.priority"}


def test_parameters_of_a_request():
    request = inference_pb2.ModelInferRequest()
    request.parameters["a"].bool_param = False
    request.parameters["b"].int64_param = -3
    request.parameters["c"].string_param = "x"
    request.parameters["d"].double_param = 0.5
    request.parameters["e"].uint64_param = 2**64 - 1
    request.parameters["f"].SetInParent()
    request.parameters["timeout"].int64_param = 5
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    assert options.parameters(request) == {"a": False, "b": -3, "c": "x", "d": 0.5, "e": 2**64 - 1, "f": None}


@pytest.mark.parametrize("text", ["", "secret", "[1]", "3", "[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "nul"])
def test_text_that_is_no_object_is_refused(text):
    with pytest.raises(InvalidInput) as caught:
        options.parse(text, "inputs[1] (sampling_parameters)")
    assert caught.value.field == "inputs[1] (sampling_parameters)"
    assert "secret" not in str(caught.value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1e400", "Infinity", "NaN", "-1", "0x1", "१"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("json"), inner, max_size=2)
    ),
    max_leaves=5,
)


def refusal(message, names, values) -> InvalidInput | None:
    try:
        options.fill([(message, names)], values, "parameters")
    except InvalidInput as error:
        return error
    return None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*NAMES, "structured_outputs", "other"]), json_values, max_size=4))
@example({"structured_output": json.dumps({"json": 1})})
def test_any_value_is_taken_or_refused(values):
    message = generation_pb2.SamplingParams()
    error = refusal(message, NAMES, values)
    assert error is None or error.field.startswith("parameters.")
    assert generation_pb2.SamplingParams.FromString(message.SerializeToString()) is not None


@given(st.dictionaries(st.sampled_from(["truncation", "top_k", "raw_scores", "priority"]), json_values, max_size=4))
def test_any_option_of_a_classification_is_taken_or_refused(values):
    message = classification_pb2.ClassifyRequest()
    error = refusal(message, ("truncation", "top_k", "raw_scores", "priority"), values)
    assert error is None or error.field.startswith("parameters.")
