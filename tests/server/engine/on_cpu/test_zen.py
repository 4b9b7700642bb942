"""vLLM's choice of the kernel for w8a8 in our engines, and what zentorch's computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuneserve.machine.tiers import AVX512_BF16, this_tier

HAS_ZEN = this_tier() is AVX512_BF16 and "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
# In a process of its own, as an engine's: importing the files changes vLLM.
PLATFORM = """
from tuneserve.server.engine import vllm_engine
from vllm.platforms import current_platform
assert not current_platform.is_zen_cpu()
"""
IMPORTS = """
import torch
from tuneserve.server.engine import preloaded
from tuneserve.server.engine.on_cpu import zen
from vllm.model_executor.kernels.linear.scaled_mm.zentorch import ZentorchInt8ScaledMMLinearKernel
from vllm.platforms import current_platform

supported, why = ZentorchInt8ScaledMMLinearKernel.is_supported()
assert not current_platform.is_zen_cpu()
"""
PRODUCTS = """
assert supported, why
torch.manual_seed(1)
for rows, inputs, outputs in ((1, 64, 48), (33, 384, 1536), (200, 1536, 384)):
    x = torch.randn(rows, inputs).bfloat16()
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scale = (torch.rand(outputs) / 1000 + 0.001).bfloat16()
    bias = torch.randn(outputs).bfloat16()
    found = torch.ops.zentorch.zentorch_dynamic_qlinear(x, weight, scale, bias, zentorch_op_name="test")
    # Each row of x in 8 bits, as in vLLM's own kernel.
    step = x.float().abs().amax(1, keepdim=True) / 127
    exact = (x.float() / step).round() @ weight.float().T * step * scale.float() + bias.float()
    assert (found.float() - exact).abs().max() < 0.02 * exact.abs().max(), (rows, inputs, outputs)
"""


def run(code: str, **environment: str) -> None:
    command, given = [sys.executable, "-c", code], os.environ | environment
    ended = subprocess.run(command, env=given, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not HAS_ZEN, reason="not AMD's AVX-512 with bf16")
def test_products_of_eight_bits_are_zentorchs_and_nothing_else() -> None:
    run(IMPORTS + PRODUCTS)


def test_what_imports_the_engine_without_the_fork_server_does_not_see_it() -> None:
    """As `tuneserve worker` does."""
    run(PLATFORM)


def test_other_machines_keep_vllms_own() -> None:
    run(IMPORTS + "assert not supported and 'AMD' in why, why", ONEDNN_MAX_CPU_ISA="AVX512_CORE_VNNI")
