"""`import tuneserve`: light until it is used, and what each verb hands on. The notebook does it for real."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

import tuneserve
from tuneserve import checkpoint
from tuneserve.client import Client, Unavailable
from tuneserve.errors import CheckpointError, StepFailed, UserError
from tuneserve.v1 import checkpoint_pb2 as pb


@pytest.fixture(scope="module")
def made(make_bert: Any) -> Path:
    """A checkpoint with a history."""
    directory: Path = make_bert()
    manifest = checkpoint.describe(directory)
    base, step = pb.Step(name="base", source="bert"), pb.Step(name="finetune", source="bert", seed=7)
    step.config.update({"epochs": 2})
    step.packages["torch"] = "2"
    step.metrics["accuracy"] = 0.75
    step.finished_at.FromDatetime(datetime(2026, 1, 2))
    manifest.lineage.extend([base, step, pb.Step(name="merge")])
    checkpoint.seal(directory, manifest)
    return directory


def test_importing_it_imports_nothing_of_it() -> None:
    code = """
import sys, tuneserve
before = set(sys.modules)
assert not {"tuneserve.api", "grpc", "numpy", "torch"} & before
from tuneserve import Checkpoint, Server, evaluate, finetune, quantize
import tuneserve.finetune.config
assert tuneserve.finetune.config and callable(tuneserve.finetune) and callable(tuneserve.quantize)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="'tuneserve' has no attribute 'train'"):
        _ = tuneserve.train


def test_a_checkpoint_has_its_history(made: Path) -> None:
    found = tuneserve.Checkpoint.load(str(made))
    assert (found.path, found.task, found.labels, found.quantization) == (
        made,
        "sequence-classification",
        ("neg", "pos"),
        "",
    )
    assert os.fspath(found) == str(made)
    assert found.version == checkpoint.version_of(found.manifest)
    assert found.size_bytes == (made / "model.safetensors").stat().st_size
    assert [step.name for step in found.lineage] == ["base", "finetune", "merge"]
    step = found.lineage[1]
    assert (step.seed, step.config, step.packages) == (7, {"epochs": 2}, {"torch": "2"})
    assert step.finished_at == datetime(2026, 1, 2, tzinfo=UTC)
    assert (found.lineage[0].seed, found.lineage[0].finished_at) == (None, None)
    assert found.metrics == step.metrics == {"accuracy": 0.75}
    assert found == tuneserve.Checkpoint.load(made)
    with pytest.raises(CheckpointError, match="no such directory"):
        tuneserve.Checkpoint.load(made / "none")


def test_finetune_takes_a_file_a_dict_or_settings(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneserve.finetune import pipeline

    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "finetune", lambda config, **options: seen.append((config, options)) or made)
    monkeypatch.chdir(tmp_path)
    settings = {"task": "sequence-classification", "base_model": tuneserve.Checkpoint.load(made), "train": "a.csv"}
    found = tuneserve.finetune(settings | {"output": Path("out")}, overwrite=True)
    assert found.path == made
    [(config, options)] = seen
    assert (config.base_model, config.output) == (str(made), tmp_path / "out")
    assert config.train == str(tmp_path / "a.csv")
    assert options == {"overwrite": True, "resume": False}
    file = tmp_path / "below" / "train.yaml"
    file.parent.mkdir()
    file.write_text(f"task: sequence-classification\nbase_model: {made}\ntrain: a.csv\noutput: out\n")
    tuneserve.finetune(file)
    assert seen[1][0].train == str(file.parent / "a.csv")
    tuneserve.finetune(config, resume=True)
    assert seen[2] == (config, {"overwrite": False, "resume": True})
    with pytest.raises(UserError, match="learning_rat"):
        tuneserve.finetune(settings | {"output": "out", "learning_rat": 1})


def test_quantize_and_evaluate_hand_on_rows(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneserve.evaluation import evaluate
    from tuneserve.quantize import run

    seen: list[Any] = []
    monkeypatch.setattr(run, "quantize", lambda *arguments, **options: seen.append((arguments, options)))
    monkeypatch.setattr(evaluate, "measure", lambda *arguments: seen.append(arguments))
    row = {"text": "a film", "label": "pos"}
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a film", "label": "pos"}\n')
    assert tuneserve.quantize(made, made, "w8a8", data=file, calibration=str(file), fp8_cache=True).path == made
    arguments, options = seen.pop()
    assert arguments == (made, made, "w8a8")
    assert (options["data"], options["calibration_file"], options["max_drop"]) == ([row], file, 0.01)
    assert options["fp8_cache"]
    tuneserve.quantize(str(made), made, "w8a8", max_drop=None)
    assert (seen[-1][1]["data"], seen[-1][1]["calibration_file"]) == (None, None)
    for data, expected in ((None, None), (file, [row]), ([row], [row])):
        tuneserve.evaluate(made, data)
        assert seen.pop() == (made, expected)


def test_a_server_runs_in_its_block(tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("admin_listen: 127.0.0.1:0\n")
    server = tuneserve.Server(config=config)
    with pytest.raises(RuntimeError, match="is not running"):
        _ = server.address
    for _ in range(2):
        with server, server.client() as client:
            assert client.models() == []
            address = server.address
            assert server.metrics_address != address
            process = psutil.Process(server._server().process.pid)
            with pytest.raises(RuntimeError, match="already running"):
                server.start()
        assert not process.is_running()
        with pytest.raises(RuntimeError, match="is not running"):
            server.client()
    server.stop()
    with pytest.raises(Unavailable), Client(address, attempts=1) as client:
        client.models()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="nothing-here"), tuneserve.Server({"m": tmp_path / "nothing-here"}):
        pass
    for models, config in ((None, None), ({"m": tmp_path}, tmp_path)):
        with pytest.raises(ValueError, match="give either models or config"):
            tuneserve.Server(models, config=config)
