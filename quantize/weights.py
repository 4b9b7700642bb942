"""The quantizing itself: reads a checkpoint's weights, writes config.json and smaller weights.

Only linear layers inside the model's numbered blocks are quantized. Everything outside of them stays: embeddings,
poolers, `lm_head` and every classification head, where a small error moves predictions and little size is won.
Nothing here knows whether the result is any good.
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from tuneserve import progress, tiers
from tuneserve.layers import block_of, heads
from tuneserve.quantize import calibration, methods
from tuneserve.quantize.schemes import Recipe, Scheme
from tuneserve.rows import Row
from tuneserve.v1 import checkpoint_pb2 as pb

# What did the work, for the lineage.
PACKAGES = {
    "compressed-tensors": ("llmcompressor", "compressed-tensors", "transformers", "torch"),
    "bitsandbytes": ("bitsandbytes", "transformers", "torch"),
}


def write(source: Path, target: Path, manifest: pb.Checkpoint, recipe: Recipe, rows: Sequence[Row] = ()) -> None:
    """Writes config.json and quantized safetensors of `source` into the directory `target`.

    `rows`: what a recipe that needs some is calibrated with.
    """
    with quiet():
        auto, kept = auto_class(manifest.task), _kept(source, manifest.task, recipe.kept)
        if recipe.scheme.format == "compressed-tensors":
            model = _compress(auto.from_pretrained(source, dtype="auto"), source, manifest, recipe, kept, rows)
        else:
            config = _bitsandbytes(recipe.scheme, kept, manifest.dtype)
            model = auto.from_pretrained(source, dtype="auto", quantization_config=config)
        model.save_pretrained(target)
        if recipe.reduce_range:
            methods.declare_stored_bits(target)


def _compress(
    model: Any, source: Path, manifest: pb.Checkpoint, recipe: Recipe, kept: list[str], rows: Sequence[Row]
) -> Any:
    from llmcompressor import oneshot

    steps = methods.modifiers(recipe, kept, model.config.model_type)
    if not recipe.needs_rows:
        return oneshot(model=model, recipe=steps)
    stored = model.dtype
    model = model.to(computed_in(stored))
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    encoded = calibration.encode(AutoTokenizer.from_pretrained(source), manifest, rows)
    batches = DataLoader(list(calibration.tensors(encoded)), batch_size=None)
    with _unpinned():
        model = oneshot(model=model, recipe=steps, dataset=batches, pipeline="sequential")
    return _stored_in(stored, model)


def computed_in(stored: Any) -> Any:
    """Returns the type of torch to run a model in whose file holds `stored`: not 16 bits where those are emulated."""
    import torch

    return torch.float32 if tiers.this_tier().dtype == "float32" else stored


def _stored_in(dtype: Any, model: Any) -> Any:
    """Everything but what the quantized weights are made of: rounding their scales would move them off their grid."""
    for module in model.modules():
        exact = ("weight", "weight_scale") if hasattr(module, "quantization_scheme") else ()
        for name, parameter in module.named_parameters(recurse=False):
            if name not in exact and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return model


@contextlib.contextmanager
def _unpinned() -> Iterator[None]:
    """Lets AWQ run without a GPU: it pins what it copies to one, which fails where there is none."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.cuda.is_available():
        yield
        return
    with mock.patch.object(IntermediatesCache, "pin_memory", return_value=None):
        yield


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


def _kept(source: Path, task: pb.Task, blocks: Sequence[int]) -> list[str]:
    """Returns the names of the linear layers that stay as they are: the heads, and all of some blocks."""
    import torch
    from transformers import AutoConfig

    with torch.device("meta"):
        model = auto_class(task).from_config(AutoConfig.from_pretrained(source))
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return [*heads(model), *(name for name in linear if block_of(name) in blocks)]


def auto_class(task: pb.Task) -> Any:
    """Returns the class of transformers that loads a task's models."""
    import transformers

    return {
        pb.TASK_SEQUENCE_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
        pb.TASK_TOKEN_CLASSIFICATION: transformers.AutoModelForTokenClassification,
        pb.TASK_GENERATION: transformers.AutoModelForCausalLM,
    }[task]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the notes and warnings of the libraries; errors still come as exceptions. Of their bars, which are many,
    a line is left every ten seconds.
    """
    # Not LOG_DISABLED: with it, GPTQ logs at a level that nobody defined.
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "CRITICAL")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with progress.lines(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
