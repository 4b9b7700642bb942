"""Temperature scaling: one number that calibrates a classifier, so that confidence matches accuracy (Guo et al. 2017).

All logits are divided by it, so the best label stays the best. It is fitted on the validation rows, which the weights
were not trained on. Its logarithm has a normal prior around 0: without it, rows that the model gets all right would
push confidence towards 1, which they are too few to justify.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from tuneserve.checkpoint.rows import Row
from tuneserve.errors import UserError
from tuneserve.finetune.data.tokens import Target

LOWEST, HIGHEST = 0.05, 20.0
FEWEST = 100  # validation rows: a temperature of fewer says more about the rows than about the model
PRIOR = 0.5  # standard deviation of log T


def fit(target: Target, encoded: Sequence[Row], logits: Sequence[ArrayLike]) -> float:
    """Returns the temperature that maximizes the likelihood of the rows' labels; logits are [1, classes] for each row.

    Raises UserError for fewer than FEWEST rows.
    """
    check(len(encoded))
    outputs, labels = np.concatenate(logits).astype(float), np.array([row["labels"] for row in encoded])

    def loss(log_temperature: float) -> float:
        likelihood = negative_log_likelihood(target, outputs / np.exp(log_temperature), labels)
        return likelihood + (log_temperature / PRIOR) ** 2 / 2 / labels.size

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def check(rows: int) -> None:
    """Raises UserError for too few validation rows."""
    if rows < FEWEST:
        raise UserError(
            f"temperature_scaling: {rows} validation rows that the model has not seen, {FEWEST} are needed",
            "a larger validation_size, more data, or leave it out",
        )


def negative_log_likelihood(target: Target, logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Returns the mean over the rows, or, for multi-label, over every label of every row."""
    if target.problem_type == "multi-label":
        return float(np.logaddexp(0, np.where(labels > 0.5, -logits, logits)).mean())
    return float(-log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean())
