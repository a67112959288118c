"""Permutation test of CKA between two models, against random orders of one model's samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from anydepth.errors import MeasureError
from anydepth.measures.engine.hsic import NOTHING
from anydepth.measures.engine.plan import available_memory
from anydepth.measures.engine.precision import full_precision
from anydepth.measures.engine.states import JoinedStates, States, chosen_rows, depth_slices, locate
from anydepth.progress import Progress

CHANCE_ROWS = 500  # samples that are permuted: all pairs of them enter each permutation
_ROUNDING = 1e-9  # in units of spread: equal outcomes are equal
LEAST = 19  # permutations, of which one in twenty is 5 %


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Result of the permutation test: debiased CKA between two models whose samples are unrelated.

    Attributes:
        p: (K_a, K_b) for each pair of depths the share of permutations in which the largest CKA of all pairs, each in
            units of its own spread, is at least this pair's: p-values for all pairs together. NaN at blank depths.
        high: (K_a, K_b) the CKA that 95 % of permutations stay below, of each pair by itself.
        samples: how many were permuted.
        permutations: how many were made.
    """

    p: Float64[np.ndarray, "a b"]
    high: Float64[np.ndarray, "a b"]
    samples: int
    permutations: int

    def in_words(self, level: float = 0.05) -> str:
        """In how many pairs of depths CKA is significant, at a level for all pairs together."""
        significant, known = int((self.p <= level).sum()), int(np.isfinite(self.p).sum())
        return (
            f"more than chance in {significant} of {known} pairs of depths, at {level:.0%} for all together "
            f"({self.permutations} permutations of {self.samples} samples)"
        )


