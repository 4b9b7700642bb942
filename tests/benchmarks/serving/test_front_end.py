"""The comparison of front ends with systems that only pretend: what is run, shown, written and promised."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving import cost_report, front_end, small_model, systems
from tuneserve.benchmarks.serving.interleave import Sample, Scenario

# By scenario: texts a second, and milliseconds of the process that was started.
FASTER = {
    "ours, single texts": (300.0, 1.0),
    "ours, batches": (1000.0, 0.2),
    "vllm serve, single texts": (100.0, 3.0),
    "vllm serve × 2, single texts": (200.0, 3.0),
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, object]]:
    """Replaces systems and rounds; returns the settings of those that were started."""
    found: list[dict[str, object]] = []

    class Pretender:
        session = 1

    def replace(name: str) -> None:
        @contextmanager
        def start(*given: object, **settings: object) -> Iterator[Pretender]:
            found.append({"name": name, **settings})
            yield Pretender()

        monkeypatch.setattr(systems, name, start)

    def measure(scenarios: list[Scenario], rounds: int, show: object) -> dict[str, list[Sample]]:
        samples = {}
        for scenario in scenarios:
            job = scenario.job(1)
            assert len(job.texts) == 2048 or (len(job.prompts), job.stream) == (32, True)
            rate, front = FASTER.get(scenario.name, (500.0, 2.0))
            samples[scenario.name] = [Sample(rate, front, 0.5, 0.25, 12.0 if job.stream else None, 0.02)] * rounds
        return samples

    for name in ("ours", "vllm_serve"):
        replace(name)
    monkeypatch.setattr("tuneserve.benchmarks.serving.interleave.measure", measure)
    monkeypatch.setattr(front_end, "preload", lambda: None)
    monkeypatch.setattr(small_model, "write", lambda path, output, pooling: 500)
    monkeypatch.setattr(cost_report, "RESULTS", tmp_path / "results")
    return found


def test_rates_and_cpu_are_promised(started: list[dict[str, object]], tmp_path: Path) -> None:
    for name in ("sentiment", "chat"):
        (tmp_path / name).mkdir()
    arguments = [str(tmp_path / "sentiment"), str(tmp_path / "chat"), "--report"]
    result = CliRunner().invoke(front_end.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    ratios = {one["name"]: (one["ratio"], one["verdict"]) for one in found["ratios"]}
    assert ratios["single texts, to vllm serve"] == (3.0, None)
    assert ratios["single texts, to the better of them"] == (1.5, "kept")
    assert ratios["CPU of a single text, to vllm serve"] == (0.4286, "kept")
    assert ratios["CPU of a text in batches, to vllm serve"] == (0.28, "kept")
    assert ratios["streamed, to vllm serve"] == (1.0, None)
    peers = [one.get("api_servers", 1) for one in started if one["name"] == "vllm_serve"]
    assert peers == [1, 2, 1, 2]
    [written] = (tmp_path / "results").iterdir()
    assert "-front-end-cpu" in written.name
    text = written.read_text()
    assert "`python -m tuneserve.benchmarks.serving.front_end`, 15 rounds" in text
    assert "benchmarks/serving/front_end.py" in text
    assert str(tmp_path) not in text


def test_a_front_end_that_costs_too_much_is_a_failure(
    started: list[dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FASTER, "ours, batches", (1000.0, 0.5))
    (tmp_path / "sentiment").mkdir()
    arguments = [str(tmp_path / "sentiment"), str(tmp_path / "sentiment")]
    result = CliRunner().invoke(front_end.main, arguments, catch_exceptions=False)
    assert result.exit_code == 1
    broken = [
        one["name"] for one in json.loads(result.stdout.splitlines()[-1])["ratios"] if one["verdict"] == "not kept"
    ]
    assert broken == ["CPU of a text in batches, to vllm serve"]
