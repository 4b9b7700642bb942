"""MLServer: the real one, where a benchmark has made its environment; tests download nothing."""

from pathlib import Path

import pytest

from tuneserve.benchmarks.serving.peers import environment, mlserver, transformers
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import Engine
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job


@pytest.mark.skipif(
    not all((environment.FOLDER / name / "pins.txt").exists() for name in ("mlserver", "onnx")),
    reason="its environments are not made",
)
def test_it_answers_as_transformers_does(classifier: Path, tmp_path: Path) -> None:
    job = Job(texts=["the film was good", "bad", "good film", "a very bad film"] * 20, batch=50, answers=True)
    client = worker.Worker(None, tmp_path)  # type: ignore[arg-type]
    setting = Setting(classifier, tmp_path, client, Engine(dtype="float32"))
    with transformers.start(setting) as system:
        expected = system.do(job)
    with mlserver.start(setting) as system:
        found = system.do(job)
        alone = system.do(Job(texts=job.texts, connections=8))
    assert found.answers == expected.answers
    assert found.texts == alone.texts == 80
