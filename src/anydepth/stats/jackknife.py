"""Streamed jackknife over samples: the standard error of an estimate from the influence of each row on it.

It is valid for debiased CKA, whose numerator and denominator are U-statistics. The naive bootstrap is not: it draws
rows twice, and debiasing leaves out just their products with each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from anydepth.errors import MeasureError
from anydepth.stats.intervals import Groups, satterthwaite


@dataclass(frozen=True)
class Split:
    """A random split of whole samples into `parts`, of which the first `used` make an interval.

    A part is a hash of the sample's id, so that memory does not grow with n; `ids` holds the samples in order where
    they are few enough (at most `used`) to have a part each.
    """

    parts: int
    used: int
    seed: int = 0
    ids: Int64[np.ndarray, " s"] | None = None

    @classmethod
    def of(cls, count: int, groups: Groups, used: int, *, rows: int, seed: int = 0) -> Split:
        """Split `count` rows into at least `used` parts, such that `used` of them hold about `rows` rows."""
        if used < 2:
            raise MeasureError(f"jackknife_groups is {used}: an interval needs at least 2")
        ids = np.arange(min(count, used + 1)) if groups is None else np.unique(groups)
        if len(ids) <= used:
            return cls(len(ids), len(ids), seed, ids)
        return cls(max(used, used * count // rows), used, seed)

    def part_of(self, samples: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """The part of each sample, by its id."""
        if self.ids is not None:
            return np.searchsorted(self.ids, samples)
        # splitmix64: neighbouring ids end far apart
        x = samples.astype(np.uint64) + np.uint64(((self.seed + 1) * 0x9E3779B97F4A7C15) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x ^ (x >> np.uint64(31))) % np.uint64(self.parts)).astype(np.int64)


class PartSums:
    """Sums over the rows of each part of a split of their influence on an estimate.

    The influence of row i is `(n-1) (estimate - estimate without i)`: for a mean, its distance from it.
    """

    def __init__(self, split: Split, depths: int) -> None:
        self.split = split
        self.sums = np.zeros((split.used, depths, depths))
        self.sizes = np.zeros(split.used)

    def add(self, parts: Int64[np.ndarray, " b"], influence: Float64[np.ndarray, "b k k"]) -> None:
        """Add the influence of rows of these parts, each less than `split.used`."""
        np.add.at(self.sums, parts, influence)
        np.add.at(self.sizes, parts, 1)

    def add_pair(
        self, pair: tuple[int, int], parts: Int64[np.ndarray, " b"], influence: Float64[np.ndarray, " b"]
    ) -> None:
        """Add the influence of rows on a pair of depths; the rows are counted by `count_rows`."""
        sums = np.bincount(parts, weights=influence, minlength=self.split.used)
        for k, other in {pair, pair[::-1]}:
            self.sums[:, k, other] += sums

    def count_rows(self, parts: Int64[np.ndarray, " b"]) -> None:
        """Count rows whose influence is added pair by pair."""
        self.sizes += np.bincount(parts, minlength=self.split.used)

    def error(self, count: int) -> Float64[np.ndarray, "k k"]:
        """Jackknife standard error of the estimate from `count` rows; NaN from fewer than two parts.

        The jackknife's variance is `Σ (J_i - mean J)² / n²` over samples, J the influence (Arvesen 1969 for
        U-statistics, for which the bootstrap is not valid). Samples being dealt at random, the squares of the parts'
        sums have that sum as their mean, up to the part's own share in the mean, `1 - its share of the rows`.
        """
        total = self.sizes.sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            weights = (self.sizes / total)[:, None, None]
            deviations = self.sums - self.sizes[:, None, None] * (self.sums.sum(0) / total)
            squares = (deviations**2 / np.where(weights < 1, 1 - weights, np.nan)).sum(0)
        return np.asarray(np.sqrt(squares * self.split.parts / self.split.used) / count)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of that error: one fewer than the parts where these are of one size."""
        with np.errstate(invalid="ignore"):
            return float(satterthwaite(self.sizes / self.sizes.sum()))
