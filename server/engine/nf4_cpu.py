"""4-bit weights of bitsandbytes on CPUs, loaded into vLLM's worker processes: they load in float32, too.

Two such weights are stored in a byte. vLLM's plugin has a place for two where the model computes in 16 bits, and for
four where it computes in float32, as CPUs without native bf16 do: nothing fits then, and the engine does not start
(seen in vllm-bnb-plugin 0.0.3). The LoRA operators come along: vLLM takes one such class.

Fails at import where the plugin's function is not where it was.
"""

import torch
from vllm_bnb_plugin.quantization import linear

from tuneserve.server.engine.lora_cpu import Worker

__all__ = ["Worker"]


def _weights_of_a_byte(_: torch.dtype) -> int:
    return 2


if not hasattr(linear, "calculate_quant_ratio"):
    raise ImportError(f"the plugin has no {linear.__name__}.calculate_quant_ratio")
linear.calculate_quant_ratio = _weights_of_a_byte
