"""What a search looks for, as one vector: a query, moved towards what was liked, away from what was not (Rocchio)."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

# Beside a query's 1. What was disliked tells less: there are more ways to miss a taste than to meet it.
_LIKED, _DISLIKED = 0.75, 0.15


def wanted(query: Vector | None, liked: Iterable[Vector], disliked: Iterable[Vector]) -> Vector | None:
    """Returns a vector of length 1; None if there is neither a query nor anything liked."""
    liked, disliked = list(liked), list(disliked)
    parts = [query] if query is not None else []
    if liked:
        parts.append(_LIKED * np.mean(liked, axis=0))
    if not parts:
        return None
    if disliked:
        parts.append(-_DISLIKED * np.mean(disliked, axis=0))
    total = np.sum(parts, axis=0)
    length = np.linalg.norm(total)
    return np.asarray(total / length, np.float32) if length else None
