"""Which pooling and prompts a run has: those of the base model's files, unless the settings name others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tuneserve.checkpoint import encoders
from tuneserve.errors import UserError
from tuneserve.finetune import config
from tuneserve.finetune.model import pooling


@pytest.fixture
def base(encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder, tmp_path / "base"))


def of(base: Path, **values: Any) -> tuple[str, dict[str, str]]:
    given = {"task": "embedding", "base_model": str(base), "train": "d.jsonl", "output": "out"}
    how, prompts = pooling.of(config.parse(given | values, base.parent))
    return how, dict(prompts)


def test_what_the_base_model_says(base: Path) -> None:
    encoders.write(base, "cls", {"query": "query: ", "document": "text: "}, 32, 64)
    assert of(base) == ("cls", {"query": "query: ", "document": "text: "})
    assert of(base, pooling="mean", prompts={"query": "q: "}) == ("mean", {"query": "q: "})
    assert of(base, prompts={}) == ("cls", {})


def test_nothing_is_guessed(base: Path) -> None:
    with pytest.raises(UserError, match="does not say how its tokens' vectors become one") as caught:
        of(base)
    assert "mean, cls, last-token" in caught.value.hint
    assert of(base, pooling="last-token") == ("last-token", {})


def test_fewer_dimensions_than_a_vector_has(base: Path) -> None:
    assert of(base, pooling="mean", matryoshka=[8, 31])[0] == "mean"
    with pytest.raises(UserError, match="matryoshka: 32 dimensions, and a vector has 32"):
        of(base, pooling="mean", matryoshka=[8, 32])


def test_a_layer_after_the_pooling_is_refused(base: Path) -> None:
    encoders.write(base, "mean", {}, 32, 64)
    steps = json.loads((base / "modules.json").read_text())
    steps.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (base / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(UserError, match="has a Dense layer after its pooling"):
        of(base)
