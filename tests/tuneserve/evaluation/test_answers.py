"""Metrics of written answers: perfect ones, hand-counted ones, and those of scripts without spaces."""

import pytest

from tuneserve.checkpoint import step
from tuneserve.checkpoint.examples import Example
from tuneserve.evaluation import answers
from tuneserve.v1 import checkpoint_pb2 as pb

NAMES = ["chrf", "bleu", "rouge"]


def test_perfect_answers() -> None:
    texts = ["The cat sat on the mat.", "It was not there yesterday."]
    found = answers.measure(NAMES, texts, texts)
    assert found == pytest.approx({"chrf": 100, "bleu": 100, "rouge1": 1, "rouge2": 1, "rougeL": 1})


def test_rouge_by_hand() -> None:
    """Of six words each, five are the same, three pairs of words are, and five are in the same order."""
    found = answers.measure(["rouge"], ["the cat sat on the mat"], ["The cat lay on the mat!"])
    assert found == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})
    # The mean over rows, an empty answer included.
    half = answers.measure(["rouge"], ["the cat sat on the mat"] * 2, ["The cat lay on the mat!", ""])
    assert half == pytest.approx({name: value / 2 for name, value in found.items()})


def test_bleu_counts_all_answers_together() -> None:
    """Of one row with five words and one with none right: precisions 5/10, 4/8, 3/6, 2/4."""
    found = answers.measure(["bleu"], ["a b c d e", "f g h i j"], ["a b c d e", "k l m n o"])
    assert found["bleu"] == pytest.approx(50)


def test_scripts_without_spaces() -> None:
    found = answers.measure(NAMES, ["今天的天气很好"], ["今天的天气不好"])
    # Six of seven characters, and four of six pairs of them.
    assert (found["rouge1"], found["rouge2"]) == (pytest.approx(6 / 7), pytest.approx(4 / 6))
    # Characters are words: with words between spaces there would be none right, and the score 0.
    assert found["bleu"] > 30
    assert answers.measure(["rouge"], ["погода хорошая"], ["погода плохая"])["rouge1"] == pytest.approx(0.5)


def test_rows_without_an_expected_answer() -> None:
    assert answers.measure(NAMES, ["", "yes sir"], ["a call", "yes sir"])["rouge1"] == 1
    assert answers.measure(NAMES, [""], ["a call"]) == {}
    assert answers.measure([], ["yes"], ["yes"]) == {}


def test_those_that_were_chosen_for_training(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    manifest = pb.Checkpoint()
    assert answers.chosen(manifest) == []
    manifest.lineage.append(step("finetune", "base", {"answer_metrics": ["chrf", "rouge"]}, ()))
    manifest.lineage.append(step("quantize", "out", {}, ()))
    assert answers.chosen(manifest) == ["chrf", "rouge"]
    monkeypatch.setattr(answers, "PACKAGES", {"chrf": "sacrebleu", "rouge": "not_there"})
    assert answers.missing(["chrf", "rouge"]) == ["not_there"]
    assert answers.chosen(manifest) == []
    assert "chrf, rouge can't be measured: pip install not_there" in caplog.text
    manifest.lineage.append(step("finetune", "out", {}, ()))
    assert answers.chosen(manifest) == []


def test_room_for_an_answer() -> None:
    asked = [Example([1] * 9, [False] * (9 - count) + [True] * count, 9 - count) for count in (2, 6)]
    assert answers.room(asked, 64) == 9
    assert answers.room(asked, 10) == 5
    assert answers.room([], 64) == 0
