"""Merges the adapter into its base model in fp32, saves the result in bf16, and compares it with the trained model.

Training saves the trained model's logits on some inputs beside the adapter (`save_reference`). If the merge loses a
head, finds another base model than the one trained on, or is damaged by rounding, the logits differ. There are two
comparisons, both on the same inputs, computed in fp32:

    merged in fp32    largest difference at most 1e-4 of the largest logit: the arithmetic is the same, reordered
    saved in bf16     root mean square difference at most 10 % of the logits' own spread, and the same best class
                      in 90 % of places: a bf16 weight has 8 significant bits (rounding.py). Seen: below 1 %, and 98.8 %
                      of places, for encoders and for a chat model of 135M
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from google.protobuf import json_format
from safetensors.torch import load_file, save_file

from tuneserve import card, checkpoint
from tuneserve.checkpoint import encoders, examples, rows, seen, spacing
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import TASK_NAMES, TRAINABLE, auto_class
from tuneserve.errors import StepFailed
from tuneserve.evaluation import answers as written
from tuneserve.evaluation import preferences, quality
from tuneserve.evaluation.measurement import ANSWERED
from tuneserve.finetune.config import WRITERS
from tuneserve.finetune.data import kept_rows
from tuneserve.finetune.data.tokens import IGNORED, Target, encode
from tuneserve.finetune.eval import evaluation, writing
from tuneserve.finetune.eval.evaluation import Answers
from tuneserve.finetune.export import rounding
from tuneserve.finetune.model import base_models
from tuneserve.machine import tiers
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

REFERENCE = "reference_logits.safetensors"
SAMPLES = "eval/samples.jsonl"
SAMPLED = 5  # answers shown
PROBES = 32  # inputs compared
POSITIONS = 16  # positions compared in each input
FP32_TOLERANCE = 1e-4
BF16_TOLERANCE = 0.1
BF16_AGREEMENT = 0.9
PACKAGES = ("torch", "transformers", "peft", "safetensors")


@dataclass(frozen=True)
class Exported:
    """A finished checkpoint."""

    manifest: pb.Checkpoint
    answers: Answers  # to the test rows


def merge(adapter: Path, output: Path, overwrite: bool = False) -> Path:
    """Merges the adapter directory that finetune wrote, and returns `output`, the checkpoint.

    Raises StepFailed, and writes nothing, if the merged model does not answer as the trained one did.
    """
    manifest = checkpoint.read_manifest(adapter)
    checkpoint.verify_files(adapter, manifest)
    # Older adapters keep rows as words, and their reference logits are of the words joined with spaces.
    test = rows.read(adapter / manifest.test_split.path, spacing.spaced) if manifest.test_split.path else []
    with checkpoint.writing(output, overwrite) as directory:
        merge_into(directory, adapter, manifest, test)
    return output


def merge_into(directory: Path, adapter: Path, manifest: pb.Checkpoint, test: Sequence[Row]) -> Exported:
    """Fills `directory` with the finished checkpoint."""
    import peft

    settings = peft.PeftConfig.from_pretrained(adapter)
    tokenizer = base_models.load_tokenizer(str(adapter))
    target = target_of(manifest)
    base = _base(manifest, target, settings.base_model_name_or_path, tokenizer.pad_token_id)
    with warnings.catch_warnings():
        # PEFT warns about AdaLoRA's ranks, but finds them; the comparison below would show if it had not.
        warnings.filterwarnings("ignore", "The following rank_pattern keys", RuntimeWarning)
        tuned = peft.PeftModel.from_pretrained(base, adapter)
    answered = None
    if target.task == "preference":
        answered = evaluation.base_likelihoods(tuned, tokenizer, target, test, bf16=False)
    try:
        merged = tuned.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise StepFailed(f"merge: {error}", "the adapter's weights contain NaN or infinity: train again") from None
    dtype = _settings(manifest.lineage).get("save_dtype", "bfloat16")
    entry = checkpoint.step("merge", adapter.name, {"dtype": dtype}, PACKAGES)
    reference = load_reference(adapter)
    probes = test if manifest.test_split.path else []
    difference = compare_fp32(reference, probe_logits(merged, tokenizer, target, probes))
    entry.metrics["merged_logits_max_difference"] = difference
    kept_rows.copy(adapter, directory, manifest)
    seen.copy(adapter, directory, manifest)
    return export(directory, merged, tokenizer, target, manifest, entry, reference, test, answered)


def export(
    directory: Path,
    model: Any,
    tokenizer: Any,
    target: Target,
    source: pb.Checkpoint,
    entry: pb.Step,
    reference: Sequence[torch.Tensor],
    test: Sequence[Row],
    base: preferences.Sides | None = None,
) -> Exported:
    """Saves an fp32 model in bf16, verifies the saved model, measures it on the test rows, and seals the directory.

    With `save_dtype: float32` it is saved in fp32. `entry` is the lineage step to complete; `source` is the manifest
    so far. `base`: see `evaluation.evaluate`.
    """
    exact = _settings([*source.lineage, entry]).get("save_dtype") == "float32"
    save(model if exact else rounding.to_bf16(model), tokenizer, directory)
    if target.pooling:
        size = model.config.get_text_config().hidden_size
        encoders.write(directory, target.pooling, target.prompts, size, target.max_length)
    saved = auto_class(TRAINABLE[target.task]).from_pretrained(directory, dtype=torch.float32)
    saved.to("cuda" if torch.cuda.is_available() else "cpu")
    probes = test if source.test_split.path else []
    answered = probe_logits(saved, tokenizer, target, probes)
    if exact:
        entry.metrics["saved_logits_max_difference"] = compare_fp32(reference, answered)
    else:
        error, agreement = compare_bf16(reference, answered, classes=not target.pooling)
        entry.metrics["bf16_logits_relative_difference"] = error
        if not target.pooling:
            entry.metrics["bf16_same_best_class"] = agreement
    answers = Answers({}, [])
    if test:
        # Rewards are differences from the base model, smaller than what bf16 rounds away.
        bf16 = not exact and target.task != "preference" and base_models.bf16_is_fast()
        answers = evaluation.evaluate(saved, tokenizer, target, test, bf16, base)
        settings = _settings([*source.lineage, entry])
        if names := settings.get("answer_metrics"):
            answers = replace(answers, metrics=answers.metrics | _written(saved, tokenizer, target, test, names))
        entry.metrics.update(answers.figures)
        entry.measured_on = tiers.measured_on()
        if target.task in WRITERS and source.test_split.path:
            good = preferences.sides(test).good[:SAMPLED]
            given = writing.answers(saved, tokenizer, target, good, writing.SAMPLE_TOKENS)
            rows.write(directory / SAMPLES, writing.samples(good, given))
    entry.finished_at.GetCurrentTime()
    if source.test_split.path:
        rows.write(directory / source.test_split.path, test)
    manifest = checkpoint.describe(directory)
    # `describe` sets the number of positions that the model allows; here it is the length that was trained.
    manifest.max_length = target.max_length
    manifest.label_distribution.update(source.label_distribution)
    if source.HasField("temperature"):
        manifest.temperature = source.temperature
    manifest.lineage.extend([*source.lineage, entry])
    manifest.test_split.CopyFrom(source.test_split)
    if source.test_split.path:
        # Rows of an older adapter are written in another form than they were read in.
        manifest.test_split.sha256 = rows.sha256(test)
    if source.HasField("calibration_split"):
        manifest.calibration_split.CopyFrom(source.calibration_split)
    if source.HasField("trained_rows"):
        manifest.trained_rows.CopyFrom(source.trained_rows)
    card.write(directory, manifest)
    checkpoint.seal(directory, manifest)
    return Exported(manifest, answers)


def _written(model: Any, tokenizer: Any, target: Target, test: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    """Returns the metrics of the model's own answers to the first test rows."""
    good = preferences.sides(test).good[:ANSWERED]
    asked = [examples.example(tokenizer, row, target.max_length) for row in good]
    given = writing.answers(model, tokenizer, target, good, written.room(asked, target.max_length))
    return written.measure(names, [quality.expected_answer(row) for row in good], given)


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Saves weights and tokenizer, without the tokenizer's truncation and padding that training set."""
    model.save_pretrained(directory)
    # A fast tokenizer would save its last truncation length.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(directory)


