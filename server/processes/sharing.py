"""What each of a server's processes gets: its part of the limits, of the GPU's memory and time, and of the cores."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tuneserve.machine import runtime
from tuneserve.server.config import ModelConfig, ServerConfig
from tuneserve.server.transport import connections

logger = logging.getLogger(__name__)

_OWN_PORT = "127.0.0.1:0"
_OMP_THREADS = "OMP_NUM_THREADS"
# Processes on one GPU take turns, one at a time. With NVIDIA's Multi-Process Service they run at the same time, each on
# its share of the multiprocessors. The service is a daemon, with a folder of pipes.
_MPS_SHARE, _MPS_PIPES, _MPS_FOLDER = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"


def settings(config: ServerConfig) -> ServerConfig:
    """Returns the settings of one process. Metrics and health have ports of their own, for the parent."""
    count = config.processes
    connected = connections.within_memory(config.max_connections, config.max_streams)
    return config.model_copy(
        update={
            "models": {name: part(model, count) for name, model in config.models.items()},
            "metrics_listen": _OWN_PORT,
            "health_listen": _OWN_PORT,
            "max_connections": _part(connected, count),
            "max_calls": _part(config.max_calls, count),
        }
    )


def part(model: ModelConfig, count: int) -> ModelConfig:
    """Returns the settings of a model in one process."""
    return model.model_copy(
        update={
            "max_queue": _part(model.max_queue, count),
            "max_queue_tokens": _part(model.max_queue_tokens, count),
            "gpu_memory_utilization": model.gpu_memory_utilization / count,
            "kv_cache_gib": model.kv_cache_gib and model.kv_cache_gib / count,
        }
    )


def _part(most: int, count: int) -> int:
    return max(1, most // count)


def cores(available: Collection[int], count: int) -> list[Sequence[int]]:
    """Returns the cores of each process: neighbours, which often share a cache. If there are too few, all for each."""
    found = sorted(available)
    if len(found) < count:
        return [found] * count
    return [found[len(found) * number // count : len(found) * (number + 1) // count] for number in range(count)]


def environment(given: Mapping[str, str], own_cores: int, count: int) -> dict[str, str]:
    """Returns the environment of one process. What is `given` is kept: it is meant for each engine."""
    if runtime.has_nvidia_gpu():
        if not Path(given.get(_MPS_PIPES, _MPS_FOLDER)).exists():
            logger.warning("no MPS on the GPU: engines take turns (docs/operating.md, several processes)")
        return {_MPS_SHARE: str(-(-100 // count)), **given}
    limit = runtime.cpu_limit()
    return {_OMP_THREADS: str(max(1, min(own_cores, limit // count if limit else own_cores))), **given}


def available_cores() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0)
