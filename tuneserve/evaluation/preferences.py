"""How often a model prefers the answers that people preferred, from the log-likelihoods of the answers.

    reward_accuracy     the share of pairs in which the preferred answer has the higher implicit reward of DPO, which is
                        log p(answer) of the model minus that of its base model (Rafailov et al. 2023, section 4; as
                        RewardBench scores such models, Lambert et al. 2024)
    win_rate            the share of pairs in which the preferred answer has the higher mean log-probability of a token
                        (the reward of SimPO, Meng et al. 2024): without a base model, and as the model would choose
    base_win_rate       the same of the base model

A pair is two answers to one prompt. Single answers, each with a thumb up or down, make a pair of each of the first with
each of the second: the share is then the area under the ROC curve. A tie counts as half.

Rows are those of `checkpoint.rows`. Nothing here knows where log-likelihoods come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneserve.checkpoint.rows import Row
from tuneserve.evaluation import significance
from tuneserve.evaluation.quality import RowSums


@dataclass(frozen=True)
class Sides:
    """Something about the answers that people preferred, and the same about the others."""

    good: list[Any]
    bad: list[Any]


def rejected(row: Row) -> Row:
    """Returns a row of a pair with the other answer."""
    if "prompt" in row:
        return row | {"completion": row["rejected"]}
    return row | {"messages": [*row["messages"][:-1], row["rejected"]]}


def answers(row: Row) -> list[Row]:
    """Returns a row of generation, and if it is one of a pair, the row with the other answer."""
    return [row, rejected(row)] if "rejected" in row else [row]


def sides(rows: Sequence[Row]) -> Sides:
    """Returns rows of generation with the good answers, and with the bad ones. All other rows are good."""
    return Sides(
        [row for row in rows if row.get("label") is not False],
        [rejected(row) if "rejected" in row else row for row in rows if "rejected" in row or row.get("label") is False],
    )


def rewards(own: Sides, base: Sides) -> Sides:
    """Returns each answer's implicit reward, from the log-likelihoods and numbers of tokens of both models."""

    def of(one: RowSums, other: RowSums) -> list[float]:
        return [mine[0] - its[0] for mine, its in zip(one, other, strict=True)]

    return Sides(of(own.good, base.good), of(own.bad, base.bad))


def win_rate(found: Sides, paired: bool) -> float:
    """Returns the win rate, from the log-likelihood and the number of tokens of each answer."""
    means = Sides(*([total / max(1, count) for total, count in side] for side in (found.good, found.bad)))
    return share(means, paired)


def share(found: Sides, paired: bool) -> float:
    """Returns the share of pairs whose good answer has the higher number."""
    good, bad = np.asarray(found.good, float), np.asarray(found.bad, float)
    if paired:
        return float(((good > bad) + (good == bad) / 2).mean())
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([True] * len(good) + [False] * len(bad), [*good, *bad]))


def metrics(own: Sides, base: Sides | None, paired: bool) -> dict[str, float]:
    """Returns the metrics of this module, and the ends of reward_accuracy's interval; without a base model, win_rate.

    The interval is Wilson's. For single answers it is that of as many pairs as there are answers of the rarer kind,
    which is wider than need be: every answer is in many pairs.
    """
    found = {"win_rate": win_rate(own, paired)}
    if base is None:
        return found
    accuracy = share(rewards(own, base), paired)
    low, high = significance.wilson(accuracy, min(len(own.good), len(own.bad)))
    ends = {"reward_accuracy_low": low, "reward_accuracy_high": high}
    return {"reward_accuracy": accuracy, **ends, **found, "base_win_rate": win_rate(base, paired)}
