"""Infinity: PyTorch in fp32 behind its own server, which batches requests. What it counts as tokens are characters."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tuneserve.benchmarks.serving.peers import environment
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import System, free_port, peer_server

PACKAGES = ("infinity-emb[server,torch]==0.0.78", "torch==2.13.0", "transformers==4.57.6")


@contextmanager
def start(setting: Setting) -> Iterator[System]:
    """It warms up by the first round, as the others do."""
    python, port = environment.made("infinity", PACKAGES), free_port()
    command = [str(python.with_name("infinity_emb")), "v2", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model-id", str(setting.checkpoint.resolve()), "--served-model-name", "model", "--dtype", "float32"]
    # BetterTransformer is not there in current versions of PyTorch and transformers.
    command += ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--no-model-warmup"]
    command += ["--batch-size", "64", "--log-level", "warning"]
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with peer_server("infinity", command, port, setting.scratch, variables) as session:
        yield System(session, setting.http, "model", f"127.0.0.1:{port}")
