"""MLServer, over the Open Inference Protocol's gRPC: ONNX Runtime in fp32 behind it, in a runtime of a few lines."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tuneserve.benchmarks.serving.peers import environment, onnx_runtime
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import System, free_port, peer_server
from tuneserve.benchmarks.serving.workers import worker

# MLServer takes for granted that uvloop makes an event loop where there is none, as it did until 0.21.
PACKAGES = ("mlserver==1.7.1", "numpy==2.4.6", "onnxruntime==1.32.0", "tokenizers==0.23.3", "uvloop==0.21.0")


@contextmanager
def start(setting: Setting) -> Iterator[System]:
    """It joins requests as LitServe does beside it."""
    python, folder = environment.made("mlserver", PACKAGES), setting.scratch / "mlserver"
    folder.mkdir(exist_ok=True)
    http, grpc, metrics = (free_port() for _ in range(3))
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "debug": False}
    settings |= {"metrics_dir": str(folder / "metrics"), "environments_dir": str(folder / "environments")}
    model = {
        "name": "model",
        "implementation": "onnx_mlserver.Runtime",
        "max_batch_size": 64,
        "max_batch_time": 0.005,
        "parameters": {
            "extra": {
                "checkpoint": str(setting.checkpoint.resolve()),
                "model": str(onnx_runtime.exported(setting) / "fp32.onnx"),
            }
        },
    }
    for name, content in (("settings", settings), ("model-settings", model)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    variables = os.environ | {"PYTHONPATH": str(onnx_runtime.APPS), "TOKENIZERS_PARALLELISM": "false"}
    command = [str(python.with_name("mlserver")), "start", str(folder)]
    with (
        worker.started("oip_client", [], setting.scratch / "oip_client.log", os.environ) as client,
        peer_server("mlserver", command, http, setting.scratch, variables, "/v2/models/model/ready") as session,
    ):
        yield System(session, client, "model", f"127.0.0.1:{grpc}")
