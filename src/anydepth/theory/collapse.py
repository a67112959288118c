"""Neural collapse by depth: NC1 (spread within classes), NC2 (class means form a simplex), NC3 (weights match means).

Definitions are those of Papyan, Han and Donoho (2020), with equal weight for every class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from anydepth.errors import MeasureError
from anydepth.measures.engine.states import States
from anydepth.storage.sizes import in_words
from anydepth.theory.paths import by_depth, rows_at_once

_ROUNDING = 1e-6  # singular values of class means below this share of the largest are rounding of float32 states
_MOST_BYTES = 2**29


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """How far classes have collapsed at each of K depths; everything is 0 in full collapse, NaN where undefined.

    Attributes:
        nc1: tr(Σ_W Σ_B⁺) / C, the spread within classes over that between their means; at least 0.
        nc2_norm: std / mean of the lengths |µ_c - µ|: how much the class means differ in length; at least 0.
        nc2_angle: mean over pairs of classes of |cos(µ_c - µ, µ_d - µ) + 1 / (C - 1)|: how far they are from a simplex.
        nc3: |W / |W| - M / |M||², W the classifier's weights about their mean, M the class means about theirs; 0..4.
            NaN where no weights are given.
        classes: C, number of classes that occur.
        notes: what is undefined, and why.
    """

    nc1: Float64[np.ndarray, " k"]
    nc2_norm: Float64[np.ndarray, " k"]
    nc2_angle: Float64[np.ndarray, " k"]
    nc3: Float64[np.ndarray, " k"]
    classes: int
    notes: tuple[str, ...] = ()


def collapse(
    states: States, labels: Int64[np.ndarray, " n"], weight: Float[np.ndarray, "c d"] | None = None
) -> Collapse:
    """NC1, NC2 and NC3 at every depth, streamed in two passes over the rows.

    The means and Σ are taken from these rows alone, without a correction for their number: with few rows of a class for
    the width, NC1 comes out too low. Compare it with that of shuffled labels.

    Depths have one width. Classes that do not occur are left out. `weight` is that of a linear classifier on these
    states, one row for each class.

    Raises:
        MeasureError: labels do not fit the rows or weights, or the class means do not fit into memory.

    Example:
        >>> from anydepth.measures.engine.states import ArrayStates
        >>> simplex = torch.eye(3) - 1 / 3
        >>> labels = np.arange(30) % 3
        >>> result = collapse(ArrayStates({"h": simplex[labels] + 7}), labels, simplex.numpy())
        >>> result.nc1, result.nc2_norm, result.nc2_angle, result.nc3
        (array([0.]), array([0.]), array([0.]), array([0.]))
    """
    _check(states, labels, weight)
    present, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    depths, width, classes = len(states.widths), states.widths[0], len(present)
    needed = 8 * classes * depths * width
    if needed > _MOST_BYTES:
        raise MeasureError(f"the means of {classes:,} classes take {in_words(needed)}: expected fewer classes or rows")
    if classes < 2:
        blank = np.full(depths, np.nan)
        notes: tuple[str, ...] = ("only one class occurs: collapse is undefined",)
        return Collapse(nc1=blank, nc2_norm=blank, nc2_angle=blank, nc3=blank, classes=classes, notes=notes)
    means = _class_means(states, torch.from_numpy(index), torch.from_numpy(counts))
    about = means - means.mean(1, keepdim=True)
    spread = _within(states, torch.from_numpy(index), torch.from_numpy(counts), means, about)
    norms = torch.linalg.vector_norm(about, dim=2)
    flat = (norms.square().sum(1) <= _ROUNDING**2 * means.square().sum((1, 2))).numpy()
    duality = torch.full((depths,), torch.nan)
    if weight is not None:
        duality = _duality(about, torch.from_numpy(np.asarray(weight, np.float64)[present]))
    unequal = norms.std(1, correction=0) / norms.mean(1)
    nc1, nc2_norm, nc2_angle, nc3 = (
        np.where(flat, np.nan, values.double().numpy()) for values in (spread, unequal, _angles(about, norms), duality)
    )
    notes = (*_depth_notes(flat, ~flat & np.isnan(nc2_angle)), *_class_notes(counts, weight))
    return Collapse(nc1=nc1, nc2_norm=nc2_norm, nc2_angle=nc2_angle, nc3=nc3, classes=classes, notes=notes)


def _check(states: States, labels: Int64[np.ndarray, " n"], weight: Float[np.ndarray, "c d"] | None) -> None:
    if len(set(states.widths)) > 1:
        raise MeasureError(f"depths of the widths {states.widths} came: expected all of one width")
    if len(labels) != states.count or not states.count:
        raise MeasureError(
            f"{len(labels)} labels came for {states.count} rows: expected one for each, and at least one"
        )
    if weight is None:
        return
    if weight.shape[1] != states.widths[0]:
        raise MeasureError(f"weights of width {weight.shape[1]} came for states of width {states.widths[0]}")
    if not 0 <= labels.min() <= labels.max() < len(weight):
        raise MeasureError(f"labels lie in {labels.min()}..{labels.max()}, and there are {len(weight)} weights")


def _class_means(states: States, index: Int64[Tensor, " n"], counts: Int64[Tensor, " c"]) -> Float64[Tensor, "k c d"]:
    depths, width = len(states.widths), states.widths[0]
    sums, start = torch.zeros(len(counts), depths, width, dtype=torch.float64), 0
    for rows in states.chunks(rows_at_once(states)):
        sums.index_add_(0, index[start : start + len(rows)], by_depth(rows, depths))
        start += len(rows)
    return (sums / counts[:, None, None]).transpose(0, 1)


def _within(
    states: States,
    index: Int64[Tensor, " n"],
    counts: Int64[Tensor, " c"],
    means: Float64[Tensor, "k c d"],
    about: Float64[Tensor, "k c d"],
) -> Float64[Tensor, " k"]:
    """NC1. Σ_B has rank C - 1 at most, so that of Σ_W only what lies in its range is needed, row by row.

    Σ_W is the mean of the classes' covariances, Σ_B that of the class means.
    """
    _, scale, axes = torch.linalg.svd(about, full_matrices=False)
    real = scale > _ROUNDING * scale[:, :1]
    # Σ_B⁺ = V diag(C / s²) Vᵀ, of which C cancels with the one NC1 is divided by
    weighted = torch.where(real, 1 / scale, 0.0)[:, :, None] * axes
    total, start = torch.zeros(len(means), dtype=torch.float64), 0
    for rows in states.chunks(rows_at_once(states)):
        mine = index[start : start + len(rows)]
        beside = by_depth(rows, len(means)).transpose(0, 1) - means[:, mine]
        total += ((beside @ weighted.mT).square().sum(2) / counts[mine]).sum(1)
        start += len(rows)
    return total / len(counts)


def _angles(about: Float64[Tensor, "k c d"], norms: Float64[Tensor, "k c"]) -> Float64[Tensor, " k"]:
    """NC2: mean distance of the pairs' cosines from those of a simplex; NaN where a class lies at the mean of all."""
    unit = about / torch.where(norms > _ROUNDING * norms.amax(1, keepdim=True), norms, torch.nan)[:, :, None]
    classes = about.shape[1]
    below = torch.tril_indices(classes, classes, -1)
    return torch.mean(((unit @ unit.mT)[:, below[0], below[1]] + 1 / (classes - 1)).abs(), dim=1)


