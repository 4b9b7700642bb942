"""The comparison of predict with plain vLLM, with systems that only pretend; and its worker with a server that does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving import cost_report, predict, systems
from tuneserve.benchmarks.serving.interleave import Sample, Scenario
from tuneserve.benchmarks.serving.workers import worker


@pytest.mark.parametrize(("rate", "status"), [(99.0, 0), (90.0, 1)])
def test_the_rate_is_promised(rate: float, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @contextmanager
    def start(*given: object, **settings: object) -> Iterator[None]:
        yield None

    def measure(scenarios: list[Scenario], rounds: int, show: object) -> dict[str, list[Sample]]:
        assert [len(scenario.job(1).texts) for scenario in scenarios] == [2048, 2048]
        rates = {"predict": rate, "LLM.encode": 100.0}
        return {one.name: [Sample(rates[one.name], 1.0, 2.0, 0.5, None, 0.02)] * rounds for one in scenarios}

    for module, name in ((systems, "ours"), (systems, "in_process"), (worker, "started")):
        monkeypatch.setattr(module, name, start)
    monkeypatch.setattr("tuneserve.benchmarks.serving.interleave.measure", measure)
    monkeypatch.setattr(predict, "preload", lambda: None)
    monkeypatch.setattr(cost_report, "RESULTS", tmp_path / "results")
    result = CliRunner().invoke(predict.main, [str(tmp_path), "--report"], catch_exceptions=False)
    assert result.exit_code == status, result.output
    [ratio] = json.loads(result.stdout.splitlines()[-1])["ratios"]
    assert ratio["ratio"] == rate / 100
    assert [path.name.partition("-predict-")[2] for path in (tmp_path / "results").iterdir()] == ["cpu.md"]
