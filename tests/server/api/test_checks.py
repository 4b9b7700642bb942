"""Checks that several calls make: what is refused, by which name, and at which bound."""

import pytest

from tuneserve.server.api.checks import check_count, check_enum, check_text, check_tokens, check_unset, listed
from tuneserve.server.call.errors import Violations
from tuneserve.server.engine.interface import Encoded
from tuneserve.server.text.tokenizer import Tokens
from tuneserve.v1 import classification_pb2 as pb
from tuneserve.v1 import common_pb2

from .checking import good, raised, refusal

GOOD = [5, 6, 7]


def tokens(ids: list[int], truncated: bool = False) -> Tokens:
    return Tokens(Encoded(ids), None, len(ids), truncated)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (tokens([5] * 4), "has 4 tokens, the model takes 3; shorten it or set TRUNCATION_END"),
        (tokens([5] * 4, truncated=True), "is far too long, the model takes 3"),
        (tokens([]), "contains nothing that the model reads"),
        (tokens([5, 10]), "has a token that the model does not know"),
    ],
)
def test_all_inputs_that_a_model_cannot_take_are_named(bad, what):
    error = raised(check_tokens, "inputs[{}].text", [tokens(GOOD), bad, tokens([])], 3, 10)
    assert [field for field, _ in error.violations] == ["inputs[1].text", "inputs[2].text"]
    assert error.description.startswith(what)


def test_as_many_tokens_as_the_model_takes_and_its_last_one_are_good():
    check_tokens("texts[{}]", [tokens([0, 9, 0]), tokens(GOOD)], 3, 10)
    check_tokens("texts[{}]", [tokens(GOOD * 1000)], None, 10)
    # An input of which nobody kept the ids, and that was cut, is as long as was asked for.
    check_tokens("texts[{}]", [tokens(GOOD, truncated=True)], 3, 10)


def test_what_helps_against_a_long_input_is_the_calls_own():
    error = raised(check_tokens, "query", [tokens(GOOD)], 2, 10, remedy="ask for less")
    assert error.description.endswith("; ask for less")


@pytest.mark.parametrize("count", [0, 4])
def test_a_count_is_one_to_its_limit(count):
    assert good(check_count, "texts", 1, 3)
    assert good(check_count, "texts", 3, 3)
    assert good(check_count, "texts", 0, 3, least=0)
    # Too many are not looked at.
    assert check_count(Violations(), "texts", count, 3) == (count < 4)
    error = refusal(check_count, "texts", count, 3)
    assert (error.field, error.description) == ("texts", f"has {count} entries; allowed: 1 to 3")


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_a_text_has_more_than_white_space(text):
    good(check_text, "query", " a ")
    assert refusal(check_text, "query", text).field == "query"


def test_a_value_of_a_newer_client_is_refused():
    good(check_enum, "truncation", common_pb2.TRUNCATION_END, common_pb2.Truncation.values())
    error = refusal(check_enum, "truncation", 99, common_pb2.Truncation.values())
    assert str(error) == "truncation: is 99, which this server does not know"


def test_fields_for_other_models_are_refused_only_where_they_are_set():
    request = pb.ClassifyRequest(model="m", labels=["a"], threshold=0.0)
    good(check_unset, request, ["instruction", "examples"], "is for generation models")
    # With presence a value of nothing is set, too.
    request.instruction = ""
    error = refusal(check_unset, request, ["examples", "instruction"], "is for generation models")
    assert (error.field, error.description) == ("instruction", "is for generation models")


def test_a_message_has_room_for_some_labels():
    assert listed(["neg", "pos"]) == "neg, pos"
    many = listed(["x" * 1000] * 21)
    assert many == ", ".join(["x" * 64] * 20 + ["..."])
    assert not listed([str(index) for index in range(20)]).endswith("...")
