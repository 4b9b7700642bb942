"""ONNX Runtime behind LitServe: the real one, where a benchmark has made its environment; tests download nothing."""

import os
from pathlib import Path

import pytest

from tuneserve.benchmarks.serving.peers import environment, onnx_runtime, transformers
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import Engine
from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job


@pytest.mark.skipif(not (environment.FOLDER / "onnx" / "pins.txt").exists(), reason="its environment is not made")
def test_both_forms_answer_as_transformers_does(classifier: Path, tmp_path: Path) -> None:
    texts = ["the film was good", "bad", "good film", "a very bad film"] * 20
    job = Job(texts=texts, batch=50, answers=True)
    with worker.started("http_client", [], tmp_path / "log", os.environ) as http:
        setting = Setting(classifier, tmp_path, http, Engine(dtype="float32"))
        with transformers.start(setting) as system:
            expected = system.do(job)
        for kind in ("fp32", "int8"):
            with onnx_runtime.start(kind, setting) as system:
                found = system.do(job)
            assert found.counts == expected.counts
            if kind == "fp32":
                assert found.answers == expected.answers
