"""How well two similarity measures agree: correlation over pairs of depths, whose interval knows pairs share depths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from anydepth.measures.intervals import around

Matrix = Float64[np.ndarray, "k k"]

_LEAST_PAIRS = 4


@dataclass(frozen=True)
class Agreement:
    """Correlation of two measures over pairs of different depths.

    Each coefficient is (value, low, high); NaN where there are too few pairs, or no spread.
    """

    pearson: tuple[float, float, float]
    spearman: tuple[float, float, float]
    pairs: int


def agreement(a: Matrix, b: Matrix, confidence: float = 0.95) -> Agreement:
    """Pearson's and Spearman's coefficient between two measures, over pairs of different depths.

    The interval is a jackknife over depths on Fisher's z: a pair shares its depths with 2K - 4 others, so treating
    pairs as independent draws would make the interval far too narrow. It answers what another choice of depths would
    have given, not what other samples would.

    Args:
        a: one measure, (K, K) symmetric; NaN where undefined.
        b: the other.
        confidence: of the intervals.

    Example:
        >>> a = np.array([[1.0, 0.9, 0.5, 0.1], [0.9, 1.0, 0.8, 0.4], [0.5, 0.8, 1.0, 0.7], [0.1, 0.4, 0.7, 1.0]])
        >>> agreement(a, a**3).spearman[0]
        1.0
    """
    from scipy.stats import rankdata

    pairs = int(_defined(a, b).sum())
    return Agreement(
        pearson=_with_interval(a, b, _correlation, confidence),
        spearman=_with_interval(a, b, lambda x, y: _correlation(rankdata(x), rankdata(y)), confidence),
        pairs=pairs,
    )


def _defined(a: Matrix, b: Matrix) -> Bool[np.ndarray, "k k"]:
    return np.triu(np.isfinite(a) & np.isfinite(b), k=1)


def _correlation(x: Float64[np.ndarray, " p"], y: Float64[np.ndarray, " p"]) -> float:
    if len(x) < _LEAST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    # rounding may carry a perfect correlation past 1, where Fisher's z has no value
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))


def _with_interval(
    a: Matrix, b: Matrix, coefficient: Callable[..., float], confidence: float
) -> tuple[float, float, float]:
    def over(kept: Int[np.ndarray, " m"]) -> float:
        one, other = a[np.ix_(kept, kept)], b[np.ix_(kept, kept)]
        pairs = _defined(one, other)
        return coefficient(one[pairs], other[pairs])

    depths = np.flatnonzero(np.isfinite(np.diag(a)) & np.isfinite(np.diag(b)))
    value = over(depths)
    without = np.array([over(np.delete(depths, index)) for index in range(len(depths))])
    if not np.isfinite(value) or not np.isfinite(without).all():
        return value, float("nan"), float("nan")
    if abs(value) == 1.0:
        return value, value, value
    z = np.arctanh(np.clip(without, -1 + 1e-12, 1 - 1e-12))
    count = len(depths)
    error = np.sqrt((count - 1) / count * ((z - z.mean()) ** 2).sum())
    low, high = np.tanh(around(np.array(np.arctanh(value)), np.array(error), count - 1, confidence))
    return value, float(low), float(high)
