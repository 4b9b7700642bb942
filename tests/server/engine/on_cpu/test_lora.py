"""The LoRA operators that our engines use on CPUs: each row of a batch gets its own adapter, or none."""

import subprocess
import sys

# In a process of its own: importing the file changes vLLM.
CODE = """
import torch
from tuneserve.server.engine.on_cpu import lora as ours
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

torch.manual_seed(0)
x, a, b = torch.randn(6, 12), torch.randn(3, 1, 8, 12), torch.randn(3, 1, 20, 8)
for indices in ([0, -1, 2, 0, -1, 1], [1] * 6, [-1] * 6):
    rows = torch.tensor(indices)
    expected = torch.stack([
        0.5 * (b[i, 0] @ a[i, 0] @ row) if i >= 0 else torch.zeros(20) for i, row in zip(indices, x, strict=True)
    ])
    for module in (punica_cpu, lora_ops):
        # What was in the buffer is no part of the answer.
        buffer = torch.full((6, 8), 7.0)
        module.bgmv_shrink(x, a, buffer, rows, 0.5)
        output = torch.ones(6, 24)
        module.bgmv_expand(buffer, b, output, rows, add_inputs=True)
        assert torch.allclose(output[:, :20], 1 + expected, atol=1e-5)
        assert (output[:, 20:] == 1).all()
        output = torch.ones(6, 40)
        module.bgmv_expand_slice(buffer, b, output, rows, 10, 20, add_inputs=True)
        assert torch.allclose(output[:, 10:30], 1 + expected, atol=1e-5)
        assert (output[:, :10] == 1).all() and (output[:, 30:] == 1).all()
    for module in (punica_cpu, lora_ops):
        output = torch.ones(6, 20)
        lengths = torch.tensor([1] * 6)
        starts = torch.arange(6)
        module.sgmv_expand(buffer, b, output, starts, lengths, rows, 6, 1, 6, add_inputs=True)
        assert torch.allclose(output, 1 + expected, atol=1e-5)
"""


def test_rows_without_an_adapter_stay_as_they_are():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr[-2000:]
