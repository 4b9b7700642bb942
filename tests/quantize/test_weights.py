import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.machine import progress, tiers
from tuneserve.quantize import weights
from tuneserve.quantize.preflight import group_size, linear_shapes
from tuneserve.quantize.schemes import SCHEMES, Recipe


def quantized(source: Path, target: Path, scheme: str, method: str = "rtn", **more: Any) -> dict[str, torch.Tensor]:
    """Quantizes and returns the written tensors."""
    target.mkdir()
    recipe = Recipe(SCHEMES[scheme], method, group_size(linear_shapes(source)) if scheme == "w4a16" else None, **more)
    weights.write(source, target, checkpoint.load(source), recipe, rows.read(source / checkpoint.CALIBRATION_SPLIT))
    checkpoint.refuse_unsafe(target)
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
def test_classifier_layers_are_quantized_and_heads_are_not(bert: Path, tmp_path: Path, scheme: str) -> None:
    tensors = quantized(bert, tmp_path / "out", scheme)
    original = load_file(bert / "model.safetensors")
    for head in ("classifier.weight", "bert.pooler.dense.weight"):
        assert tensors[head].dtype == torch.bfloat16
        assert torch.equal(tensors[head], original[head])
    for layer in linear_shapes(bert):
        stored = tensors.get(f"{layer}.weight_packed", tensors.get(f"{layer}.weight"))
        assert stored is not None
        assert not stored.dtype.is_floating_point, layer
        assert f"{layer}.weight_scale" in tensors
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_w4a16_uses_the_group_size_that_fits(llama: Path, tmp_path: Path) -> None:
    tensors = quantized(llama, tmp_path / "out", "w4a16")
    scales = tensors["model.layers.0.self_attn.q_proj.weight_scale"]
    assert scales.shape == (64, 64 // 64)


def error(source: Path, target: Path) -> float:
    """How far the logits are from the original's, on tokens that nobody calibrated with."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if source.name == "sentiment" else AutoModelForCausalLM
    ids = torch.tensor([[2, *(4 + (7 * row + place) % 14 for place in range(10)), 3] for row in range(8)])
    with torch.no_grad():
        expected, found = (auto.from_pretrained(path, dtype="auto")(ids).logits.float() for path in (source, target))
    return float((expected - found).square().mean())


@pytest.mark.parametrize(("model", "scheme", "method"), [
    ("bert", "w4a16", "gptq"),
    ("llama", "w4a16", "gptq"),
    ("llama", "w4a16", "awq"),
    ("llama", "w8a8", "smoothquant-gptq"),
])  # fmt: skip
def test_rows_make_it_better(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, scheme: str, method: str
) -> None:
    source = request.getfixturevalue(model)
    quantized(source, tmp_path / "nearest", scheme)
    quantized(source, tmp_path / "calibrated", scheme, method)
    assert error(source, tmp_path / "calibrated") < error(source, tmp_path / "nearest")


@pytest.mark.parametrize("scheme", ["w8a8", "nf4"])
def test_blocks_that_are_kept(llama: Path, tmp_path: Path, scheme: str) -> None:
    tensors = quantized(llama, tmp_path / "out", scheme, kept=(1,))
    original = load_file(llama / "model.safetensors")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(tensors[name.format(1)], original[name.format(1)])
    assert not tensors[name.format(0)].dtype.is_floating_point


def test_a_small_cache_has_scales_of_its_rows(llama: Path, tmp_path: Path) -> None:
    tensors = quantized(llama, tmp_path / "out", "w8a8", fp8_cache=True)
    scheme = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert (scheme["type"], scheme["num_bits"], scheme["dynamic"]) == ("float", 8, False)
    for name in ("k_scale", "v_scale"):
        scales = [tensors[f"model.layers.{block}.self_attn.{name}"] for block in range(2)]
        assert all(0 < float(scale) < 1 for scale in scales)
        assert float(scales[0]) != float(scales[1])


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_decoder_loads_in_transformers_and_answers_alike(llama: Path, tmp_path: Path, scheme: str) -> None:
    from transformers import AutoModelForCausalLM

    quantized(llama, tmp_path / "out", scheme)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(llama, dtype="auto")(ids).logits.float()
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")(ids).logits.float()
    similarity = torch.nn.functional.cosine_similarity(expected.flatten(), found.flatten(), dim=0)
    assert similarity > (0.999 if SCHEMES[scheme].bits == 8 else 0.98)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_the_lm_head_stays_tied(llama: Path, tmp_path: Path, scheme: str) -> None:
    tensors = quantized(llama, tmp_path / "out", scheme)
    assert "lm_head.weight" not in tensors
    assert torch.equal(
        tensors["model.embed_tokens.weight"], load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    )


def test_classifier_loads_in_transformers_and_scores_alike(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    quantized(bert, tmp_path / "out", "w8a8")
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(bert)(ids).logits.float()
        found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")(ids).logits.float()
    assert torch.allclose(expected, found, atol=0.02)


def test_the_libraries_print_nothing(
    bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS", math.inf)
    quantized(bert, tmp_path / "out", "w8a8")
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == ""


@pytest.mark.parametrize("method", ["smoothquant", "gptq"])
def test_calibrating_shows_how_far_it_is(
    llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    quantized(llama, tmp_path / "out", "w8a8", method)
    lines = capfd.readouterr().err.splitlines()
    assert any(line.startswith("(2/3): Calibrating: 100% ") for line in lines), lines
    assert all(re.match(r".+: +\d+% \d+/\d+ \[", line) for line in lines), lines


@pytest.mark.parametrize("method", ["rtn", "gptq", "smoothquant", "smoothquant-gptq"])
def test_a_reduced_range_holds_for_every_method(llama: Path, tmp_path: Path, method: str) -> None:
    full = quantized(llama, tmp_path / "full", "w8a8", method)
    reduced = quantized(llama, tmp_path / "reduced", "w8a8", method, reduce_range=True)
    for layer in linear_shapes(llama):
        assert full[f"{layer}.weight"].abs().max() > 64
        # All of it is used, and no product of two can pass 16 bits (methods.py).
        assert reduced[f"{layer}.weight"].dtype == torch.int8
        assert reduced[f"{layer}.weight"].min() >= -64
        assert 60 <= reduced[f"{layer}.weight"].abs().max() <= 64
        scales = reduced[f"{layer}.weight_scale"] / full[f"{layer}.weight_scale"]
        assert torch.allclose(scales, torch.full_like(scales, 2.0), rtol=0.2)
    # Nothing else tells them apart: their readers load both alike.
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("full", "reduced")]
    assert configs[0] == configs[1]
    assert reduced.keys() == full.keys()
    assert {name: tensor.dtype for name, tensor in reduced.items()} == {n: tensor.dtype for n, tensor in full.items()}
    assert error(llama, tmp_path / "reduced") < 4 * error(llama, tmp_path / "full") + 1e-6


@pytest.mark.parametrize(("scheme", "method"), [("w8a8", "smoothquant"), ("w4a16", "gptq")])
def test_calibrating_in_32_bits_stores_what_was_stored(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, method: str
) -> None:
    """Where bfloat16 is emulated, the rows go through the model in float32, and the file is the same kind."""
    found = {}
    for tier in (tiers.AVX512_BF16, tiers.AVX2):
        monkeypatch.setattr(tiers, "this_tier", lambda tier=tier: tier)
        found[tier] = quantized(llama, tmp_path / tier.name, scheme, method)
    native, emulated = found.values()
    assert native.keys() == emulated.keys()
    for name, tensor in emulated.items():
        if not name.endswith("_scale"):
            assert tensor.dtype == native[name].dtype, name
    configs = [json.loads((tmp_path / tier.name / "config.json").read_text()) for tier in found]
    assert configs[0] == configs[1]
    errors = [error(llama, tmp_path / tier.name) for tier in found]
    assert errors[1] < 1.5 * errors[0]
