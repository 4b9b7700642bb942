"""The server's settings, from flags or from one YAML file. Frozen once built; a server never starts with bad ones.

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
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from tuneserve import settings, yamls
from tuneserve.errors import UserError
from tuneserve.settings import Count, Local, Named, Refused, Settings, Text, Texts, matching

A_NAME = "a name is 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^\s:\[\]]+):(\d{1,5})")


def is_name(name: str) -> bool:
    """Whether a text is a valid name for a model."""
    return bool(_NAME.fullmatch(name))


def host_and_port(address: str) -> tuple[str, int]:
    """Splits `host:port`; port 0 lets the system choose one. Raises Refused."""
    match = _ADDRESS.fullmatch(address)
    if not match or int(match[2]) > 65535:
        raise Refused(f"{address!r} is not HOST:PORT with a port of 0 to 65535", "for example 127.0.0.1:8033")
    return match[1].strip("[]"), int(match[2])


def _not_of_this_file(key: str, name: str, kind: str, *known: str) -> Refused:
    return Refused(f"{name} is not a {kind} of this file", f"allowed: {', '.join(known)}", key=key)


def _address(address: str) -> str:
    host_and_port(address)
    return address


def _name(name: str) -> str:
    if not is_name(name):
        raise Refused(f"{name!r} is not a name: {A_NAME}")
    return name


_Address = Annotated[str, AfterValidator(_address), matching(_ADDRESS)]
_ModelName = Annotated[str, AfterValidator(_name), matching(_NAME)]
_Seconds = Annotated[float, Field(ge=1)]


# Only those of vLLM's parsers whose time is bounded for any text. The regular expressions of the others take minutes
# for some texts and can't be interrupted; a few others need prompts that no chat template makes.
ToolParser = Literal[
    "deepseek_v32",
    "deepseek_v4",
    "deepseek_v41",
    "gemma4",
    "glm45",
    "glm47",
    "granite",
    "granite-20b-fc",
    "granite4",
    "hermes",
    "internlm",
    "jamba",
    "kimi_k2",
    "llama3_json",
    "llama4_json",
    "llama4_pythonic",
    "mimo",
    "minimax_m2",
    "mistral",
    "olmo3",
    "phi4_mini_json",
    "pythonic",
    "qwen3_coder",
    "qwen3_json",
    "qwen3_xml",
    "seed_oss",
    "step3p5",
    "xlam",
]
ReasoningParser = Literal[
    "deepseek_r1",
    "deepseek_v3",
    "deepseek_v4",
    "deepseek_v41",
    "gemma4",
    "glm45",
    "glm47",
    "kimi_k2",
    "mimo",
    "minimax_m2",
    "mistral",
    "nemotron_v3",
    "olmo3",
    "qwen3",
    "seed_oss",
    "step3p5",
]


class ModelConfig(Settings):
    """One model. Settings that are null are chosen from the checkpoint and the machine."""

    path: Local = Field(description="a checkpoint directory")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="cost: type of the weights"
    )
    max_length: Count | None = Field(
        default=None,
        description="cost: tokens of one input, or of prompt and answer together; null: the length a classifier was "
        "trained at, the full length of a generation model",
    )
    max_num_seqs: Count | None = Field(default=None, description="cost: sequences in one engine step; null: vLLM's")
    max_inputs: Count = Field(default=1024, description="overload: texts of one call")
    max_explained_words: Count = Field(default=128, description="overload: words of one text in an explanation")
    max_queue: Count = Field(default=512, description="overload: calls waiting or running")
    max_queue_tokens: Count = Field(default=1_000_000, description="overload: tokens of waiting calls")
    max_wait_seconds: float = Field(
        default=30.0, gt=0, description="overload: a call that would wait longer is rejected at once"
    )
    redact: Texts = Field(
        default=(),
        description="log privacy: kinds of personal data to mask in texts before anything else: email, phone, "
        "card, iban, ip, mac, url, ssn, national_id",
    )
    tool_parser: ToolParser | None = Field(
        default=None, description="vLLM's parser of the model's tool calls, for chats with tools; null: calls stay text"
    )
    reasoning_parser: ReasoningParser | None = Field(
        default=None,
        description="vLLM's parser that separates a model's reasoning from its answer, for chats; null: both are text",
    )
    adapters: Annotated[Mapping[str, Local], Named] = Field(
        default={}, description="LoRA adapters loaded at the start: directories, by the names that callers use"
    )
    max_adapters: int = Field(
        default=0,
        ge=0,
        validate_default=True,
        description="cost: LoRA adapters in one engine step; 0: adapters are off",
    )
    max_adapter_rank: Count = Field(default=16, description="cost: the largest rank of an adapter")
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="cost, on GPUs: share of the memory for this model"
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        le=1 << 20,
        description="cost: GiB of the KV cache; null: on GPUs the rest of gpu_memory_utilization, on CPUs an eighth of "
        "free memory, 0.5 to 2",
    )
    engine: Annotated[Mapping[str, Any], Named] = Field(
        default={}, description="further options of vLLM's engine, by vLLM's names"
    )

    @field_validator("max_adapters")
    @classmethod
    def _one_an_adapter(cls, count: int, info: ValidationInfo) -> int:
        if count < len(info.data.get("adapters", ())):
            raise Refused(f"{count} is not allowed", "allowed: at least the number of adapters")
        return count


class AliasConfig(Settings):
    """Where the calls to one alias go. Without an entry, a model's own name stands for it."""

    targets: Annotated[Mapping[_ModelName, Count], Named] = Field(
        min_length=1, description="models of this file, with the weights of their shares"
    )
    shadow: _ModelName | None = Field(
        default=None, description="a model of this file that gets copies of the calls, to compare its answers"
    )


