"""The real engine's code, with vLLM's own classes, and a stub in the place of vLLM's AsyncLLM."""

import asyncio
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.hardware import Hardware
from tuneserve.v1 import checkpoint_pb2


class Stub:
    """Keeps what it is asked for."""

    errored = False
    output_handler = None

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def shutdown(self) -> None:
        self.threads.append(threading.current_thread())


@pytest.fixture(scope="module")
def vllm_engine(make_parsers) -> ModuleType:
    """The module; vLLM is imported as that fixture does it, without a word of its own."""
    from tuneserve.server.engine import vllm_engine

    return vllm_engine


@pytest.fixture
def engine(vllm_engine) -> Any:
    config = ModelConfig(path=Path("there"))
    made = vllm_engine.VllmEngine("m", config, checkpoint_pb2.Checkpoint(), Hardware("float32", 1 << 27, True))
    made._engine = Stub()
    return made


async def test_an_engine_is_closed_beside_any_work_in_threads(engine):
    """asyncio's own pool of threads is full of other work: a dead engine's memory is needed for its successor."""
    done, loop, stub = threading.Event(), asyncio.get_running_loop(), engine._engine
    sleeping = [loop.run_in_executor(None, done.wait) for _ in range(2 * ((os.cpu_count() or 1) + 36))]
    try:
        async with asyncio.timeout(10):
            await engine.close()
    finally:
        done.set()
        await asyncio.gather(*sleeping)
    assert len(stub.threads) == 1
