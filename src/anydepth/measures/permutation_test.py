"""Whether two models' states have anything to do with each other: CKA against permutations of one model's samples."""

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
from anydepth.measures.engine.states import JoinedStates, States, depth_slices, locate, rows_per_chunk
from anydepth.progress import Progress

CHANCE_ROWS = 500  # samples that are permuted: all pairs of them are looked at each time
_ROUNDING = 1e-9  # in units of spread: equal outcomes are equal
LEAST = 19  # permutations, of which one in twenty is 5 %


@dataclass(frozen=True)
class Chance:
    """What debiased CKA between two models would be if their samples had nothing to do with each other.

    Attributes:
        p: (K_a, K_b) for each pair of depths the share of permutations in which the largest CKA of all pairs, each in
            units of its own spread, is at least this pair's: p-values for all pairs together. NaN at blank depths.
        high: (K_a, K_b) the CKA that 95 % of permutations stay below, of each pair by itself.
        samples: how many were looked at.
        permutations: how many there were.
    """

    p: Float64[np.ndarray, "a b"]
    high: Float64[np.ndarray, "a b"]
    samples: int
    permutations: int

    def in_words(self, level: float = 0.05) -> str:
        """In how many pairs of depths CKA is more than chance, at a level for all pairs together."""
        sure, known = int((self.p <= level).sum()), int(np.isfinite(self.p).sum())
        return (
            f"more than chance in {sure} of {known} pairs of depths, at {level:.0%} for all together "
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
    """Hold debiased CKA of all pairs of depths against what it is when the second model's samples are permuted.

    If a pair of depths were independent over the samples, every order of them would be as probable as the one there
    is: the p-value is exact whatever the number of samples and the widths. It holds for all pairs together by the
    largest of them (Westfall & Young 1993). Over at most 500 samples drawn at random, fewer where these do not fit in
    `memory`; of a sample with several rows one is drawn, since its rows are not exchangeable with those of others.

    Args:
        first: states of n rows at K_a depths.
        second: states of the same rows of another model, at K_b depths.
        permutations: how many; the least p-value is one in so many and one.
        seed: of the draw of samples and of the permutations.
        memory: bytes that may be used; by default half of what is free.
        progress: called with permutations done, permutations in all, and what is being done.

    Raises:
        MeasureError: so few permutations that nothing could be shown at 5 %.
        DataError: the two models' states are not of the same rows.

    Example:
        >>> from anydepth.measures.engine.states import ArrayStates
        >>> x, y = np.random.default_rng(0).normal(size=(2, 80, 4))
        >>> found = chance(ArrayStates({"x": x}), ArrayStates({"2x": 2 * x, "y": y}), permutations=99)
        >>> bool(found.p[0, 0] == 0.01), bool(found.p[0, 1] > 0.05)
        (True, True)
    """
    if permutations < LEAST:
        raise MeasureError(f"{permutations} permutations can show nothing at 5 %: expected at least {LEAST}")
    states, depths = JoinedStates(first, second), len(first.widths)
    allowed = available_memory() // 2 if memory is None else memory
    fitting = int((allowed / (8 * (len(states.widths) + len(second.widths)))) ** 0.5)
    rng = np.random.default_rng(seed)
    rows = _rows(states, _drawn(states, min(CHANCE_ROWS, fitting), rng))
    values = np.empty((permutations + 1, depths, len(second.widths)))
    for done, value in enumerate(_values(_aligned(rows, states.widths, states.epsilons), depths, permutations, rng)):
        values[done] = value
        if progress is not None:
            progress(done, permutations, "permutations")
    return Chance(for_all_together(values), np.quantile(values[1:], 0.95, axis=0), len(rows), permutations)


def aligned_gram(rows: Float64[Tensor, "m d"]) -> Float32[Tensor, "m m"]:
    """The Gram matrix of rows, such that the sum of products of two of them is debiased CKA.

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
    """P-values of the first of r equally probable outcomes, for all its entries together.

    Each entry is taken in units of its own spread over the outcomes; its p-value is the share of outcomes whose largest
    entry is at least as large.

    Example:
        >>> for_all_together(np.array([[[2.0, 0.1]], [[1.0, 0.0]], [[0.0, 0.2]], [[-1.0, 0.1]]])).tolist()
        [[0.5, 1.0]]
    """
    with np.errstate(invalid="ignore"):
        units = (values - values.mean(0)) / values.std(0)
    largest = np.where(np.isnan(units), -np.inf, units).reshape(len(units), -1).max(1)
    found = (largest[:, None, None] >= units[0] - _ROUNDING).mean(0)
    return np.where(np.isnan(units[0]), np.nan, found)


def _aligned(
    rows: Float[Tensor, "m w"], widths: tuple[int, ...], coarse: tuple[float, ...]
) -> Float32[Tensor, "m m k"]:
    """`aligned_gram` of each depth, NaN at blank ones; the depths of a pair of rows side by side."""
    blank = locate(iter([rows]), widths, coarse).blank
    found = torch.full((len(rows), len(rows), len(widths)), torch.nan, dtype=torch.float32, device=rows.device)
    for depth, part in enumerate(depth_slices(widths)):
        if depth not in blank:
            found[:, :, depth] = aligned_gram(rows[:, part].double())
    return found


def _values(
    aligned: Float32[Tensor, "m m k"], depths: int, permutations: int, rng: np.random.Generator
) -> Iterator[Float64[np.ndarray, "a b"]]:
    """Debiased CKA of the first `depths` with the others: in the order that is there, then in random ones."""
    m = len(aligned)
    left, right = torch.triu_indices(m, m, 1)
    first, second = aligned[left, right, :depths].T.contiguous(), aligned[:, :, depths:].reshape(m * m, -1)
    order = torch.arange(m)
    with full_precision(aligned.device):
        for _ in range(permutations + 1):
            yield (2 * first @ second[order[left] * m + order[right]]).double().numpy()
            order = torch.from_numpy(rng.permutation(m))


def _drawn(states: States, most: int, rng: np.random.Generator) -> Int64[np.ndarray, " m"]:
    """At most so many rows, each of another sample."""
    order = rng.permutation(states.count)
    if states.groups is not None:
        order = order[np.unique(states.groups[order], return_index=True)[1]]
    if len(order) > most:
        order = rng.choice(order, most, replace=False)
    return np.sort(order)


def _rows(states: States, drawn: Int64[np.ndarray, " m"]) -> Float[Tensor, "m w"]:
    start, found = 0, []
    for rows in states.chunks(rows_per_chunk(states.widths, megabytes=8)):
        here = drawn[(drawn >= start) & (drawn < start + len(rows))]
        found.append(rows[torch.from_numpy(here - start)])
        start += len(rows)
    return torch.cat(found)
