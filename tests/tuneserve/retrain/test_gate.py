"""When a new checkpoint is better."""

import math
from pathlib import Path

import pytest

from tuneserve.checkpoint.tasks import Headline
from tuneserve.evaluation import significance
from tuneserve.evaluation.significance import Difference
from tuneserve.retrain import gate
from tuneserve.retrain.gate import Gain
from tuneserve.retrain.policy import RetrainConfig

ACCURACY, PERPLEXITY = Headline("accuracy", True), Headline("perplexity", False)


def policy(**values: object) -> RetrainConfig:
    return RetrainConfig(feedback=Path("f"), checkpoint=Path("c"), output=Path("o"), **values)


def test_a_gain_is_positive_where_the_new_one_is_better() -> None:
    found = gate.gain(ACCURACY, 9, Difference(0.5, 0.6, 0.02, 0.18, 0.01, ""))
    assert (found.gain, found.low, found.high) == (pytest.approx(0.1), 0.02, 0.18)
    # A fifth less perplexity: from 10 to 8, between 7 and 9.
    found = gate.gain(PERPLEXITY, 9, Difference(10, 8, -3, -1, 0.01, ""))
    assert (found.gain, found.low, found.high) == tuple(map(pytest.approx, (0.2, 0.1, 0.3)))


@pytest.mark.parametrize(
    ("old", "new", "values", "said"),
    [
        ((0.0, -0.01), (0.1, 0.02), {}, ""),
        ((0.0, -0.03), (0.1, 0.02), {}, "old rows may lose, with 95 % confidence, 0.0300; max_drop is 0.02"),
        ((0.0, -0.01), (0.1, 0.0), {}, "new rows gain, with 95 % confidence, 0.0000; min_gain is 0"),
        ((0.0, -0.03), (0.1, -0.1), {"point_estimate": True}, ""),
        ((-0.03, -0.1), (0.0, -0.1), {"point_estimate": True}, "old rows may lose 0.0300; max_drop is 0.02; new rows"),
        ((0.0, -0.01), (0.1, 0.02), {"min_gain": 0.05}, "min_gain is 0.05"),
        ((math.nan, math.nan), (0.1, 0.02), {}, "old rows may lose"),
        ((0.0, 0.0), (math.nan, math.nan), {}, "new rows gain"),
    ],
)
def test_the_policy_decides_by_the_end_of_the_interval(
    old: tuple[float, float], new: tuple[float, float], values: dict[str, object], said: str
) -> None:
    gains = [Gain(100, 0.5, 0.5 + change, change, low, 1.0) for change, low in (old, new)]
    found = gate.verdict(policy(**values), *gains)
    assert (said in found) if said else not found


def test_the_same_answers_are_no_gain() -> None:
    rows = [[1.0, 1.0]] * 300
    same = gate.gain(ACCURACY, 300, significance.compare("accuracy", rows, rows))
    assert "new rows gain" in gate.verdict(policy(), same, same)
    assert "old rows" not in gate.verdict(policy(), same, same)


def kept(folder: Path, test: list[str], trained: list[str]) -> Path:
    """A checkpoint's manifest with held-out rows, and the digests of what it was trained on."""
    from tuneserve import checkpoint
    from tuneserve.checkpoint import rows, seen
    from tuneserve.v1 import checkpoint_pb2 as pb

    folder.mkdir()
    held_out = [{"text": text, "label": "a"} for text in test]
    manifest = pb.Checkpoint(format_version=checkpoint.FORMAT_VERSION)
    rows.write(folder / checkpoint.TEST_SPLIT, held_out)
    manifest.test_split.path = checkpoint.TEST_SPLIT
    manifest.test_split.sha256 = checkpoint.sha256_file(folder / checkpoint.TEST_SPLIT)
    seen.keep(folder, manifest, seen.learned({"text": text} for text in trained))
    (folder / checkpoint.MANIFEST).write_text(checkpoint.to_json(manifest))
    return folder


def test_old_and_new_rows_are_those_that_neither_was_trained_on(tmp_path: Path) -> None:
    old = kept(tmp_path / "old", ["1", "2"], ["3"])
    new = kept(tmp_path / "new", ["1", "2", "3", "4"], ["5"])
    before, after = gate.rows_of(old, new)
    assert ([row["text"] for row in before], [row["text"] for row in after]) == (["1", "2"], ["4"])