class MonitorConfig(Settings):
    """A monitor: two classifiers that label each text of a stream at once, counted by pairs of their labels."""

    topic: _ModelName = Field(
        description="a classifier of this file, or an alias: what a text is about; it may be a multi-label model"
    )
    sentiment: _ModelName = Field(description="a classifier of this file, or an alias: the tone of a text")
    examples: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0,
        description="the last texts of each topic and sentiment that are kept in memory, for the tenant that sent them",
    )


class IndexConfig(Settings):
    """Documents that calls search, by models of this file."""

    path: Local = Field(
        description="the directory that holds it, made when missing; several servers may share it, one writes at a time"
    )
    embedding: _ModelName = Field(description="an embedding model of this file; the version that began it stays")
    ranking: _ModelName | None = Field(
        default=None, description="a ranking model of this file, which orders the best passages of a search"
    )
    generation: _ModelName | None = Field(
        default=None,
        description="a chat model of this file, which writes answers from the passages; null: they are quoted",
    )
    query_prompt: Text | None = Field(
        default=None, description="the embedding model's prompt for queries; null: `query`, if it has one"
    )
    passage_prompt: Text | None = Field(
        default=None, description="the embedding model's prompt for passages; null: `passage`, if it has one"
    )
    chunk_tokens: Annotated[int, Field(ge=8)] = Field(
        default=256, description="tokens of a passage, at most, without its title"
    )
    keyword_weight: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="the weight of words (BM25) in a passage's score; the rest is its vector's",
    )
    gate: Local | None = Field(
        default=None,
        description="a file that `tuneserve call evaluate --gate` wrote: which questions the passages answer; null: "
        "all for which there are any",
    )


class FeedbackConfig(Settings):
    """What people think of answers, kept as rows to train on."""

    path: Local = Field(
        description="the directory that rows are appended to, by tenant and model, made when missing; several servers "
        "may share it"
    )
    max_rows: Count = Field(default=100_000, description="bounds: rows of one tenant")
    max_bytes: Count = Field(default=256 << 20, description="bounds: bytes of one tenant's rows")
    redact: Texts = Field(
        default=(),
        description="log privacy: kinds of personal data to mask in rows, besides those that the model masks",
    )


