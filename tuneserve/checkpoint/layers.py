"""Names of a transformer's modules: finds the number of a module's block."""

import re
from typing import Any

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def block_of(name: str) -> int | None:
    """Returns the number of the block that a module or a weight of this name is in, from 0.

    None for modules outside of all blocks: embeddings, poolers and heads.
    """
    found = _BLOCK.search(name)
    return int(found[1]) if found else None


def heads(model: Any) -> list[str]:
    """Returns the names of the linear layers outside of the blocks, which are never quantized."""
    import torch

    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return [name for name in linear if block_of(name) is None]
