"""llama.cpp's own server, which is built for this machine from the source that comes with llama-cpp-python."""

import os
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneserve.benchmarks.serving.peers import environment
from tuneserve.benchmarks.serving.peers.peer import Setting
from tuneserve.benchmarks.serving.systems import System, free_port, peer_server

PACKAGES = ("cmake==4.4.5",)
_NAME, _VERSION = "llama-cpp-python", "0.3.36"
# Without its web page, which would be fetched, and TLS.
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
_SERVER = Path("build", "bin", "llama-server")
_SLOTS, _CONTEXT = 32, 512
_CORES = str(len(os.sched_getaffinity(0)))


def built() -> Path:
    """Returns llama.cpp's folder. The first build needs a C++ compiler, and many minutes. Raises StepFailed."""
    python = environment.made("llama-cpp", PACKAGES)
    packed = python.parents[1] / f"{_NAME.replace('-', '_')}-{_VERSION}.tar.gz"
    folder = packed.with_name(packed.name.removesuffix(".tar.gz")) / "vendor" / "llama.cpp"
    if not (folder / _SERVER).exists():
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", _NAME]
        download += ["--dest", str(packed.parent), f"{_NAME}=={_VERSION}"]
        environment.run("llama.cpp", download)
        with tarfile.open(packed) as archive:
            archive.extractall(packed.parent, filter="data")
        cmake, build = str(python.with_name("cmake")), str(folder / "build")
        environment.run("llama.cpp", [cmake, "-S", str(folder), "-B", build, *_OPTIONS])
        make = [cmake, "--build", build, "--target", _SERVER.name, "--parallel", _CORES]
        environment.run("llama.cpp", make)
    return folder


@contextmanager
def start(kind: str, setting: Setting) -> Iterator[System]:
    """`kind` is a type of its conversion, which our environment has the packages for: bf16 or q8_0."""
    folder, model, port = built(), setting.scratch / f"{kind}.gguf", free_port()
    convert = [sys.executable, str(folder / "convert_hf_to_gguf.py"), str(setting.checkpoint.resolve())]
    environment.run("conversion to GGUF", [*convert, "--outtype", kind, "--outfile", str(model)])
    command = [str(folder / _SERVER), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--parallel", str(_SLOTS), "--ctx-size", str(_SLOTS * _CONTEXT), "--threads", _CORES]
    # Prompts are never repeated, so to keep them would only take time and memory.
    command += ["--cache-ram", "0"]
    # With the OpenMP that it was built for: the one that is preloaded for vLLM would take its place.
    variables = os.environ | {"LD_PRELOAD": ""}
    with peer_server(f"llama.cpp-{kind}", command, port, setting.scratch, variables) as session:
        yield System(session, setting.http, "model", f"127.0.0.1:{port}")
