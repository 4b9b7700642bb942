"""The alert on negative texts, on simulated streams: promtool evaluates the committed rules, once a minute.

Whether a text is negative is chance. In some streams the share rises from 15 to 40 % for a quarter of an hour. In the
others it stays what it was for a week, of many texts and of few; where hardly any is negative, chance plays the most.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from .rendering import CHART
from .test_alerts import run

FIRING = 'ALERTS{alertname="TuneserveNegativeSurges", alertstate="firing"}'
HOUR, DAY = 60, 24 * 60  # minutes


def stream(rng: np.random.Generator, name: str, per_second: float, shares: np.ndarray) -> list[dict[str, str]]:
    """The counters of a stream, whose share of negative texts is given for each minute."""
    texts = rng.poisson(per_second * 60, len(shares))
    negative = rng.binomial(texts, shares)
    return [
        {
            "series": f'tuneserve_observed_total{{monitor="{name}", topic="t", sentiment="{sentiment}", job="j"}}',
            "values": " ".join(map(str, [0, *np.cumsum(counts)])),
        }
        for sentiment, counts in (("negative", negative), ("positive", texts - negative))
    ]


def check(promtool: Path, folder: Path, series: list[dict[str, str]], *expected: tuple[str, int, int]) -> None:
    """Checks the values of expressions, each at a minute; 0 is for no series."""
    tests: list[dict[str, Any]] = [
        {
            "expr": expression,
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": "{}", "value": value}] if value else [],
        }
        for expression, minute, value in expected
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": tests}
    rules = str(CHART / "rules" / "predictions.yaml")
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": [rules], "tests": [test]}))
    run(promtool, "test", "rules", folder / "test.yaml")


def test_a_surge_is_found_in_six_minutes_and_resolves(promtool: Path, tmp_path: Path) -> None:
    rng, streams, begin = np.random.default_rng(16), 100, 4 * HOUR
    shares = np.full(5 * HOUR, 0.15)
    shares[begin : begin + 15] = 0.40
    series = [one for number in range(streams) for one in stream(rng, f"m{number}", 1.0, shares)]
    check(
        promtool,
        tmp_path,
        series,
        (f"sum(count_over_time({FIRING}[4h]))", begin, 0),
        (f"count({FIRING})", begin + 6, streams),
        (f"count({FIRING})", begin + 30, 0),
    )


@pytest.mark.parametrize("share", [0.15, 0.03, 0.01])
@pytest.mark.parametrize("per_second", [1.0, 0.15])
def test_chance_alerts_nobody_in_a_week(promtool: Path, tmp_path: Path, per_second: float, share: float) -> None:
    rng, shares = np.random.default_rng(16), np.full(DAY, share)
    series = [one for day in range(7) for one in stream(rng, f"m{day}", per_second, shares)]
    check(promtool, tmp_path, series, (f"sum(count_over_time({FIRING}[1d]))", DAY, 0))
