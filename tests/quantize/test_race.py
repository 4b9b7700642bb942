"""Speeds in turns: what is made of the rounds, and a race of two real servers."""

import math
from pathlib import Path

import pytest

from tuneserve import checkpoint
from tuneserve.evaluation.evaluate import held_out_rows
from tuneserve.quantize import race
from tuneserve.quantize.race import Ratio


def test_what_disturbs_both_is_no_difference() -> None:
    loads = [1.0, 0.5, 0.8, 0.3, 1.0, 0.7, 0.9]
    noise = [1.02, 0.99, 1.0, 1.01, 0.98, 1.0, 1.0]
    first = [100 * load for load in loads]
    found = race.of_rounds(first, [1.2 * speed * error for speed, error in zip(first, noise, strict=True)])
    assert found.value == pytest.approx(1.2, abs=0.005)
    assert 1.18 < found.low < found.value < found.high < 1.22
    assert found.is_faster
    # Of the same speeds, unpaired, nothing could be said.
    assert not race.of_rounds(first, [1.2 * speed for speed in reversed(first)]).is_faster


@pytest.mark.parametrize(
    ("ratio", "faster"), [(Ratio(1.1, 0.9, 1.3), False), (Ratio(1.1, 1.01, 1.2), True), (Ratio(1.1), True)]
)
def test_faster_is_what_the_interval_says(ratio: Ratio, faster: bool) -> None:
    assert ratio.is_faster == faster
    assert ("to" in str(ratio)) == (not math.isnan(ratio.low))


def test_two_servers_need_memory_for_both() -> None:
    assert race.fits(1)
    assert not race.fits(10**15)
    assert not race.fits(None)


@pytest.mark.engine
def test_a_model_is_as_fast_as_itself(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "ROUNDS", 3)
    found = race.in_turns(bert, bert, held_out_rows(bert, checkpoint.load(bert)))
    assert found.low <= found.value <= found.high
    assert 0.2 < found.value < 5
