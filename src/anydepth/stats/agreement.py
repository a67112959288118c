"""Agreement of similarity measures: their correlation over pairs of depths, with a jackknife interval over depths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64, Int64

from anydepth.stats.intervals import around
from anydepth.stats.ranks import mid_ranks

Matrix = Float64[np.ndarray, "k k"]

_LEAST_PAIRS = 4
_ROUNDING = 1e-12  # a correlation nearer to 1 is perfect


@dataclass(frozen=True)
class Agreement:
    """Correlation of two measures over pairs of different depths.

    Each coefficient is (value, low, high); NaN where there are too few pairs, or no spread.
    """

    pearson: tuple[float, float, float]
    spearman: tuple[float, float, float]
    pairs: int


def agreement(a: Matrix, b: Matrix, confidence: float = 0.95) -> Agreement:
    """Pearson's and Spearman's correlation of two measures over pairs of different depths.

    The interval is a jackknife over depths on Fisher's z: a pair shares its depths with 2K - 4 others, so treating
    pairs as independent draws would make the interval far too narrow. It is over other choices of depths, not
    over other samples. Where leaving a depth out makes a coefficient perfect, artanh has no value: it counts as the
    rank correlation half-way to one exchange of neighbours, 1 - 6 / (p (p² - 1)) of p pairs.

    Of a measure that is not symmetric a pair counts once, with the mean of its two values. NaN is undefined.

    Example:
        >>> a = np.array([[1.0, 0.9, 0.5, 0.1], [0.9, 1.0, 0.8, 0.4], [0.5, 0.8, 1.0, 0.7], [0.1, 0.4, 0.7, 1.0]])
        >>> agreement(a, a**3).spearman[0]
        1.0
    """
    paired = _Pairs.of((a + a.T) / 2, (b + b.T) / 2)
    return Agreement(
        pearson=_with_interval(paired, _correlation, 1 - _ROUNDING, confidence),
        spearman=_with_interval(paired, _rank_correlation, _almost_in_order(len(paired)), confidence),
        pairs=len(paired),
    )


def agreements(similarity: Mapping[str, Matrix], confidence: float = 0.95) -> dict[tuple[str, str], Agreement]:
    """The agreement of every two measures, by their names; see `agreement`.

    Example:
        >>> a = np.array([[1.0, 0.9, 0.5, 0.1], [0.9, 1.0, 0.8, 0.4], [0.5, 0.8, 1.0, 0.7], [0.1, 0.4, 0.7, 1.0]])
        >>> by_names = agreements({"cosine": a, "cka": a**3, "knn": 1 - a})
        >>> list(by_names)
        [('cosine', 'cka'), ('cosine', 'knn'), ('cka', 'knn')]
        >>> by_names["cosine", "knn"].spearman[0]
        -1.0
    """
    return {
        (first, second): agreement(similarity[first], similarity[second], confidence)
        for first, second in combinations(similarity, 2)
    }


@dataclass(frozen=True)
class _Pairs:
    """Values x and y of two measures over the pairs (first, second) of depths at which both are defined."""

    x: Float64[np.ndarray, " p"]
    y: Float64[np.ndarray, " p"]
    first: Int64[np.ndarray, " p"]
    second: Int64[np.ndarray, " p"]
    depths: Int64[np.ndarray, " m"]

    @classmethod
    def of(cls, a: Matrix, b: Matrix) -> _Pairs:
        first, second = np.nonzero(np.triu(np.isfinite(a) & np.isfinite(b), k=1))
        depths = np.flatnonzero(np.isfinite(np.diag(a)) & np.isfinite(np.diag(b)))
        return cls(a[first, second], b[first, second], first, second, depths)

    def __len__(self) -> int:
        return len(self.x)

    def without(self, depth: int) -> tuple[Float64[np.ndarray, " q"], Float64[np.ndarray, " q"]]:
        """Both measures over the pairs without a depth."""
        kept = (self.first != depth) & (self.second != depth)
        return self.x[kept], self.y[kept]


def _correlation(x: Float64[np.ndarray, " p"], y: Float64[np.ndarray, " p"]) -> float:
    if len(x) < _LEAST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    value = float(x @ y / np.sqrt((x @ x) * (y @ y)))
    return float(np.sign(value)) if abs(value) > 1 - _ROUNDING else value


def _rank_correlation(x: Float64[np.ndarray, " p"], y: Float64[np.ndarray, " p"]) -> float:
    return _correlation(mid_ranks(x), mid_ranks(y)) if len(x) else float("nan")


def _almost_in_order(pairs: int) -> float:
    """Half-way from a perfect rank correlation to that of one exchange of neighbours, 1 - 12 / (p (p² - 1))."""
    return 1 - 6 / (pairs * (pairs**2 - 1)) if pairs > _LEAST_PAIRS else float("nan")


def _with_interval(
    paired: _Pairs, coefficient: Callable[..., float], most: float, confidence: float
) -> tuple[float, float, float]:
    """A coefficient with its jackknife interval over depths, in which a coefficient of 1 counts as `most`."""
    value = coefficient(paired.x, paired.y)
    without = np.array([coefficient(*paired.without(int(depth))) for depth in paired.depths])
    if not np.isfinite(value) or not np.isfinite(without).all():
        return value, float("nan"), float("nan")
    if abs(value) == 1.0:
        return value, value, value
    z, count = np.arctanh(np.clip(without, -most, most)), len(without)
    error = np.sqrt((count - 1) / count * ((z - z.mean()) ** 2).sum())
    low, high = np.tanh(around(np.array(np.arctanh(value)), np.array(error), count - 1, confidence))
    return value, float(low), float(high)
