"""The server's settings, from flags or from one YAML file. Frozen once built; bad ones never start a server.

listen: 127.0.0.1:8033          # gRPC
metrics_listen: 127.0.0.1:9033  # HTTP, Prometheus
drain_seconds: 30               # how long running calls may go on after SIGTERM
models:
  sentiment: {path: /models/sentiment}
  chat: {path: /models/chat, max_length: 2048, max_num_seqs: 64}
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tuneserve import yamls
from tuneserve.errors import UserError
from tuneserve.server import settings

DTYPES = ("auto", "bfloat16", "float16", "float32")
FAILURES = ("restart", "exit")
A_NAME = "a name is 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:]+\]|[^\s:\[\]]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class ModelConfig:
    """One model. What is None is chosen from the checkpoint and the machine."""

    path: Path
    dtype: str = "auto"
    max_length: int | None = None  # tokens, prompt and completion together
    max_num_seqs: int | None = None  # sequences in one engine step
    max_inputs: int = 1024  # texts of one call
    max_explained_words: int = 128  # words of one text that an explanation takes out
    max_queue: int = 512  # calls waiting or running
    max_queue_tokens: int = 1_000_000  # tokens of the calls that wait
    max_wait_seconds: float = 30.0  # a call that would wait longer is turned away at once
    redact: tuple[str, ...] = ()  # kinds of personal data masked before the text goes anywhere
    adapters: Mapping[str, Path] = field(default_factory=dict)  # LoRA adapters loaded at start, by name
    max_adapters: int = 0  # LoRA adapters in one engine step; 0 takes none
    max_adapter_rank: int = 16
    gpu_memory_utilization: float = 0.9  # share of the GPU's memory, on GPUs
    kv_cache_gib: float | None = None  # memory for the KV cache, on CPUs
    engine: Mapping[str, Any] = field(default_factory=dict)  # further options of vLLM's engine, by vLLM's names


# What an administrator may set of a version that is loaded while the server runs; of `engine`, only those options that
# `engine_options.WHILE_RUNNING` has. A setting that is not here is the file's alone.
WHILE_RUNNING = (
    "dtype",
    "max_length",
    "max_num_seqs",
    "max_inputs",
    "max_explained_words",
    "max_queue",
    "max_queue_tokens",
    "max_wait_seconds",
    "redact",
    "max_adapters",
    "max_adapter_rank",
    "gpu_memory_utilization",
    "kv_cache_gib",
    "engine",
)


@dataclass(frozen=True)
class TlsConfig:
    """PEM files of the gRPC port; read again when they change. With `client_ca`, clients need a certificate."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class ServerConfig:
    """The whole server."""

    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    listen: str = "127.0.0.1:8033"
    metrics_listen: str = "127.0.0.1:9033"
    health_listen: str | None = None  # a plaintext port with health alone, for probes when `listen` has TLS
    admin_listen: str | None = None  # a plaintext port where every caller is an administrator
    tls: TlsConfig | None = None
    tenants: Path | None = None  # API keys and what each may do; read again when it changes
    models_root: Path | None = None  # directory that LoadModel and LoadAdapter may load from
    max_connections: int = 1024  # of `listen`; those beyond are closed at once
    max_connection_age_seconds: float = 600.0  # then its client makes a new one; calls that run go on
    max_connection_idle_seconds: float = 300.0  # without a call
    keepalive_seconds: float = 60.0  # a client that says nothing for so long is asked whether it is there
    max_streams: int = 256  # calls at once on one connection, those among them that ended a moment ago
    max_calls: int = 8192  # calls at once of all connections, streams that wait for requests among them
    linger_seconds: float = 3.0  # how long new calls are taken after SIGTERM, while health says NOT_SERVING already
    drain_seconds: float = 30.0
    stall_seconds: float = 60.0  # a stream whose client reads nothing for so long is ended
    watchdog_seconds: float = 60.0  # an engine that neither answers nor computes for so long counts as hung
    load_seconds: float = 1800.0  # loading a model, with its warm-up, is ended after so long
    on_engine_failure: str = "restart"  # or "exit": the process ends with status 1
    otlp_endpoint: str | None = None  # OpenTelemetry collector, gRPC: http://host:4317
    log_requests: bool = True  # one JSON line a call
    log_content: bool = False  # prompts and outputs too; for debugging only


