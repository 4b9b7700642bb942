"""Losses for the classifiers beyond cross-entropy, and training steps that run a model twice on its inputs.

class weights      a weight for each class, to balance rare classes
label smoothing    targets slightly below 1
focal loss         rows that the model predicts with confidence count less (Lin et al. 2017)
R-Drop             two passes with different dropout should agree (Liang et al. 2021)
FGM                also learns from embeddings moved a step in the worst direction (Miyato et al. 2017)
distillation       learns the outputs of a teacher beside the labels (Hinton et al. 2015)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer

from tuneserve.checkpoint.rows import Row
from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data.tokens import IGNORED


@dataclass(frozen=True)
class Objective:
    """A classifier's loss. Labels are class numbers, or one number from 0 to 1 for each of several labels."""

    weights: Tensor | None = None  # [classes]
    smoothing: float = 0.0
    focal_gamma: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean over all counted labels. `logits` has one more dimension than `labels` of class numbers."""
        logits = logits.float()
        weights = None if self.weights is None else self.weights.to(logits.device)
        if labels.is_floating_point():
            targets = labels * (1 - self.smoothing) + self.smoothing / 2
            loss = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weights)
            right = torch.where(labels > 0.5, logits.sigmoid(), (-logits).sigmoid())
            return (loss * (1 - right) ** self.focal_gamma).mean()
        logits, labels = _counted(logits, labels)
        loss = functional.cross_entropy(
            logits, labels, weight=weights, label_smoothing=self.smoothing, reduction="none"
        )
        right = logits.softmax(-1).gather(-1, labels[:, None])[:, 0]
        total = labels.numel() if weights is None else weights[labels].sum()
        return (loss * (1 - right) ** self.focal_gamma).sum() / total


def class_weights(encoded: Sequence[Row], labels: Sequence[str], config: FinetuneConfig) -> Tensor | None:
    """Returns a weight for each class: as given, or, if balanced, larger for rarer classes.

    For multi-label, a weight balances presence against absence of the label; for tokens, B-X and I-X have that of X.
    """
    chosen = config.class_weights
    if chosen is None:
        return None
    if not isinstance(chosen, str):
        words = config.task == "token-classification"
        names = [label[2:] if words and label not in chosen else label for label in labels]
        return torch.tensor([float(chosen.get(name, 1.0)) for name in names])
    if config.problem_type == "multi-label":
        present = torch.zeros(len(labels), dtype=torch.float64)
        for row in encoded:
            present += torch.tensor(row["labels"])
        return ((len(encoded) - present).clamp_min(1) / present.clamp_min(1)).float()
    found = chain.from_iterable(_list(row["labels"]) for row in encoded)
    counts = Counter(label for label in found if label != IGNORED)
    mean = sum(counts.values()) / len(labels)
    return torch.tensor([mean / max(1, counts[index]) for index in range(len(labels))])


class ClassifierTrainer(Trainer):  # type: ignore[misc]
    """Trainer with the losses of this module."""

    def __init__(self, *, objective: Objective, config: FinetuneConfig, **options: Any) -> None:
        super().__init__(**options)
        # Our loss is a mean over its batch, so Trainer has to divide it by the number of batches in a step.
        self.model_accepts_loss_kwargs = False
        self._objective = objective
        self._config = config

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See Trainer."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        # Only training rows have the teacher's answers; validation rows don't.
        teacher = inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        loss = self._objective(outputs.logits, labels)
        if self._config.rdrop_alpha and model.training:
            again = model(**inputs).logits
            loss = (loss + self._objective(again, labels)) / 2
            loss = loss + self._config.rdrop_alpha * divergence(outputs.logits, again, labels)
        if teacher is not None:
            weight = self._config.distillation_weight
            taught = distillation(outputs.logits, teacher, labels, self._config.distillation_temperature)
            loss = (1 - weight) * loss + weight * taught
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """See Trainer."""
        if not self._config.fgm_epsilon:
            return super().training_step(model, inputs, num_items_in_batch)
        seen: list[Tensor] = []

        def remember(_module: Any, _inputs: Any, output: Tensor) -> None:
            # With an adapter the embeddings are frozen, and still need a gradient here.
            if not output.requires_grad:
                output.requires_grad_(True)
            output.retain_grad()
            seen.append(output)

        embeddings = self.accelerator.unwrap_model(model).get_input_embeddings()
        with embeddings.register_forward_hook(remember):
            loss = super().training_step(model, inputs, num_items_in_batch)
        gradient = seen[0].grad
        assert gradient is not None
        step = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None] * self._config.fgm_epsilon
        with embeddings.register_forward_hook(lambda _module, _inputs, output: output + step):
            super().training_step(model, inputs, num_items_in_batch)
        return loss


def divergence(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean symmetric Kullback-Leibler divergence of two passes, over all counted labels."""
    one, other = _log_chances(first, labels), _log_chances(second, labels)
    return ((one.exp() - other.exp()) * (one - other)).sum(-1).mean() / 2


def distillation(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns T² · KL(teacher ‖ student), both softened by T, as the mean over all counted labels.

    `teacher` has only the logits of counted positions: [counted, classes].
    """
    learned = _log_chances(student / temperature, labels)
    right = _log_chances(teacher / temperature, labels if labels.is_floating_point() else labels[labels != IGNORED])
    return temperature**2 * functional.kl_div(learned, right, reduction="none", log_target=True).sum(-1).mean()


def _log_chances(logits: Tensor, labels: Tensor) -> Tensor:
    """Log probabilities of counted positions: over the classes; for multi-label, of yes and no for each label."""
    logits = logits.float()
    if labels.is_floating_point():
        return functional.logsigmoid(torch.stack((logits, -logits), -1))
    return _counted(logits, labels)[0].log_softmax(-1)


def _counted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits, labels = logits.flatten(0, -2), labels.flatten()
    return logits[labels != IGNORED], labels[labels != IGNORED]


def _list(labels: int | list[int]) -> list[int]:
    return labels if isinstance(labels, list) else [labels]
