"""The comparison with another checkout, with systems that only pretend."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuneserve.benchmarks.serving import before, cost_report, interleave, systems
from tuneserve.benchmarks.serving.interleave import Sample, Scenario

SLOWER = {"after, single texts": 90.0}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Replaces systems and rounds; returns which servers were started, in this order."""
    found: list[str] = []

    class Pretender:
        session = 1

    @contextmanager
    def ours(*given: object, python: Path | None) -> Iterator[Pretender]:
        found.append("before" if python else "after")
        yield Pretender()

    def measure(scenarios: list[Scenario], rounds: int, show: object) -> dict[str, list[Sample]]:
        for one in scenarios:
            assert one.job(1)
        return {
            one.name: [Sample(SLOWER.get(one.name, 100.0), 1.0, 0.5, 0.25, 1.0, 0.02)] * rounds for one in scenarios
        }

    monkeypatch.setattr(systems, "ours", ours)
    monkeypatch.setattr(interleave, "measure", measure)
    monkeypatch.setattr(before, "preload", lambda: None)
    monkeypatch.setattr(cost_report, "RESULTS", tmp_path / "results")
    return found


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    for name in ("sentiment", "chat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"vocab_size": 500}')
    python = tmp_path / "other" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return [str(tmp_path / "sentiment"), str(tmp_path / "chat"), "--before", str(tmp_path / "other")]


def test_each_is_started_first_once(started: list[str], arguments: list[str]) -> None:
    result = CliRunner().invoke(before.main, arguments)
    assert started == ["before", "after", "after", "before"] * 2
    report = json.loads(result.stdout.splitlines()[-1])
    assert {one["name"]: one["verdict"] for one in report["ratios"] if one.get("verdict")} == {
        "single texts, to before": "not kept",
        "batches, to before": "kept",
        "streamed, to before": "kept",
    }
    assert all(len(rounds) == 16 for rounds in report["samples"]["classification"].values())
    assert result.exit_code == 1


def test_a_checkout_that_was_not_set_up_is_named(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "other" / ".venv" / "bin" / "python").unlink()
    result = CliRunner().invoke(before.main, arguments)
    assert "run make setup there" in str(result.exception)
