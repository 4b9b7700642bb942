"""Classification's and embedding's requests: what is checked of them, and what they ask for; without a server."""

import math

import pytest

from tuneserve.server.api import classification_messages as convert
from tuneserve.server.api.classification_messages import LongTexts, Shown
from tuneserve.v1 import checkpoint_pb2, common_pb2, embedding_pb2
from tuneserve.v1 import classification_pb2 as pb

from .checking import good, refusal

SINGLE, MULTI, NUMBERS = (
    checkpoint_pb2.PROBLEM_TYPE_SINGLE_LABEL,
    checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL,
    checkpoint_pb2.PROBLEM_TYPE_REGRESSION,
)
WINDOWS = common_pb2.TRUNCATION_WINDOWS
LABELS = ["neg", "pos", "mixed"]


def inputs(*texts: str | tuple[str, str]) -> list[pb.ClassifyInput]:
    return [
        pb.ClassifyInput(text=one) if isinstance(one, str) else pb.ClassifyInput(text=one[0], text_pair=one[1])
        for one in texts
    ]


def request(*texts: str | tuple[str, str], **fields) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model="m", inputs=inputs(*texts), **fields)


def test_a_text_with_another_is_a_pair():
    assert good(convert.checked_pairs, request("a", ("b", "c")), 2) == ["a", ("b", "c")]
    assert refusal(convert.checked_pairs, request("a", "b", "c"), 2).field == "inputs"


def test_all_blank_texts_of_a_call_are_named_at_once():
    error = refusal(convert.checked_pairs, request("a", " ", ("", "b"), ("c", "")), 8)
    # A text pair that is there and empty is no text pair that is absent.
    assert [field for field, _ in error.violations] == ["inputs[1].text", "inputs[2].text", "inputs[3].text_pair"]
    error = refusal(convert.texts, pb.ClassifyTokensRequest(texts=["a", "", " "]), 8)
    assert [field for field, _ in error.violations] == ["texts[1]", "texts[2]"]


def test_how_spans_are_shown_is_checked_with_the_texts():
    error = refusal(convert.texts, pb.ClassifyTokensRequest(texts=[""], aggregation=9, offset_unit=9), 8)
    assert [field for field, _ in error.violations] == ["texts[0]", "aggregation", "offset_unit"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, LongTexts()),
        ({"truncation": common_pb2.TRUNCATION_END}, LongTexts(truncate=True)),
        ({"truncation": WINDOWS}, LongTexts(overlap=8)),
        ({"truncation": WINDOWS, "windows": pb.Windows(overlap=0)}, LongTexts(overlap=0)),
        (
            {"truncation": WINDOWS, "windows": pb.Windows(overlap=16, pooling=pb.WINDOW_POOLING_MAX)},
            LongTexts(overlap=16, pooling="max"),
        ),
    ],
)
def test_long_texts_are_refused_truncated_or_read_in_windows(fields, expected):
    assert good(convert.long_texts, request("a", **fields), 32, 8) == expected
    assert good(convert.long_texts, pb.ClassifyTokensRequest(texts=["a"], **fields), 32, 8) == expected


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (request("a", truncation=9), "truncation"),
        (request("a", windows=pb.Windows()), "windows"),
        (request("a", truncation=common_pb2.TRUNCATION_END, windows=pb.Windows(overlap=1)), "windows"),
        (request("a", truncation=WINDOWS, windows=pb.Windows(overlap=17)), "windows.overlap"),
        (request("a", truncation=WINDOWS, windows=pb.Windows(overlap=-1)), "windows.overlap"),
        (request("a", truncation=WINDOWS, windows=pb.Windows(pooling=9)), "windows.pooling"),
        (request("a", ("b", "c"), truncation=WINDOWS), "inputs[1].text_pair"),
    ],
)
def test_windows_that_cannot_be_made_are_refused(given, field):
    assert refusal(convert.long_texts, given, 32, 8).field == field


def test_calls_without_windows_say_what_to_use():
    assert good(convert.truncation, common_pb2.TRUNCATION_END, windows=False)
    assert not good(convert.truncation, common_pb2.TRUNCATION_REJECT, windows=False)
    assert "use TRUNCATION_REJECT or" in refusal(convert.truncation, WINDOWS, windows=False).description


def test_a_labels_own_threshold_goes_before_the_calls():
    shown = good(convert.shown, request("a", threshold=0.5, thresholds={"pos": 0.0}, top_k=2), LABELS, SINGLE, 2.0)
    assert shown == Shown(LABELS, SINGLE, 2, False, [0.5, 0.0, 0.5], 2.0)
    assert good(convert.shown, request("a", thresholds={"pos": 0.0}), LABELS, SINGLE).least is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"top_k": 0}, ["top_k"]),
        ({"offset_unit": 9}, ["offset_unit"]),
        ({"threshold": math.nan}, ["threshold"]),
        ({"threshold": -0.1, "thresholds": {"pos": 1.1}}, ["threshold", "thresholds[pos]"]),
        ({"thresholds": {"other": 0.5}}, ["thresholds[other]"]),
    ],
)
def test_what_cannot_be_shown_is_refused(fields, named):
    error = refusal(convert.shown, request("a", **fields), LABELS, SINGLE)
    assert [field for field, _ in error.violations] == named


def test_labels_of_the_model_are_listed_and_the_callers_own_are_not():
    of_model = refusal(convert.shown, request("a", thresholds={"other": 0.5}), LABELS, SINGLE)
    of_call = refusal(convert.shown, request("a", thresholds={"other": 0.5}, labels=LABELS), LABELS, SINGLE)
    assert of_model.description.endswith("labels: neg, pos, mixed")
    assert of_call.description == "is not among the labels"


@pytest.mark.parametrize(
    ("fields", "field"), [({"threshold": 0.5}, "threshold"), ({"explain": pb.Explain()}, "explain")]
)
def test_numbers_have_no_probabilities(fields, field):
    assert good(convert.shown, request("a", raw_scores=True), ["stars"], NUMBERS).raw
    assert refusal(convert.shown, request("a", **fields), ["stars"], NUMBERS).field == field


def test_a_single_output_is_a_yes_or_no_unless_it_is_a_number():
    def problem(labels: list[str], of: int) -> int:
        return convert.problem_of(checkpoint_pb2.Checkpoint(labels=labels, problem_type=of))

    assert problem(["spam"], SINGLE) == MULTI
    assert problem(["stars"], NUMBERS) == NUMBERS
    assert problem(LABELS, SINGLE) == SINGLE


def test_the_label_that_ranks_is_named_where_there_are_several():
    assert good(convert.rank_label, pb.RankRequest(label="mixed"), LABELS) == 2
    assert good(convert.rank_label, pb.RankRequest(), ["relevant"]) == 0
    for bad, field in (
        (pb.RankRequest(), "label"),
        (pb.RankRequest(label="x"), "label"),
        (pb.RankRequest(label="pos", top_k=0), "top_k"),
    ):
        assert refusal(convert.rank_label, bad, LABELS).field == field


def test_a_result_is_as_wide_as_its_labels():
    assert Shown(["a", "bcd"], SINGLE).width(10) == 2 * (10 + 2)
    assert Shown(["a", "bcd"], SINGLE, top_k=1).width(10) == 10 + 2
    assert Shown(["a", "bcd"], SINGLE, top_k=99).width(10) == 2 * (10 + 2)


def test_a_vector_has_at_least_one_dimension():
    assert refusal(convert.dimensions, embedding_pb2.EmbedRequest(dimensions=0)).field == "dimensions"
    assert good(convert.dimensions, embedding_pb2.EmbedRequest()) is None
