"""One server, 1 to 512 connections: the jobs, and what is promised."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tuneserve.benchmarks.serving import connections, interleave, systems
from tuneserve.benchmarks.serving.interleave import Sample, Scenario
from tuneserve.benchmarks.serving.workers import worker


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[float], Result]:
    """Runs the command with a server that only pretends; with 512 connections it answers so many texts a second."""

    def invoke(with_most: float) -> Result:
        @contextmanager
        def ours(*given: object, **settings: object) -> Iterator[None]:
            yield None

        def measure(scenarios: list[Scenario], rounds: int, show: object) -> dict[str, list[Sample]]:
            jobs = {one.name: one.job(1) for one in scenarios}
            assert all(len(job.texts) == 1024 and str(job.connections) == name for name, job in jobs.items())
            rates = {"1": 20.0, "512": with_most}
            return {name: [Sample(rates.get(name, 100.0), 1.0, 2.0, 0.3, None, 0.0)] * rounds for name in jobs}

        monkeypatch.setattr(systems, "ours", ours)
        monkeypatch.setattr(worker, "clients", lambda stack, scratch: (None, None))
        monkeypatch.setattr(interleave, "measure", measure)
        monkeypatch.setattr(connections, "preload", lambda: None)
        return CliRunner().invoke(connections.main, [str(tmp_path)], catch_exceptions=False)

    return invoke


@pytest.mark.parametrize(("with_most", "verdict"), [(96.0, "kept"), (94.0, "not kept")])
def test_what_is_promised(run: Callable[[float], Result], with_most: float, verdict: str) -> None:
    result = run(with_most)
    found = {one["name"]: one for one in json.loads(result.stdout.splitlines()[-1])["ratios"]}
    assert (found["1 connections, to 64"]["ratio"], found["1 connections, to 64"]["verdict"]) == (0.2, None)
    assert found["128 connections, to 64"]["verdict"] == "kept"
    assert (found["512 connections, to 64"]["promise"], found["512 connections, to 64"]["verdict"]) == (
        "≥ 0.95",
        verdict,
    )
    assert result.exit_code == (verdict != "kept")
