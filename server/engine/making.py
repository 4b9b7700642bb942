"""Makes the real engine of a model, in a thread: importing vLLM blocks for long."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from tuneserve.server.config import ModelConfig
from tuneserve.server.engine import fork_server, hardware
from tuneserve.server.engine.interface import Engine
from tuneserve.v1 import checkpoint_pb2

logger = logging.getLogger(__name__)

EngineFactory = Callable[[str, ModelConfig, checkpoint_pb2.Checkpoint], Awaitable[Engine]]

# Models start concurrently, but vLLM and transformers can't be imported by two threads at once.
_IMPORTING = threading.Lock()


def engine_factory(otlp_endpoint: str | None = None) -> EngineFactory:
    """Returns the factory of engines. Their spans go to the collector at `otlp_endpoint`."""

    # A pool of its own: other threaded work must not delay an engine's start, nor a hung start delay other work.
    threads = ThreadPoolExecutor(thread_name_prefix="make-engine")

    async def make_engine(name: str, config: ModelConfig, manifest: checkpoint_pb2.Checkpoint) -> Engine:
        def make() -> Engine:
            # It imports beside this process.
            fork_server.start()
            with _IMPORTING:
                from tuneserve.server.engine.vllm_engine import VllmEngine

            settings = hardware.detect(config, manifest)
            logger.info("model %s %s", name, settings.why)
            for warning in settings.warnings:
                logger.warning("model %s: %s", name, warning)
            return VllmEngine(name, config, manifest, settings, otlp_endpoint)

        return await asyncio.get_running_loop().run_in_executor(threads, make)

    return make_engine