def _duality(about: Float64[Tensor, "k c d"], weight: Float64[Tensor, "c d"]) -> Float64[Tensor, " k"]:
    """NC3. Softmax does not depend on what all weights share, so their mean is subtracted."""
    own = weight - weight.mean(0)
    own = own / torch.linalg.matrix_norm(own)
    apart = about / torch.linalg.matrix_norm(about)[:, None, None] - own
    return torch.sum(apart.square(), dim=(1, 2))


def _depth_notes(flat: Bool[np.ndarray, " k"], centre: Bool[np.ndarray, " k"]) -> Iterator[str]:
    for depth in flat.nonzero()[0]:
        yield f"depth {depth}: the class means are the same, so that no collapse is defined"
    for depth in centre.nonzero()[0]:
        yield f"depth {depth}: a class lies at the mean of all classes, so that it has no angle with others (NC2)"


def _class_notes(counts: Int64[np.ndarray, " c"], weight: Float[np.ndarray, "w d"] | None) -> Iterator[str]:
    if single := int((counts == 1).sum()):
        yield f"{single} of {len(counts)} classes have one row, which has no spread: NC1 is too low"
    if weight is not None and len(counts) < len(weight):
        yield f"{len(weight) - len(counts)} of {len(weight)} classes do not occur: collapse is of the others"
