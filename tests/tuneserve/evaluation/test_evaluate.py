"""Which rows are measured, and what bad rows get. The measuring itself is in test_measurement.py."""

import json
import math
from pathlib import Path

import pytest

from tuneserve.checkpoint import rows
from tuneserve.checkpoint.tasks import Headline
from tuneserve.errors import UserError
from tuneserve.evaluation import evaluate
from tuneserve.evaluation.measurement import Measurement
from tuneserve.evaluation.significance import Difference
from tuneserve.machine import tiers
from tuneserve.v1 import checkpoint_pb2 as pb

LABELS = ["bad", "good"]
CLASSIFIER = pb.Checkpoint(
    task=pb.TASK_SEQUENCE_CLASSIFICATION, labels=LABELS, problem_type=pb.PROBLEM_TYPE_SINGLE_LABEL
)
TOPICS = pb.Checkpoint(
    task=pb.TASK_SEQUENCE_CLASSIFICATION, labels=["art", "law"], problem_type=pb.PROBLEM_TYPE_MULTI_LABEL
)
TAGGER = pb.Checkpoint(task=pb.TASK_TOKEN_CLASSIFICATION, labels=["O", "B-PER", "I-PER"])
GENERATOR = pb.Checkpoint(task=pb.TASK_GENERATION, max_length=64)
ENCODER = pb.Checkpoint(task=pb.TASK_EMBEDDING)
RANKER = pb.Checkpoint(task=pb.TASK_RANKING)
PERSON = {"start": 0, "end": 1, "label": "PER"}


@pytest.mark.parametrize(
    ("manifest", "row", "problem"),
    [
        (CLASSIFIER, {"text": "", "label": "good"}, "`text` must be a text that is not empty"),
        (CLASSIFIER, {"text": 3, "label": "good"}, "`text` must be"),
        (CLASSIFIER, {"text": "x"}, "`label` is missing"),
        (CLASSIFIER, {"text": "x", "label": "ugly"}, "label 'ugly' is unknown; allowed: bad, good"),
        (TOPICS, {"text": "x", "label": "art"}, "`labels` is missing"),
        (TAGGER, {"tokens": ["a", "b"], "tags": ["O"]}, "lists of the same length"),
        (
            TAGGER,
            {"text": "a", "entities": [{"start": 0, "end": 1, "label": "LOC"}]},
            "label 'LOC' is unknown; allowed: PER",
        ),
        (TAGGER, {"text": "a", "entities": [{"start": 0, "end": 2, "label": "PER"}]}, "within the text"),
        (TAGGER, {"text": "ab", "entities": [{"start": 1, "end": 2, "label": "PER"}, PERSON]}, "without overlap"),
        (TAGGER, {"text": "ab", "entities": [PERSON, {"start": 0, "end": 2, "label": "PER"}]}, "without overlap"),
        (TAGGER, {"text": "ab", "entities": ["PER"]}, "{start, end, label}"),
        (TAGGER, {"text": "", "entities": []}, "needs `text` and `entities`"),
        (GENERATOR, {"prompt": "", "completion": "x"}, "needs `messages`"),
        (ENCODER, {"query": "x", "positive": ""}, "needs `query` and `positive`"),
        (ENCODER, {"query": "x", "positive": "y", "negatives": [1]}, "a list of texts"),
        (ENCODER, {"query": "x", "positive": "y", "negatives": "z"}, "a list of texts"),
        (ENCODER, {"text": "x"}, "needs `query` and `positive`"),
        (RANKER, {"text": "x"}, "needs `query` and `positive`"),
        (GENERATOR, {"messages": [{"role": "user", "content": "hi"}]}, "needs `messages`"),
    ],
)
def test_rows_that_do_not_fit_are_named(manifest: pb.Checkpoint, row: rows.Row, problem: str) -> None:
    good = {
        CLASSIFIER.task: {"text": "x", "label": "good", "labels": []},
        TAGGER.task: {"text": "a", "entities": [PERSON]},
        GENERATOR.task: {"prompt": "x", "completion": "y"},
        ENCODER.task: {"query": "x", "positive": "y", "negatives": ["z"]},
        RANKER.task: {"query": "x", "positive": "y"},
    }[manifest.task]
    evaluate.check_rows(manifest, [good])
    with pytest.raises(UserError) as caught:
        evaluate.check_rows(manifest, [good, row])
    assert str(caught.value).startswith("row 2: ")
    assert problem in str(caught.value)


def test_no_rows() -> None:
    with pytest.raises(UserError, match="no rows"):
        evaluate.check_rows(CLASSIFIER, [])


def test_held_out_rows_must_be_those_of_the_manifest(tmp_path: Path) -> None:
    kept = [{"text": "x", "label": "good"}]
    rows.write(tmp_path / "eval/test.jsonl", kept)
    split = pb.TestSplit(path="eval/test.jsonl", sha256=rows.sha256(kept), rows=1)
    assert evaluate.held_out_rows(tmp_path, pb.Checkpoint(test_split=split)) == kept
    with pytest.raises(UserError, match=r"not the rows that tuneserve\.json names"):
        evaluate.held_out_rows(tmp_path, pb.Checkpoint(test_split=pb.TestSplit(path="eval/test.jsonl", sha256="0")))
    with pytest.raises(UserError) as caught:
        evaluate.held_out_rows(tmp_path, pb.Checkpoint())
    assert "--data" in caught.value.hint


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    metrics, sums = {"accuracy": 0.5, "good/support": 2.0}, [[1.0, 1.0], [0.0, 1.0]] * 2
    result = Measurement(metrics, 4, 2.0, 2.0, "texts/s", ["good"] * 4, sums)
    evaluate.show(result)
    table = capsys.readouterr().out
    assert "0.5000   95 % interval: 0.1500 to 0.8500" in table
    assert "texts/s" in table
    assert f" on {tiers.measured_on()}" in table
    evaluate.show(result, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["metrics"]["accuracy"] == 0.5
    assert document["interval"] == pytest.approx([0.15, 0.85], abs=1e-4)
    assert "predictions" not in document
    assert document["measured_on"] == tiers.measured_on()


def test_show_an_interval_without_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    result = Measurement({"perplexity": 9.0}, 1, 2.0, 2.0, "tokens/s", row_sums=[[-11.0, 5.0]])
    evaluate.show(result, as_json=True)
    assert json.loads(capsys.readouterr().out)["interval"] == [1, None]


@pytest.mark.parametrize(
    ("p_value", "verdict"),
    [(0.03, "the second is worse"), (0.3, "no difference that these rows could show"), (math.nan, "not comparable")],
)
def test_show_comparison(p_value: float, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = Difference(0.9, 0.8, -0.15, -0.05, p_value, "exact McNemar test")
    evaluate.show_comparison(Headline("accuracy", higher_is_better=True), found)
    printed = capsys.readouterr().out
    assert "95 % interval: -0.1500 to -0.0500" in printed
    assert "exact McNemar test, two-sided" in printed
    assert verdict in printed
