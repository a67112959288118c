"""Means of paired differences, with an interval for each column and simultaneous bands for all columns together.

Rows are paired differences, one a sample; whole samples are drawn again (bootstrap), all columns together. The largest
deviation over the columns, each in units of its own standard error, gives bands that hold at every column at once
(Romano & Wolf 2005; the "max-t" bootstrap): of thirteen ordinary intervals, one for each depth, one would often leave
out zero by chance. The unit is the error of the samples themselves, not of each draw: where hardly any two answers
differ, a draw may hold none of them, and have no error of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from anydepth.stats.intervals import ratio, sums_and_sizes, t_interval

_RESAMPLES = 2000
_CELLS = 2**24  # most weights of draws at a time


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Means of paired differences, with intervals.

    Attributes:
        value: (P,) mean of the second minus that of the first.
        low: (P,) lower end of the column's own 95 % interval (Student's t over samples).
        high: (P,) upper end.
        low_all: (P,) lower end of the simultaneous 95 % bands.
        high_all: (P,) upper end.
    """

    value: Float64[np.ndarray, " p"]
    low: Float64[np.ndarray, " p"]
    high: Float64[np.ndarray, " p"]
    low_all: Float64[np.ndarray, " p"]
    high_all: Float64[np.ndarray, " p"]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """For each: "higher" or "lower" where the simultaneous band leaves out zero, else "not significant".

        "undefined" where the value is NaN.
        """
        return tuple(
            "undefined" if np.isnan(value) else "higher" if low > 0 else "lower" if high < 0 else "not significant"
            for value, low, high in zip(self.value, self.low_all, self.high_all, strict=True)
        )


def paired(
    rows: Float64[np.ndarray, "n p"],
    groups: Int64[np.ndarray, " n"] | None = None,
    confidence: float = 0.95,
    *,
    most: float = np.inf,
    seed: int = 0,
) -> Differences:
    """Means of paired differences, with intervals.

    Args:
        rows: the second's value minus the first's, of the same answer.
        groups: the sample of each row, where several rows share one.
        confidence: of each interval, and of the bands together.
        most: the largest possible difference, 1 for shares and probabilities; intervals end there.
        seed: of the draws.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> paired(rng.normal(size=(500, 3)) + np.array([0.0, 0.0, 1.0])).verdicts
        ('not significant', 'not significant', 'higher')
    """
    value = rows.mean(0)
    low, high = t_interval(rows, groups, confidence).clip(-most, most)
    if len(rows) < 2 or (groups is not None and len(np.unique(groups)) < 2):
        blank = np.full_like(value, np.nan)
        return Differences(value=value, low=low, high=high, low_all=blank, high_all=blank)
    sums, sizes = sums_and_sizes(rows - value, groups)
    error = ratio(sums, np.broadcast_to(sizes[:, None], sums.shape))[1]
    known = error > 0
    margin = np.where(np.isnan(value), np.nan, 0.0)
    if known.any():
        margin[known] = error[known] * _quantile(sums[:, known] / error[known], sizes, confidence, seed)
    # Draws of few samples, or of one that holds most rows, vary too little: no band is narrower than its own interval.
    return Differences(
        value=value,
        low=low,
        high=high,
        low_all=np.minimum((value - margin).clip(-most, most), low),
        high_all=np.maximum((value + margin).clip(-most, most), high),
    )


def _quantile(
    sums: Float64[np.ndarray, "s p"], sizes: Float64[np.ndarray, " s"], confidence: float, seed: int
) -> float:
    """Quantile of the largest deviation of a mean over the columns, over draws of whole samples."""
    rng, count = np.random.default_rng(seed), len(sums)
    largest, piece = [], max(1, _CELLS // count)
    for start in range(0, _RESAMPLES, piece):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(piece, _RESAMPLES - start)).astype(float)
        largest.append(np.abs(times @ sums / (times @ sizes)[:, None]).max(1))
    return float(np.quantile(np.concatenate(largest), confidence))
