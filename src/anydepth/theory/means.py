"""Means of short rows that come in chunks, each with an interval over draws of samples; memory does not grow with n."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from anydepth.measures.intervals import around, wilson
from anydepth.measures.jackknife import Split
from anydepth.measures.states import States

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

    def __getitem__(self, place: int | slice) -> Estimate:
        return Estimate(*(np.asarray(one[place]) for one in (self.value, self.low, self.high)))


class Means:
    """Means of named columns of rows, over the rows in which a column is not NaN.

    Rows are added up by the sample they belong to; where there are more than `PARTS` samples, by the part to which a
    hash deals them. The mean is a ratio of two sums over those parts, with the usual linearised variance: rows of one
    sample are not taken for independent evidence.

    Args:
        states: whose rows are averaged: how many there are, and of which samples.
        seed: of the dealing.

    Example:
        >>> import torch
        >>> from anydepth.measures.states import ArrayStates
        >>> means = Means(ArrayStates({"h": np.zeros((3, 1))}))
        >>> means.add({"x": torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)})
        >>> found = means.mean("x")
        >>> found.value.item(), found.low.round(2).item(), found.high.round(2).item()
        (2.0, -0.48, 4.48)
    """

    def __init__(self, states: States, seed: int = 0) -> None:
        self._groups = states.groups
        self._split = Split.of(states.count, states.groups, PARTS, rows=max(states.count, 1), seed=seed)
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
        value, error, parts = _moments(self._sums[name], self._sizes[name])
        low, high = np.full((2, *value.shape), np.nan)
        for several in np.unique(parts[parts > 1]):
            here = parts == several
            low[here], high[here] = around(value[here], error[here], int(several) - 1, CONFIDENCE)
        return Estimate(value, low, high)

    def share(self, name: str) -> Estimate:
        """The same of a column of zeros and ones, with Wilson's interval: inside 0..1, with a width at both ends."""
        return _share(self._sums[name], self._sizes[name], alone=self._groups is None)

    def pooled(self, name: str, columns: slice) -> Estimate:
        """One share over several columns of zeros and ones; those of one row are not independent."""
        sums, sizes = (one[:, columns].sum(1, keepdims=True) for one in (self._sums[name], self._sizes[name]))
        return _share(sums, sizes, alone=False)[0]


def _moments(
    sums: Float64[np.ndarray, "p c"], sizes: Float64[np.ndarray, "p c"]
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"], Int64[np.ndarray, " c"]]:
    """Mean and standard error of each entry, and from how many parts."""
    total, parts = sizes.sum(0), (sizes > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = sums.sum(0) / total
        squares = ((sums - sizes * value) ** 2).sum(0)
        error = np.sqrt(squares * parts / (parts - 1)) / total
    return value, error, parts


def _share(sums: Float64[np.ndarray, "p c"], sizes: Float64[np.ndarray, "p c"], *, alone: bool) -> Estimate:
    """A share with Wilson's interval.

    Entries that belong together are counted as the number of independent ones that has their variance (Kish's
    effective size), made smaller where few samples tell that variance (Korn and Graubard 1998).

    Args:
        sums: of each part.
        sizes: of each part.
        alone: whether all that was added up is independent.
    """
    from scipy.special import stdtrit

    value, error, parts = _moments(sums, sizes)
    trials, upper = sizes.sum(0), (1 + CONFIDENCE) / 2
    if not alone:
        with np.errstate(invalid="ignore", divide="ignore"):
            worth = np.where(error > 0, value * (1 - value) / error**2, parts)
            worth = worth * (stdtrit(np.inf, upper) / stdtrit(parts - 1.0, upper)) ** 2
        trials = np.where(parts > 1, np.minimum(trials, worth), np.nan)
    return Estimate(value, *wilson(value * trials, trials, CONFIDENCE))
