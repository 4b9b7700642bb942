"""The seam's contract with whichever vLLM is installed, 0.26 to 0.33."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.engine
def test_the_installed_vllm_has_what_the_engine_uses():
    script = Path(__file__).with_name("contract.py")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
