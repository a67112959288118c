"""Canonical correlation analysis of two depths: mean CCA, SVCCA and projection-weighted CCA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float64
from torch import Tensor

from anydepth.measures.engine.context import MeasureContext
from anydepth.measures.engine.covariance import Axes, TileCovariances, whitened
from anydepth.measures.engine.wide import rotated
from anydepth.measures.measure import Similarity

KEPT_VARIANCE = 0.99  # of SVCCA


def correlations(cross: Float64[Tensor, "d e"], first: Axes, second: Axes) -> Float64[Tensor, " c"]:
    """The canonical correlations of two depths in 0..1, the largest first; as many as the smaller rank.

    `cross` is `Σ_i y_i z_iᵀ` over their centred rows.
    """
    values: Tensor = torch.linalg.svdvals(whitened(cross, first, second))
    return values.clamp_(max=1)


def cca(run: MeasureContext) -> Similarity:
    """Mean CCA: `(1/c) Σ_i ρ_i` over the canonical correlations ρ of two depths, c the smaller of their ranks.

    With orthonormal columns Z_k that span the centred rows' features of depth k (as many as its rank), ρ are the
    singular values of `Z_kᵀ Z_l`. In 0..1; a similarity. It is not changed by any invertible linear map or shift of
    either depth. It has no interval: sample correlations are too high, and no interval shows bias.

    Undefined for a depth whose rank is n - 1, as it always is for n <= D: its features span every arrangement of n
    rows, so every correlation is 1 whatever the other depth holds. Hotelling 1936; as a measure of networks, the
    mean of Raghu et al. 2017.
    """
    return _over_pairs(run, rotated(run, axes=True) or run.covariances, "CCA", mean_correlation)


def svcca(run: MeasureContext) -> Similarity:
    """SVCCA: mean CCA of the fewest leading principal axes that hold 99 % of each depth's variance.

    In 0..1; a similarity. Not changed by an orthogonal map, a factor, or a shift of either depth; changed by other
    linear maps, which move variance. Undefined where the axes kept are n - 1 or more. Raghu et al. 2017, with the
    share taken of the variance, the squares of the singular values, as the paper says; some code sums the singular
    values themselves, and keeps many more.
    """
    tiles = rotated(run, axes=True) or run.covariances
    return _over_pairs(run, tiles, "SVCCA", mean_correlation, share=KEPT_VARIANCE)


def pwcca(run: MeasureContext) -> Similarity:
    """Projection-weighted CCA: `Σ_i α_i ρ_i / Σ_i α_i`, in which value (k, l) takes the weights from depth k, the row.

    `α_i = Σ_j |⟨h_i, y_j⟩|`, h_i the i-th canonical variate on the side of depth k (unit length over the rows) and y_j
    the j-th centred feature of depth k: how much of depth k the direction stands for. In 0..1; a similarity, which is
    not symmetric: (l, k) takes its weights from depth l. Since the weights are a sum over features, a rotation of
    depth k changes it; not changed by a factor, a shift or another order of the features of either, nor by any
    invertible linear map of depth l. Undefined as mean CCA is. Morcos, Raghu, Bengio 2018, eq. 1 to 3.
    """
    first = next(rotated(run, axes=True) or iter(()), None)
    if first is not None and all(axes.rank >= run.states.count - 1 for axes in first.axes.values()):
        # The axes alone tell that it is undefined everywhere: covariances of wide depths are expensive.
        return _over_pairs(run, [first], "PWCCA", projection_weighted)
    return _over_pairs(run, run.covariances, "PWCCA", projection_weighted)


def projection_weighted(cross: Float64[Tensor, "d e"], first: Axes, second: Axes) -> tuple[float, float]:
    """PWCCA of two depths, with the weights from the first and with those from the second."""
    left, values, right = torch.linalg.svd(whitened(cross, first, second), full_matrices=False)
    values.clamp_(max=1)
    means = []
    for directions, axes in ((left.T, first), (right, second)):
        weights = (directions * axes.scale @ axes.axes.T).abs().sum(1)
        means.append(float(weights @ values / weights.sum()))
    return means[0], means[1]


def mean_correlation(cross: Float64[Tensor, "d e"], first: Axes, second: Axes) -> tuple[float, float]:
    """Mean CCA of two depths, twice: it is symmetric."""
    value = float(correlations(cross, first, second).mean())
    return value, value


def _over_pairs(
    run: MeasureContext,
    tiles: Iterable[TileCovariances],
    title: str,
    of: Callable[..., tuple[float, float]],
    share: float | None = None,
) -> Similarity:
    """Values of every pair of depths of rank below n - 1, by the leading axes with `share` of the variance."""
    most, ranks, values = run.states.count - 1, dict[int, int](), dict[tuple[int, int], float]()
    left_out = dict[int, int]()
    for tile in tiles:
        axes = tile.axes if share is None else {depth: axes.leading(share) for depth, axes in tile.axes.items()}
        ranks |= {depth: kept.rank for depth, kept in axes.items()}
        left_out |= {depth: kept.left_out for depth, kept in axes.items() if kept.left_out}
        for (k, other), cross in tile.products.items():
            if max(ranks[k], ranks[other]) < most:
                values[k, other], values[other, k] = of(cross, axes[k], axes[other])
    matrix = run.filled(values, {depth for depth, rank in ranks.items() if rank < most})
    notes = [
        f"similarity by {title}: {count} directions of {run.named(depth)} are left out: rounding, beside its mean"
        for depth, count in sorted(left_out.items())
    ]
    return Similarity(run.block(matrix), notes=(*run.blank_notes, *_rank_notes(run, ranks, title), *notes))


def _rank_notes(run: MeasureContext, ranks: dict[int, int], title: str) -> Iterator[str]:
    """Notes on depths without a value, and on pairs in which some correlations are 1 for any states."""
    most = run.states.count - 1
    for depth, rank in sorted(ranks.items()):
        if rank >= most:
            yield (
                f"similarity by {title} is undefined at {run.named(depth)}, which has as many directions as "
                f"{run.states.count} rows can have: every correlation is 1"
            )
    forced = [(k, other) for k, other in run.pairs if max(ranks[k], ranks[other]) < most < ranks[k] + ranks[other]]
    if forced:
        yield (
            f"similarity by {title}: in {len(forced)} pairs of depths some correlations are 1 whatever the states "
            f"hold, since the ranks add up to more than {most}: take more rows"
        )
