"""The training loop: transformers' Trainer for classifiers and embeddings, TRL's trainers for
generation and preferences."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from tuneserve.checkpoint.rows import Row
from tuneserve.errors import StepFailed, UserError
from tuneserve.finetune.config import OBJECTIVE, WRITERS, FinetuneConfig
from tuneserve.finetune.data.tokens import Target, lengths
from tuneserve.finetune.train import distributed
from tuneserve.finetune.train.distillation import Teacher, WithAnswers
from tuneserve.finetune.train.losses import ClassifierTrainer, Objective, class_weights

TENSORBOARD = "tensorboard"


@dataclass(frozen=True)
class Run:
    """One training: the model, its rows, and the settings."""

    model: Any
    tokenizer: Any
    encoded: Sequence[Row]  # from `tokens.encode`
    validation: Sequence[Row]  # from `tokens.encode`; empty for none
    target: Target
    config: FinetuneConfig
    bf16: bool
    directory: Path  # where its state is saved
    teacher: Teacher | None = None  # for generation only: answers each batch
    callbacks: Sequence[TrainerCallback] = ()


@dataclass(frozen=True)
class Trained:
    """The result of a training."""

    loss: float  # the mean over all steps
    steps: int
    history: list[dict[str, float]]  # the values logged at each step and epoch, by transformers' names
    weights: dict[str, torch.Tensor] | None = None  # all weights, if they are sharded; on the main process only


def steps(rows: int, config: FinetuneConfig) -> int:
    """Returns the number of optimizer steps for this many rows."""
    batches = math.ceil(rows / config.batch_size)
    return math.ceil(config.epochs * math.ceil(batches / config.gradient_accumulation))


def whole_states(directory: Path) -> list[Path]:
    """Returns the complete states in a run's directory, the newest last; one that was not fully saved is left out."""
    states = directory.glob("checkpoint-*/trainer_state.json")
    whole = [path.parent for path in states if _is_json(path)]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def last_state(directory: Path) -> Path | None:
    """Returns the newest complete state."""
    whole = whole_states(directory)
    return whole[-1] if whole else None


def train(run: Run) -> Trained:
    """Trains `run.model` in place, from the last saved state if there is one.

    The weights stay in fp32; with `bf16` the forward and backward passes run in bf16 autocast. With validation rows
    the model ends with the weights of the best epoch. Raises StepFailed if the loss becomes NaN or infinite, or if
    memory runs out.
    """
    config, trainer = run.config, _trainer(run)
    _check_gathers(trainer)
    # Trainer's own sampler draws from random state that a resumed run no longer has. With several processes, the first
    # gets the first rows of a batch, and so on: together they see the rows that one process would see.
    order = _ByLength(lengths(run.encoded), config.batch_size, config.seed)
    trainer._get_train_sampler = lambda *_: order
    # The default callback prints a dict on stdout for every logged step.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress())
    for callback in run.callbacks:
        trainer.add_callback(callback)
    if config.method == "adalora":
        trainer.add_callback(_Ranks())
    if config.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(config.early_stopping))
    state = last_state(run.directory)
    try:
        with closing(_writer(run.directory, state)) if distributed.is_main() else nullcontext() as writer:
            if writer:
                trainer.add_callback(TensorBoardCallback(writer))
            trained = trainer.train(resume_from_checkpoint=state and str(state))
    except torch.OutOfMemoryError as error:
        raise StepFailed(
            f"out of memory: {str(error).splitlines()[0]}",
            "halve batch_size and double gradient_accumulation, or set gradient_checkpointing: true",
        ) from None
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    # accelerate wraps `forward` in bf16 autocast; it is removed, so that what follows is computed in fp32.
    trainer.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    return Trained(float(trained.training_loss), int(trainer.state.global_step), trainer.state.log_history, weights)


