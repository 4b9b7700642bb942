"""The fine-tuning pipeline: settings in, checkpoint out."""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tuneserve import checkpoint
from tuneserve.checkpoint import rows, seen
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import TRAINABLE
from tuneserve.errors import UserError
from tuneserve.finetune import preparation
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data import dataset, kept_rows, negatives, previous
from tuneserve.finetune.data.dataset import Data
from tuneserve.finetune.data.disk_rows import DiskRows
from tuneserve.finetune.data.tokens import encode, lengths
from tuneserve.finetune.model import base_models
from tuneserve.finetune.report import tables
from tuneserve.finetune.train import continual, distributed
from tuneserve.machine import disk, tiers
from tuneserve.v1 import checkpoint_pb2 as pb

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "sentence-transformers", "datasets")


def finetune(config: FinetuneConfig, overwrite: bool = False, resume: bool = False) -> Path:
    """Trains, measures, merges and verifies; returns `config.output`, the finished checkpoint.

    The run's report is written beside it, in `OUTPUT-report`. An adapter is kept in `OUTPUT-adapter`, even when the
    merge fails its check (StepFailed): training may have taken long, and `merge` can be run again. `resume` continues
    an interrupted run, to the same result, from the state in `OUTPUT-training`. Of several processes the main one does
    all this, and the others return when training is over. Raises UserError for bad data or settings, before anything
    is trained.
    """
    main = distributed.is_main()
    if not main:
        # Waits until the main process has checked everything.
        distributed.meet()
    adapter, state, about = adapter_directory(config), _beside(config, "training"), _beside(config, "report")
    beside = [about] + [adapter] * (config.method != "full")
    for path in [config.output] + beside * (not resume):
        if path.exists() and not overwrite:
            raise UserError(f"{path}: already exists", "choose another output, or pass --overwrite")
    distributed.share(config.batch_size)
    base_models.quiet()
    split = dataset.load(config)
    ready = preparation.prepare(config, split)
    split, target, tokenizer = ready.split, ready.target, ready.tokenizer

    from tuneserve.finetune.eval import evaluation, temperature
    from tuneserve.finetune.export import merging
    from tuneserve.finetune.report import page, sections
    from tuneserve.finetune.train import run_state, training

    logger.info("training on %d rows, %d held out", len(ready.train), len(split.test))
    entry = checkpoint.step("finetune", _name(config.base_model), config.public(), PACKAGES)
    entry.config["max_length"] = target.max_length
    if target.pooling:
        entry.config.update({"pooling": target.pooling, "prompts": dict(target.prompts)})
    entry.seed = config.seed
    entry.data_sha256 = rows.sha256(ready.train)
    if split.left_out:
        entry.metrics["left_out_rows"] = sum(split.left_out.values())
    entry.metrics[previous.LEARNED] = split.learned
    if config.replay_share:
        entry.metrics["replayed_rows"] = split.replayed
    if config.back_translation:
        entry.metrics["back_translated_rows"] = len(ready.translated.rows)
        entry.metrics["back_translations_dropped"] = sum(ready.translated.dropped.values())
    with run_state.kept(state, config, entry.data_sha256, overwrite, resume) if main else nullcontext():
        if main:
            distributed.meet()
        model, history = train_model(ready, state, entry)
    if not main:
        return config.output
    manifest = _manifest(config, split)
    if config.temperature_scaling:
        validation = encode(tokenizer, target, split.parents.unseen(split.validation))
        outputs = evaluation.logits(model, tokenizer, target, validation)
        manifest.temperature = temperature.fit(target, validation, outputs)
        target = replace(target, temperature=manifest.temperature)
    kept = split.test if config.keep_test_split else []
    reference = merging.probe_logits(model, tokenizer, target, kept)
    if config.method == "full":
        with checkpoint.writing(config.output, overwrite) as directory:
            _keep(directory, manifest, config, split)
            result = merging.export(directory, model, tokenizer, target, manifest, entry, reference, split.test)
    else:
        # In fp32, like the merge: in bf16 the sum of base and adapter would lose most of what the adapter adds.
        entry.metrics.update(evaluation.evaluate(model, tokenizer, target, split.test, bf16=False).figures)
        entry.measured_on = tiers.measured_on()
        entry.finished_at.GetCurrentTime()
        manifest.lineage.append(entry)
        with checkpoint.writing(adapter, overwrite or resume) as directory:
            _keep(directory, manifest, config, split)
            _save_adapter(directory, model, tokenizer, manifest, reference, kept)
        # Frees the memory before the base model is loaded again.
        del model
        with checkpoint.writing(config.output, overwrite) as directory:
            result = merging.merge_into(directory, adapter, manifest, split.test)
    path = config.output / merging.SAMPLES
    samples = rows.read(path) if path.exists() else []
    run = sections.Finished(config, split, lengths(ready.encoded), history, result.manifest, result.answers, samples)
    page.write(about, run, state / training.TENSORBOARD, overwrite or resume)
    shutil.rmtree(state, ignore_errors=True)
    tables.show_checkpoint(config.output, result.manifest)
    continual.show(result.manifest.task, entry.metrics)
    _warn_of_letters(result.manifest.lineage[-1].metrics)
    return config.output


def _warn_of_letters(metrics: Mapping[str, float]) -> None:
    from tuneserve.finetune.eval.evaluation import BY_LETTERS

    if BY_LETTERS in metrics and metrics["ndcg@10"] <= metrics[BY_LETTERS]:
        logger.warning(
            "it orders held-out passages no better (nDCG@10 %.2f) than the letters do that they share with the query "
            "(%.2f): an index may find more without it; more rows or another base model may help",
            metrics["ndcg@10"],
            metrics[BY_LETTERS],
        )