class TlsConfig(Settings):
    """PEM files of the gRPC port, read again when they change."""

    certificate: Local = Field(description="the server's certificate, with its chain")
    key: Local = Field(description="the certificate's private key, without a password")
    client_ca: Local | None = Field(
        default=None,
        description="a CA: if set, callers need a certificate from it, which may name a tenant",
    )


class ServerConfig(Settings):
    """The whole server: the file of `tuneserve serve --config`."""

    models: Annotated[Mapping[_ModelName, ModelConfig], Named] = Field(
        default={}, description="models, by the names that callers use"
    )
    aliases: Annotated[Mapping[_ModelName, AliasConfig], Named] = Field(
        default={}, description="further names for models, or shares between them"
    )
    monitors: Annotated[Mapping[_ModelName, MonitorConfig], Named] = Field(
        default={}, description="pairs of classifiers that count streams of texts, by the names that callers use"
    )
    indexes: Annotated[Mapping[_ModelName, IndexConfig], Named] = Field(
        default={}, description="indexes of documents, by the names that callers use; need `tuneserve[answer]`"
    )
    feedback: FeedbackConfig | None = Field(
        default=None, description="where feedback to answers is kept; null: nowhere, such calls are refused"
    )
    reload_models: bool = Field(
        default=False, description="whether changes of `models` and `aliases` in this file apply without a restart"
    )
    listen: _Address = Field(default="127.0.0.1:8033", description="HOST:PORT of gRPC, for callers")
    metrics_listen: _Address = Field(default="127.0.0.1:9033", description="HOST:PORT of HTTP, /metrics for Prometheus")
    health_listen: _Address | None = Field(
        default=None, description="HOST:PORT of health alone, without TLS, for probes that do not support TLS"
    )
    admin_listen: _Address | None = Field(
        default=None,
        description="authentication: HOST:PORT without TLS; anybody who can reach it is an administrator, so keep it "
        "on loopback",
    )
    tls: TlsConfig | None = Field(default=None, description="authentication: TLS for `listen`")
    tenants: Local | None = Field(
        default=None,
        description="authentication: a file of tenants, with API keys, quotas and models; read again when it "
        "changes; null: anybody may call",
    )
    models_root: Local | None = Field(
        default=None,
        description="authentication: the directory from which administrators may load models while the server runs",
    )
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="cost: complete servers behind one port, each with its own engines and its share of cores, limits "
        "and GPU memory",
    )
    max_connections: Count = Field(
        default=1024, description="bounds: connections to `listen`; one more is closed at once"
    )
    max_connection_age_seconds: _Seconds = Field(
        default=600.0, description="the client then reconnects, perhaps to a new server; running calls finish"
    )
    max_connection_idle_seconds: _Seconds = Field(
        default=300.0, description="bounds: a connection without calls is closed"
    )
    keepalive_seconds: _Seconds = Field(
        default=60.0, description="cancel: a client that is silent for this long is pinged"
    )
    max_streams: Count = Field(
        default=256, description="bounds: calls at once on one connection; clients should stay well below it"
    )
    max_calls: Count = Field(
        default=8192, description="overload: calls at once on all connections, including waiting streams"
    )
    linger_seconds: float = Field(
        default=3.0,
        ge=0,
        description="drain: how long new calls are accepted after SIGTERM, for proxies that poll health",
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        description="drain: how long running calls may take when the server stops or their version is unloaded",
    )
    stall_seconds: _Seconds = Field(
        default=60.0,
        description="cancel: a request that takes longer to arrive is ended, and so is a stream whose client reads "
        "nothing for this long",
    )
    watchdog_seconds: _Seconds = Field(
        default=60.0, description="hang: an engine that neither answers nor computes for this long is killed"
    )
    load_seconds: _Seconds = Field(default=1800.0, description="hang: the longest time to load and warm up a model")
    on_engine_failure: Literal["restart", "exit"] = Field(
        default="restart", description="crash, hang: restart the engine; or exit, which ends the server with status 1"
    )
    otlp_endpoint: str | None = Field(
        default=None, description="OpenTelemetry collector for traces, OTLP over gRPC: http://localhost:4317"
    )
    log_requests: bool = Field(default=True, description="one JSON log line a call, without content")
    log_content: bool = Field(
        default=False, description="disables log privacy: prompts and answers in the log line, for debugging"
    )

    @model_validator(mode="after")
    def _indexes_know_their_models(self) -> "ServerConfig":
        for name, index in self.indexes.items():
            for key in ("embedding", "ranking", "generation"):
                model = getattr(index, key)
                if model is not None and model not in self.models:
                    raise _not_of_this_file(f"indexes.{name}.{key}", model, "model", *self.models)
        return self

    @model_validator(mode="after")
    def _aliases_know_their_models(self) -> "ServerConfig":
        for name, alias in self.aliases.items():
            for key, target in [*((f"targets.{one}", one) for one in alias.targets), ("shadow", alias.shadow)]:
                if target is not None and target not in self.models:
                    raise _not_of_this_file(f"aliases.{name}.{key}", target, "model", *self.models)
            if alias.shadow in alias.targets:
                raise Refused(f"{alias.shadow} is also a target", key=f"aliases.{name}.shadow")
        return self

    @model_validator(mode="after")
    def _monitors_know_their_models(self) -> "ServerConfig":
        for name, monitor in self.monitors.items():
            for key, model in (("topic", monitor.topic), ("sentiment", monitor.sentiment)):
                if model not in self.models and model not in self.aliases:
                    known = [*self.models, *self.aliases]
                    raise _not_of_this_file(f"monitors.{name}.{key}", model, "model or alias", *known)
        return self


