"""Requests in vLLM's form and its output in ours, with vLLM's own classes and no engine."""

import json
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tuneserve.server.engine.interface import (
    Alternative,
    Encoded,
    EngineFailed,
    Logprob,
    RequestRefused,
    Sampling,
    StructuredOutput,
)


@pytest.fixture(scope="module")
def requests(make_parsers) -> ModuleType:
    """The module; vLLM is imported as that fixture does it, without a word of its own."""
    from tuneserve.server.engine import requests

    return requests


def good(params: Any) -> None:
    """vLLM's check for a model that takes everything."""


def test_a_text_asks_for_what_the_model_gives(requests):
    params = requests.pooling_params(Encoded([1, 2]), "classify")
    assert (params.task, params.use_activation, params.extra_kwargs) == ("classify", False, None)
    pair = requests.pooling_params(Encoded([1, 2, 3], pair_start=2), "classify")
    assert pair.extra_kwargs == {"compressed_token_type_ids": 2}
    assert pair.clone() is pair


def test_all_of_a_sampling_reaches_vllm(requests):
    given = {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "seed": 3,
        "stop": ["x"],
        "stop_token_ids": [4],
        "min_tokens": 1,
        "ignore_eos": True,
        "logprobs": 2,
        "prompt_logprobs": 1,
        "logit_bias": {5: -1.0},
        "allowed_token_ids": [5, 6],
        "bad_words": ["y"],
        "skip_special_tokens": False,
    }
    params = requests.sampling_params(Sampling(**given, include_stop_text=True), True, good)
    assert {name: getattr(params, name) for name in given} == given
    assert params.include_stop_str_in_output
    assert params.structured_outputs is None
    # What vLLM takes for something else when it is empty.
    plain = requests.sampling_params(Sampling(9), False, good)
    assert (plain.logit_bias, plain.allowed_token_ids) == (None, None)
    assert plain.output_kind != params.output_kind


def test_vllm_looks_once(requests):
    looked: list[object] = []
    params = requests.sampling_params(Sampling(9), False, looked.append)
    assert looked == [params]
    params.verify("whatever", it="is given")


class Refusal(ValueError):
    """As vLLM's: it names the parameter, and repeats the prompt."""

    def __init__(self, parameter: str) -> None:
        super().__init__("secret words")
        self.parameter = parameter


@pytest.mark.parametrize(
    ("parameter", "field"),
    [
        ("logit_bias", "logit_bias"),
        ("include_stop_str_in_output", "include_stop_text"),
        ("structured_outputs", ""),
        ("something_new", ""),
        ("", ""),
    ],
)
def test_a_refusal_names_the_callers_field_and_repeats_nothing(requests, parameter, field):
    def verify(params: Any) -> None:
        raise Refusal(parameter)

    with pytest.raises(RequestRefused) as caught:
        requests.sampling_params(Sampling(9), False, verify)
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_what_vllm_itself_refuses_is_a_refusal(requests):
    with pytest.raises(RequestRefused):
        requests.sampling_params(Sampling(9, temperature=-1.0), False, good)


def constraint(requests: ModuleType, kind: Any, value: Any) -> Any:
    def verify(params: Any) -> None:
        # It has something in its place, and none of the caller's text.
        assert params.structured_outputs.regex == "a"
        params.structured_outputs._backend = "guidance"

    sampling = Sampling(9, structured=StructuredOutput(kind, value))
    made = requests.sampling_params(sampling, False, verify).structured_outputs
    assert made._backend == "guidance", "as vLLM chose"
    return made


