"""LoRA operators for CPUs, loaded into vLLM's worker processes: rows of a batch without an adapter get none.

vLLM's own CPU operators use the index -1 of such a row as the index of the last adapter. So a request for the model
itself gets another request's adapter when they share a step, and the result stays in the prefix cache (vLLM issue
48421). These operators process the rows of each adapter together, which also avoids a copy of the weights for every
row. Includes the seeds, because vLLM accepts only one worker extension.

Knows only the contract of vLLM's operators. The import fails if vLLM does not have them where they are expected.
"""

from collections.abc import Iterator

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

from tuneserve.server.engine.on_cpu.seeds import Worker

__all__ = ["Worker"]


def _by_adapter(indices: torch.Tensor, count: int) -> Iterator[tuple[int, torch.Tensor]]:
    indices = _of_rows(indices, count)
    for index in torch.unique(indices).tolist():
        if index >= 0:
            yield index, (indices == index).nonzero().squeeze(1)


def _of_rows(indices: torch.Tensor, count: int) -> torch.Tensor:
    """Returns the adapter index of each of `count` rows.

    For the log probabilities of a prompt, vLLM passes the prompt's rows with the indices of the step's requests. Which
    request the prompt belongs to is known only if all of them have the same adapter; otherwise no adapter is used.
    """
    if len(indices) >= count:
        return indices[:count]
    return indices[:1].expand(count) if len(torch.unique(indices)) == 1 else indices.new_full((count,), -1)


def _weights(stacked: torch.Tensor, index: int, like: torch.Tensor) -> torch.Tensor:
    """Returns one adapter's weights (out, in), from (adapters, 1, out, in) or (adapters, out, in)."""
    weights = stacked[index].to(dtype=like.dtype)
    return weights.squeeze(0) if weights.dim() == 3 else weights


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """Writes `scaling * inputs @ A.T` for each row's adapter; 0 for rows without one."""
    output_tensor[_of_rows(lora_indices_tensor, len(output_tensor)) < 0] = 0
    for index, rows in _by_adapter(lora_indices_tensor, len(inputs)):
        outputs = inputs[rows].to(output_tensor.dtype) @ _weights(lora_b_weights, index, output_tensor).T
        output_tensor[rows, : outputs.shape[1]] = scaling * outputs


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """Adds, or writes, `inputs @ B.T` for each row's adapter. Both sides may be padded."""
    width = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    bgmv_expand_slice(inputs, lora_b_weights, output_tensor, lora_indices_tensor, 0, width, add_inputs)


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """Does the same as `bgmv_expand` for some columns of the output."""
    columns = slice(slice_offset, slice_offset + slice_size)
    for index, rows in _by_adapter(lora_indices_tensor, len(inputs)):
        outputs = inputs[rows].to(output_tensor.dtype) @ _weights(lora_b_weights, index, output_tensor).T
        if add_inputs:
            output_tensor[rows, columns] += outputs[:, :slice_size]
        else:
            output_tensor[rows, columns] = outputs[:, :slice_size]


for _module in (lora_ops, punica_cpu):
    for _operator in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
        if not hasattr(_module, _operator.__name__):
            raise ImportError(f"vLLM has no {_module.__name__}.{_operator.__name__}")
        setattr(_module, _operator.__name__, _operator)
