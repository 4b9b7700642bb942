"""What a result has to show, and what is said where it does not."""

import random

import pytest

from tuneserve.errors import UserError
from tuneserve.evaluation import quality
from tuneserve.evaluation.measurement import Measurement
from tuneserve.quantize.gate import Gate
from tuneserve.quantize.report import Report
from tuneserve.quantize.schemes import SCHEMES, Recipe
from tuneserve.v1 import checkpoint_pb2 as pb

CLASSIFIER = pb.Checkpoint(task=pb.TASK_SEQUENCE_CLASSIFICATION, problem_type=pb.PROBLEM_TYPE_SINGLE_LABEL)
NUMBERS = pb.Checkpoint(task=pb.TASK_SEQUENCE_CLASSIFICATION, problem_type=pb.PROBLEM_TYPE_REGRESSION)
GENERATOR = pb.Checkpoint(task=pb.TASK_GENERATION)


def report(rows: int, losses: int, gains: int = 0) -> Report:
    """Of a classifier: some rows were right before, others are right after, and the rest is right."""
    before = [[float(row >= gains), 1.0] for row in range(rows)]
    after = [[float(row < rows - losses), 1.0] for row in range(rows)]
    sides = [
        Measurement({"accuracy": sum(right for right, _ in sums) / rows}, rows, 1, 1, "texts/s", row_sums=sums)
        for sums in (before, after)
    ]
    return Report(pb.TASK_SEQUENCE_CLASSIFICATION, Recipe(SCHEMES["w8a8"]), *sides, 2, 1)


def chat(rows: int, worse: float, noise: float = 0.02) -> Report:
    """Of a generation model: the perplexity grows by about a share."""
    chance = random.Random(1)
    before = [[-chance.uniform(20, 60), 20.0] for _ in range(rows)]
    after = [[likely - count * (worse + chance.gauss(0, noise)), count] for likely, count in before]
    sides = [
        Measurement(quality.generation(sum(a for a, _ in sums), 20 * rows), rows, 1, 1, "tokens/s", row_sums=sums)
        for sums in (before, after)
    ]
    return Report(pb.TASK_GENERATION, Recipe(SCHEMES["w8a8"]), *sides, 2, 1)


def numbers(rows: int, scale: float = 1.0, offset: float = 0.0, noise: float = 0.01) -> Report:
    """Of a regression: its numbers, half a standard deviation off on average, become others."""
    chance = random.Random(1)
    gold = [chance.gauss(3, 2) for _ in range(rows)]
    before = [number + chance.gauss(0, 1) for number in gold]
    after = [scale * number + offset + chance.gauss(0, noise) for number in before]
    sides = [
        Measurement(quality.regression(gold, said), rows, 1, 1, "texts/s", row_sums=quality.number_rows(gold, said))
        for said in (before, after)
    ]
    return Report(pb.TASK_SEQUENCE_CLASSIFICATION, Recipe(SCHEMES["w8a8"]), *sides, 2, 1)


def test_a_regression_has_to_keep_its_error_too() -> None:
    same = numbers(400)
    assert 0 < same.drop_at_most < 0.01
    assert Gate(0.01).holds(same)
    # These correlate as before.
    for other in (numbers(400, scale=1.5), numbers(400, offset=1)):
        assert abs(quality.drop(other.task, other.before.metrics, other.after.metrics)) < 0.001
        assert 0.1 < other.drop < other.drop_at_most < 1
        assert not Gate(0.05).holds(other)
        assert not Gate(0.05, point_estimate=True).holds(other)
        assert "root_mean_square_error" in str(Gate(0.05).refusal(other, ""))
        assert "RMSE" in other.table()
        assert other.metrics()["root_mean_square_error_before"] == other.before.metrics["root_mean_square_error"]
    assert Gate(None).holds(numbers(400, offset=1))
    assert not Gate(0.05).holds(numbers(400, offset=float("nan")))


def test_it_holds_by_the_end_of_the_interval() -> None:
    small, large = report(400, 3, 3), report(8000, 60, 60)
    assert small.drop == large.drop == 0
    assert small.drop_at_most > 0.01 > large.drop_at_most
    assert not Gate(0.01).holds(small)
    assert Gate(0.01).holds(large)
    assert Gate(0.01, point_estimate=True).holds(small)
    assert Gate(None).holds(report(100, 100))


def test_the_end_of_a_perplexity_is_a_share_of_it() -> None:
    found = chat(60, 0.02)
    assert 0.01 < found.drop < found.drop_at_most < 0.03
    assert Gate(0.03).holds(found)
    assert not Gate(found.drop).holds(found)


@pytest.mark.parametrize("made", [report(1000, 30, 28), chat(30, 0.0, 0.03)], ids=["accuracy", "perplexity"])
def test_as_many_rows_as_it_says_would_do(made: Report) -> None:
    gate = Gate(0.01)
    assert not gate.holds(made)
    needed = gate.rows_needed(made)
    assert needed
    assert f"measure on about {needed:,} with --data" in gate.refusal(made, "").hint
    times = needed / made.after.rows
    assert gate.expected(made, needed)
    assert not gate.expected(made, needed // 2)
    if made.task == pb.TASK_SEQUENCE_CLASSIFICATION:
        more = report(needed, round(30 * times), round(28 * times))
        assert more.drop_at_most == pytest.approx(0.01, rel=0.1)


def test_what_loses_too_much_needs_no_more_rows() -> None:
    gate = Gate(0.01)
    assert gate.rows_needed(report(100, 5)) is None
    error = gate.refusal(report(100, 5), "another scheme")
    assert "w8a8 rtn loses too much: accuracy 1.0000 before, 0.9500 after, a drop of 0.0500" in str(error)
    assert error.hint == "another scheme"


@pytest.mark.parametrize(
    ("manifest", "max_drop", "fewest"),
    [(CLASSIFIER, 0.01, 381), (CLASSIFIER, 0.1, 35), (GENERATOR, 0.01, 6), (NUMBERS, 0.01, 6)],
)
def test_fewer_rows_than_can_show_anything(manifest: pb.Checkpoint, max_drop: float, fewest: int) -> None:
    Gate(max_drop).check(manifest, fewest)
    Gate(max_drop, point_estimate=True).check(manifest, 1)
    Gate(None).check(manifest, 1)
    with pytest.raises(UserError, match=f"it takes {fewest} even if no answer changes") as caught:
        Gate(max_drop).check(manifest, fewest - 1)
    assert "--data FILE.jsonl" in caught.value.hint
    if manifest == CLASSIFIER:
        assert Gate(max_drop).holds(report(fewest, 0))


def test_that_nothing_is_lost_can_not_be_shown() -> None:
    with pytest.raises(UserError, match="no number of rows can show"):
        Gate(0).check(CLASSIFIER, 10**6)
    assert Gate(0, point_estimate=True).holds(report(100, 0))


def test_how_often_too_much_is_let_through() -> None:
    """Of results that lose a little more than is allowed, in two looks at different ones, at most one in twenty."""
    chance, passed, times = random.Random(2), 0, 400
    for _ in range(times):
        looks = []
        for _ in range(2):
            changed = [chance.random() for _ in range(1000)]
            losses, gains = sum(one < 0.03 for one in changed), sum(0.03 <= one < 0.049 for one in changed)
            looks.append(Gate(0.01).holds(report(1000, losses, gains)))
        passed += any(looks)
    assert passed / times <= 0.05