def chance(
    first: States,
    second: States,
    *,
    permutations: int = 999,
    seed: int = 0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Chance:
    """Permutation test of debiased CKA of all pairs of depths: p-values and the CKA of unrelated samples.

    The second model's samples are permuted. If a pair of depths were independent over the samples, every order of them
    would be as probable as the given one: the p-value is exact for any number of samples and any widths, and holds for
    all pairs together by the largest of them (Westfall & Young 1993). Over at most 500 samples drawn at random, fewer
    where these do not fit in `memory`; of a sample with several rows one is drawn, since its rows are not exchangeable
    with those of others.

    Args:
        first: states of n rows at K_a depths.
        second: states of the same rows of another model, at K_b depths.
        permutations: number of permutations; the smallest p-value is 1 / (permutations + 1).
        seed: of the draw of samples and of the permutations.
        memory: bytes that may be used; by default half of what is free.
        progress: called with permutations done, permutations in all, and what is being done.

    Raises:
        MeasureError: too few permutations for a p-value of 5 %.
        DataError: the two models' states are not of the same rows.

    Example:
        >>> from anydepth.measures.engine.states import ArrayStates
        >>> x, y = np.random.default_rng(0).normal(size=(2, 80, 4))
        >>> result = chance(ArrayStates({"x": x}), ArrayStates({"2x": 2 * x, "y": y}), permutations=99)
        >>> bool(result.p[0, 0] == 0.01), bool(result.p[0, 1] > 0.05)
        (True, True)
    """
    if permutations < LEAST:
        raise MeasureError(f"{permutations} permutations can show nothing at 5 %: expected at least {LEAST}")
    states, depths = JoinedStates(first, second), len(first.widths)
    allowed = available_memory() // 2 if memory is None else memory
    fitting = int((allowed / (8 * (len(states.widths) + len(second.widths)))) ** 0.5)
    rng = np.random.default_rng(seed)
    rows = torch.cat(list(chosen_rows(states, _drawn(states, min(CHANCE_ROWS, fitting), rng))))
    values = np.empty((permutations + 1, depths, len(second.widths)))
    for done, value in enumerate(_values(_aligned(rows, states.widths, states.epsilons), depths, permutations, rng)):
        values[done] = value
        if progress is not None:
            progress(done, permutations, "permutations")
    high = np.quantile(values[1:], 0.95, axis=0)
    return Chance(p=for_all_together(values), high=high, samples=len(rows), permutations=permutations)


def aligned_gram(rows: Float64[Tensor, "m d"]) -> Float32[Tensor, "m m"]:
    """Gram matrix of rows, normalised such that the sum of products of two of them is debiased CKA.

    Without its diagonal, about the means of its rows and columns as HSIC1 takes them (U-centred, Székely & Rizzo 2014),
    and of norm 1. Permuting rows permutes its rows and columns, and nothing else. NaN for fewer than 4 rows, and where
    all are equally far from each other.

    Example:
        >>> x = torch.randn(50, 3).double()
        >>> float((aligned_gram(x) * aligned_gram(-2 * x + 1)).sum())
        1.0000
    """
    m = len(rows)
    if m < 4:
        return torch.full((m, m), torch.nan, dtype=torch.float32, device=rows.device)
    y = rows - rows.mean(0)
    gram = y @ y.T
    whole = gram.norm()
    gram.fill_diagonal_(0)
    sums = gram.sum(0)
    gram += sums.sum() / ((m - 1) * (m - 2)) - (sums[:, None] + sums[None, :]) / (m - 2)
    gram.fill_diagonal_(0)
    norm = gram.norm()
    return (gram / torch.where(norm**2 > NOTHING * whole**2, norm, torch.nan)).float()


def for_all_together(values: Float64[np.ndarray, "r a b"]) -> Float64[np.ndarray, "a b"]:
    """Max-type p-values of the first of r equally probable outcomes, for all its entries together.

    Each entry is taken in units of its own spread over the outcomes; its p-value is the share of outcomes whose largest
    entry is at least as large.

    Example:
        >>> for_all_together(np.array([[[2.0, 0.1]], [[1.0, 0.0]], [[0.0, 0.2]], [[-1.0, 0.1]]])).tolist()
        [[0.5, 1.0]]
    """
    with np.errstate(invalid="ignore"):
        units = (values - values.mean(0)) / values.std(0)
    largest = np.where(np.isnan(units), -np.inf, units).reshape(len(units), -1).max(1)
    p = (largest[:, None, None] >= units[0] - _ROUNDING).mean(0)
    return np.where(np.isnan(units[0]), np.nan, p)


def _aligned(
    rows: Float[Tensor, "m w"], widths: tuple[int, ...], coarse: tuple[float, ...]
) -> Float32[Tensor, "m m k"]:
    """`aligned_gram` of each depth, NaN at blank ones; the depths of a pair of rows side by side."""
    blank = locate(iter([rows]), widths, coarse).blank
    aligned = torch.full((len(rows), len(rows), len(widths)), torch.nan, dtype=torch.float32, device=rows.device)
    for depth, part in enumerate(depth_slices(widths)):
        if depth not in blank:
            aligned[:, :, depth] = aligned_gram(rows[:, part].double())
    return aligned


def _values(
    aligned: Float32[Tensor, "m m k"], depths: int, permutations: int, rng: np.random.Generator
) -> Iterator[Float64[np.ndarray, "a b"]]:
    """Debiased CKA of the first `depths` with the others, for the samples in their order, then in random orders."""
    m = len(aligned)
    left, right = torch.triu_indices(m, m, 1)
    first, second = aligned[left, right, :depths].T.contiguous(), aligned[:, :, depths:].reshape(m * m, -1)
    order = torch.arange(m)
    with full_precision(aligned.device):
        for _ in range(permutations + 1):
            yield (2 * first @ second[order[left] * m + order[right]]).double().numpy()
            order = torch.from_numpy(rng.permutation(m))


def _drawn(states: States, most: int, rng: np.random.Generator) -> Int64[np.ndarray, " m"]:
    """Indices of at most so many rows, each of another sample."""
    order = rng.permutation(states.count)
    if states.groups is not None:
        order = order[np.unique(states.groups[order], return_index=True)[1]]
    if len(order) > most:
        order = rng.choice(order, most, replace=False)
    return np.sort(order)
