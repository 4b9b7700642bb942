"""ONNX Runtime behind LitServe, in fp32 and in int8: what a user would build for an encoder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneserve.benchmarks.serving.peers import environment
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import System, free_port, peer_server

PACKAGES = (
    "litserve==0.2.19",
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "onnxscript==0.7.2",
    "tokenizers==0.23.3",
    "torch==2.13.0",
    "transformers==5.17.0",
)
APPS = Path(__file__).with_name("apps")
_VARIABLES = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def exported(setting: Setting) -> Path:
    """The folder of fp32.onnx and int8.onnx, which are written at the first call."""
    models = setting.scratch / "onnx"
    if not models.exists():
        python = str(environment.made("onnx", PACKAGES))
        export = [python, str(APPS / "onnx_export.py"), str(setting.checkpoint.resolve()), str(models)]
        environment.run("export to ONNX", export, os.environ | _VARIABLES)
    return models


@contextmanager
def start(kind: str, setting: Setting) -> Iterator[System]:
    """`kind` is fp32 or int8."""
    python, model, port = str(environment.made("onnx", PACKAGES)), exported(setting) / f"{kind}.onnx", free_port()
    command = [python, str(APPS / "onnx_litserve.py"), str(setting.checkpoint.resolve()), str(model), str(port)]
    with peer_server(f"onnx-{kind}", command, port, setting.scratch, os.environ | _VARIABLES) as session:
        yield System(session, setting.http, "model", f"127.0.0.1:{port}")
