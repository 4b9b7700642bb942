"""What quantization changed, for people and for the lineage."""

import math
from dataclasses import replace

import pytest

from tuneserve.evaluation.latency import Latency
from tuneserve.evaluation.measurement import Measurement
from tuneserve.quantize.race import Ratio
from tuneserve.quantize.report import Report, comparison

from .test_gate import chat, numbers, report


def with_speed(made: Report, before: float, after: float, **changes: object) -> Report:
    sides = (replace(made.before, throughput=before), replace(made.after, throughput=after))
    return replace(made, before=sides[0], after=sides[1], **changes)


def test_a_loss_is_in_points_or_in_shares() -> None:
    worse, better = report(1000, losses=20), report(1000, losses=0, gains=5)
    assert (worse.drop, better.drop) == (pytest.approx(0.02), pytest.approx(-0.005))
    assert "2.00 points worse" in worse.table()
    assert "0.50 points better" in better.table()
    assert "same" in report(1000, 0).table()
    assert worse.drop < worse.drop_at_most < 0.04
    assert chat(200, 0.05).drop == pytest.approx(math.exp(0.05) - 1, abs=0.01)
    assert f"{chat(200, 0.05).drop:.2%} worse" in chat(200, 0.05).table()


def test_the_error_of_a_regression_counts_where_it_is_the_larger_loss() -> None:
    scaled = numbers(400, offset=1.0)
    assert scaled.error is not None
    assert scaled.drop == scaled.error[0] > 0.1
    assert "RMSE" in scaled.table()
    assert scaled.metrics()["root_mean_square_error_before"] == scaled.before.metrics["root_mean_square_error"]


def test_nothing_of_single_rows_means_that_nothing_is_sure() -> None:
    blind = report(1000, 20)
    blind = replace(blind, before=replace(blind.before, row_sums=[]), after=replace(blind.after, row_sums=[]))
    assert blind.difference is None
    assert blind.drop_at_most == math.inf
    assert not {"p_value", "drop_at_most", "difference_low"} & blind.metrics().keys()


def test_speeds_say_how_they_were_measured() -> None:
    one = with_speed(report(100, 0), 100.0, 150.0)
    assert "x 1.50, one after the other" in one.table()
    turns = with_speed(report(100, 0), 100.0, 150.0, ratio=Ratio(1.4))
    assert "in turns" in turns.table()
    assert "one after the other" not in turns.table()
    latency = replace(one.after, latency=Latency(2.0, 3.0), memory_bytes=5e6)
    costs = replace(one, after=latency).metrics()
    assert (costs["latency_p50_ms"], costs["memory_bytes"], costs["texts_per_second_before"]) == (2.0, 5e6, 100.0)


def test_changed_predictions_are_a_share_of_all() -> None:
    def side(*predictions: str) -> Measurement:
        return Measurement({"accuracy": 0.5}, 4, 1, 1, "texts/s", predictions)

    made = replace(report(4, 0), before=side("a", "a", "b", "b"), after=side("a", "b", "b", "b"))
    assert (made.flips, made.metrics()["predictions_changed"]) == (0.25, 0.25)
    assert replace(made, before=side(), after=side()).flips is None


def test_attempts_are_lines_below_the_original() -> None:
    lines = comparison([report(1000, 20), report(1000, 5)], ["loses too much", "kept"]).splitlines()
    assert lines[1].startswith("as it was  1.0000")
    assert "0.9800" in lines[2]
    assert lines[2].endswith("  loses too much")
    assert lines[3].endswith("  kept")
