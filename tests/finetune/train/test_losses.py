"""Losses against their definitions, written out in plain Python."""

import math

import pytest
import torch

from tuneserve.finetune import config
from tuneserve.finetune.data.tokens import IGNORED
from tuneserve.finetune.train.losses import Objective, class_weights, distillation, divergence

LOGITS = [[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]]


def chances(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def parse(**more: object) -> config.FinetuneConfig:
    from pathlib import Path

    values = {"task": "sequence-classification", "base_model": "m", "train": "d.csv", "output": "o", **more}
    return config.parse(values, Path("/"))


def test_the_plain_one_is_cross_entropy() -> None:
    expected = -(math.log(chances(LOGITS[0])[2]) + math.log(chances(LOGITS[1])[1])) / 2
    assert float(Objective()(torch.tensor(LOGITS), torch.tensor([2, 1]))) == pytest.approx(expected)


def test_weights_make_a_weighted_mean() -> None:
    weights = [1.0, 2.0, 5.0]
    expected = -(5 * math.log(chances(LOGITS[0])[2]) + 2 * math.log(chances(LOGITS[1])[1])) / 7
    found = Objective(torch.tensor(weights))(torch.tensor(LOGITS), torch.tensor([2, 1]))
    assert float(found) == pytest.approx(expected)


def test_focal_loss_and_smoothing() -> None:
    right = chances(LOGITS[0])[0]
    focal = Objective(focal_gamma=2.0)(torch.tensor(LOGITS[:1]), torch.tensor([0]))
    assert float(focal) == pytest.approx(-((1 - right) ** 2) * math.log(right))
    smooth = Objective(smoothing=0.3)(torch.tensor(LOGITS[:1]), torch.tensor([0]))
    expected = -sum((0.7 * (index == 0) + 0.1) * math.log(chance) for index, chance in enumerate(chances(LOGITS[0])))
    assert float(smooth) == pytest.approx(expected)


def test_tokens_that_do_not_count() -> None:
    whole = torch.tensor([LOGITS])
    one = Objective()(torch.tensor(LOGITS[1:]), torch.tensor([1]))
    assert float(Objective()(whole, torch.tensor([[IGNORED, 1]]))) == pytest.approx(float(one))


def test_several_labels() -> None:
    labels = [[1.0, 0.0, 1.0]]
    sure = [1 / (1 + math.exp(-value)) for value in LOGITS[0]]
    right = [chance if label else 1 - chance for chance, label in zip(sure, labels[0], strict=True)]
    found = Objective(focal_gamma=1.0)(torch.tensor(LOGITS[:1]), torch.tensor(labels))
    assert float(found) == pytest.approx(-sum((1 - chance) * math.log(chance) for chance in right) / 3)


def test_two_passes_that_agree_do_not_diverge() -> None:
    first, second, labels = torch.tensor(LOGITS), torch.tensor(LOGITS[::-1]), torch.tensor([2, 1])
    assert float(divergence(first, first, labels)) == 0
    left, right = chances(LOGITS[0]), chances(LOGITS[1])
    both = sum((p - q) * (math.log(p) - math.log(q)) for p, q in zip(left, right, strict=True)) / 2
    assert float(divergence(first, second, labels)) == pytest.approx(both)
    several = torch.tensor([[1.0, 0.0, 1.0]] * 2)
    assert float(divergence(first, second, several)) == pytest.approx(float(divergence(second, first, several)))


def test_what_a_teacher_says_is_learned_softened() -> None:
    student, teacher, labels = torch.tensor(LOGITS), torch.tensor(LOGITS[::-1]), torch.tensor([2, 1])
    assert float(distillation(student, student, labels, 2.0)) == 0
    left, right = ([chances([value / 2 for value in row]) for row in logits] for logits in (LOGITS, LOGITS[::-1]))
    pairs = [zip(p, q, strict=True) for p, q in zip(left, right, strict=True)]
    expected = 4 * sum(q * math.log(q / p) for pair in pairs for p, q in pair) / 2
    assert float(distillation(student, teacher, labels, 2.0)) == pytest.approx(expected)
    # Of tokens, the teacher has answers where they count only.
    found = distillation(student[None], teacher[1:], torch.tensor([[IGNORED, 1]]), 2.0)
    assert float(found) == pytest.approx(float(distillation(student[1:], teacher[1:], labels[1:], 2.0)))
    # Of several labels, each is a question of its own.
    chance = [[1 / (1 + math.exp(-value)) for value in row] for row in (LOGITS[0], LOGITS[1])]
    expected = sum(q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)) for p, q in zip(*chance, strict=True))
    found = distillation(student[:1], teacher[:1], torch.tensor([[1.0, 0.0, 1.0]]), 1.0)
    assert float(found) == pytest.approx(expected / 3)


def test_balanced_weights() -> None:
    rows = [{"labels": 0}] * 6 + [{"labels": 1}] * 2
    weights = class_weights(rows, ["a", "b"], parse(class_weights="balanced"))
    assert weights is not None
    assert weights.tolist() == pytest.approx([4 / 6, 4 / 2])
    several = [{"labels": [1.0, 0.0]}] * 3 + [{"labels": [0.0, 1.0]}]
    weights = class_weights(several, ["a", "b"], parse(class_weights="balanced", problem_type="multi-label"))
    assert weights is not None
    assert weights.tolist() == pytest.approx([1 / 3, 3])


def test_given_weights_by_label_or_entity_type() -> None:
    tags = ["O", "B-PER", "I-PER"]
    weights = class_weights([], tags, parse(class_weights={"PER": 3, "O": 0.5}, task="token-classification"))
    assert weights is not None
    assert weights.tolist() == [0.5, 3.0, 3.0]


def test_the_weight_of_a_label_is_that_of_no_other() -> None:
    weights = class_weights([], ["safe", "unsafe", "O"], parse(class_weights={"safe": 5}))
    assert weights is not None
    assert weights.tolist() == [5.0, 1.0, 1.0]
