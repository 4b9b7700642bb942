"""The comparison of one process with several: which are watched, what is counted, and what is promised."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tuneserve.benchmarks.serving import front_ends, small_model, systems
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Outcome
from tuneserve.serving import launched


@pytest.mark.parametrize("count", [1, 2])
def test_the_front_ends_of_a_real_server(tmp_path: Path, count: int) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("{admin_listen: '127.0.0.1:0', linger_seconds: 0}")
    with launched("--config", str(config), "--processes", str(count)) as server:
        found = {one.pid for one in front_ends.front_ends(server.process.pid)}
    assert len(found) == count
    assert (server.process.pid in found) == (count == 1)


def test_cpu_time_is_that_of_the_front_end_for_each_text() -> None:
    def burn(job: Any) -> Outcome:
        assert (len(job.texts), job.batch) == (front_ends._TEXTS, 1)
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
        return Outcome(seconds=2.0, texts=100)

    system: Any = SimpleNamespace(session=os.getpid(), do=burn)
    rate, milliseconds = front_ends.one_round(system, 1)
    assert rate == 50
    assert 4.5 < milliseconds < 10


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[float], Result]:
    """Runs the command with servers that only pretend; the busiest front end of two takes so many milliseconds."""

    def invoke(of_two: float) -> Result:
        @contextmanager
        def ours(*given: object, processes: int, **settings: object) -> Iterator[int]:
            yield processes

        monkeypatch.setattr(systems, "ours", ours)
        monkeypatch.setattr(worker, "clients", lambda stack, scratch: (None, None))
        monkeypatch.setattr(small_model, "write", lambda path, output, pooling: 500)
        monkeypatch.setattr(front_ends, "preload", lambda: None)
        monkeypatch.setattr(front_ends, "one_round", lambda count, seed: (100.0 * count, 1.0 if count == 1 else of_two))
        return CliRunner().invoke(front_ends.main, [str(tmp_path)], catch_exceptions=False)

    return invoke


@pytest.mark.parametrize(("of_two", "verdict"), [(0.54, "kept"), (0.56, "not kept")])
def test_what_is_promised(run: Callable[[float], Result], of_two: float, verdict: str) -> None:
    result = run(of_two)
    cpu, rate = json.loads(result.stdout.splitlines()[-1])["ratios"]
    assert (cpu["ratio"], cpu["promise"], cpu["verdict"], cpu["rounds"]) == (of_two, "≤ 0.55", verdict, 15)
    assert (rate["ratio"], rate["promise"]) == (2.0, None)
    assert result.exit_code == (verdict != "kept")
