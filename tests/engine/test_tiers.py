"""The type that the table of tiers gives is the faster one in vLLM, on this machine and on it restricted to AVX2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneserve import tiers

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(tiers.this_tier() is tiers.GPU, reason="the table leaves the type to vLLM there"),
]

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


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