def adapter_directory(config: FinetuneConfig) -> Path:
    """Returns where the adapter goes: OUTPUT-adapter."""
    return _beside(config, "adapter")


def _beside(config: FinetuneConfig, what: str) -> Path:
    return config.output.with_name(f"{config.output.name}-{what}")


def train_model(
    ready: preparation.Ready, state: Path, entry: pb.Step, callbacks: Sequence[Any] = ()
) -> tuple[Any, list[dict[str, float]]]:
    """Returns the trained model, in fp32, and the logged history; adds loss, time and other metrics to `entry`."""
    from transformers import set_seed

    from tuneserve.finetune.model import adapters, layer_drop
    from tuneserve.finetune.train import distillation, run_state, training

    config, split, target, tokenizer, bf16 = ready.config, ready.split, ready.target, ready.tokenizer, ready.bf16
    encoded, old, teacher = ready.encoded, split.old, None
    if config.teacher:
        teacher = distillation.load(config, target, tokenizer, bf16)
        entry.metrics.update(teacher.quality(split.test))
        if target.labels:
            answers = teacher.answers(ready.train, target.labels)
            encoded = DiskRows(row | answer for row, answer in zip(encoded, answers, strict=True))
            # Frees its memory.
            teacher = None
    validation = preparation.for_training(tokenizer, target, negatives.mined(split.validation, config))
    if config.packing:
        from tuneserve.finetune.data import packing

        encoded, validation = (packing.packed(some, target.max_length) for some in (encoded, validation))
    known = replace(target, labels=old.labels or target.labels)

    def begin(old: previous.Old) -> tuple[Any, dict[str, float]]:
        # Before the model is made: the new head and LoRA's matrices start with random values.
        set_seed(config.seed)
        model, new_modules = base_models.load_model(
            known, config.base_model, tokenizer.pad_token_id, nf4=config.method == "qlora"
        )
        before = continual.measure(model, tokenizer, known, old)
        new_modules += continual.extend_head(model, target.labels)
        if config.keep_layers:
            entry.config["kept_layers"] = layer_drop.drop_blocks(model, config.keep_layers)
        return adapters.choose_weights(model, new_modules, config, training.steps(len(encoded), config)), before

    model, before = begin(old if distributed.is_main() else previous.Old())
    disk.check(config.output, run_state.needed(model, config))
    started = time.monotonic()
    trained = training.train(
        training.Run(model, tokenizer, encoded, validation, target, config, bf16, state, teacher, callbacks)
    )
    distributed.part()
    if not distributed.is_main():
        return model, trained.history
    if trained.weights:
        # The trained model of this process holds only its shard of the weights.
        model, _ = begin(previous.Old())
        model.load_state_dict(trained.weights)
    entry.metrics["train_rows"] = len(ready.train)
    entry.metrics["train_loss"] = trained.loss
    entry.metrics["train_steps"] = trained.steps
    entry.metrics["train_seconds"] = time.monotonic() - started
    entry.metrics["trained_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    after = continual.measure(model, tokenizer, target, old)
    entry.metrics.update(continual.forgetting(TRAINABLE[target.task], before, after))
    if old.test:
        entry.metrics.update(continual.of_new(model, tokenizer, target, old, split.test))
    return model, trained.history


def _manifest(config: FinetuneConfig, split: Data) -> pb.Checkpoint:
    """Returns what is known before training: the task, the labels, the base model's history, the held-out rows."""
    manifest = pb.Checkpoint(task=TRAINABLE[config.task], labels=split.labels)
    if config.task == "sequence-classification":
        manifest.problem_type = checkpoint.PROBLEM_TYPES[config.problem_type]
    manifest.label_distribution.update(split.label_distribution())
    manifest.test_split.path = checkpoint.TEST_SPLIT if config.keep_test_split else ""
    manifest.test_split.sha256 = rows.sha256(split.test)
    manifest.test_split.rows = len(split.test)
    base = Path(config.base_model)
    if (base / checkpoint.MANIFEST).exists():
        manifest.lineage.extend(checkpoint.read_manifest(base).lineage)
    else:
        manifest.lineage.append(checkpoint.step("base", _name(config.base_model), {}, ()))
    return manifest


def _keep(directory: Path, manifest: pb.Checkpoint, config: FinetuneConfig, split: Data) -> None:
    """Writes what later steps need of the training rows: a sample of them, and the digests of all of them."""
    if config.keep_test_split:
        kept_rows.keep(directory, manifest, split.sample)
    # Validation rows chose the best epoch, so later steps must not measure on them either.
    own = seen.learned(chain(split.train, split.validation))
    seen.keep(directory, manifest, np.append(own, split.parents.trained))


def _save_adapter(
    directory: Path,
    model: Any,
    tokenizer: Any,
    manifest: pb.Checkpoint,
    reference: Sequence[Any],
    kept: Sequence[Row],
) -> None:
    """Writes an ordinary PEFT directory, with what `merge` needs beside it."""
    from tuneserve.finetune.export import merging

    merging.save(model, tokenizer, directory)
    # PEFT writes a model card that consists of placeholders.
    (directory / "README.md").unlink(missing_ok=True)
    merging.save_reference(directory, reference)
    if kept:
        rows.write(directory / checkpoint.TEST_SPLIT, kept)
    checkpoint.seal(directory, manifest)


def _name(base_model: str) -> str:
    return Path(base_model).name if Path(base_model).is_absolute() else base_model
