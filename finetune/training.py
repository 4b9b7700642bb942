"""Training itself: transformers' Trainer for the classifiers, TRL's SFTTrainer for generation."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tuneserve.finetune.config import FinetuneConfig
from tuneserve.rows import Row


def train(model: Any, tokenizer: Any, encoded: Sequence[Row], config: FinetuneConfig, bf16: bool) -> float:
    """Trains `model` in place on rows from `tokens.encode` and returns the mean training loss.

    The weights stay in fp32; with `bf16` the forward and backward passes run in bf16 autocast.
    """
    with tempfile.TemporaryDirectory() as scratch:
        common: dict[str, Any] = {
            "output_dir": scratch,
            "save_strategy": "no",
            "num_train_epochs": config.epochs,
            "per_device_train_batch_size": config.batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation,
            "learning_rate": config.learning_rate,
            "weight_decay": config.weight_decay,
            # A float below 1 is a share of all steps.
            "warmup_steps": config.warmup_ratio,
            "train_sampling_strategy": "group_by_length",
            "bf16": bf16,
            "use_cpu": not torch.cuda.is_available(),
            "dataloader_pin_memory": torch.cuda.is_available(),
            "seed": config.seed,
            "report_to": [],
            "logging_steps": 1,
            "disable_tqdm": True,
        }
        if config.task == "generation":
            trainer = _sft(model, tokenizer, encoded, common)
        else:
            collators = {
                "sequence-classification": DataCollatorWithPadding,
                "token-classification": DataCollatorForTokenClassification,
            }
            trainer = Trainer(
                model=model,
                args=TrainingArguments(**common),
                train_dataset=list(encoded),
                data_collator=collators[config.task](tokenizer),
            )
        # It prints a dict on stdout for every logged step.
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Progress())
        loss = float(trainer.train().training_loss)
        # accelerate put bf16 autocast around `forward`; take it off, so that what follows is in fp32.
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False, keep_torch_compile=False)
        return loss


def _sft(model: Any, tokenizer: Any, encoded: Sequence[Row], common: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        **common,
        # Rows come tokenized, cut and with their own labels: the loss counts the answers only.
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        # Saves memory for a third more time: worth it on a GPU only.
        gradient_checkpointing=torch.cuda.is_available(),
    )
    return SFTTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(list(encoded)), processing_class=tokenizer
    )


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A bar on stderr with the loss, in place of Trainer's, which also prints."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc="training", unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()
