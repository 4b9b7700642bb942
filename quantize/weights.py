"""Quantizes: reads a checkpoint's weights, writes config.json and smaller weights.

Only linear layers inside the model's numbered blocks are quantized. Embeddings, poolers, `lm_head` and classification
heads are not: there a small error changes predictions, and little size is saved. This module does not measure the
result.
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

from tuneserve.checkpoint.layers import block_of, heads
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import auto_class
from tuneserve.machine import progress, tiers
from tuneserve.quantize import calibration, methods
from tuneserve.quantize.schemes import Recipe, Scheme
from tuneserve.v1 import checkpoint_pb2 as pb

# The packages that quantize, for the lineage.
PACKAGES = {
    "compressed-tensors": ("llmcompressor", "compressed-tensors", "transformers", "torch"),
    "bitsandbytes": ("bitsandbytes", "transformers", "torch"),
}


def write(source: Path, target: Path, manifest: pb.Checkpoint, recipe: Recipe, rows: Sequence[Row] = ()) -> None:
    """Writes config.json and quantized safetensors of `source` into the directory `target`.

    `rows`: the calibration rows, for recipes that need them.
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
    """Returns the torch dtype to run a model in that is stored in `stored`: float32 where 16 bits would be emulated."""
    import torch

    return torch.float32 if tiers.this_tier().dtype == "float32" else stored


def _stored_in(dtype: Any, model: Any) -> Any:
    """Converts all parameters but quantized weights and their scales: rounding a scale would move its weights."""
    for module in model.modules():
        exact = ("weight", "weight_scale") if hasattr(module, "quantization_scheme") else ()
        for name, parameter in module.named_parameters(recurse=False):
            if name not in exact and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return model


@contextlib.contextmanager
def _unpinned() -> Iterator[None]:
    """Lets AWQ run without a GPU: it pins the memory of its copies, which fails without one."""
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
    """Returns the names of the linear layers that are not quantized: the heads, and those of the kept blocks."""
    import torch
    from transformers import AutoConfig

    with torch.device("meta"):
        model = auto_class(task).from_config(AutoConfig.from_pretrained(source))
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return [*heads(model), *(name for name in linear if block_of(name) in blocks)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the libraries' notes and warnings; errors still come as exceptions. Of their many progress bars, one
    line every ten seconds is shown.
    """
    # LOG_DISABLED is not used: with it, GPTQ logs at a level that is not defined.
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