@dataclass(frozen=True)
class ConfigFile:
    """A server's file, and the flags that override it."""

    path: Path
    flags: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> ServerConfig:
        """Reads the file. Raises UserError naming the key."""
        return checked(settings.build(ServerConfig, {**dict(load(self.path)), **self.flags}))


def load(path: Path) -> ServerConfig:
    """Reads a YAML file. Relative paths are relative to it. Raises UserError naming the key."""
    return checked(settings.build(ServerConfig, yamls.read(path), str(path), path.parent))


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
    """Returns the config if it is complete and its files exist. Raises UserError naming the key."""
    if not config.models and not (config.admin_listen or config.tenants):
        raise UserError("models: none given", "pass --model NAME=PATH, or list them in the file's `models`")
    if config.reload_models and config.processes > 1:
        raise UserError(
            "reload_models: can't be true with several processes", "load other models by LoadModel, or set processes: 1"
        )
    files = {"tenants": config.tenants}
    if config.tls:
        files |= {f"tls.{key}": file for key, file in config.tls}
    for key, file in files.items():
        if file is not None and not file.is_file():
            raise UserError(f"{key}: {file}: no such file")
    if config.models_root is not None and not config.models_root.is_dir():
        raise UserError(f"models_root: {config.models_root} is not a directory")
    for name, model in config.models.items():
        check_directories(model, f"models.{name}")
        if model.engine.get("nnodes", 1) != 1 and config.on_engine_failure != "exit":
            raise UserError(
                f"on_engine_failure: needs to be exit, because models.{name}.engine.nnodes is more than 1",
                "an engine of several machines starts again only with new processes on all of them",
            )
    return config


def check_directories(model: ModelConfig, where: str) -> None:
    """Raises UserError naming the key, under `where`, of a directory that does not exist."""
    for key, path in {"path": model.path, **{f"adapters.{key}": path for key, path in model.adapters.items()}}.items():
        if not path.is_dir():
            raise UserError(f"{where}.{key}: {path} is not a directory", "give a local directory")
