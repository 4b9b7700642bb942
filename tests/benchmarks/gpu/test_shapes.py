"""Shapes are those of the real models, and roofs are what the arithmetic says."""

from pathlib import Path

import pytest

from tuneserve.benchmarks.gpu import checkpoints
from tuneserve.benchmarks.gpu.shapes import MODELS, SCHEMES, TINY, Roofs, Shape

BY_NAME = {shape.name: shape for shape in MODELS}


@pytest.mark.parametrize("shape", [*MODELS, *TINY], ids=lambda one: one.name)
def test_a_shape_has_the_weights_of_the_model_that_is_served(shape: Shape, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if shape.pooling else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.from_pretrained(checkpoints.write(shape, "bf16", tmp_path)))
    linear = {name: one.weight.numel() for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    assert sum(size for name, size in linear.items() if ".layer" in name) == shape.linear
    assert linear.get("lm_head", 0) == shape.output
    # Positions, norms, biases and a classifier's pooler are left out.
    weights = shape.memory("bf16") / 2
    assert weights == pytest.approx(
        sum(one.numel() for one in model.parameters()), rel=0.05 if shape in MODELS else 0.4
    )


def test_the_names_are_of_models_of_that_size() -> None:
    sizes = {"minilm": 22.7e6, "bert-base": 109.5e6, "llama-1b": 1.236e9, "llama-8b": 8.03e9}
    for name, size in sizes.items():
        assert BY_NAME[name].memory("bf16") / 2 == pytest.approx(size, rel=0.03)


def test_a_single_stream_is_bound_by_reading_and_a_batch_by_computing() -> None:
    roofs, llama = Roofs(4e12, {"bf16": 7e14}), BY_NAME["llama-8b"]
    # The weights for each token; with seven of them, half of the output in the cache, too.
    read = 8 * 2 * (llama.linear + llama.output) + 7 * 4 * llama.cache_bytes
    assert roofs.tokens_a_second(llama, "bf16", 0, 8, 1) == pytest.approx(8 * 4e12 / read)
    # Twice the bandwidth helps one stream, and no batch of texts.
    faster = Roofs(8e12, {"bf16": 7e14})
    one, other = (each.tokens_a_second(llama, "bf16", 1, 128, 1) for each in (roofs, faster))
    assert one is not None
    assert other == pytest.approx(2 * one, rel=0.01)
    bert = BY_NAME["bert-base"]
    assert roofs.texts_a_second(bert, "bf16", 20, 1024) == faster.texts_a_second(bert, "bf16", 20, 1024)
    assert roofs.texts_a_second(bert, "bf16", 20, 1024) == pytest.approx(7e14 / (2 * bert.linear * 20))


def test_a_type_that_was_not_measured_has_no_roof() -> None:
    roofs = Roofs(4e12, {"bf16": 7e14, "int8": 1e15})
    found = {scheme: roofs.texts_a_second(BY_NAME["minilm"], scheme, 20, 64) for scheme in SCHEMES}
    assert found.pop("fp8") is None
    assert all(found.values())
    assert found["w8a8"] > found["bf16"] == found["w4a16"]  # type: ignore[operator]
    assert roofs.tokens_a_second(BY_NAME["llama-1b"], "fp8", 1, 1, 1) is None
