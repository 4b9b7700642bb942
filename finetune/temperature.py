"""Temperature scaling: one number that makes a classifier's probabilities as sure as they are right (Guo et al. 2017).

All logits are divided by it, so the best label stays the best. It is fitted on the validation rows, which the weights
did not learn from.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from tuneserve.finetune.tokens import Target
from tuneserve.rows import Row

# Where to look for it: beyond that, the rows are too few to say.
LOWEST, HIGHEST = 0.05, 20.0


def fit(target: Target, encoded: Sequence[Row], logits: Sequence[ArrayLike]) -> float:
    """Returns the temperature at which the logits, [1, classes] for each row, explain the rows' labels best."""
    outputs, labels = np.concatenate(logits).astype(float), np.array([row["labels"] for row in encoded])

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(target, outputs / np.exp(log_temperature), labels)

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def negative_log_likelihood(target: Target, logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Returns the mean over the rows, or over the labels of all rows where each is true or not by itself."""
    if target.problem_type == "multi-label":
        return float(np.logaddexp(0, np.where(labels > 0.5, -logits, logits)).mean())
    return float(-log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean())
