"""Covariances between depths, in tiles of pairs that fit in memory, and the principal axes of each depth.

Whitening divides by standard deviations, which may lie six digits apart: it needs products in float64. Where nothing is
divided they are float32, added up in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from anydepth.errors import MeasureError
from anydepth.measures.engine.moments import SMALL
from anydepth.measures.engine.precision import full_precision
from anydepth.measures.engine.states import StateMoments, States, depth_slices, rows_per_chunk

Pair = tuple[int, int]


@dataclass(frozen=True)
class Axes:
    """The principal axes of a depth: its centred rows are `scores · diag(scale) · axesᵀ`, scores orthonormal columns.

    A direction counts when the rows' standard deviation along it is above 8 roundings of the depth's root mean
    square (the mean included), the rule by which a whole depth is constant: what is below is rounding of the states.

    Attributes:
        scale: singular values of the centred rows, the largest first; as many as the rank r.
        axes: a column for each.
        left_out: number of further directions that are only rounding beside the size of the mean.
    """

    scale: Float64[Tensor, " r"]
    axes: Float64[Tensor, "d r"]
    left_out: int = 0

    @property
    def rank(self) -> int:
        """Number of directions that count, at most n - 1."""
        return len(self.scale)

    def leading(self, share: float) -> Axes:
        """The fewest leading axes that hold `share` of the variance.

        Example:
            >>> axes = Axes(torch.tensor([3.0, 1.0, 0.1]).double(), torch.eye(3).double())
            >>> axes.leading(0.99).rank
            2
        """
        variance = self.scale.square().cumsum(0)
        rank = int((variance < share * variance[-1]).sum()) + 1
        return Axes(self.scale[:rank], self.axes[:, :rank], self.left_out)


def principal_axes(covariance: Float64[Tensor, "d d"], location: StateMoments, depth: int) -> Axes:
    """Principal axes of a depth from its `Σ_i y_i y_iᵀ` over centred rows."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    least = location.rounding(depth) ** 2 * location.count
    rank = min(int((values > least).sum()), location.count - 1)
    about_the_mean = least * float(location.variance[depth] / location.size[depth])
    left_out = min(int((values > about_the_mean).sum()), location.count - 1) - rank
    return Axes(values[:rank].sqrt(), vectors[:, :rank], left_out)


def whitened(cross: Float64[Tensor, "d e"], first: Axes, second: Axes) -> Float64[Tensor, "r s"]:
    """Covariance of two depths in their principal axes, each scaled to unit length: products of scores."""
    with full_precision(cross.device):
        return (first.axes / first.scale).T @ cross @ (second.axes / second.scale)


@dataclass(frozen=True)
class PairTile:
    """Pairs of depths whose covariances are computed in one pass over the rows.

    Attributes:
        depths: in order, those whose principal axes are computed.
        pairs: (k, l), k < l, each k with a run of neighbouring l among the depths.
    """

    depths: tuple[int, ...]
    pairs: tuple[Pair, ...]

    def partners(self, depth: int) -> list[int]:
        """The depths l of the pairs (depth, l), in order."""
        return [other for k, other in self.pairs if k == depth]

    def bytes(self, widths: tuple[int, ...]) -> int:
        """Memory for the covariances, the computation of principal axes, and a chunk of rows."""
        products = sum(widths[k] * widths[other] for k, other in self.pairs)
        own = 4 * sum(widths[depth] ** 2 for depth in self.depths)
        row = 4 * sum(widths) + 16 * sum(widths[depth] for depth in self.depths)
        return 8 * (products + own) + row * _rows(widths)


@dataclass(frozen=True)
class TileCovariances:
    """Principal axes of the depths of a tile, if wanted, and `Σ_i y_i^k (y_i^l)ᵀ` of its pairs."""

    axes: dict[int, Axes]
    products: dict[Pair, Float64[Tensor, "_ _"]]


