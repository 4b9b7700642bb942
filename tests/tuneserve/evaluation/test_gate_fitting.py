import random

import pytest

from tuneserve.evaluation.gate import FEATURES
from tuneserve.evaluation.gate_fitting import Seen, fitted, measured, seen
from tuneserve.v1 import answer_pb2 as pb


def rows(count: int, noise: float, seed: int = 0) -> list[Seen]:
    """Queries seen twice; only their overlap tells whether they are answered."""
    chance, found = random.Random(seed), list[Seen]()
    for number in range(count):
        for label in (True, False):
            tells = {"overlap": label + chance.gauss(0, noise), "length": chance.random()}
            found.append(Seen(number, tells, label, label and number % 2 == 0))
    return found


def test_a_query_is_seen_with_its_answers_and_without() -> None:
    passages = [pb.Passage(document_id=id_, text=text) for id_, text in (("a", "cats"), ("b", "dogs"), ("a", "birds"))]
    with_, without = seen(7, "cats", passages, {"a"})
    assert (with_.query, with_.is_answerable, with_.is_first, with_.features["overlap"]) == (7, True, True, 1)
    assert (without.query, without.is_answerable, without.is_first, without.features["overlap"]) == (7, False, False, 0)
    second, _ = seen(7, "dogs", passages, {"b"})
    assert (second.is_answerable, second.is_first) == (True, False)
    [none] = seen(7, "fish", passages, ())
    assert not none.is_answerable
    assert [one.is_answerable for one in seen(7, "cats", passages[:1], {"a"})] == [True], "nothing is left without"
    assert seen(7, "cats", [], {"a"}) == []
    far = [*([pb.Passage(document_id="x")] * 5), passages[0]]
    assert not seen(7, "cats", far, {"a"})[0].is_answerable, "the answer is not made from it"


def test_what_tells_gets_the_weight() -> None:
    gate = fitted(rows(100, 0.3), "e5@1", "")
    assert gate.answerable.weights["overlap"] > 5 * abs(gate.answerable.weights["length"])
    got = measured(rows(100, 0.3))
    assert got["low"] < got["auroc"] < got["high"]
    assert got["auroc"] > 0.97
    assert got["passed"] > 0.9 < got["stopped"]


def test_a_query_is_judged_by_a_gate_that_it_did_not_fit() -> None:
    # Nothing tells, but so few rows are told apart by chance.
    chance, found = random.Random(0), list[Seen]()
    for number in range(30):
        label = chance.random() < 0.5
        found.append(Seen(number, {name: chance.gauss(0, 1) for name in FEATURES}, label, label))
    gate = fitted(found, "e5@1", "")
    told = [(gate.answerable.probability(one.features) > 0.5) == one.is_answerable for one in found]
    assert sum(told) > 20
    assert measured(found)["auroc"] < 0.6


def test_replies_are_given_where_they_are_right() -> None:
    # Of those that are answered, each second one has another document first, and nothing tells which.
    gate = fitted(rows(100, 0.1), "e5@1", "")
    assert gate.reply.threshold > 0.9 or measured(rows(100, 0.1))["replied"] < 0.05
    sure = [Seen(one.query, one.features, one.is_answerable, one.is_answerable) for one in rows(100, 0.1)]
    got = measured(sure)
    assert got["replied_right"] >= 0.95
    assert got["replied"] == pytest.approx(0.5, abs=0.05)


def test_rows_of_one_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 5"):
        fitted([one for one in rows(20, 0.1) if one.is_answerable], "e5@1", "")
    with pytest.raises(ValueError, match="fewer than 5"):
        measured(rows(20, 0.1)[::2])