def _trainer(run: Run) -> Any:
    config = run.config
    on_gpu = torch.cuda.is_available()
    checkpointing = config.gradient_checkpointing
    common: dict[str, Any] = {
        "output_dir": str(run.directory),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": distributed.share(config.batch_size),
        "per_device_eval_batch_size": distributed.share(config.batch_size),
        "gradient_accumulation_steps": config.gradient_accumulation,
        "gradient_checkpointing": on_gpu and config.task in WRITERS if checkpointing is None else checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(config.schedule, config.schedule),
        "weight_decay": config.weight_decay,
        # A float below 1 is a share of all steps, rounded up; 1 would mean one step.
        "warmup_steps": min(config.warmup_ratio, math.nextafter(1, 0)),
        "neftune_noise_alpha": config.neftune_alpha,
        "bf16": run.bf16,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "seed": config.seed,
        "report_to": list(config.report_to or ()),
        "run_name": config.output.name,
        "logging_steps": 1,
        # Logs NaN and infinity as they are, so that `_Progress` can end the run.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        **_saving(config),
    }
    if config.task == "generation":
        # Imported here, because TRL takes seconds to import.
        from tuneserve.finetune.train import sft

        return sft.trainer(run, common)
    if config.task == "preference":
        from tuneserve.finetune.train import preference

        return preference.trainer(run, common)
    if config.task == "embedding":
        # Imported here, because sentence-transformers takes seconds to import.
        from tuneserve.finetune.train import contrastive

        return contrastive.trainer(run, common)
    if config.task == "ranking":
        from tuneserve.finetune.train import ranking

        return ranking.trainer(run, common)
    collators = {
        "sequence-classification": DataCollatorWithPadding,
        "token-classification": DataCollatorForTokenClassification,
    }
    options = {
        "model": run.model,
        # `teacher_logits` is a column of the rows, but no argument of the model; it must not be removed.
        "args": TrainingArguments(**common, remove_unused_columns=not config.teacher),
        "train_dataset": run.encoded,
        "eval_dataset": run.validation or None,
        "data_collator": WithAnswers(collators[config.task](run.tokenizer)),
    }
    if not any(getattr(config, key) for key in (*OBJECTIVE, "teacher")):
        trainer = Trainer(**options)
        # Trainer assumes that these models divide their loss by the items in all batches of a step. They don't: each
        # step would be too large by the number of accumulated batches.
        trainer.model_accepts_loss_kwargs = False
        return trainer
    weights = class_weights(run.encoded, run.target.labels, config)
    return ClassifierTrainer(
        objective=Objective(weights, config.label_smoothing, config.focal_gamma),
        config=config,
        **options,
    )


def _check_gathers(trainer: Any) -> None:
    """Raises UserError if DeepSpeed would not gather the sharded weights after training."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    if not plugin or plugin.zero_stage != 3:
        return
    if not plugin.deepspeed_config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"):
        raise UserError(
            "DeepSpeed's stage 3 would not gather the trained weights",
            "set zero3_save_16bit_model: true in accelerate's config file, or in DeepSpeed's own"
            " stage3_gather_16bit_weights_on_model_save",
        )


def _writer(directory: Path, state: Path | None) -> Any:
    """Returns TensorBoard's writer; a resumed run discards what it had logged after its saved state."""
    from torch.utils.tensorboard import SummaryWriter

    done = int(state.name.rpartition("-")[2]) + 1 if state else None
    return SummaryWriter(str(directory / TENSORBOARD), purge_step=done)


def _saving(config: FinetuneConfig) -> dict[str, Any]:
    """How often the run's state is saved. A run of a single epoch saves none unless it is asked to."""
    if config.validation_size:
        best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
        return best | {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1}
    if config.save_steps:
        return {"save_strategy": "steps", "save_steps": config.save_steps, "save_total_limit": 1}
    saves = config.epochs > 1 and config.method != "adalora"
    return {"save_strategy": "epoch" if saves else "no", "save_total_limit": 1}


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


class _ByLength(Sampler):  # type: ignore[misc]
    """Puts rows of about the same length together, in an order that depends only on the seed and the epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls it before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=chance))


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A progress bar on stderr with the loss, in place of Trainer's, which also prints to stdout."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        hidden = not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, desc="training", unit="step", dynamic_ncols=True, disable=hidden)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            if not math.isfinite(float(logs["loss"])):
                raise StepFailed(
                    f"the loss is {logs['loss']} at step {state.global_step}",
                    "try a lower learning_rate or a longer warm-up; precision: fp32 shows whether bf16 is the cause",
                )
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


class _Ranks(TrainerCallback):  # type: ignore[misc]
    """Lets AdaLoRA reallocate its ranks while the gradients of the step still exist."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)
