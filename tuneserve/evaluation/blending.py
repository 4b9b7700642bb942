"""The scores of a search by vectors and by words, as one. The server scores by this, too, so it needs NumPy alone."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def blended(dense: Array, keyword: Array, weight: float) -> Array:
    """Returns the weighted sums of two scores of the same passages; `weight` is that of the words.

    Each score is scaled to 0 to 1 among these passages: how far cosines are apart depends on the model, and BM25 has no
    upper bound.
    """
    if not len(dense):
        return dense
    return np.asarray((1 - weight) * _scaled(dense, dense.min()) + weight * _scaled(keyword, 0.0), np.float32)


def _scaled(values: Array, least: float) -> Array:
    spread = values.max() - least
    return (values - least) / spread if spread > 0 else (values > 0).astype(np.float32)
