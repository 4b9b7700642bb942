"""bitsandbytes 4-bit weights on CPUs, loaded into vLLM's worker processes: makes them load in float32, too.

Two 4-bit weights are stored in a byte. vLLM's plugin expects two for a model that computes in 16 bits, but four for a
model that computes in float32, as on CPUs without native bf16: the shapes then do not match, and the engine does not
start (seen in vllm-bnb-plugin 0.0.3). Includes the LoRA operators, because vLLM accepts only one worker extension.

The import fails if the plugin does not have its function where it is expected.
"""

import torch
from vllm_bnb_plugin.quantization import linear

from tuneserve.server.engine.on_cpu.lora import Worker

__all__ = ["Worker"]


def _weights_of_a_byte(_: torch.dtype) -> int:
    return 2


if not hasattr(linear, "calculate_quant_ratio"):
    raise ImportError(f"the plugin has no {linear.__name__}.calculate_quant_ratio")
linear.calculate_quant_ratio = _weights_of_a_byte
