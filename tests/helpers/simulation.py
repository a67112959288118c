"""Draws of two depths that share directions, and how often an interval holds the truth."""

from collections.abc import Callable

import numpy as np
from naive_measures import Ragged

from anydepth.measures import similarities


def mixed(rng: np.random.Generator, n: int, width: int, noise: float) -> list[np.ndarray]:
    """Two depths that share three directions, and the mixing that is the same in every draw."""
    maps = np.random.default_rng(7).normal(size=(2, 3, width))
    shared = rng.normal(size=(n, 3))
    return [shared @ mixing + noise * rng.normal(size=(n, width)) for mixing in maps]


def covers(
    measure: str,
    values: Callable[[list[np.ndarray]], np.ndarray],
    n: int,
    width: int,
    noise: float,
    runs: int,
    draws: int,
) -> float:
    """Share of a measure's intervals that hold its value on many rows.

    Args:
        measure: its name.
        values: the measure without intervals.
        n: rows that an interval is made of.
        width: of both depths.
        noise: beside what they share.
        runs: intervals.
        draws: sets of 1,000 rows that the value is the mean of.
    """

    def interval(rng: np.random.Generator) -> np.ndarray:
        found = similarities(Ragged(mixed(rng, n, width, noise)), [measure])[measure]
        return np.array([found.low[0, 1], found.high[0, 1]])

    many = [mixed(np.random.default_rng(10_000 + draw), 1000, width, noise) for draw in range(draws)]
    return coverage(interval, float(np.mean([values(one)[0, 1] for one in many])), runs=runs)


def coverage(interval: Callable[[np.random.Generator], np.ndarray], truth: float, runs: int) -> float:
    """Share of simulated intervals that hold the truth."""
    bounds = np.array([interval(np.random.default_rng(run)) for run in range(runs)])
    return float(((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean())
