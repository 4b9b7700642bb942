"""Weights in bf16, so that what was learned is still there.

A base model's weights are bf16 numbers, and training moves most of them by less than half the way to the next one:
rounded to the nearest they go back to where they were, and the model forgets. Rounded at random, up with a chance of
how far up a weight is, their mean is kept, and with it what a layer computes of many (Gupta et al. 2015). What is a
bf16 number already stays as it is.
"""

from typing import Any

import torch
from torch import Tensor


def to_bf16(model: Any) -> Any:
    """Rounds the fp32 parameters and makes the model bf16, both in place; returns it. The same for the same weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:
                parameter.copy_(stochastic(parameter, generator))
    return model.to(torch.bfloat16)


def stochastic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Returns fp32 numbers that bf16 has, each of the two around it with a chance of how near it is."""
    # bf16 is the upper half of fp32's bits: to add less than one of its steps carries over as often as it should.
    bits = weights.contiguous().view(torch.int32)
    less_than_a_step = torch.randint(1 << 16, bits.shape, dtype=torch.int32, generator=generator)
    rounded = (bits + less_than_a_step.to(bits.device)) & -(1 << 16)
    # Infinity and what is no number stay so.
    return torch.where(weights.isfinite(), rounded.view(torch.float32), weights)
