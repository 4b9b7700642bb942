"""Which block loses most: found where one was made to."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneserve import checkpoint
from tuneserve.checkpoint import rows
from tuneserve.quantize import sensitivity, weights
from tuneserve.quantize.schemes import SCHEMES, Recipe


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize("block", [0, 1])
def test_a_block_that_bears_no_rounding_is_the_worst(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, block: int
) -> None:
    """The block that says most of what the model says, and so of what rounding does to it."""
    original: Path = request.getfixturevalue(model)
    source = Path(shutil.copytree(original, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if f".{block}." in name and tensor.ndim == 2:
            tensor *= 10
        if name.startswith("classifier."):
            tensor *= 100
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    manifest, seen = checkpoint.read_manifest(source), rows.read(source / checkpoint.CALIBRATION_SPLIT)
    (tmp_path / "out").mkdir()
    weights.write(source, tmp_path / "out", manifest, Recipe(SCHEMES["w4a16"], group_size=32))

    found = sensitivity.order(source, tmp_path / "out", manifest, seen)

    assert list(found) == [block, 1 - block]
    assert found[block] > 2 * found[1 - block] > 0


def test_nothing_is_found_between_equals(llama: Path) -> None:
    manifest, seen = checkpoint.load(llama), rows.read(llama / checkpoint.CALIBRATION_SPLIT)
    found = sensitivity.order(llama, llama, manifest, seen)
    assert torch.tensor(list(found.values())).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("blocks", "counts"), [(1, []), (2, [1]), (6, [1, 2, 3]), (12, [1, 2, 4, 6]), (30, [1, 2, 4, 8, 15])]
)
def test_twice_as_many_up_to_half(blocks: int, counts: list[int]) -> None:
    worst = [*range(1, blocks), 0]
    kept = list(sensitivity.growing(worst))
    assert [len(one) for one in kept] == counts
    assert all(one == tuple(sorted(worst[: len(one)])) for one in kept)
