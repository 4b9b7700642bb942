"""How published encoders say which pooling and prompts they want, and how we say it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneserve import checkpoint
from tuneserve.checkpoint import encoders
from tuneserve.errors import CheckpointError


def published(directory: Path, pooling: dict[str, Any], kind: str = "sentence_transformers.models.Pooling") -> Path:
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    transformer = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (directory / "modules.json").write_text(json.dumps([transformer, {"idx": 1, "path": "1_Pooling", "type": kind}]))
    return directory


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last-token"),
        # As sentence-transformers 6 writes it.
        ({"embedding_dimension": 8, "pooling_mode": "lasttoken", "include_prompt": True}, "last-token"),
        ({"embedding_dimension": 8, "pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling_of_published_encoders(tmp_path: Path, settings: dict[str, Any], name: str) -> None:
    assert encoders.pooling(published(tmp_path, settings)) == name


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": ["mean", "cls"]},
        {},
    ],
)
def test_other_poolings_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json: its pooling \(.+\) is not supported"):
        encoders.pooling(published(tmp_path, settings))


def test_an_encoder_without_the_files_says_nothing(make_bert: Any) -> None:
    directory = make_bert("Model", [])
    for name in ("modules.json", "config_sentence_transformers.json"):
        (directory / name).unlink()
    manifest = checkpoint.describe(directory)
    assert (manifest.pooling, dict(manifest.prompts)) == ("", {})
    assert encoders.further_steps(directory) == []


def test_what_is_written_is_read(make_bert: Any) -> None:
    directory = make_bert("Model", [])
    encoders.write(directory, "cls", {"query": "query: ", "passage": ""}, 32, 24)
    manifest = checkpoint.describe(directory)
    assert (manifest.pooling, dict(manifest.prompts)) == ("cls", {"query": "query: "})
    assert encoders.further_steps(directory) == []


def test_further_steps_are_found(tmp_path: Path) -> None:
    published(tmp_path, {"pooling_mode_mean_tokens": True})
    steps = json.loads((tmp_path / "modules.json").read_text())
    steps.append({"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(steps))
    assert encoders.further_steps(tmp_path) == ["Dense"]


@pytest.mark.parametrize("text", ["{}", "[", "[1]", '[{"type": "a.Pooling"}]', '[{"type": 1, "path": "a"}]'])
def test_broken_steps_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"modules\.json: not "):
        encoders.pooling(tmp_path)


@pytest.mark.parametrize("text", ['{"prompts": ["query: "]}', '{"prompts": {"query": 1}}', "[]"])
def test_broken_prompts_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config_sentence_transformers.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config_sentence_transformers\.json: "):
        encoders.prompts(tmp_path)


def test_nothing_outside_of_the_checkpoint_is_read(tmp_path: Path) -> None:
    published(tmp_path, {"pooling_mode_mean_tokens": True})
    steps = json.loads((tmp_path / "modules.json").read_text())
    steps[1]["path"] = "../../1_Pooling"
    (tmp_path / "modules.json").write_text(json.dumps(steps))
    assert encoders.pooling(tmp_path) == "mean"


def test_pooled_vectors() -> None:
    hidden = torch.arange(24, dtype=torch.bfloat16).view(2, 3, 4)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = {how: encoders.pooled(hidden, mask, how) for how in encoders.POOLINGS}
    assert {vectors.dtype for vectors in found.values()} == {torch.float32}
    assert found["mean"].tolist() == [[4, 5, 6, 7], [14, 15, 16, 17]]
    assert found["cls"].tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert found["last-token"].tolist() == [[8, 9, 10, 11], [16, 17, 18, 19]]


def test_the_first_known_prompt_counts() -> None:
    given = {"document": "doc: ", "query": "q: "}
    assert encoders.prompt(given, encoders.QUERY) == "q: "
    assert encoders.prompt(given, encoders.PASSAGE) == "doc: "
    assert encoders.prompt(given | {"passage": "p: "}, encoders.PASSAGE) == "p: "
    assert encoders.prompt({}, encoders.QUERY) == ""
