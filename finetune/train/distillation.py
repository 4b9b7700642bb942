"""Knowledge distillation: a model learns from the outputs of a better one, and from the labels (Hinton et al. 2015).

    loss = (1 - w) · task loss + w · T² · KL(teacher ‖ student)

with both outputs softened by the temperature T (losses.py). For classifiers, the teacher answers all training rows
once, before training. For generation it answers each batch during training, because logits over a vocabulary are too
large to store (distillation_generation.py).
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuneserve import checkpoint
from tuneserve.checkpoint.rows import Row
from tuneserve.checkpoint.tasks import TASK_NAMES, TRAINABLE
from tuneserve.errors import UserError
from tuneserve.evaluation import quality
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data.disk_rows import DiskRows, View
from tuneserve.finetune.data.tokens import Target, encode
from tuneserve.finetune.eval import evaluation
from tuneserve.finetune.model import base_models


@dataclass(frozen=True)
class Teacher:
    """A model that was trained for the same task."""

    model: Any
    tokenizer: Any
    target: Target  # the labels in its own order
    bf16: bool

    def quality(self, test: Sequence[Row]) -> dict[str, float]:
        """Returns the teacher's headline metric on the test rows, as `teacher/NAME`; an empty dict without rows."""
        if not test:
            return {}
        metrics = evaluation.evaluate(self.model, self.tokenizer, self.target, test, self.bf16).metrics
        name = quality.headline(TRAINABLE[self.target.task], metrics).name
        return {f"teacher/{name}": metrics[name]}

    def answers(self, rows: Sequence[Row], labels: Sequence[str]) -> View:
        """Returns `teacher_logits` of each row: float32 [positions, classes], the classes in the order of `labels`."""
        encoded = encode(self.tokenizer, self.target, rows)
        order = torch.tensor([self.target.labels.index(label) for label in labels])
        answered = array("q")

        def noted() -> Iterator[Row]:
            for index, logits in evaluation.each(self.model, self.tokenizer, self.target, encoded, self.bf16):
                answered.append(index)
                yield {"teacher_logits": logits[:, order].numpy()}

        return DiskRows(noted()).view(np.argsort(answered))


def check(config: FinetuneConfig, target: Target, tokenizer: Any) -> None:
    """Raises UserError if the teacher does not fit the target; reads no weights."""
    if config.teacher is None:
        return
    settings = base_models.read(config.teacher, "AutoConfig", "teacher")
    task = checkpoint.task_of((settings.architectures or [""])[0], Path(config.teacher))
    if task != TRAINABLE[target.task]:
        raise UserError(f"teacher: {config.teacher} is for {TASK_NAMES[task]}", f"choose one for {target.task}")
    labels = _labels(settings) if target.labels else []
    if wrong := set(labels) ^ set(target.labels):
        raise UserError(
            f"teacher: {config.teacher} has other labels than the data: {min(wrong)!r} is not in both",
            "a teacher has to be trained for the same labels; their order may differ",
        )
    if (settings.problem_type == "multi_label_classification") != (target.problem_type == "multi-label"):
        raise UserError(f"teacher: {config.teacher} has another problem_type", f"train one for {target.problem_type}")
    if target.task == "sequence-classification":
        return
    # The teacher reads the student's token ids.
    if base_models.load_tokenizer(config.teacher, "teacher").get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"teacher: {config.teacher} has another vocabulary than {config.base_model}",
            f"{target.task} needs the same vocabulary; only sequence-classification allows another",
        )
    longest = base_models.max_length(config.teacher, tokenizer)
    if longest < target.max_length:
        raise UserError(f"teacher: {config.teacher} reads {longest} tokens", f"max_length: {longest}")


def load(config: FinetuneConfig, target: Target, tokenizer: Any, bf16: bool) -> Teacher:
    """Returns the teacher of a config that `check` has accepted."""
    assert config.teacher is not None
    if target.task == "sequence-classification":
        tokenizer = base_models.load_tokenizer(config.teacher, "teacher")
        longest = min(target.max_length, base_models.max_length(config.teacher, tokenizer))
        target = replace(target, max_length=longest)
    if target.labels:
        target = replace(target, labels=tuple(_labels(base_models.read(config.teacher, "AutoConfig", "teacher"))))
    model, lacking = base_models.load_model(target, config.teacher, tokenizer.pad_token_id)
    if lacking:
        raise UserError(f"teacher: {config.teacher} lacks the weights of {lacking[0]}", "give a trained model")
    model.requires_grad_(False).to(torch.bfloat16 if bf16 else torch.float32)
    return Teacher(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer, target, bf16)


class WithAnswers:
    """A collator that adds the teacher's `teacher_logits` [counted positions, classes] to another collator's batch."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, rows: Sequence[Row]) -> Any:
        answers = [row["teacher_logits"] for row in rows if "teacher_logits" in row]
        batch = self._inner([{key: value for key, value in row.items() if key != "teacher_logits"} for row in rows])
        if answers:
            batch["teacher_logits"] = torch.cat([torch.from_numpy(answer) for answer in answers])
        return batch


def _labels(settings: Any) -> list[str]:
    return [settings.id2label[index] for index in sorted(settings.id2label)]
