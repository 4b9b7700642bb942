"""An adapter where a model is asked for: what it is, and what to do with it."""

import json
from pathlib import Path

import pytest

from tuneserve import checkpoint
from tuneserve.checkpoint import adapters
from tuneserve.errors import CheckpointError


@pytest.mark.parametrize(
    ("config", "kind", "hint"),
    [
        ({"peft_type": "LORA"}, "LORA", "tuneserve merge"),
        ({"peft_type": "IA3"}, "IA3", "merge_and_unload"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING", "train LoRA"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING", "train LoRA"),
        ({}, "of an unknown kind", "merge"),
        ([], "of an unknown kind", "merge"),
    ],
)
def test_an_adapter_is_no_model(tmp_path: Path, config: object, kind: str, hint: str) -> None:
    (tmp_path / adapters.CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"a PEFT adapter \({kind}\), not a model") as caught:
        checkpoint.load(tmp_path)
    assert hint in caught.value.hint


def test_every_kind_without_weights_is_known() -> None:
    """PEFT's own list of prompt learning, so that none is told to be merged."""
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    virtual = {
        kind.value for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items() if issubclass(made, PromptLearningConfig)
    }
    assert virtual == set(adapters.VIRTUAL_TOKENS)


def test_a_model_with_an_adapter_beside_it_is_a_model(tmp_path: Path) -> None:
    (tmp_path / adapters.CONFIG).write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    adapters.refuse(tmp_path)
