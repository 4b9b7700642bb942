"""Distillation for generation: the teacher answers each batch during training."""

from typing import Any

import torch
from torch.nn import functional
from trl import SFTTrainer

from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data.tokens import IGNORED
from tuneserve.finetune.train.distillation import Teacher


class DistillingTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with the loss of distillation.py; validation uses the task's own loss."""

    def __init__(self, *, teacher: Teacher, config: FinetuneConfig, **options: Any) -> None:
        super().__init__(**options)
        self._teacher = teacher
        self._weight = config.distillation_weight
        self._temperature = config.distillation_temperature

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See Trainer."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = {**inputs, "use_cache": False}
        # The logits at a position predict the next token.
        labels = inputs.pop("labels")[:, 1:]
        counted = labels != IGNORED
        student = model(**inputs).logits[:, :-1][counted].float()
        with torch.no_grad(), torch.autocast(labels.device.type, torch.bfloat16, enabled=self._teacher.bf16):
            teacher = self._teacher.model(**inputs).logits[:, :-1][counted].float()
        task = functional.cross_entropy(student, labels[counted], reduction="sum")
        # Models of the same tokenizer may pad their vocabulary to different sizes.
        classes = min(student.shape[-1], teacher.shape[-1])
        taught = self._temperature**2 * functional.kl_div(
            (student[:, :classes] / self._temperature).log_softmax(-1),
            (teacher[:, :classes] / self._temperature).log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        # SFTTrainer counts the tokens of a step in all processes; gradients are then averaged over the processes.
        everywhere = num_items_in_batch is not None
        tokens = num_items_in_batch / self.accelerator.num_processes if everywhere else counted.sum()
        return ((1 - self._weight) * task + self._weight * taught) / tokens
