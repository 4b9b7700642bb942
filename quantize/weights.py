"""The quantizing itself: reads a checkpoint's weights, writes config.json and smaller weights.

Only linear layers inside the model's numbered blocks are quantized. Everything outside of them stays: embeddings,
poolers, `lm_head` and every classification head, where a small error moves predictions and little size is won.
Both ways need no data. Nothing here knows whether the result is any good.
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneserve.layers import heads
from tuneserve.quantize.schemes import Scheme
from tuneserve.v1 import checkpoint_pb2 as pb

# What did the work, for the lineage.
PACKAGES = {
    "compressed-tensors": ("llmcompressor", "compressed-tensors", "transformers", "torch"),
    "bitsandbytes": ("bitsandbytes", "transformers", "torch"),
}


def write(source: Path, target: Path, manifest: pb.Checkpoint, scheme: Scheme, group_size: int | None) -> None:
    """Writes config.json and quantized safetensors of `source` into the directory `target`.

    `group_size`: input weights that share a scale, for w4a16 only.
    """
    with _quiet():
        auto, kept = _auto_class(manifest.task), _heads(source, manifest.task)
        if scheme.method == "compressed-tensors":
            model = _compress(auto.from_pretrained(source, dtype="auto"), scheme, kept, group_size)
        else:
            config = _bitsandbytes(scheme, kept, manifest.dtype)
            model = auto.from_pretrained(source, dtype="auto", quantization_config=config)
        model.save_pretrained(target)


def _compress(model: Any, scheme: Scheme, kept: list[str], group_size: int | None) -> Any:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    # The target is the class, not names: vLLM fuses query, key and value into one layer of another name.
    if scheme.name == "w8a8":
        recipe = QuantizationModifier(targets=["Linear"], scheme="W8A8", ignore=kept)
    else:
        weights = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": group_size,
        }
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        recipe = QuantizationModifier(config_groups=groups, ignore=kept)
    return oneshot(model=model, recipe=recipe)


def _bitsandbytes(scheme: Scheme, kept: list[str], dtype: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if scheme.name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=kept,
    )


def _heads(source: Path, task: pb.Task) -> list[str]:
    """Returns the names of the linear layers that stay as they are."""
    import torch
    from transformers import AutoConfig

    with torch.device("meta"):
        return heads(_auto_class(task).from_config(AutoConfig.from_pretrained(source)))


def _auto_class(task: pb.Task) -> Any:
    import transformers

    return {
        pb.TASK_SEQUENCE_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
        pb.TASK_TOKEN_CLASSIFICATION: transformers.AutoModelForTokenClassification,
        pb.TASK_GENERATION: transformers.AutoModelForCausalLM,
    }[task]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the bars, notes and warnings of the libraries; errors still come as exceptions."""
    os.environ.setdefault("LLM_COMPRESSOR_LOG_DISABLED", "true")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
