"""The policy's file: what is refused, by key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneserve.errors import UserError
from tuneserve.retrain import policy
from tuneserve.retrain.run import retrain

from .test_canary import sealed

GOOD: dict[str, Any] = {"feedback": "kept/*/a/labels.jsonl", "checkpoint": "a", "output": "loop"}
SERVER = {"model": "a", "models_root": "."}


def load(folder: Path, **values: Any) -> policy.RetrainConfig:
    (folder / "policy.yaml").write_text(yaml.safe_dump(GOOD | values))
    return policy.load(folder / "policy.yaml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    found = load(tmp_path, server=SERVER, finetune={"epochs": 2})
    assert found.feedback == tmp_path / "kept" / "*" / "a" / "labels.jsonl"
    assert (found.output, found.finetune, found.min_rows) == (tmp_path / "loop", {"epochs": 2}, 200)
    assert found.server is not None
    assert (found.server.models_root, found.server.percent) == (tmp_path / ".", 10)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_rows": 0}, "min_rows: 0 is not allowed"),
        ({"finetune": {"task": "generation"}}, "finetune.task: task is given"),
        ({"finetune": {"continue_from": "b"}}, "finetune.continue_from: continue_from is given"),
        ({"server": SERVER | {"percent": 100}}, "server.percent: 100 is not allowed"),
        ({"server": SERVER | {"calls": 5}}, "server: calls is given, and no metrics"),
        ({"server": SERVER | {"models_root": "elsewhere"}}, "output is not below server.models_root"),
        ({"canary": {}}, "unknown key 'canary'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, **values)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("finetune", "said"),
    [
        ({"epoch": 2}, "finetune: unknown key 'epoch'"),
        ({"epochs": "many"}, "finetune: epochs: "),
        ({"replay": "old.csv"}, "finetune.replay: /.*/old.csv: no such file"),
        ({"test": "old.csv"}, "finetune.test: /.*/old.csv: no such file"),
    ],
)
def test_what_would_fail_once_there_are_rows_is_told_before(
    tmp_path: Path, make_bert: Callable[..., Path], finetune: dict[str, Any], said: str
) -> None:
    sealed(make_bert(labels=["neg", "pos"]).rename(tmp_path / "a"))
    with pytest.raises(UserError, match=said):
        retrain(load(tmp_path, finetune=finetune), tmp_path)


def test_feedback_that_is_not_there_is_named(
    tmp_path: Path, make_bert: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sealed(make_bert(labels=["neg", "pos"]).rename(tmp_path / "a"))
    found = load(tmp_path)
    for dry_run in (True, False):
        retrain(found, tmp_path, dry_run)
        assert f"0 new rows, min_rows is 200; no file is {found.feedback}\n" in capsys.readouterr().out
    file = tmp_path / "kept" / "ann" / "a" / "labels.jsonl"
    file.parent.mkdir(parents=True)
    file.touch()
    retrain(found, tmp_path)
    assert capsys.readouterr().out == "waiting: 0 new rows, min_rows is 200\n"
