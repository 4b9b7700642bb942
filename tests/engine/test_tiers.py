"""The type that the table of tiers gives is the faster one in vLLM, on this machine and on it restricted to AVX2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneserve.machine import tiers

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(tiers.this_tier() is tiers.GPU, reason="the table leaves the type to vLLM there"),
]

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
NO_VNNI = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}


def measured(directory: Path, environment: dict[str, str]) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("ratio.py"), directory],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    print(found)
    return found


def test_restricted_to_avx2_float32_is_the_faster(tmp_path):
    found = measured(tmp_path / "model", AVX2)
    assert (found["tier"], found["dtype"]) == ("cpu-avx2", "float32")
    assert found["ratio"] > 1.5  # 4.4 on a machine with AVX-512, 38 on one without


def test_the_choice_for_this_machine_is_the_faster(tmp_path):
    found = measured(tmp_path / "model", {})
    assert found["dtype"] == ("bfloat16" if found["ratio"] < 1 else "float32")


@pytest.mark.parametrize("environment", [AVX2, NO_VNNI, {}], ids=["avx2", "avx512", "as-it-is"])
def test_which_int8_weights_are_exact(environment):
    """vLLM's int8 product with the largest activations: weights within ±64 are exact everywhere, all with VNNI only."""
    code = """
import json, sys, torch
sys.modules["zentorch"] = None  # as in our engines: vLLM would import it
import vllm._custom_ops as ops
from tuneserve.machine.tiers import this_tier

inputs, scale = 64, torch.ones(32, 1)

def exact(activation, value):
    a, w = torch.full((4, inputs), activation, dtype=torch.int8), torch.full((inputs, 32), value, dtype=torch.int8)
    # The operator keeps pointers to weight and scales: these names hold them.
    weight = w.t().contiguous().t()
    handler = ops.create_onednn_scaled_mm(weight, scale, torch.float32, True, False, 32)
    out = torch.zeros(4, 32)
    ops.onednn_scaled_mm(handler, a, out, torch.ones(4, 1), None, None, None)
    return torch.equal(out, (a.int() @ w.int()).float())

tries = [(a, w) for a in (-127, 127) for w in (-128, -127, -66, -64, -63, 63, 64, 66, 127)]
print(json.dumps({"int8_exact": this_tier().int8_exact, "wrong": [w for a, w in tries if not exact(a, w)]}))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=os.environ | environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    print(found)
    assert all(abs(weight) > 64 for weight in found["wrong"])
    assert bool(found["wrong"]) != found["int8_exact"]
