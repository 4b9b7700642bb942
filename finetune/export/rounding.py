"""Stochastic rounding to bf16, which keeps what was learned.

A base model's weights are bf16 numbers, and training moves most of them by less than half the way to the next one:
rounding to the nearest would undo that, and the model would forget. Stochastic rounding goes up with a probability of
how far up the weight is. So the mean of the weights is kept, and with it the sums that a layer computes of many (Gupta
et al. 2015). Numbers that bf16 can represent stay as they are.
"""

from typing import Any

import torch
from torch import Tensor


def to_bf16(model: Any) -> Any:
    """Rounds the fp32 parameters and converts the model to bf16, in place; returns it. The result is deterministic."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:
                parameter.copy_(stochastic(parameter, generator))
    return model.to(torch.bfloat16)


def stochastic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Returns fp32 numbers that bf16 can represent, each one of the two neighbours, the nearer one more likely."""
    # bf16 is the upper half of fp32's bits. A random number below one bf16 step is added, and the rest is cut off.
    bits = weights.contiguous().view(torch.int32)
    less_than_a_step = torch.randint(1 << 16, bits.shape, dtype=torch.int32, generator=generator)
    rounded = (bits + less_than_a_step.to(bits.device)) & -(1 << 16)
    # Infinity and NaN stay as they are.
    return torch.where(weights.isfinite(), rounded.view(torch.float32), weights)