def _base(manifest: pb.Checkpoint, target: Target, base_model: str, pad_token_id: int | None) -> Any:
    """Returns the model that the adapter was trained on: with QLoRA, the dequantized 4-bit base model."""
    nf4 = _settings(manifest.lineage)["method"] == "qlora"
    base, _ = base_models.load_model(target, base_model, pad_token_id, nf4=nf4)
    return base.dequantize() if nf4 else base


def _settings(lineage: Sequence[pb.Step]) -> dict[str, Any]:
    """Returns the settings of the last training."""
    trained = next(step for step in reversed(lineage) if step.name == "finetune")
    return json_format.MessageToDict(trained.config)


def target_of(manifest: pb.Checkpoint) -> Target:
    """Returns the outputs of a manifest's model, with the length that it was trained at."""
    settings = _settings(manifest.lineage)
    return Target(
        # A model that was trained on preferences is one for generation.
        task="preference" if settings.get("task") == "preference" else TASK_NAMES[manifest.task],
        labels=tuple(manifest.labels),
        problem_type=settings["problem_type"],
        max_length=int(settings["max_length"]),
        temperature=checkpoint.temperature_of(manifest),
        pooling=settings.get("pooling", ""),
        prompts=settings.get("prompts", {}),
        sizes=tuple(map(int, settings.get("matryoshka", ()))),
    )


