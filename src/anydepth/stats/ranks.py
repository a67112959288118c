"""Mid-ranks: ranks of numbers, some of which are equal."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64


def mid_ranks(values: Float64[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
    """Ranks from 0; equal values share the mean of theirs.

    Example:
        >>> mid_ranks(np.array([3.0, 1.0, 3.0])).tolist()
        [1.5, 0.0, 1.5]
    """
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(sizes) - (sizes + 1) / 2)[place])
