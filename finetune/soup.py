"""Model soup: averages the weights of several runs. Often better than each of them, and no slower to serve than one.

Runs from the same base model with other seeds, rates or epochs lie in one basin of the loss, and so does their mean
(Wortsman et al. 2022). For other runs the mean is bad, and its metrics on the held-out rows show it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tuneserve import checkpoint
from tuneserve.checkpoint import seen
from tuneserve.errors import UserError
from tuneserve.evaluation import quality
from tuneserve.evaluation.evaluate import held_out_rows
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "safetensors")


def soup(runs: Sequence[Path], output: Path, overwrite: bool = False) -> Path:
    """Writes the mean of the checkpoints' weights, measured on the held-out rows that they share; returns `output`.

    Raises UserError for checkpoints that can't be averaged, naming what differs.
    """
    manifests = [checkpoint.load(run) for run in runs]
    _check(runs, manifests)
    first, manifest = runs[0], manifests[0]
    if any(one.HasField("temperature") for one in manifests):
        # Each temperature was fitted to its own model, on validation rows that are not kept.
        logger.warning("the averaged model has no temperature: each run's was fitted to that run alone")
        manifest.ClearField("temperature")
    test = held_out_rows(first, manifest) if manifest.test_split.path else []

    import torch

    from tuneserve.finetune.data import kept_rows
    from tuneserve.finetune.export import merging
    from tuneserve.finetune.model import base_models
    from tuneserve.finetune.report import tables

    base_models.quiet()
    target, tokenizer = merging.target_of(manifest), base_models.load_tokenizer(str(first))
    model, _ = base_models.load_model(target, str(first), tokenizer.pad_token_id)
    mean = dict(model.named_parameters())
    with torch.no_grad():
        for count, run in enumerate(runs[1:], start=2):
            other, _ = base_models.load_model(target, str(run))
            for name, parameter in other.named_parameters():
                mean[name].lerp_(parameter, 1 / count)
    entry = checkpoint.step("soup", first.name, {"runs": [run.name for run in runs]}, PACKAGES)
    reference = merging.probe_logits(model, tokenizer, target, test)
    with checkpoint.writing(output, overwrite) as directory:
        kept_rows.copy(first, directory, manifest)
        _keep_digests(directory, manifest, runs)
        result = merging.export(directory, model, tokenizer, target, manifest, entry, reference, test).manifest
    tables.show_checkpoint(output, result)
    _show(runs, manifests, result)
    return output


def _check(runs: Sequence[Path], manifests: Sequence[pb.Checkpoint]) -> None:
    if len(runs) < 2:
        raise UserError("soup averages two or more checkpoints, and one was given", "give the others, too")
    first = manifests[0]
    for run, manifest in zip(runs, manifests, strict=True):
        if manifest.quantization:
            raise UserError(f"{run}: quantized", "average first, then quantize")
        if not any(step.name == "finetune" for step in manifest.lineage):
            raise UserError(f"{run}: not trained here", "give checkpoints that finetune made")
        for field in ("architecture", "task", "problem_type", "labels", "pooling", "prompts"):
            if getattr(manifest, field) != getattr(first, field):
                raise UserError(f"{run}: another {field} than {runs[0]}", "average runs that differ in settings only")
        # Otherwise, one run may have been trained on the test rows of another.
        if manifest.test_split.sha256 != first.test_split.sha256:
            raise UserError(f"{run}: other held-out rows than {runs[0]}", "train each with the same `test` file")


def _keep_digests(directory: Path, manifest: pb.Checkpoint, runs: Sequence[Path]) -> None:
    digests = [one for run in runs if (one := seen.trained_on(run)) is not None]
    manifest.ClearField("trained_rows")
    # The digests of only some of the runs would be incomplete.
    if len(digests) == len(runs):
        seen.keep(directory, manifest, np.concatenate(digests))


def _show(runs: Sequence[Path], manifests: Sequence[pb.Checkpoint], result: pb.Checkpoint) -> None:
    measured = [manifest.lineage[-1].metrics for manifest in (*manifests, result)]
    headline = quality.headline(result.task, result.lineage[-1].metrics).name
    for name, metrics in zip([*(run.name for run in runs), "soup"], measured, strict=True):
        if headline in metrics:
            print(f"{name:<24}{headline} {metrics[headline]:.4f}")
