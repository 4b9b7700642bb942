"""Losses for the classifiers beyond the plain one, and training steps that show a model its inputs twice.

class weights      each class counts as much as it is told: for rare classes
label smoothing    the target is a little less than sure
focal loss         what the model is sure of already counts less (Lin et al. 2017)
R-Drop             two passes with other dropout should agree (Liang et al. 2021)
FGM                and so should embeddings moved a step in the worst direction (Miyato et al. 2017)
distillation       and the answers of a teacher be learned beside the labels (Hinton et al. 2015)
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

from tuneserve.finetune.config import FinetuneConfig
from tuneserve.finetune.data.tokens import IGNORED
from tuneserve.rows import Row


@dataclass(frozen=True)
class Objective:
    """A classifier's loss. Labels are class numbers, or one number from 0 to 1 for each of several labels."""

    weights: Tensor | None = None  # [classes]
    smoothing: float = 0.0
    focal_gamma: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean over what is counted. `logits` has one more dimension than labels that are numbers."""
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
    """Returns a weight for each class: as given, or, where they are to be balanced, the rarer the more.

    For several labels a text they weigh its presence against its absence; for tokens, B-X and I-X have that of X.
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
    """Trainer with an objective of ours."""

    def __init__(self, *, objective: Objective, config: FinetuneConfig, **options: Any) -> None:
        super().__init__(**options)
        # Our loss is a mean over its batch: Trainer divides it by the number of batches that make a step.
        self.model_accepts_loss_kwargs = False
        self._objective = objective
        self._config = config

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See Trainer."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        # Only the training rows have answers of a teacher.
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
            # Of frozen embeddings too: an adapter learns, they don't.
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
    """Returns the mean symmetric Kullback-Leibler divergence of two passes, over what `labels` counts."""
    one, other = _log_chances(first, labels), _log_chances(second, labels)
    return ((one.exp() - other.exp()) * (one - other)).sum(-1).mean() / 2


def distillation(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns T² · KL(teacher ‖ student), both softened by T, as the mean over what `labels` counts.

    `teacher` has the logits of what is counted only: [counted, classes].
    """
    learned = _log_chances(student / temperature, labels)
    right = _log_chances(teacher / temperature, labels if labels.is_floating_point() else labels[labels != IGNORED])
    return temperature**2 * functional.kl_div(learned, right, reduction="none", log_target=True).sum(-1).mean()


def _log_chances(logits: Tensor, labels: Tensor) -> Tensor:
    """Log probabilities of what is counted: over the classes, or of each of several labels over yes and no."""
    logits = logits.float()
    if labels.is_floating_point():
        return functional.logsigmoid(torch.stack((logits, -logits), -1))
    return _counted(logits, labels)[0].log_softmax(-1)


def _counted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits, labels = logits.flatten(0, -2), labels.flatten()
    return logits[labels != IGNORED], labels[labels != IGNORED]


def _list(labels: int | list[int]) -> list[int]:
    return labels if isinstance(labels, list) else [labels]
