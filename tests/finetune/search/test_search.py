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

from ..conftest import write_jsonl

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


@pytest.mark.train
def test_preferences_are_searched_by_the_better_answers_rewards(
    tmp_path: Path, chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [{"prompt": f"say {number}", "chosen": "yes", "rejected": "never"} for number in range(40)]
    write_jsonl(tmp_path / "d.jsonl", answers)
    given = {"task": "preference", "base_model": str(chat), "train": "d.jsonl", "epochs": 2, "precision": "fp32"}
    best = search(write(tmp_path / "train.yaml", **given, search={"learning_rate": [1e-8, 1e-2]}), 2)
    assert "validation reward_accuracy" in capsys.readouterr().out
    found = trials(tmp_path)
    assert len(found) == 2
    assert config.load(best).learning_rate == max(found, key=lambda trial: trial[1])[0]["learning_rate"]


@pytest.mark.train
@pytest.mark.parametrize(("task", "more"), [("embedding", {"pooling": "mean"}), ("ranking", {})])
def test_search_and_ranking_are_searched_by_their_ndcg(
    tmp_path: Path, encoder: Path, pairs: Path, capsys: pytest.CaptureFixture[str], task: str, more: dict[str, Any]
) -> None:
    given = {"task": task, "base_model": str(encoder), "train": str(pairs), "epochs": 1, "precision": "fp32", **more}
    best = search(write(tmp_path / "train.yaml", **given, search={"learning_rate": [1e-3, 1e-4]}), 2)
    assert "validation ndcg@10" in capsys.readouterr().out
    assert all(0 < value < 1 for _, value, _ in trials(tmp_path))
    assert config.load(best).task == task


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
