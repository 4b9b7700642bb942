"""vLLM's own server, and vLLM without a server: with our engine's settings, from our environment."""

from contextlib import AbstractContextManager

from tuneserve.benchmarks.serving import systems
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import System


def serve(setting: Setting) -> AbstractContextManager[System]:
    """With its own process layout."""
    return systems.vllm_serve(
        setting.checkpoint, setting.http, setting.scratch, setting.engine, pooling=setting.pooling, like_ours=False
    )


def in_process(setting: Setting) -> AbstractContextManager[System]:
    """It gets all texts or prompts in one call."""
    return systems.in_process(setting.checkpoint, setting.scratch, setting.engine, pooling=setting.pooling)
