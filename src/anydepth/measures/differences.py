"""Whether paired means differ: one interval for each, and one that holds for all of them together.

Rows are paired differences, one a sample; whole samples are drawn again (bootstrap), all columns together. The largest
deviation over the columns, each in units of its own standard error, gives bands that hold at every column at once
(Romano & Wolf 2005; the "max-t" bootstrap): with thirteen depths to look at, one of thirteen ordinary intervals would
leave out zero by chance often. The unit is the error of the samples themselves, not of each draw: where hardly any two
answers differ, a draw may have none of them, and no error of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from anydepth.measures.intervals import t_interval

_RESAMPLES = 2000
_CELLS = 2**24  # most weights of draws at a time


@dataclass(frozen=True)
class Differences:
    """Means of paired differences.

    Attributes:
        value: (P,) mean of the second less that of the first.
        low: (P,) lower end of each one's own 95 % interval (Student's t over samples).
        high: (P,) upper end.
        low_all: (P,) lower end of the bands that hold for all together.
        high_all: (P,) upper end.
    """

    value: Float64[np.ndarray, " p"]
    low: Float64[np.ndarray, " p"]
    high: Float64[np.ndarray, " p"]
    low_all: Float64[np.ndarray, " p"]
    high_all: Float64[np.ndarray, " p"]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """For each: "higher" or "lower" where the joint band leaves out zero, else "no difference shown"."""
        return tuple(
            "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
            for low, high in zip(self.low_all, self.high_all, strict=True)
        )


def paired(
    rows: Float64[np.ndarray, "n p"],
    groups: Int64[np.ndarray, " n"] | None = None,
    confidence: float = 0.95,
    *,
    seed: int = 0,
) -> Differences:
    """Means of paired differences, with intervals.

    Args:
        rows: the second's value less the first's, of the same answer.
        groups: the sample of each row, where several rows share one.
        confidence: of each interval by itself, and of the bands together.
        seed: of the draws.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> found = paired(rng.normal(size=(500, 3)) + np.array([0.0, 0.0, 1.0]))
        >>> found.verdicts
        ('no difference shown', 'no difference shown', 'higher')
    """
    value = rows.mean(0)
    low, high = t_interval(rows, groups, confidence)
    if len(rows) < 2 or (groups is not None and len(np.unique(groups)) < 2):
        blank = np.full_like(value, np.nan)
        return Differences(value, low, high, blank, blank)
    sums, sizes = _by_sample(rows - value, groups)
    spread = np.sqrt((sums**2).sum(0))
    error = spread * np.sqrt(len(sums) / (len(sums) - 1)) / len(rows)
    known = spread > 0
    margin = np.zeros_like(value)
    if known.any():
        margin[known] = error[known] * _quantile(sums[:, known] / error[known], sizes, confidence, seed)
    return Differences(value, low, high, value - margin, value + margin)


def _quantile(
    sums: Float64[np.ndarray, "s p"], sizes: Float64[np.ndarray, " s"], confidence: float, seed: int
) -> float:
    """Of the largest deviation of a mean over the columns, over draws of whole samples."""
    rng, count = np.random.default_rng(seed), len(sums)
    most, piece = [], max(1, _CELLS // count)
    for start in range(0, _RESAMPLES, piece):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(piece, _RESAMPLES - start)).astype(float)
        most.append(np.abs(times @ sums / (times @ sizes)[:, None]).max(1))
    return float(np.quantile(np.concatenate(most), confidence))


def _by_sample(
    rows: Float64[np.ndarray, "n p"], groups: Int64[np.ndarray, " n"] | None
) -> tuple[Float64[np.ndarray, "s p"], Float64[np.ndarray, " s"]]:
    """Sums of the rows of each sample, and how many they are."""
    if groups is None:
        return rows, np.ones(len(rows))
    _, place = np.unique(groups, return_inverse=True)
    sums = np.zeros((place.max() + 1, rows.shape[1]))
    np.add.at(sums, place, rows)
    return sums, np.bincount(place).astype(float)
