"""Checkpoints without weights are those that `tuneserve quantize` would write, and have tokenizers of the real size."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneserve import checkpoint
from tuneserve.benchmarks.gpu import checkpoints
from tuneserve.benchmarks.gpu.shapes import GROUP_SIZE, MODELS, SCHEMES, TINY, Shape
from tuneserve.benchmarks.serving.load.texts import SENTENCES


def contains(whole: Any, part: Any) -> bool:
    """Whether a nested mapping has everything that another one has."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(contains(whole.get(key), value) for key, value in part.items())
    return bool(whole == part)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "bf16"])
@pytest.mark.parametrize("shape", TINY, ids=lambda one: one.name)
def test_a_scheme_is_declared_as_quantize_does(shape: Shape, scheme: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    from tuneserve.quantize import weights
    from tuneserve.quantize.schemes import SCHEMES as QUANTIZED
    from tuneserve.quantize.schemes import Recipe

    source = checkpoints.write(shape, "bf16", tmp_path)
    manifest = checkpoint.describe(source)
    weights.auto_class(manifest.task).from_config(AutoConfig.from_pretrained(source)).save_pretrained(source)
    recipe = Recipe(QUANTIZED[scheme], group_size=GROUP_SIZE if scheme == "w4a16" else None)
    weights.write(source, tmp_path / "quantized", manifest, recipe)
    written = json.loads((tmp_path / "quantized" / "config.json").read_text())["quantization_config"]
    declared = checkpoints.quantization(scheme, shape.pooling)
    declared["ignore"], written["ignore"] = sorted(declared["ignore"]), sorted(written["ignore"])
    assert contains(written, declared), (declared, written)


@pytest.mark.parametrize("shape", [*MODELS, *TINY], ids=lambda one: one.name)
def test_the_server_takes_it_with_its_tokenizer(shape: Shape, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = checkpoints.write(shape, "bf16", tmp_path)
    manifest = checkpoint.load(path)
    assert (manifest.architecture.startswith("Bert"), manifest.dtype) == (shape.pooling, "bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert len(tokenizer) == shape.vocabulary
    ids = [id_ for text in SENTENCES for id_ in tokenizer(text).input_ids]
    assert max(ids) < shape.vocabulary
    if shape.pooling:
        assert tokenizer.unk_token_id not in ids
        # A token a word or sign, and one at each end.
        assert len(ids) / len(SENTENCES) == pytest.approx(20, abs=2)
    else:
        assert tokenizer.decode(tokenizer(SENTENCES[0]).input_ids) == SENTENCES[0]
        assert tokenizer.decode([shape.vocabulary - 1]).startswith(" ")
