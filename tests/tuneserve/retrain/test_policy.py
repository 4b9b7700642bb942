"""The policy's file: what is refused, by key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneserve.errors import UserError
from tuneserve.retrain import policy

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
