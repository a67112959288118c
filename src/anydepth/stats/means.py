"""Means of rows that are streamed, and `Estimate`, a value with its interval; the intervals are in `intervals.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from anydepth.stats.intervals import around, ratio, share_interval, wilson
from anydepth.stats.jackknife import Split

PARTS = 1000  # at most, into which the samples are dealt: t of 999 degrees of freedom is all but normal
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Values with 95 % intervals, all of one shape; NaN where undefined.

    Attributes:
        value: the mean, or share.
        low: lower end, over another draw of samples; NaN from fewer than two samples.
        high: upper end.
    """

    value: Float64[np.ndarray, "*s"]
    low: Float64[np.ndarray, "*s"]
    high: Float64[np.ndarray, "*s"]

    @classmethod
    def without_interval(cls, value: Float64[np.ndarray, "*s"]) -> Estimate:
        """Values whose intervals are unknown."""
        blank = np.full(value.shape, np.nan)
        return cls(value, blank, blank)

    @classmethod
    def stack(cls, estimates: Sequence[Estimate]) -> Estimate:
        """Estimates of one shape along a new first axis."""
        return cls(*(np.stack([getattr(estimate, end) for estimate in estimates]) for end in ("value", "low", "high")))

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """A rising function of the values and of both ends."""
        return Estimate(function(self.value), function(self.low), function(self.high))

    def __getitem__(self, place: int | slice | tuple[int | slice, ...]) -> Estimate:
        return self.map(lambda values: np.asarray(values[place]))

    @property
    def rows(self) -> Iterator[tuple[float, float, float]]:
        """Value, low and high, one after the other, of one dimension."""
        return zip(self.value, self.low, self.high, strict=True)

    def __iter__(self) -> Iterator[Estimate]:
        return (self[place] for place in range(len(self.value)))


class Means:
    """Streamed means of named columns of rows; NaN entries are left out.

    Rows are added up by sample; beyond `PARTS` samples, by the part that a hash deals the sample to. The mean is a
    ratio of two sums over those parts (`anydepth.stats.intervals.ratio`): rows of one sample do not count as
    independent.

    Args:
        count: number of all rows to come.
        groups: (n,) the sample of each row; None where each row is a sample.
        seed: of the hash.

    Example:
        >>> import torch
        >>> means = Means(3)
        >>> means.add({"x": torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)})
        >>> mean = means.mean("x")
        >>> mean.value.item(), mean.low.round(2).item(), mean.high.round(2).item()
        (2.0, -0.48, 4.48)
    """

    def __init__(self, count: int, groups: Int64[np.ndarray, " n"] | None = None, seed: int = 0) -> None:
        self._groups = groups
        self._split = Split.of(count, groups, PARTS, rows=max(count, 1), seed=seed)
        self._sums: dict[str, Float64[np.ndarray, "p c"]] = {}
        self._sizes: dict[str, Float64[np.ndarray, "p c"]] = {}
        self._seen = 0

    def add(self, rows: Mapping[str, Float64[Tensor, "b _"]]) -> None:
        """Add the next rows, in the order of the states."""
        count = len(next(iter(rows.values())))
        samples = np.arange(self._seen, self._seen + count, dtype=np.int64)
        parts = self._split.part_of(samples if self._groups is None else self._groups[samples])
        for name, column in rows.items():
            values = column.numpy()
            known = np.isfinite(values)
            if name not in self._sums:
                self._sums[name], self._sizes[name] = np.zeros((2, self._split.used, values.shape[1]))
            np.add.at(self._sums[name], parts, np.where(known, values, 0))
            np.add.at(self._sizes[name], parts, known)
        self._seen += count

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._sums)

    def count(self, name: str) -> Int64[np.ndarray, " c"]:
        """Number of rows in which each entry is defined."""
        return np.asarray(self._sizes[name].sum(0), np.int64)

    def mean(self, name: str) -> Estimate:
        """Means of a column, with Student's t interval over samples."""
        value, error, freedom = ratio(self._sums[name], self._sizes[name])
        return Estimate(value, *around(value, error, freedom, CONFIDENCE))

    def share(self, name: str) -> Estimate:
        """Means of a column of zeros and ones, with Wilson's interval: inside 0..1, with a width at both ends."""
        return _share(self._sums[name], self._sizes[name], independent=self._groups is None)

    def pooled(self, name: str, columns: slice) -> Estimate:
        """One share over several columns of zeros and ones; those of one row are not independent."""
        sums, sizes = (parts[:, columns].sum(1, keepdims=True) for parts in (self._sums[name], self._sizes[name]))
        return _share(sums, sizes, independent=False)[0]


def _share(sums: Float64[np.ndarray, "p c"], sizes: Float64[np.ndarray, "p c"], *, independent: bool) -> Estimate:
    """Share of rows with Wilson's interval, by effective size where rows are not independent."""
    total, trials = sums.sum(0), sizes.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = total / trials
    if independent:
        return Estimate(value, *wilson(total, trials, CONFIDENCE))
    return Estimate(value, *share_interval(sums, sizes, CONFIDENCE))
