"""Which blocks lose most by quantization: each quantized block alone replaces that of the original model, and the
outputs are compared on calibration rows. The worst are then kept in 16 bits, twice as many each time.

The unit is a whole block, attention and MLP: vLLM fuses layers of a block into one, which has one scheme, and scaling
methods move factors from a norm into the layers that read it.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tuneserve.checkpoint.layers import block_of
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import auto_class
from tuneserve.quantize import calibration
from tuneserve.quantize.weights import computed_in, quiet
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

# Calibration rows that are compared: the order of the blocks settles long before the last of them.
ROWS = 32
# The last tokens of each row, which are the answer. All tokens, with a large vocabulary, would not fit into memory.
POSITIONS = 16


def order(original: Path, quantized: Path, manifest: pb.Checkpoint, rows: Sequence[Row]) -> dict[int, float]:
    """Returns for each block number how far the outputs move if only that block is quantized; the worst first.

    The distance is the Kullback-Leibler divergence from the original's probabilities in nats, the mean over all tokens
    or texts; for vectors, and regression and multi-label outputs, the mean squared difference.
    """
    import torch
    from transformers import AutoTokenizer

    logger.info("looking for the blocks that lose most, on %d calibration rows", len(rows[:ROWS]))
    with quiet(), torch.inference_mode():
        auto = auto_class(manifest.task)
        dtype = computed_in(getattr(torch, manifest.dtype))
        whole, small = (auto.from_pretrained(path, dtype=dtype).eval() for path in (original, quantized))
        encoded = calibration.encode(AutoTokenizer.from_pretrained(original), manifest, rows[:ROWS])
        batches = list(calibration.tensors(encoded))

        def outputs() -> list[Any]:
            # Logits, or an encoder's vectors of the tokens.
            logits = (whole(**batch)[0] for batch in batches)
            return [(one[:, -POSITIONS:] if one.ndim == 3 else one).float().flatten(0, -2) for one in logits]

        # A complete pass first, because the first one unpacks the weights.
        small(**batches[0])
        expected, found = outputs(), {}
        for name, number in tqdm(_blocks(whole).items(), desc="trying blocks"):
            with _replaced(whole, name, small.get_submodule(name)):
                apart = [_divergence(*pair, manifest) for pair in zip(expected, outputs(), strict=True)]
            found[number] = float(torch.cat(apart).mean())
    return dict(sorted(found.items(), key=lambda item: item[1], reverse=True))


def growing(worst: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yields the blocks to leave unquantized: the worst one, two, four, and so on, at most half of them."""
    most = len(worst) // 2
    for count in sorted({min(2**power, most) for power in range(most.bit_length() + 1)} - {0}):
        yield tuple(sorted(worst[:count]))


def _blocks(model: Any) -> dict[str, int]:
    """Returns the number of each block by its module's name."""
    names = (name for name, _ in model.named_modules())
    return {name: number for name in names if (number := block_of(f"{name}.")) is not None and block_of(name) is None}


@contextmanager
def _replaced(model: Any, name: str, block: Any) -> Iterator[None]:
    mine = model.get_submodule(name)
    model.set_submodule(name, block)
    try:
        yield
    finally:
        model.set_submodule(name, mine)


def _divergence(expected: Any, given: Any, manifest: pb.Checkpoint) -> Any:
    independent = manifest.problem_type in (pb.PROBLEM_TYPE_MULTI_LABEL, pb.PROBLEM_TYPE_REGRESSION)
    if independent or manifest.task == pb.TASK_EMBEDDING:
        return (expected - given).square().mean(-1)
    # In float64: in float32, the difference of nearly equal outputs would be only noise.
    before, after = expected.double().log_softmax(-1), given.double().log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1)
