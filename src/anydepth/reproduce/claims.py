"""Claims of the paper, each a number over seeds whose interval is compared with a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from anydepth.stats.intervals import around_correlation, t_interval

ABSTRACT = {
    "cosine-cka": "A plain cosine shows what CKA shows.",
    "closeness": "Similarity rises as depths get closer.",
    "saturation": "Alignment makes more answers saturate early.",
    "minimal-depth": "Accuracy by depth is monotone and shows how many layers are enough.",
    "one-classifier": "One classifier for all depths is on a par with one for each, as a multi-exit model.",
    "last-layer": "Alignment does not cost the last layer.",
}
"""The claims of the abstract, by the names that claims of single experiments give in `about`."""

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Claim:
    """One number that decides whether something the paper shows holds here: it is to be above a bound, or below one.

    Attributes:
        where: the figure or table.
        paper: what the paper shows, in a sentence.
        measured: name of the number.
        values: the number, one for each seed.
        about: a key of `ABSTRACT`, or "" for what only a figure shows.
        above: the bound, unless `below` is given.
        below: the bound of a number that is to be small.
        digits: decimals that are shown.
        certain: nothing is drawn at random, so that the number itself decides: one value is all there is.
        correlation: the number is a correlation, in -1..1, and so is its interval.
    """

    where: str
    paper: str
    measured: str
    values: Sequence[float] | Float64[np.ndarray, " s"]
    about: str = ""
    above: float = 0.0
    below: float | None = None
    digits: int = 3
    certain: bool = False
    correlation: bool = False

    @property
    def bound(self) -> float:
        """The number that the mean over seeds is held against."""
        return self.above if self.below is None else self.below

    @property
    def sense(self) -> Literal["above", "below"]:
        """The side of the bound on which the claim holds."""
        return "above" if self.below is None else "below"

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of Student's t over seeds, of a correlation on Fisher's scale; NaN of a single one."""
        values = np.array(self.values, dtype=float)[:, None]
        if self.correlation and len(values) > 1:
            error = values.std(0, ddof=1) / np.sqrt(len(values))
            low, high = around_correlation(values.mean(0), error, len(values) - 1)[:, 0]
        else:
            low, high = t_interval(values)[:, 0]
        return float(low), float(high)

    @property
    def verdict(self) -> Verdict:
        """On which side of the bound the whole interval is, or the number itself where it is certain.

        Example:
            >>> Claim(where="Fig. 1", paper="it rises", measured="by how much", values=[0.2, 0.3, 0.25]).verdict
            'holds'
            >>> Claim(where="Fig. 1", paper="it rises", measured="by how much", values=[-0.2, 0.3, 0.25]).verdict
            'undecided'
        """
        low, high = (self.mean, self.mean) if self.certain else self.interval
        above, below = low > self.bound, high < self.bound
        if above == below:  # the bound lies within, or nothing is known: NaN is on no side
            return "undecided"
        return "holds" if above == (self.sense == "above") else "does not hold"

    def describe(self) -> str:
        """The number with its interval, as text.

        Example:
            >>> Claim(where="Fig. 1", paper="it rises", measured="by how much", values=[0.2, 0.3, 0.25]).describe()
            '0.250 (0.126 to 0.374)'
        """
        if np.isnan(self.mean):
            return "undefined"
        low, high = self.interval
        numbers = (self.mean, low, high)
        mean, first, last = (f"{round(number, self.digits) + 0.0:.{self.digits}f}" for number in numbers)
        return mean if self.certain or np.isnan(low) else f"{mean} ({first} to {last})"
