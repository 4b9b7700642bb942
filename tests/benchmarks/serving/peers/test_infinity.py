"""Infinity: the real one, where a benchmark has made its environment; tests download nothing."""

import os
from pathlib import Path

import pytest

from tuneserve.benchmarks.serving.peers import environment, infinity, transformers
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import Engine
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job


@pytest.mark.skipif(not (environment.FOLDER / "infinity" / "pins.txt").exists(), reason="its environment is not made")
def test_it_answers_as_transformers_does(classifier: Path, tmp_path: Path) -> None:
    job = Job(texts=["the film was good", "bad", "good film", "a very bad film"] * 20, batch=50, answers=True)
    with worker.started("http_client", [], tmp_path / "log", os.environ) as http:
        setting = Setting(classifier, tmp_path, http, Engine(dtype="float32"))
        with transformers.start(setting) as system:
            expected = system.do(job)
        with infinity.start(setting) as system:
            found = system.do(job)
    assert found.answers == expected.answers
    assert found.counts == (80, sum(map(len, job.texts)), 0), "it counts characters"
