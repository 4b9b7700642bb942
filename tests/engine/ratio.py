"""Run as a script: how much of a core's time vLLM takes for a small encoder in bfloat16, over that in float32.

ratio.py DIRECTORY  writes a model of random weights there, and prints {"tier", "dtype", "ratio"}. Both are measured in
turns, in one process, so that what else the machine does hardly matters.
"""

# ruff: noqa: E402 (what comes before the imports is for them)

import json
import os
import sys
import time

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
os.environ |= {"OMP_NUM_THREADS": "1"}
# As in our engines: vLLM would compute with it.
sys.modules |= {"zentorch": None}

import torch
from transformers import BertConfig, BertForSequenceClassification
from vllm import LLM, ModelRegistry

from tuneserve.machine.tiers import this_tier

ROUNDS = 7
# Large enough that most of the time is matrix products.
TEXTS, TOKENS = 32, 32


def main(directory: str) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=12,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    name = "BertForSequenceClassification"
    # Looked at here, not in a process of its own: that takes ten seconds.
    ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    engines = {
        dtype: LLM(
            model=directory,
            dtype=dtype,
            skip_tokenizer_init=True,
            enforce_eager=True,
            disable_log_stats=True,
            kv_cache_memory_bytes=1 << 26,
        )
        for dtype in ("float32", "bfloat16")
    }
    prompts = [{"prompt_token_ids": ids} for ids in torch.randint(1, 256, (TEXTS, TOKENS)).tolist()]

    def seconds(dtype: str) -> float:
        started = time.process_time()
        engines[dtype].encode(prompts, pooling_task="classify", use_tqdm=False)
        return time.process_time() - started

    seconds("float32"), seconds("bfloat16")  # the first of a size chooses kernels
    ratios = sorted(seconds("bfloat16") / seconds("float32") for _ in range(ROUNDS))
    tier = this_tier()
    print("\n" + json.dumps({"tier": tier.name, "dtype": tier.dtype, "ratio": ratios[ROUNDS // 2]}))


if __name__ == "__main__":
    main(sys.argv[1])
