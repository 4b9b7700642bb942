"""Merges that really are broken, and are noticed."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.errors import CheckpointError, StepFailed
from tuneserve.evaluation.evaluate import held_out_rows
from tuneserve.finetune.export import merging

from ..conftest import WORDS

pytestmark = [
    pytest.mark.train,
    # Raised by libraries at import or inside training; none of them is about this code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def reseal(adapter: Path) -> None:
    """Writes the hashes anew, as after a change that a program made, not an accident."""
    checkpoint.seal(adapter, checkpoint.read_manifest(adapter))


def fails(adapter: Path, output: Path, message: str) -> None:
    with pytest.raises(StepFailed, match=message):
        merging.merge(adapter, output)
    assert not output.exists()
    assert [path for path in output.parent.iterdir() if path.suffix == ".tmp"] == []


def test_a_changed_base_model(adapter: Path, encoder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(encoder, tmp_path / "base"))

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.layer.0.attention.self.value.weight"] *= 1.5

    change(base / "model.safetensors", edit)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    reseal(adapter)
    fails(adapter, tmp_path / "out", "merged model's logits differ")


def test_a_lost_head(adapter: Path, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "classifier" in key]:
            tensors[key] = torch.zeros_like(tensors[key])

    change(adapter / "adapter_model.safetensors", edit)
    reseal(adapter)
    fails(adapter, tmp_path / "out", "merged model's logits differ")


def test_weights_that_are_not_numbers(adapter: Path, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in tensors if "lora_B" in key)
        tensors[key][0, 0] = math.nan

    change(adapter / "adapter_model.safetensors", edit)
    reseal(adapter)
    fails(adapter, tmp_path / "out", "merge: NaNs")


def test_a_step_of_the_merge_that_does_nothing(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel

    # What forgetting the adapter looks like: the base model comes back as it was.
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    fails(adapter, tmp_path / "out", "merged model's logits differ")


def test_a_damaged_file_is_refused_before_anything_is_loaded(adapter: Path, tmp_path: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: content differs"):
        merging.merge(adapter, tmp_path / "out")


def test_bf16_rounding_passes_and_more_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    trained = [torch.randn(1, 5, generator=generator) for _ in range(64)]
    rounded = [tensor.bfloat16().float() for tensor in trained]
    error, agreement = merging.compare_bf16(trained, rounded)
    assert error < 0.01
    assert agreement == 1
    with pytest.raises(StepFailed, match="saving in bf16 changed the model"):
        merging.compare_bf16(trained, [tensor + 0.3 * torch.randn(1, 5, generator=generator) for tensor in trained])
    with pytest.raises(StepFailed):
        merging.compare_bf16(trained, [tensor * math.nan for tensor in trained])
    with pytest.raises(StepFailed):
        merging.compare_fp32(trained, [tensor * math.nan for tensor in trained])
    with pytest.raises(StepFailed, match="shape"):
        merging.compare_fp32(trained, [tensor[:, :4] for tensor in trained])


def test_an_adapter_that_keeps_words_and_tags(run: Callable[..., Path], encoder: Path, tmp_path: Path) -> None:
    """As they were written before entities were spans of the text."""
    people = [{"text": f"{name} , who lives in berlin .", "entities": [[0, len(name), "PER"]]} for name in WORDS]
    rows.write(tmp_path / "d.jsonl", people)
    output = run(tmp_path, task="token-classification", base_model=str(encoder), train="d.jsonl", epochs=1)
    adapter = output.with_name("out-adapter")
    manifest = checkpoint.read_manifest(adapter)
    path = adapter / manifest.test_split.path
    words = [row["text"].split() for row in rows.read(path)]
    rows.write(path, [{"tokens": one, "tags": ["B-PER"] + ["O"] * (len(one) - 1)} for one in words])
    manifest.test_split.sha256 = checkpoint.sha256_file(path)
    checkpoint.seal(adapter, manifest)
    again = merging.merge(adapter, tmp_path / "again")
    assert held_out_rows(again, checkpoint.load(again)) == held_out_rows(output, checkpoint.load(output))


def test_one_number_and_equal_ones_can_be_compared() -> None:
    for numbers in ([2.5], [2.5, 2.5, 2.5], [2.5, 2.501, 2.5]):
        trained = [torch.tensor([[number]]) for number in numbers]
        error, agreement = merging.compare_bf16(trained, [tensor * 1.002 for tensor in trained])
        assert 0 < error < 0.1
        assert agreement == 1
        with pytest.raises(StepFailed, match="saving in bf16 changed the model"):
            merging.compare_bf16(trained, [tensor * 1.02 for tensor in trained])
