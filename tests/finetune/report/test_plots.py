"""Plots: nothing of the data is markup or a formula in them, and a long run takes no more room."""

import base64
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from tuneserve.finetune.report import plots

EVIL = "<script>alert(1)</script>$\\frac{1"


def drawn(uri: str) -> str:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/svg+xml;base64"
    text = base64.b64decode(data).decode()
    assert not [one for one in xml.fromstring(text).iter() if one.tag.endswith("script")]
    return text


def test_labels_are_text() -> None:
    assert "&lt;script&gt;" in drawn(plots.confusion([[3, 1], [0, 2]], [EVIL, "b"]))
    assert "&lt;script&gt;" in drawn(plots.bars({EVIL: {"a": 0.5, EVIL: 0.5}, "test": {"a": 1.0}}))
    assert "…" in drawn(plots.confusion([[1]], ["x" * 100]))


@pytest.mark.parametrize("values", [[1.0], [2.0] * 9, [1.0, 7.0]])
def test_few_or_equal_values_can_be_drawn(values: list[float]) -> None:
    assert drawn(plots.histogram(values, "tokens", limit=2.0))
    assert drawn(plots.scatter(values, values))
    assert drawn(plots.reliability([1.0] * len(values), [True] * len(values)))


def test_a_long_run_takes_no_more_room() -> None:
    def history(steps: int) -> list[dict[str, float]]:
        return [{"step": step, "loss": 1 + np.sin(step), "learning_rate": 1e-3} for step in range(steps)]

    short, long = (len(plots.curves(history(steps))) for steps in (1000, 20_000))
    assert long < 1.2 * short
    assert plots.curves(history(50)) == plots.curves(history(50)), "the same file each time"


def test_losses_are_smoothed_over_a_twentieth_and_thinned_by_means() -> None:
    assert plots._smooth(np.arange(60.0))[-1] == pytest.approx((57 + 58 + 59) / 3)
    assert plots._smooth(np.array([3.0, 5.0])).tolist() == [3.0, 5.0]
    steps, values = plots._thinned(np.arange(800), np.arange(800.0))
    assert (len(steps), steps[0], values[-1]) == (400, 0.5, 798.5)
