"""Layer dropping: makes a base model smaller and faster before it is trained.

The blocks that are kept are spread as evenly as possible, and include the first and the last (Shleifer and Rush 2020).
Training recovers the lost quality, and more of it with a teacher, which may be the same model with all its blocks.
"""

from typing import Any

from tuneserve.checkpoint.layers import block_of
from tuneserve.errors import UserError


def kept_blocks(depth: int, count: int) -> list[int]:
    """Returns the indices of the `count` blocks that are kept, in order; if it is only one, the first."""
    return [round(place * (depth - 1) / max(1, count - 1)) for place in range(count)]


def drop_blocks(model: Any, count: int) -> list[int]:
    """Removes blocks from the model, in place, and returns which are left. Raises UserError if it has too few."""
    name, blocks = _blocks(model)
    depth = len(blocks)
    if count >= depth:
        told = f"keep_layers is {count}, and the base model has {depth} blocks"
        raise UserError(told, "give a smaller number, or leave it out")
    kept = kept_blocks(depth, count)
    model.set_submodule(name, type(blocks)(blocks[index] for index in kept))
    for place, index in enumerate(kept):
        for module in blocks[index].modules():
            # The index of the layer in a KV cache.
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    settings = model.config.get_text_config()
    for key, value in vars(settings).items():
        # Settings with one value for each block, such as the kind of attention.
        if "layer" in key and isinstance(value, list) and len(value) == depth:
            setattr(settings, key, [value[index] for index in kept])
    settings.num_hidden_layers = count
    return kept


def _blocks(model: Any) -> tuple[str, Any]:
    """Returns the list of a model's blocks, and its name."""
    first = next(name for name, _ in model.named_modules() if block_of(f"{name}.") == 0)
    name = first.rpartition(".")[0]
    return name, model.get_submodule(name)
