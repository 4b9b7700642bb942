"""The outputs of classifiers and of models for embeddings, as answers; without a server."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import special

from tuneserve.server.api import classification_answers as answers
from tuneserve.server.api.classification_answers import Result
from tuneserve.server.api.classification_messages import Shown
from tuneserve.server.engine.interface import Encoded
from tuneserve.server.text.spans import Span
from tuneserve.server.text.tokenizer import Tokens
from tuneserve.v1 import checkpoint_pb2
from tuneserve.v1 import classification_pb2 as pb

from .checking import raised

SINGLE, MULTI, NUMBERS = (
    checkpoint_pb2.PROBLEM_TYPE_SINGLE_LABEL,
    checkpoint_pb2.PROBLEM_TYPE_MULTI_LABEL,
    checkpoint_pb2.PROBLEM_TYPE_REGRESSION,
)
LABELS = ["neg", "pos", "mixed"]
TOKENS = Tokens(Encoded([1, 2, 3]), None, 3, False)


def test_scores_are_a_softmax_sigmoids_or_numbers():
    logits = np.array([[0.0, math.log(3.0)]], dtype=np.float32)
    assert answers.probabilities(logits, SINGLE) == pytest.approx(np.array([[0.25, 0.75]]))
    assert answers.probabilities(logits, MULTI) == pytest.approx(np.array([[0.5, 0.75]]))
    assert answers.probabilities(logits, NUMBERS, 5.0) == pytest.approx(logits)
    warm = answers.probabilities(logits, SINGLE, 2.0)[0, 1]
    assert warm == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)))
    # Large logits are no overflow.
    extreme = np.array([[1e30, -1e30]], dtype=np.float32)
    assert answers.probabilities(extreme, SINGLE).tolist() == [[1.0, 0.0]]
    assert answers.probabilities(extreme, MULTI).tolist() == [[1.0, 0.0]]
    logits = np.linspace(-80, 80, 1001, dtype=np.float32)
    assert answers.probabilities(logits, MULTI) == pytest.approx(special.expit(logits.astype(float)), rel=1e-6, abs=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_overflowed_gives_no_answer(bad):
    outputs = np.array([1.0, bad], dtype=np.float32)
    with pytest.raises(ArithmeticError):
        answers.probabilities(outputs, SINGLE)
    with pytest.raises(ArithmeticError):
        answers.embedding(outputs, TOKENS, None, True)


def classified(logits: list[list[float]], shown: Shown) -> tuple[list[list[tuple[str, float]]], list[Any]]:
    """What is shown of each text, and the best labels, which are counted."""
    answer = pb.ClassifyResponse()
    results = [Result(np.array(row, dtype=np.float32), 3, True, 2) for row in logits]
    best = list(answers.add_classifications(answer, results, answers.all_scores(results, shown), shown))
    assert all((one.token_count, one.truncated, one.windows) == (3, True, 2) for one in answer.results)
    return [[(one.label, round(one.score, 4)) for one in result.labels] for result in answer.results], best


def test_labels_come_best_first_and_equal_ones_in_their_order():
    found, best = classified([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0]], Shown(LABELS, NUMBERS))
    assert [[label for label, _ in one] for one in found] == [["pos", "neg", "mixed"], LABELS]
    assert best == [("pos", 2.0), ("neg", 0.0)]
    many = [f"label {index}" for index in range(100)]
    [[*labels]], _ = classified([[1.0, 2.0] * 50], Shown(many, SINGLE))
    assert [label for label, _ in labels] == many[1::2] + many[::2]


def test_what_is_too_unlikely_is_left_out_and_the_best_is_known_still():
    third = math.log(0.2), math.log(0.3), math.log(0.5)
    found, best = classified([list(third)], Shown(LABELS, SINGLE, least=[0.0, 0.4, 0.6]))
    assert found == [[("neg", 0.2)]]
    assert best == [("mixed", pytest.approx(0.5))]
    found, _ = classified([list(third)], Shown(LABELS, SINGLE, top_k=1, least=[0.1, 0.1, 0.1]))
    assert found == [[("mixed", 0.5)]]


def test_raw_scores_are_shown_by_what_their_probabilities_are():
    found, best = classified([[-1.0, 3.0, 0.0]], Shown(LABELS, SINGLE, top_k=1, raw=True))
    assert found == [[("pos", 3.0)]]
    assert 0.9 < best[0][1] < 1


@pytest.mark.parametrize(("unit", "places"), [("code_point", (2, 4)), ("utf8", (5, 8)), ("utf16", (3, 5))])
def test_spans_have_places_in_the_callers_unit_and_their_own_text(unit, places):
    response = pb.ClassifyTokensResponse()
    for _ in answers.add_spans(response, "🙂 né", [Span("PER", 0.5, 2, 4)], unit, TOKENS):
        pass
    [answer] = response.results
    [span] = answer.spans
    assert (span.label, span.score, span.text, answer.token_count) == ("PER", 0.5, "né", 3)
    assert (span.start, span.end) == places


def test_a_vector_is_cut_and_then_scaled():
    vector = np.array([3.0, 4.0, 12.0], dtype=np.float32)
    assert list(answers.embedding(vector, TOKENS, None, False).values) == [3, 4, 12]
    assert list(answers.embedding(vector, TOKENS, 2, True).values) == pytest.approx([0.6, 0.8])
    assert list(answers.embedding(vector * 0, TOKENS, None, True).values) == [0, 0, 0]
    assert str(raised(answers.embedding, vector, TOKENS, 4, True)) == "dimensions: is 4; allowed: 1 to 3"
