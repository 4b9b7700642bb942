"""transformers without a server: its pipeline, which gets all texts in one call, from our environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import System
from tuneserve.benchmarks.serving.workers import worker


@contextmanager
def start(setting: Setting) -> Iterator[System]:
    """With the dtype that vLLM gets."""
    arguments = [str(setting.checkpoint.resolve()), setting.engine.dtype]
    with worker.started("pipeline", arguments, setting.scratch / "pipeline.log", os.environ) as running:
        yield System(running.process.pid, running, "")
