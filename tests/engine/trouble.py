"""A plugin for vLLM's processes, as any package may bring one: an engine's next step is slow, or never ends.

What is to come stands in the file that TUNESERVE_TROUBLE names: the seconds that the step computes, or "deadlock".
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

import torch
from vllm.v1.worker.worker_base import WorkerWrapperBase

FILE = Path(os.environ["TUNESERVE_TROUBLE"])


def register() -> None:
    """Called by vLLM in each of its processes."""
    run = WorkerWrapperBase.execute_model

    def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        if FILE.exists():
            what = FILE.read_text(encoding="ascii")
            FILE.unlink()
            if what == "deadlock":
                threading.Event().wait()
            end, square = time.monotonic() + float(what), torch.ones(256, 256)
            while time.monotonic() < end:
                square @ square
        return run(self, *args, **kwargs)

    WorkerWrapperBase.execute_model = execute_model
