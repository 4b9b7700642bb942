"""The search of settings: what it may look for, that it goes on where it was, and that its result can be trained."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from safetensors.torch import load_file, save_file

from tuneserve.errors import StepFailed, UserError
from tuneserve.finetune import config
from tuneserve.finetune.search.search import Pruning, search
from tuneserve.finetune.search.space import Range, load

# Raised by libraries at import or inside training; none of them is about this code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def write(path: Path, **values: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    given = {"task": "sequence-classification", "base_model": "m", "train": "d.jsonl", "output": "out"}
    path.write_text(yaml.safe_dump({**given, "validation_size": 0.2, **values}))
    return path


def trials(directory: Path) -> list[tuple[Any, ...]]:
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{directory / 'out-search' / 'study.db'}")
    done = [trial for trial in study.trials if trial.state.is_finished() and trial.state.name != "FAIL"]
    return [(trial.params, trial.value, trial.state.name) for trial in done]


@pytest.mark.train
def test_a_search_goes_on_and_its_result_can_be_trained(
    tmp_path: Path, encoder: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"learning_rate": {"low": "1e-6", "high": 5e-2, "log": True}, "method": ["full", "lora"], "lora_rank": [4]}
    common = {"base_model": str(encoder), "train": str(reviews), "test_size": 0.2, "precision": "fp32", "search": space}
    common |= {"epochs": 1, "batch_size": 8, "max_length": 64}
    whole, parts = (write(tmp_path / name / "train.yaml", **common) for name in ("whole", "parts"))
    best = search(whole, 4)
    assert best == tmp_path / "whole" / "out-search" / "best.yaml"
    assert {path.name for path in best.parent.iterdir()} == {"best.yaml", "study.db"}
    found = trials(tmp_path / "whole")
    assert len({params["learning_rate"] for params, _, _ in found}) == 4
    # lora_rank is chosen where the method has it.
    assert all(("lora_rank" in params) == (params["method"] == "lora") for params, _, _ in found)
    assert "validation accuracy" in capsys.readouterr().out

    search(parts, 1)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/parts/out-search/study.db")
    # As a kill leaves it.
    study.ask()
    search(parts, 4)
    assert trials(tmp_path / "parts") == found

    assert {state for _, _, state in found} == {"COMPLETE"}
    top, _, _ = max(found, key=lambda trial: trial[1])
    chosen = config.load(best)
    assert (chosen.method, chosen.learning_rate) == (top["method"], top["learning_rate"])
    assert chosen.train == str(reviews)
    assert chosen.output == tmp_path / "whole" / "out"

    with pytest.raises(UserError, match="started with another batch_size"):
        search(write(parts, **common | {"batch_size": 4}), 4)


def test_who_is_worse_than_most_is_ended() -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    study.add_trial(optuna.trial.create_trial(value=0.9, intermediate_values={1: 0.8, 2: 0.9}))
    measured = iter((0.81, 0.7))
    callback = Pruning(study.ask(), lambda _: next(measured))
    callback.on_evaluate(None, SimpleNamespace(epoch=1.0), None)
    with pytest.raises(optuna.TrialPruned):
        callback.on_evaluate(None, SimpleNamespace(epoch=1.5), None)
    assert study.trials[1].intermediate_values == {1: 0.81, 2: 0.7}


@pytest.mark.train
def test_trials_that_fail_do_not_end_the_search(tmp_path: Path, encoder: Path, reviews: Path) -> None:
    base = Path(shutil.copytree(encoder, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][0] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    common = {"base_model": str(base), "train": str(reviews), "precision": "fp32", "max_length": 64}
    path = write(tmp_path / "train.yaml", **common, search={"epochs": [1, 2]})
    with pytest.raises(StepFailed, match="no trial was completed"):
        search(path, 2)
    assert [state for _, _, state in trials(tmp_path)] == ["PRUNED", "PRUNED"]
    assert not (tmp_path / "out-search" / "best.yaml").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (None, "search is missing"),
        ({}, "search is missing"),
        ({"test_size": [0.1, 0.2]}, "test_size is not a setting that can be searched"),
        # Each may have been trained on the validation rows.
        ({"base_model": ["a", "b"]}, "base_model is not a setting that can be searched"),
        ({"teacher": ["a", "b"]}, "teacher is not a setting that can be searched"),
        ({"learning_rat": [0.1]}, "learning_rat is not a setting that can be searched"),
        ({"learning_rate": 0.1}, "learning_rate is 0.1"),
        ({"learning_rate": []}, "learning_rate is"),
        ({"learning_rate": [0.1, 2]}, "learning_rate has 2"),
        ({"learning_rate": {"low": 1e-5}}, "learning_rate is {"),
        ({"learning_rate": {"low": 1e-3, "high": 1e-4}}, "learning_rate is {"),
        ({"weight_decay": {"low": 0, "high": 1, "log": True}}, "weight_decay is {"),
        ({"method": {"low": "full", "high": "lora"}}, "method is {"),
        ({"lora_targets": [["query"], ["query", "key"]]}, "lora_targets is"),
        ({"method": ["full", "half"]}, "method has 'half'"),
    ],
)
def test_what_can_not_be_searched_is_named(tmp_path: Path, space: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(write(tmp_path / "train.yaml", search=space))
    assert caught.value.hint


def test_what_changes_what_a_perplexity_is_of(tmp_path: Path) -> None:
    space = {"max_length": [64, 128]}
    with pytest.raises(UserError, match="search: max_length can't be compared for generation"):
        load(write(tmp_path / "train.yaml", search=space, task="generation"))
    assert load(write(tmp_path / "train.yaml", search=space))[1].settings == space


def test_a_search_needs_validation_rows_and_no_other_program_takes_its_file(tmp_path: Path) -> None:
    space = {"epochs": [1, 2], "learning_rate": {"low": "1e-5", "high": "1e-3", "log": True}}
    path = write(tmp_path / "train.yaml", search=space)
    with pytest.raises(UserError, match="search is given") as caught:
        config.load(path)
    assert "tuneserve search" in caught.value.hint
    assert load(path)[1].settings == {"epochs": [1, 2], "learning_rate": Range(1e-5, 1e-3, True)}
    with pytest.raises(UserError, match="validation_size is missing"):
        load(write(tmp_path / "train.yaml", search=space, validation_size=None))