def load(path: Path) -> ServerConfig:
    """Reads a YAML file. Relative paths are relative to it. Raises UserError naming the key."""
    try:
        document = yamls.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    return checked(settings.build(ServerConfig, document, str(path), path.parent))


def parse_models(specs: Iterable[str]) -> dict[str, ModelConfig]:
    """Reads `NAME=PATH` flags."""
    models: dict[str, ModelConfig] = {}
    for spec in specs:
        name, separator, path = spec.partition("=")
        if not separator or not path:
            raise UserError(f"--model {spec}: expected NAME=PATH", "for example --model sentiment=./sentiment")
        if name in models:
            raise UserError(f"--model {name}: given twice", "each model needs a name of its own")
        models[name] = ModelConfig(path=Path(path))
    return models


def checked(config: ServerConfig) -> ServerConfig:
    """Returns the config if every value is allowed. Raises UserError naming the key and what is allowed."""
    if not config.models and not (config.admin_listen or config.tenants):
        raise UserError("models: none given", "pass --model NAME=PATH, or list them in the file's `models`")
    for key in ("listen", "metrics_listen", "health_listen", "admin_listen"):
        if (address := getattr(config, key)) is not None:
            host_and_port(address, key)
    for key in ("linger_seconds", "drain_seconds"):
        _require(getattr(config, key) >= 0, key, getattr(config, key), "0 or more seconds")
    for key in ("max_connections", "max_streams", "max_calls"):
        _require(getattr(config, key) >= 1, key, getattr(config, key), "1 or more")
    for key in (
        "stall_seconds",
        "watchdog_seconds",
        "load_seconds",
        "max_connection_age_seconds",
        "max_connection_idle_seconds",
        "keepalive_seconds",
    ):
        _require(getattr(config, key) >= 1, key, getattr(config, key), "1 or more seconds")
    _require(config.on_engine_failure in FAILURES, "on_engine_failure", config.on_engine_failure, ", ".join(FAILURES))
    files = {"tenants": config.tenants}
    if config.tls:
        files |= {f"tls.{key}": getattr(config.tls, key) for key in ("certificate", "key", "client_ca")}
    for key, file in files.items():
        if file is not None and not file.is_file():
            raise UserError(f"{key}: {file}: no such file")
    if config.models_root is not None and not config.models_root.is_dir():
        raise UserError(f"models_root: {config.models_root} is not a directory")
    for name, model in config.models.items():
        checked_model(name, model, f"models.{name}")
    return config


def checked_model(name: str, model: ModelConfig, where: str) -> ModelConfig:
    """Returns one model's settings if every value is allowed. Raises UserError naming the key under `where`."""
    if not is_name(name):
        raise UserError(f"{where}: {A_NAME}")
    _require(model.dtype in DTYPES, f"{where}.dtype", model.dtype, ", ".join(DTYPES))
    for key in (
        "max_length",
        "max_num_seqs",
        "max_inputs",
        "max_explained_words",
        "max_queue",
        "max_queue_tokens",
        "max_adapter_rank",
    ):
        value = getattr(model, key)
        _require(value is None or value >= 1, f"{where}.{key}", value, "1 or more")
    for key in ("max_wait_seconds", "kv_cache_gib"):
        value = getattr(model, key)
        _require(value is None or value > 0, f"{where}.{key}", value, "over 0")
    share = model.gpu_memory_utilization
    _require(0 < share <= 1, f"{where}.gpu_memory_utilization", share, "over 0, at most 1")
    _require(model.max_adapters >= len(model.adapters), f"{where}.max_adapters", model.max_adapters, "one an adapter")
    directories = {"path": model.path, **{f"adapters.{key}": path for key, path in model.adapters.items()}}
    for key, path in directories.items():
        if not path.is_dir():
            raise UserError(f"{where}.{key}: {path} is not a directory", "give a local directory")
    return model


def is_name(name: str) -> bool:
    """Whether a model may be called so."""
    return bool(_NAME.fullmatch(name))


def host_and_port(address: str, key: str) -> tuple[str, int]:
    """Splits `host:port`; port 0 lets the system choose one."""
    match = _ADDRESS.fullmatch(address)
    if not match or int(match["port"]) > 65535:
        raise UserError(f"{key}: {address!r} is not HOST:PORT with a port of 0 to 65535", "for example 127.0.0.1:8033")
    return match["host"].strip("[]"), int(match["port"])


def _require(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise UserError(f"{key}: {value!r} is not allowed", f"allowed: {allowed}")
