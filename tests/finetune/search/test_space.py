"""Which settings may be searched, and which values they may take."""

from pathlib import Path
from typing import Any

import pytest

from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.search.space import Range, load

from .test_search import write


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
