"""A machine's part of a model that spans several. The server on the first machine has the calls and the scheduler.

As vLLM does it without Ray: each machine starts its share of the engine's processes, and they meet at the leader's
address. Nothing here answers calls. If one of the processes ends, on any machine, the engine can't go on: it takes new
processes everywhere.
"""

import signal
import sys
from pathlib import Path

from tuneserve import checkpoint
from tuneserve.errors import StepFailed, UserError
from tuneserve.server.config import ConfigFile
from tuneserve.server.engine import hardware
from tuneserve.server.engine import options as engine_options


def work(file: Path, leader: str, rank: int) -> None:
    """Returns never: ends with SIGTERM, or raises StepFailed when the part has ended."""
    models = ConfigFile(file, {}).load().models
    if len(models) != 1:
        raise UserError(f"{file}: models: several machines share exactly one, found {len(models)}")
    [(name, config)] = models.items()
    nodes = config.engine.get("nnodes", 1)
    if rank >= nodes:
        last = f"from 1 to {nodes - 1}" if nodes > 1 else "none: it spans one machine"
        raise UserError(f"--rank {rank}: models.{name}.engine.nnodes is {nodes}", f"allowed: {last}")
    manifest = checkpoint.load(config.path)
    options = engine_options.arguments(name, config, manifest, hardware.detect(config, manifest))
    # The first process of a container has no other way to end by it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    from tuneserve.server.engine.vllm_engine import work_for

    work_for(leader, rank, options, config.path)
    raise StepFailed(f"model {name}: its processes on this machine have ended", "the log of the server says why")
