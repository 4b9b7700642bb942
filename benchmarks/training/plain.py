"""Training as in the libraries' documentation: transformers' Trainer for a classifier, TRL's SFTTrainer for a chat.

Runs only as a process of its own: `python -m tuneserve.benchmarks.training.plain`, with a `Training` as JSON on
standard input; the last line of its output is the result. Rows are grouped by length, as users who care for speed set
it (`train_sampling_strategy`); all other options keep the libraries' defaults: batches are padded to their longest row.
"""

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import rows
from tuneserve.machine.runtime import has_nvidia_gpu, preload


@dataclass(frozen=True)
class Training:
    """What both sides train, and how."""

    task: str
    base_model: str
    train: str  # JSON Lines
    test: str
    output: str
    max_length: int
    batch_size: int
    epochs: float
    learning_rate: float
    seed: int
    bf16: bool


def classifier(given: Training, common: dict[str, Any]) -> dict[str, float]:
    """Trains on {text, label} rows; returns tokens, seconds and accuracy."""
    import numpy
    from datasets import Dataset
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    train, test = rows.read(Path(given.train)), rows.read(Path(given.test))
    labels = sorted({row["label"] for row in train})
    tokenizer = AutoTokenizer.from_pretrained(given.base_model)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(row["text"], truncation=True, max_length=given.max_length)
        return dict(encoded) | {"label": labels.index(row["label"])}

    encoded, held_out = (Dataset.from_list(some).map(encode, remove_columns=["text"]) for some in (train, test))
    base = AutoModelForSequenceClassification.from_pretrained(given.base_model, num_labels=len(labels))
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["classifier"]
    )
    trainer = Trainer(
        model=get_peft_model(base, lora),
        args=TrainingArguments(**common),
        train_dataset=encoded,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    seconds = _train(trainer)
    predicted = trainer.predict(held_out)
    accuracy = float(numpy.mean(predicted.predictions.argmax(-1) == predicted.label_ids))
    return {"tokens": _tokens(encoded, given), "seconds": seconds, "quality": accuracy}


def chat(given: Training, common: dict[str, Any]) -> dict[str, float]:
    """Trains on chats, the loss on the last answer only; returns tokens, seconds and perplexity of the answers."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    train, test = rows.read(Path(given.train)), rows.read(Path(given.test))
    tokenizer = AutoTokenizer.from_pretrained(given.base_model)
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=16, lora_alpha=32, target_modules="all-linear")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.base_model, dtype=torch.float32),
        args=SFTConfig(max_length=given.max_length, gradient_checkpointing=False, **common),
        train_dataset=Dataset.from_list(
            [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in train]
        ),
        processing_class=tokenizer,
        peft_config=lora,
    )
    seconds = _train(trainer)
    total, counted = 0.0, 0
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    for row in test:
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        # Up to the end of the turn: the line break after it is never generated.
        whole = whole[: len(whole) - whole[::-1].index(tokenizer.eos_token_id)][: given.max_length]
        ids = torch.tensor([whole], device=model.device)
        labels = torch.tensor([[-100] * len(prompt) + whole[len(prompt) :]], device=model.device)
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=given.bf16):
            loss = model(input_ids=ids, labels=labels).loss
        total += float(loss) * (len(whole) - len(prompt))
        counted += len(whole) - len(prompt)
    return {"tokens": _tokens(trainer.train_dataset, given), "seconds": seconds, "quality": math.exp(total / counted)}


def _train(trainer: Any) -> float:
    started = time.monotonic()
    trainer.train()
    return time.monotonic() - started


def _tokens(encoded: Any, given: Training) -> int:
    """Tokens of all epochs, without padding."""
    return round(sum(map(len, encoded["input_ids"])) * given.epochs)


def settings(given: Training) -> dict[str, Any]:
    """Returns the arguments that both libraries are given."""
    return {
        "output_dir": given.output,
        "num_train_epochs": given.epochs,
        "per_device_train_batch_size": given.batch_size,
        "learning_rate": given.learning_rate,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "bf16": given.bf16,
        "use_cpu": not has_nvidia_gpu(),
        "seed": given.seed,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "train_sampling_strategy": "group_by_length",
    }


def main() -> None:
    """Trains as standard input says."""
    preload()
    given = Training(**json.loads(sys.stdin.read()))
    print(json.dumps((chat if given.task == "generation" else classifier)(given, settings(given))))


if __name__ == "__main__":
    main()
