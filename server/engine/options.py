"""The options of a model's engine, by vLLM's names: those that the server sets, and those in a model's `engine:`.

Does not import vLLM, because that takes ten seconds: the valid names are read from the installed vLLM's source. vLLM
itself checks the values when the engine starts.
"""

import difflib
import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneserve import checkpoint
from tuneserve.errors import UserError
from tuneserve.machine.runtime import has_nvidia_gpu
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine.hardware import Hardware
from tuneserve.v1 import checkpoint_pb2 as pb

# Options that the server sets itself, with the setting that decides each.
OURS = {
    "convert": "the checkpoint's task",
    "disable_log_stats": "metrics are always on",
    "dtype": "`dtype`",
    "enable_log_requests": "`log_content` of the server",
    "enable_lora": "`max_adapters`",
    "gpu_memory_utilization": "`gpu_memory_utilization`",
    "hf_config_path": "`path`",
    "kv_cache_memory_bytes": "`kv_cache_gib`",
    "max_lora_rank": "`max_adapter_rank`",
    "max_loras": "`max_adapters`",
    "max_model_len": "`max_length`",
    "max_num_seqs": "`max_num_seqs`",
    "model": "`path`",
    "model_weights": "`path`",
    "otlp_traces_endpoint": "`otlp_endpoint` of the server",
    "runner": "the checkpoint's task",
    "served_model_name": "the model's name in `models`",
    "skip_tokenizer_init": "the checkpoint's task",
    "tokenizer": "`path`",
    "trust_remote_code": "code of checkpoints never runs",
    "worker_cls": "the server",
    "worker_extension_cls": "the server",
}

# vLLM has kernels for these ranks; others are padded to the next.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Adapters kept in memory; with more, the least recently used are read from their directories again.
_CACHED_ADAPTERS = 16
# Architectures, all encoders, for which vLLM has a token classifier.
_TOKEN_CLASSIFIERS = ("Bert", "Roberta", "XLMRoberta", "ModernBert")
# vLLM's default on CPUs, 128 tokens, is longer than most prompts, which then could not share a cached prefix.
_CPU_BLOCK = 32
# Tokens of a step of a generation model on CPUs. vLLM's 4,096 take seconds, in which no other answer gets a token.
_CPU_STEP = 1024
# Our own 4-bit scheme, and that of other bitsandbytes checkpoints.
_FOUR_BITS = ("nf4", "bitsandbytes")
# Fixed, because vLLM's choice per request does not work: an engine keeps the library of its first request. The other
# library takes seconds for a large schema and, in a long text, for each token of a nested pattern.
_STRUCTURED_BACKEND = "guidance"


