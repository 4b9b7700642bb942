"""The server's settings, from flags or from one YAML file. Frozen once built; bad ones never start a server.

listen: 127.0.0.1:8033          # gRPC
metrics_listen: 127.0.0.1:9033  # HTTP, Prometheus
drain_seconds: 30               # how long running calls may go on after SIGTERM
models:
  sentiment: {path: /models/sentiment}
  chat: {path: /models/chat, max_length: 2048, max_num_seqs: 64}
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tuneserve.errors import UserError

DTYPES = ("auto", "bfloat16", "float16", "float32")
T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:]+\]|[^\s:\[\]]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class ModelConfig:
    """One model. What is None is chosen from the checkpoint and the machine."""

    path: Path
    dtype: str = "auto"
    max_length: int | None = None  # tokens, prompt and completion together; at most the checkpoint's own
    max_num_seqs: int | None = None  # sequences in one engine step
    max_queue: int = 512  # calls waiting or running
    max_inputs: int = 1024  # texts of one call
    gpu_memory_utilization: float = 0.9  # share of the GPU's memory, on GPUs
    kv_cache_gib: float | None = None  # memory for the KV cache, on CPUs


@dataclass(frozen=True)
class ServerConfig:
    """The whole server."""

    models: Mapping[str, ModelConfig] = field(default_factory=dict)
    listen: str = "127.0.0.1:8033"
    metrics_listen: str = "127.0.0.1:9033"
    drain_seconds: float = 30.0


def load(path: Path) -> ServerConfig:
    """Reads a YAML file. Relative model paths are relative to it. Raises UserError naming the key."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    settings = _mapping(document, str(path))
    models = _mapping(settings.pop("models", {}), f"{path}: models")
    config = _build(ServerConfig, settings, str(path))
    return checked(
        replace(
            config,
            models={
                str(name): _build(
                    ModelConfig,
                    _mapping(value, f"{path}: models.{name}"),
                    f"{path}: models.{name}",
                    path.parent,
                )
                for name, value in models.items()
            },
        )
    )


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
    if not config.models:
        raise UserError("models: none given", "pass --model NAME=PATH, or list them in the file's `models`")
    for key in ("listen", "metrics_listen"):
        host_and_port(getattr(config, key), key)
    _require(config.drain_seconds >= 0, "drain_seconds", config.drain_seconds, "0 or more seconds")
    for name, model in config.models.items():
        where = f"models.{name}"
        if not _NAME.fullmatch(name):
            raise UserError(f"{where}: a name is 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit")
        _require(model.dtype in DTYPES, f"{where}.dtype", model.dtype, ", ".join(DTYPES))
        for key in ("max_length", "max_num_seqs", "max_queue", "max_inputs"):
            value = getattr(model, key)
            _require(value is None or value >= 1, f"{where}.{key}", value, "1 or more")
        _require(
            0 < model.gpu_memory_utilization <= 1,
            f"{where}.gpu_memory_utilization",
            model.gpu_memory_utilization,
            "over 0, at most 1",
        )
        _require(
            model.kv_cache_gib is None or model.kv_cache_gib > 0,
            f"{where}.kv_cache_gib",
            model.kv_cache_gib,
            "over 0",
        )
        if not model.path.is_dir():
            raise UserError(f"{where}.path: {model.path} is not a directory", "give a local checkpoint directory")
    return config


def host_and_port(address: str, key: str) -> tuple[str, int]:
    """Splits `host:port`; port 0 lets the system choose one."""
    match = _ADDRESS.fullmatch(address)
    if not match or int(match["port"]) > 65535:
        raise UserError(f"{key}: {address!r} is not HOST:PORT with a port of 0 to 65535", "for example 127.0.0.1:8033")
    return match["host"].strip("[]"), int(match["port"])


def _require(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise UserError(f"{key}: {value!r} is not allowed", f"allowed: {allowed}")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a mapping of keys to values, found {type(value).__name__}")
    return dict(value)


def _build(kind: type[T], values: dict[str, Any], where: str, base: Path = Path()) -> T:
    types = {entry.name: str(entry.type) for entry in fields(kind)}  # type: ignore[arg-type]
    allowed = [name for name in types if name != "models"]
    for key, value in values.items():
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(allowed)}"
            raise UserError(f"{where}: unknown key {key!r}", hint)
        values[key] = _typed(value, types[key], f"{where}: {key}", base)
    if kind is ModelConfig and "path" not in values:
        raise UserError(f"{where}: path is missing", "give the checkpoint directory")
    return kind(**values)


def _typed(value: Any, kind: str, where: str, base: Path) -> Any:
    if value is None and "None" in kind:
        return None
    if "Path" in kind and isinstance(value, str):
        return base / value
    if "str" in kind and isinstance(value, str):
        return value
    if "int" in kind and isinstance(value, int) and not isinstance(value, bool):
        return value
    if "float" in kind and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    expected = "text" if "Path" in kind or "str" in kind else "a whole number" if "int" in kind else "a number"
    raise UserError(f"{where}: expected {expected}, found {value!r}")
