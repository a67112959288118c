"""The weight of each depth in a loss, and the depths that a step trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from anydepth.errors import ObjectiveError, choose

Weights: TypeAlias = str | Sequence[int | float] | Callable[[int, int], int | float]
"""A name of `WEIGHTS`, one number for each exit in the exits' order, or a function of (depth, L)."""
Exits: TypeAlias = str | Sequence[int]
"""A name of `EXITS`, or the depths to train."""
EXITS = ("all", "sampled")
SCHEDULES = ("every", "alternating", "mixture")


def linear(depths: Sequence[int], depth: int) -> list[float]:
    """The paper's `2 l / (L (L + 1))`: proportional to depth, summing to 1 over the given depths.

    Example:
        >>> linear([1, 2, 3], 3)
        [0.16666666666666666, 0.3333333333333333, 0.5]
    """
    return [each / sum(depths) for each in depths]


def uniform(depths: Sequence[int], depth: int) -> list[float]:
    """The same for every depth, summing to 1: more for shallow exits than `linear`, less for the last."""
    return [1 / len(depths)] * len(depths)


def final(depths: Sequence[int], depth: int) -> list[float]:
    """All on depth L: ordinary training."""
    return [float(each == depth) for each in depths]


def additive(depths: Sequence[int], depth: int) -> list[float]:
    """Weight 1 for depth L, plus the linear weights of the shallower depths; sums to more than 1."""
    return [1.0 if each == depth else weight for each, weight in zip(depths, linear(depths, depth), strict=True)]


WEIGHTS = {"linear": linear, "uniform": uniform, "final": final, "additive": additive}


def weights_of(weights: Weights, depths: Sequence[int], depth: int, first: int = 1) -> dict[int, float]:
    """The weight of each of the exits `depths`, in their order, for a model of L = `depth` blocks.

    `first` is the first depth that can be trained, of a model in several stages.

    Raises:
        ObjectiveError: an unknown name; a depth that does not exist, or twice; weights that are negative, not finite,
            all zero, or not one for each exit.

    Example:
        >>> weights_of("linear", [3, 1], depth=3)
        {3: 0.75, 1: 0.25}
    """
    if not depths or not all(first <= each <= depth for each in depths) or len(set(depths)) < len(depths):
        raise ObjectiveError(f"exits are {list(depths)}, expected depths among {first}..{depth}, each once")
    if isinstance(weights, str):
        values = WEIGHTS[choose(weights, WEIGHTS, "weights", ObjectiveError, otherwise="numbers")](depths, depth)
    elif callable(weights):
        values = [float(weights(each, depth)) for each in depths]
    else:
        values = [float(weight) for weight in weights]
    if len(values) != len(depths):
        raise ObjectiveError(f"there are {len(values)} weights for {len(depths)} exits, expected one for each")
    for each, weight in zip(depths, values, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ObjectiveError(f"the weight of depth {each} is {weight}, expected a number from 0 on")
    if not any(values):
        raise ObjectiveError(f"every exit of {list(depths)} has the weight 0: nothing would be trained")
    return dict(zip(depths, values, strict=True))


def sampled(weights: dict[int, float], depth: int, seed: int, step: int) -> dict[int, float]:
    """Depth L, and one shallower depth drawn in proportion to its weight, which gets the weight of all shallower ones.

    The mean over draws is `weights`, so the gradient is unbiased. The draw depends on (seed, step) and nothing else.

    Example:
        >>> sampled({1: 0.25, 2: 0.25, 3: 0.5}, depth=3, seed=0, step=0)
        {2: 0.5, 3: 0.5}
    """
    shares = sampling(weights, depth)
    if not shares:
        return weights
    chosen = int(np.random.default_rng((seed, step)).choice(list(shares), p=list(shares.values())))
    last = {depth: weights[depth]} if depth in weights else {}
    return {chosen: weights[chosen] / shares[chosen], **last}


def sampling(weights: dict[int, float], depth: int) -> dict[int, float]:
    """The probability with which `sampled` draws each shallower depth.

    Example:
        >>> sampling({1: 0.1, 2: 0.3, 3: 0.6}, depth=3)
        {1: 0.25, 2: 0.75}
    """
    shallow = {each: weight for each, weight in weights.items() if each < depth and weight}
    total = math.fsum(shallow.values())
    return {each: weight / total for each, weight in shallow.items()}
