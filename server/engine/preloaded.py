"""What the fork server imports: all that an engine's process on a CPU imports, whatever its model. It starts no thread,
because a process with threads can't be forked safely.
"""

# ruff: noqa: E402 (what comes before the imports is for them)

import gc
import os
import sys
from typing import Any

from tuneserve.machine import runtime

# Next to nothing that is imported is garbage: to look for it would take as long as half of the imports.
gc.disable()
# Read at import. vLLM sets the first two in the server, after its imports; NumPy starts no threads with the third.
os.environ |= {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    **runtime.unset(runtime.engine_environment()),
}
# transformers and PyTorch import these if they are installed, for what is not served: the image has none of them.
_absent: dict[str, Any] = dict.fromkeys(("scipy", "sklearn", "triton"))
sys.modules |= _absent

from vllm.v1.worker import cpu_worker

from tuneserve.server.engine import vllm_engine

__all__ = ["cpu_worker", "vllm_engine"]

# The collector would write to all of this, and what a process writes to is not shared any more.
gc.freeze()
gc.enable()