def probe_logits(model: Any, tokenizer: Any, target: Target, test: Sequence[Row]) -> list[torch.Tensor]:
    """Returns fp32 logits on the first test rows, or on random tokens when no test rows were kept."""
    encoded: list[Sequence[Row]] = [encode(tokenizer, target, test[:PROBES])] if test else []
    if not test or len(target.labels) == 1:
        # A single output may have no spread to compare a difference with.
        encoded.append(_random_tokens(tokenizer, target))
    found = (evaluation.logits(model, tokenizer, target, some, limit=POSITIONS) for some in encoded)
    return list(chain.from_iterable(found))


def _random_tokens(tokenizer: Any, target: Target) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    length = min(32, target.max_length)
    ids = torch.randint(len(tokenizer), (PROBES, length), generator=generator).tolist()
    counted = [IGNORED, *range(1, length)]
    return [{"input_ids": row, "attention_mask": [1] * length, "labels": counted} for row in ids]


def save_reference(adapter: Path, reference: Sequence[torch.Tensor]) -> None:
    """Writes the trained model's logits for a later merge to compare with."""
    save_file({f"{index:04}": tensor for index, tensor in enumerate(reference)}, adapter / REFERENCE)


def load_reference(adapter: Path) -> list[torch.Tensor]:
    """Reads what `save_reference` wrote."""
    return [tensor for _, tensor in sorted(load_file(adapter / REFERENCE).items())]


def compare_fp32(trained: Sequence[torch.Tensor], merged: Sequence[torch.Tensor]) -> float:
    """Returns the largest difference. Raises StepFailed if it is more than rounding in fp32 explains."""
    before, after = _flat(trained, merged)
    difference = float((before - after).abs().max())
    allowed = FP32_TOLERANCE * max(1.0, float(before.abs().max()))
    # Written so that a NaN fails too.
    if not difference <= allowed:
        raise StepFailed(
            f"merge: the merged model's logits differ from the trained one's by {difference:.3g},"
            f" allowed {allowed:.3g}",
            "was the base model changed after training? Nothing was kept; the adapter is as it was",
        )
    return difference


def compare_bf16(
    trained: Sequence[torch.Tensor], saved: Sequence[torch.Tensor], classes: bool = True
) -> tuple[float, float]:
    """Returns (relative difference, share of places with the same best class) of what was saved in bf16. Vectors have
    no classes, and no place differs.

    Raises StepFailed if they are worse than rounding to bf16 explains.
    """
    before, after = _flat(trained, saved)
    # Logits that are all about the same (a regression that learned little) are compared with their size, too.
    spread = max(float(before.std(correction=0)), float(before.square().mean().sqrt()) / 10, 1e-6)
    error = float((before - after).square().mean().sqrt()) / spread
    agreement = float((before.argmax(-1) == after.argmax(-1)).float().mean()) if classes else 1.0
    if not (error <= BF16_TOLERANCE and agreement >= BF16_AGREEMENT):
        raise StepFailed(
            f"saving in bf16 changed the model: logits differ by {error:.1%} (allowed {BF16_TOLERANCE:.0%}),"
            f" the best class is the same in {agreement:.1%} of places (needed {BF16_AGREEMENT:.0%})",
            "train with a lower learning rate: the model then depends less on the last digits of its weights",
        )
    return error, agreement


def _flat(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    # An older adapter of a regression has no logits on random tokens.
    before, after = torch.cat(list(first)), torch.cat(list(second)[: len(first)])
    if before.shape != after.shape:
        raise StepFailed(f"merge: logits have shape {tuple(after.shape)}, the trained model's {tuple(before.shape)}")
    return before, after
