"""Paired differences between two objectives, and whether one is no worse than the other.

Two objectives are trained from the same seeds and judged on the same held-out units (images, sentences, whole
documents), so everything is a difference on the same unit and the same seed: `values` of shape (S, N), of which the
mean, or for documents the sum over seeds and units over the sum of their tokens, is what is compared.

Two intervals, for two questions. Over units: had other units been held out, and these very models judged on them? All
seeds of a unit are one draw, since what is hard for one model is hard for the next. Over units and seeds: had the
training been repeated, too? Both are Student's t with the usual linearised variance of a ratio; the second adds the
variance of the seeds' means, which counts what is left over between the two twice and so errs on the wide side, and
takes Satterthwaite's degrees of freedom. With three seeds it is wide: it says how little three seeds can say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["non-inferior", "inferior", "undecided"]


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % intervals, (low, high) each.

    Attributes:
        mean: over seeds and units.
        over_units: these models, other units.
        over_seeds: other trainings, other units; NaN with one seed.
        seeds: the mean of each seed.
    """

    mean: float
    over_units: tuple[float, float]
    over_seeds: tuple[float, float]
    seeds: tuple[float, ...]


def difference(values: NDArray[np.float64], counts: NDArray[np.float64], confidence: float = 0.95) -> Difference:
    """The mean of paired differences per answer.

    Args:
        values: (S, N) summed differences of each seed on each unit: candidate minus reference.
        counts: (N,) answers of each unit: 1 for an image, the tokens of a document.
        confidence: of the intervals.

    >>> found = difference(np.array([[1.0, 0.0, -1.0, 2.0], [1.0, 0.0, 1.0, 0.0]]), np.ones(4))
    >>> found.mean, found.seeds
    (0.5, (0.5, 0.5))
    """
    seeds, units = values.shape
    mean = values.sum() / (seeds * counts.sum())
    # what a unit, or a seed, adds to the ratio, to first order
    rows = (values - mean * counts) / counts.mean()
    of_units = rows.mean(axis=0).var(ddof=1) / units
    of_seeds = rows.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else math.nan
    both = of_units + of_seeds
    freedom = both**2 / (of_units**2 / (units - 1) + of_seeds**2 / (seeds - 1)) if both > 0 else math.nan
    return Difference(
        float(mean),
        _around(mean, of_units, units - 1, confidence),
        _around(mean, both, freedom, confidence),
        tuple((values.sum(axis=1) / counts.sum()).tolist()),
    )


def _around(mean: float, variance: float, freedom: float, confidence: float) -> tuple[float, float]:
    from scipy.special import stdtrit

    if math.isnan(variance):
        return math.nan, math.nan
    margin = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(variance) if variance > 0 else 0.0
    return float(mean - margin), float(mean + margin)


def verdict(interval: tuple[float, float], margin: float) -> Verdict:
    """Whether a gain (positive is better) whose interval this is stays above `-margin`.

    >>> verdict((-0.004, 0.002), 0.005), verdict((-0.02, -0.008), 0.005), verdict((-0.01, 0.01), 0.005)
    ('non-inferior', 'inferior', 'undecided')
    """
    low, high = interval
    if low > -margin:
        return "non-inferior"
    return "inferior" if high < -margin else "undecided"


def at_every_depth(verdicts: list[Verdict]) -> Verdict:
    """Of all depths together: non-inferior where it is at each (no correction needed), inferior where it is at one.

    >>> at_every_depth(["non-inferior", "undecided"]), at_every_depth(["inferior", "non-inferior"])
    ('undecided', 'inferior')
    """
    if "inferior" in verdicts:
        return "inferior"
    return "undecided" if "undecided" in verdicts else "non-inferior"


def mean_over_seeds(values: NDArray[np.float64], confidence: float = 0.95) -> NDArray[np.float64]:
    """Mean, low and high (3, ...) over the first axis by Student's t; low and high are NaN for one seed."""
    from scipy.special import stdtrit

    seeds = len(values)
    mean = values.mean(axis=0)
    if seeds < 2:
        return np.stack([mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)])
    margin = float(stdtrit(seeds - 1, (1 + confidence) / 2)) * values.std(axis=0, ddof=1) / math.sqrt(seeds)
    return np.stack([mean, mean - margin, mean + margin])
