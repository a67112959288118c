"""Means of short rows that come in chunks, each with an interval over draws of samples; memory does not grow with n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from anydepth.stats.intervals import around, ratio, share_interval, wilson
from anydepth.stats.jackknife import Split

PARTS = 1000  # into which the samples are dealt where there are more: t of 999 degrees of freedom is all but normal
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Values with their 95 % intervals, all of one shape; NaN where undefined.

    Attributes:
        value: the mean, or share.
        low: lower end, over another draw of samples; NaN from fewer than two samples.
        high: upper end.
    """

    value: Float64[np.ndarray, "*s"]
    low: Float64[np.ndarray, "*s"]
    high: Float64[np.ndarray, "*s"]

    @classmethod
    def unknown(cls, *shape: int) -> Estimate:
        """Nothing but NaN."""
        blank = np.full(shape, np.nan)
        return cls(blank, blank, blank)

    @classmethod
    def stack(cls, estimates: Sequence[Estimate]) -> Estimate:
        """Estimates of one shape, along a new first axis."""
        return cls(*(np.stack([getattr(item, end) for item in estimates]) for end in ("value", "low", "high")))

    def __getitem__(self, place: int | slice) -> Estimate:
        return Estimate(*(np.asarray(one[place]) for one in (self.value, self.low, self.high)))


class Means:
    """Means of named columns of rows, over the rows in which a column is not NaN.

    Rows are added up by the sample they belong to; where there are more than `PARTS` samples, by the part to which a
    hash deals them. The mean is a ratio of two sums over those parts (`anydepth.stats.intervals.ratio`): rows of one
    sample are not taken for independent evidence.

    Args:
        count: how many rows there will be.
        groups: (n,) the sample each belongs to; None where each is one of its own.
        seed: of the dealing.

    Example:
        >>> import torch
        >>> means = Means(3)
        >>> means.add({"x": torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)})
        >>> found = means.mean("x")
        >>> found.value.item(), found.low.round(2).item(), found.high.round(2).item()
        (2.0, -0.48, 4.48)
    """

    def __init__(self, count: int, groups: Int64[np.ndarray, " n"] | None = None, seed: int = 0) -> None:
        self._groups = groups
        self._split = Split.of(count, groups, PARTS, rows=max(count, 1), seed=seed)
        self._sums: dict[str, Float64[np.ndarray, "p c"]] = {}
        self._sizes: dict[str, Float64[np.ndarray, "p c"]] = {}
        self._seen = 0

    def add(self, rows: Mapping[str, Float64[Tensor, "b _"]]) -> None:
        """The next rows, in the order of the states."""
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
        """Of the columns."""
        return tuple(self._sums)

    def count(self, name: str) -> Int64[np.ndarray, " c"]:
        """In how many rows each entry is defined."""
        return np.asarray(self._sizes[name].sum(0), np.int64)

    def mean(self, name: str) -> Estimate:
        """The means of one column, with Student's t over samples."""
        value, error, freedom = ratio(self._sums[name], self._sizes[name])
        return Estimate(value, *around(value, error, freedom, CONFIDENCE))

    def share(self, name: str) -> Estimate:
        """The same of a column of zeros and ones, with Wilson's interval: inside 0..1, with a width at both ends."""
        return _share(self._sums[name], self._sizes[name], alone=self._groups is None)

    def pooled(self, name: str, columns: slice) -> Estimate:
        """One share over several columns of zeros and ones; those of one row are not independent."""
        sums, sizes = (one[:, columns].sum(1, keepdims=True) for one in (self._sums[name], self._sizes[name]))
        return _share(sums, sizes, alone=False)[0]


def _share(sums: Float64[np.ndarray, "p c"], sizes: Float64[np.ndarray, "p c"], *, alone: bool) -> Estimate:
    """A share of rows, with Wilson's interval; `alone` says that they are all independent."""
    total, trials = sums.sum(0), sizes.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = total / trials
    if alone:
        return Estimate(value, *wilson(total, trials, CONFIDENCE))
    return Estimate(value, *share_interval(sums, sizes, CONFIDENCE))