class Covariances:
    """Covariances of pairs of depths, exact over all rows, and the principal axes of each depth.

    Args:
        rows: the states.
        location: their mean and spread.
        pairs: (k, l) of depths that are not blank, k < l.
        memory: bytes that may be used: where all pairs do not fit at once, each iteration makes a pass for each tile.
        axes: compute the principal axes, with all products in float64; otherwise in float32, added up in float64.
    """

    def __init__(
        self, rows: States, location: StateMoments, pairs: Sequence[Pair], memory: int, *, axes: bool = True
    ) -> None:
        self.rows, self.location, self.axes = rows, location, axes
        self.tiles = tiles(pairs, set(range(len(rows.widths))) - location.blank.keys(), rows.widths, memory)

    def __iter__(self) -> Iterator[TileCovariances]:
        if len(self.tiles) == 1:
            yield self._whole
        else:
            yield from map(self._pass, self.tiles)

    @cached_property
    def _whole(self) -> TileCovariances:
        return self._pass(self.tiles[0])

    def _pass(self, tile: PairTile) -> TileCovariances:
        """One pass over the rows: for each depth a panel of its products with the depths it is paired with."""
        widths, mean = self.rows.widths, self.location.mean
        place = dict(zip(tile.depths, depth_slices(tuple(widths[depth] for depth in tile.depths)), strict=True))
        spans = {depth: _span(tile.partners(depth), place) for depth in tile.depths}
        panels = {depth: mean.new_zeros(widths[depth], span.stop - span.start) for depth, span in spans.items()}
        own = {depth: mean.new_zeros(widths[depth], widths[depth]) for depth in tile.depths if self.axes}
        with full_precision(mean.device):
            for y in self._centred(tile):
                for depth in tile.depths:
                    left = y[:, place[depth]].T
                    _add_product(panels[depth], left, y[:, spans[depth]])
                    if self.axes:
                        _add_product(own[depth], left, left.T)
        axes = {depth: principal_axes(own.pop(depth), self.location, depth) for depth in tuple(own)}
        products = {}
        for k, other in tile.pairs:
            start = place[other].start - spans[k].start
            products[k, other] = panels[k][:, start : start + widths[other]]
        return TileCovariances(axes, products)

    def _centred(self, tile: PairTile) -> Iterator[Float[Tensor, "b w"]]:
        """The rows of a tile's depths, side by side, about their mean."""
        widths, precise = self.rows.widths, self.axes or self.rows.count <= SMALL
        slices = depth_slices(widths)
        for rows in self.rows.chunks(_rows(widths)):
            y = rows.double() - self.location.mean if precise else self.location.centre(rows)
            whole = len(tile.depths) == len(widths)
            yield y if whole else torch.cat([y[:, slices[depth]] for depth in tile.depths], dim=1)


def _add_product(panel: Float64[Tensor, "d e"], left: Float[Tensor, "d b"], right: Float[Tensor, "b e"]) -> None:
    if left.dtype == panel.dtype:
        panel.addmm_(left, right)
    else:
        panel.add_(left @ right)


def _rows(widths: tuple[int, ...]) -> int:
    return min(4096, rows_per_chunk(widths, megabytes=16, least=256))


def _span(depths: Sequence[int], place: dict[int, slice]) -> slice:
    return slice(place[depths[0]].start, place[depths[-1]].stop) if depths else slice(0, 0)


def tiles(pairs: Sequence[Pair], depths: set[int], widths: tuple[int, ...], memory: int) -> list[PairTile]:
    """All pairs (k, l), and depths in no pair, in as few tiles as fit in memory (bytes) one at a time.

    Raises:
        MeasureError: not even one pair fits.

    Example:
        >>> [tile.depths for tile in tiles([(0, 1), (0, 2), (1, 2)], {0, 1, 2}, (1000,) * 3, 2**28)]
        [(0, 1, 2)]
    """
    left, right = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    alone = sorted(depths - {*left, *right})
    for parts in range(1, max(len(left), len(right), 1) + 1):
        tiling = [
            _tile([pair for pair in pairs if pair[0] in rows and pair[1] in columns])
            for rows in np.array_split(left, parts)
            for columns in np.array_split(right, parts)
        ]
        tiling = [tile for tile in tiling if tile.pairs] + ([PairTile(tuple(alone), ())] if alone else [])
        needed = max((tile.bytes(widths) for tile in tiling), default=0)
        if needed <= memory:
            return tiling
    raise MeasureError(
        f"the covariances of two depths of widths {sorted(widths)[-2:]} need {needed / 1e9:.1f} GB, but "
        f"{memory / 1e9:.1f} GB are allowed: allow more memory"
    )


def _tile(pairs: Sequence[Pair]) -> PairTile:
    return PairTile(tuple(sorted({depth for pair in pairs for depth in pair})), tuple(pairs))