def arguments(
    name: str, config: ModelConfig, manifest: pb.Checkpoint, hardware: Hardware, otlp_endpoint: str | None = None
) -> dict[str, Any]:
    """Returns the arguments of vLLM's AsyncEngineArgs; nested configurations are mappings. None values are left out."""
    task = manifest.task
    generates_on_cpu = task == pb.TASK_GENERATION and not has_nvidia_gpu()
    in_pieces = config.engine.get("enable_chunked_prefill") is not False
    options: dict[str, Any] = {
        "model": str(config.path),
        "served_model_name": name,
        "runner": "generate" if task == pb.TASK_GENERATION else "pooling",
        "convert": "embed" if task == pb.TASK_EMBEDDING else None,
        # Encoders get tokens and make no texts: of a vocabulary of 250,000, two processes would each hold 500 MB.
        "skip_tokenizer_init": True if task != pb.TASK_GENERATION else None,
        "dtype": hardware.dtype,
        "max_model_len": config.max_length or _length(manifest),
        "max_num_seqs": config.max_num_seqs,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "kv_cache_memory_bytes": hardware.kv_cache_bytes or None,
        "block_size": _CPU_BLOCK if generates_on_cpu else None,
        # A step must hold a whole prompt if prompts are not taken in pieces.
        "max_num_batched_tokens": max(_CPU_STEP, config.max_num_seqs or 0) if generates_on_cpu and in_pieces else None,
        "enforce_eager": hardware.enforce_eager,
        "scheduling_policy": "priority",
        "trust_remote_code": False,
        "use_tqdm_on_load": False,
        "otlp_traces_endpoint": otlp_endpoint,
    }
    if config.max_adapters:
        options |= {
            "enable_lora": True,
            "max_loras": config.max_adapters,
            "max_cpu_loras": max(config.max_adapters, _CACHED_ADAPTERS),
            "max_lora_rank": next((rank for rank in _RANKS if rank >= config.max_adapter_rank), _RANKS[-1]),
        }
    if not has_nvidia_gpu():
        if manifest.quantization in _FOUR_BITS:
            options["worker_extension_cls"] = "tuneserve.server.engine.on_cpu.nf4.Worker"
        elif config.max_adapters:
            options["worker_extension_cls"] = "tuneserve.server.engine.on_cpu.lora.Worker"
        elif task == pb.TASK_GENERATION:
            options["worker_extension_cls"] = "tuneserve.server.engine.on_cpu.seeds.Worker"
        elif manifest.quantization == "w8a8":
            options["worker_extension_cls"] = "tuneserve.server.engine.on_cpu.zen.Worker"
    if task == pb.TASK_TOKEN_CLASSIFICATION and not manifest.architecture.startswith(_TOKEN_CLASSIFIERS):
        # vLLM has no token classifier for this model; its classifier for whole texts can classify each token, too.
        whole = manifest.architecture.replace("ForTokenClassification", "ForSequenceClassification")
        options |= {"hf_overrides": {"architectures": [whole]}, "pooler_config": {"task": "token_classify"}}
    options |= config.engine
    options["structured_outputs_config"] = {
        "backend": _STRUCTURED_BACKEND,
        **options.get("structured_outputs_config", {}),
    }
    return {key: value for key, value in options.items() if value is not None}


def _length(manifest: pb.Checkpoint) -> int | None:
    """Returns the default length: for classifiers, the length they were trained and measured at; None leaves it to
    vLLM.

    Generation models have the full length of their base model: the training length is only where rows were truncated,
    and answers may be longer.
    """
    return None if manifest.task == pb.TASK_GENERATION else checkpoint.trained_length(manifest) or None


def check(options: Mapping[str, Any], where: str) -> None:
    """Raises UserError for an option that vLLM does not have or that the server sets itself."""
    for key in options:
        if key in OURS:
            raise UserError(f"{where}: {key!r} can't be set here", f"decided by: {OURS[key]}")
    known = _known()
    for key in options if known else ():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else "vLLM's `AsyncEngineArgs` has the names"
            raise UserError(f"{where}: vLLM has no engine option {key!r}", hint)


def check_parsers(config: ModelConfig, task: pb.Task, where: str) -> None:
    """Raises UserError for an answer parser on a model that is not for generation."""
    for key in ("tool_parser", "reasoning_parser"):
        if getattr(config, key) is not None and task != pb.TASK_GENERATION:
            raise UserError(f"{where}.{key}: only generation models have one", f"leave {key} out")


def check_pooling(config: ModelConfig, manifest: pb.Checkpoint, where: str) -> None:
    """Raises UserError for an encoder whose pooling is unknown: vLLM would take one by its class, often a wrong one."""
    if manifest.task == pb.TASK_EMBEDDING and not manifest.pooling and "pooler_config" not in config.engine:
        raise UserError(
            f"{where}: how this encoder pools its tokens is not known: it has no modules.json with a 1_Pooling",
            "copy sentence-transformers' files of the model, too, or set engine: {pooler_config: {pooling_type: MEAN}}"
            " (or CLS, LAST), as it was trained",
        )


@functools.cache
def _known() -> frozenset[str]:
    """Returns the fields that the source of vLLM's AsyncEngineArgs declares; empty if vLLM is not installed.

    So a mistyped option is told at once: an engine imports vLLM only after all its weights were verified.
    """
    spec = importlib.util.find_spec("vllm")
    source = Path(spec.origin).with_name("engine") / "arg_utils.py" if spec and spec.origin else None
    text = source.read_text(encoding="utf-8") if source and source.is_file() else ""
    return frozenset(re.findall(r"^    (\w+): ", text, re.MULTILINE))