def test_constraints_are_set_behind_vllms_look(requests):
    assert constraint(requests, "regex", "b+").regex == "b+"
    assert constraint(requests, "grammar", "root ::= x").grammar == "root ::= x"
    assert constraint(requests, "choice", ("a", "b")).choice == ["a", "b"]
    assert constraint(requests, "json", '{"type": "object", "type": "array"}').json == '{"type": "array"}'
    assert constraint(requests, "json", "{}").json_object
    fits = {"type": "array", "minItems": 5_000, "items": {"type": "array", "maxItems": 5_000}}
    assert json.loads(constraint(requests, "json", json.dumps(fits)).json) == fits


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("grammar", "start: %json {}"),
        ("json", "[]"),
        ("json", "not JSON"),
        ("json", "[" * 100_000),
        ("json", '{"maxItems": 10001}'),
        ("json", '{"minItems": 10001}'),
        ("json", '{"anyOf": [{"minItems": 5001}, {"minItems": 5000}]}'),
        ("json", '{"minItems": -9999, "maxItems": 19999}'),
        ("json", '{"minItems": NaN, "maxItems": 19999}'),
        ("json", '{"maxItems": 1e999}'),
    ],
)
def test_what_would_take_the_engine_down_never_reaches_it(requests, kind, value):
    with pytest.raises(RequestRefused) as caught:
        constraint(requests, kind, value)
    assert caught.value.field == "structured_output"


def test_a_prompt_is_cached_for_its_salt_alone(requests):
    assert requests.prompt((1, 2), "acme")["prompt_token_ids"] == [1, 2]
    assert requests.prompt((1, 2), "acme")["cache_salt"] == "acme"
    assert "cache_salt" not in requests.prompt((1, 2), "")


def entry(logprob: float, rank: int, text: str | None) -> SimpleNamespace:
    return SimpleNamespace(logprob=logprob, rank=rank, decoded_token=text)


def output(**fields: Any) -> tuple[Any, Any]:
    """A completion, and the output that it is part of."""
    completion = {"index": 0, "text": "ab", "token_ids": (7, 8), "logprobs": None, "stop_reason": None}
    whole = {key: fields.pop(key, None) for key in ("prompt_logprobs", "prompt_token_ids")}
    return SimpleNamespace(**{**completion, "finish_reason": None, **fields}), SimpleNamespace(**whole)


@pytest.mark.parametrize(
    ("given", "finish", "text", "token"),
    [
        ({}, None, "", None),
        ({"finish_reason": "length"}, "length", "", None),
        ({"finish_reason": "stop"}, "stop", "", None),
        ({"finish_reason": "stop", "stop_reason": "x"}, "stop", "x", None),
        ({"finish_reason": "stop", "stop_reason": 0}, "stop", "", 0),
    ],
)
async def test_what_ended_a_completion(requests, given, finish, text, token):
    made = await requests.delta(*output(**given), Sampling(9))
    assert (made.index, made.text, made.token_ids) == (0, "ab", [7, 8])
    assert (made.finish, made.stop_text, made.stop_token_id) == (finish, text, token)


@pytest.mark.parametrize(
    ("finish", "structured", "error"),
    [
        ("abort", None, EngineFailed),
        ("error", None, EngineFailed),
        ("abort", StructuredOutput("regex", "a"), EngineFailed),
        ("error", StructuredOutput("regex", "a"), RequestRefused),
    ],
)
async def test_what_went_wrong_is_the_engines_or_the_constraints(requests, finish, structured, error):
    with pytest.raises(error):
        await requests.delta(*output(finish_reason=finish), Sampling(9, structured=structured))


async def test_the_likeliest_come_first_and_the_token_that_stands_is_known(requests):
    # Of a sampled token that is none of the likeliest vLLM gives one more.
    position = {5: entry(-3.0, 9, "e"), 6: entry(-0.5, 1, "f"), 7: entry(-1.0, 2, None)}
    given = output(
        token_ids=(5,), logprobs=[position], prompt_logprobs=[None, {2: entry(-0.1, 1, "b")}], prompt_token_ids=[1, 2]
    )
    made = await requests.delta(*given, Sampling(9, logprobs=2, prompt_logprobs=1))
    assert made.logprobs == [Logprob(5, -3.0, [Alternative(6, -0.5, "f"), Alternative(7, -1.0, "")])]
    assert made.prompt_logprobs == [Logprob(2, -0.1, [Alternative(2, -0.1, "b")])]
