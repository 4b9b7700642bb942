"""Fewer blocks: a base model becomes a smaller and faster one before it is trained.

The blocks that stay are spread as evenly as can be, the first and the last among them (Shleifer and Rush 2020). What
was lost comes back in training, more of it with a teacher, which may be the same model with all of its blocks.
"""

from typing import Any

from tuneserve.errors import UserError
from tuneserve.layers import block_of


def kept_blocks(depth: int, count: int) -> list[int]:
    """Returns which of `depth` blocks stay, in their order; of one alone, the first."""
    return [round(place * (depth - 1) / max(1, count - 1)) for place in range(count)]


def drop_blocks(model: Any, count: int) -> list[int]:
    """Takes blocks out of the model, in place, and returns which are left. Raises UserError when it has too few."""
    name, blocks = _blocks(model)
    depth = len(blocks)
    if count >= depth:
        raise UserError(f"keep_layers is {count}", f"the base model has {depth}: give less, or leave it out")
    kept = kept_blocks(depth, count)
    model.set_submodule(name, type(blocks)(blocks[index] for index in kept))
    for place, index in enumerate(kept):
        for module in blocks[index].modules():
            # Where its keys and values stand in a cache.
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    settings = model.config.get_text_config()
    for key, value in vars(settings).items():
        # A kind of attention for each block, and the like.
        if "layer" in key and isinstance(value, list) and len(value) == depth:
            setattr(settings, key, [value[index] for index in kept])
    settings.num_hidden_layers = count
    return kept


def _blocks(model: Any) -> tuple[str, Any]:
    """Returns the list of a model's blocks, and its name."""
    first = next(name for name, _ in model.named_modules() if block_of(f"{name}.") == 0)
    name = first.rpartition(".")[0]
    return name, model.get_submodule(name)
