"""Run as a script: what plain vLLM, in process, makes of many checkpoints.

Reads [{"directory", "engine", "dtype", "inputs": [[token ids]]}] and writes one list a checkpoint and input: logits of
a text or its vector, logits of each token, or the log probability of each token but the first. Neighbours with the same
`engine`, any text, share one, which gets the weights of each in turn.
"""

import gc
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}

from vllm import LLM, ModelRegistry, PoolingParams, SamplingParams
from vllm.config import PoolerConfig
from vllm.distributed import cleanup_dist_env_and_memory

from tuneserve import checkpoint
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine import options as engine_options
from tuneserve.server.engine.hardware import Hardware
from tuneserve.v1 import checkpoint_pb2 as pb

POOLING = {
    pb.TASK_SEQUENCE_CLASSIFICATION: "classify",
    pb.TASK_TOKEN_CLASSIFICATION: "token_classify",
    pb.TASK_EMBEDDING: "embed",
}


def engine(directory: Path, manifest: pb.Checkpoint, dtype: str) -> Any:
    """Plain vLLM, with what the server adds for decoders that judge tokens."""
    for name in (manifest.architecture, re.sub("(Sequence|Token)Classification", "CausalLM", manifest.architecture)):
        if name in ModelRegistry.models:
            # Looked at here, not in a process of its own for each: that takes ten seconds.
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
            break
    hardware = Hardware(dtype, 1 << 26, enforce_eager=True)
    known = engine_options.arguments("m", ModelConfig(path=directory), manifest, hardware)
    passed = ("runner", "convert", "hf_overrides", "pooler_config", "worker_extension_cls")
    options = {key: known[key] for key in passed if key in known}
    if "pooler_config" in options:
        options["pooler_config"] = PoolerConfig(**options["pooler_config"])
    return LLM(
        model=str(directory),
        dtype=dtype,
        max_model_len=32,
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 26,
        disable_log_stats=True,
        **options,
    )


def answers(llm: Any, manifest: pb.Checkpoint, inputs: list[list[int]]) -> list[Any]:
    prompts = [{"prompt_token_ids": ids} for ids in inputs]
    if manifest.task == pb.TASK_GENERATION:
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [
            [place[token].logprob for token, place in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
            for ids, output in zip(inputs, outputs, strict=True)
        ]
    params = PoolingParams(use_activation=False)
    outputs = llm.encode(prompts, params, pooling_task=POOLING[manifest.task], use_tqdm=False)
    return [output.outputs.data.float().tolist() for output in outputs]


def serve(jobs: list[dict[str, Any]]) -> Iterator[list[Any]]:
    llm, loaded = None, None
    for job in jobs:
        directory = Path(job["directory"])
        manifest = checkpoint.load(directory)
        if llm is not None and job["engine"] == loaded:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
            llm.reset_prefix_cache()
        else:
            llm = None
            gc.collect()
            cleanup_dist_env_and_memory()
            llm = engine(directory, manifest, job["dtype"])
        loaded = job["engine"]
        yield answers(llm, manifest, job["inputs"])


if __name__ == "__main__":
    found = list(serve(json.load(sys.stdin)))
    print("\n" + json.dumps(found))
