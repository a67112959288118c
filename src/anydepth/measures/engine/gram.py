"""Sums for CKA from tiles of the Gram matrices, for wide depths or few rows, where the covariance is more expensive.

The Gram matrices of K depths over n rows cost `n² ΣD / 2` products, the covariance of all depths `n (ΣD)² / 2`. Blocks
of rows are held in memory, as large as it allows, so that files are read a few times; of two blocks, one tile per depth
at a time is multiplied with those of the other depths and dropped. Each tile is computed once, since Gram matrices are
symmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from anydepth.measures.engine.moments import GramSums
from anydepth.measures.engine.precision import full_precision
from anydepth.measures.engine.states import StateMoments, depth_slices, squared_norms

FEW = 512  # rows up to which float64 tiles are cheap
STRIP = 128  # rows of a tile: on the diagonal, half of a square of as many is computed twice
TILE = 2**21  # numbers of a tile at all depths, which is to stay in a cache


def gram_sums(
    chunks: Callable[[], Iterator[Tensor]],
    location: StateMoments,
    widths: tuple[int, ...],
    *,
    kept: Bool[Tensor, " n"] | None = None,
    done: Callable[[int], None] = lambda rows: None,
) -> tuple[GramSums, Float64[Tensor, "m k k"] | None]:
    """Sums over the Gram matrices of all pairs of depths; and for kept rows i, in order, `Σ_{j ≠ i} G^k_ij G^l_ij`.

    `chunks` is called for each pass over the rows (b, sum of widths), once for each chunk: the larger they are, the
    fewer passes. `done` is called with the number of rows whose tiles are finished.
    """

    def centred(skipped: int = 0) -> Iterator[Tensor]:
        for rows in islice(chunks(), skipped, None):
            y = location.centre(rows)
            yield y.double() if location.count <= FEW else y

    norms, cross, shares, start = _NormSums(widths), _zeros(len(widths), location), None, 0
    if kept is not None:
        shares = _Shares(kept, cross)
    for index, left in enumerate(centred()):
        norms.add(left)
        stop = start + len(left)
        column = start
        for right in chain([left], centred(index + 1) if stop < location.count else ()):
            for rows, columns, tile in _tiles(left, right, widths, same=column == start):
                products = torch.bmm(tile, tile.mT).double()
                square = column == start and rows == columns
                cross += products.sum(0) * (1 if square else 2)
                if shares is not None:
                    shares.add_rows(start + rows.start, products)
                    if not square:
                        shares.add_columns(column + columns.start, tile)
            column += len(right)
        start = stop
        done(start)
    sums = GramSums(location=location, cross=cross, diagonal=norms.products, trace=norms.trace, weighted=norms.weighted)
    return sums, None if shares is None else shares.values


def _zeros(depths: int, location: StateMoments) -> Float64[Tensor, "k k"]:
    return torch.zeros(depths, depths, dtype=torch.float64, device=location.mean.device)


def _tiles(
    left: Float[Tensor, "b w"], right: Float[Tensor, "c w"], widths: tuple[int, ...], *, same: bool
) -> Iterator[tuple[slice, slice, Float[Tensor, "i k j"]]]:
    """Tiles of the Gram matrices at all depths; of a block with itself those on the diagonal, without it, and above.

    The memory of a tile is used again for the next one.
    """
    strip = STRIP if left.device.type == "cpu" else 4 * STRIP
    wide = max(strip, TILE // (strip * len(widths)))
    memory = left.new_empty(strip * wide * len(widths))
    for first in range(0, len(left), strip):
        rows = slice(first, min(first + strip, len(left)))
        later = range(rows.stop if same else 0, len(right), wide)
        for columns in [*([rows] if same else []), *(slice(at, min(at + wide, len(right))) for at in later)]:
            shape = (rows.stop - rows.start, len(widths), columns.stop - columns.start)
            tile = memory[: shape[0] * shape[1] * shape[2]].view(shape)
            with full_precision(left.device):
                for depth, part in enumerate(depth_slices(widths)):
                    torch.mm(left[rows, part], right[columns, part].T, out=tile[:, depth])
                if same and rows == columns:
                    tile.diagonal(dim1=0, dim2=2).zero_()
                yield rows, columns, tile


class _Shares:
    """`Σ_{j ≠ i} G^k_ij G^l_ij` of the kept rows i."""

    def __init__(self, kept: Bool[Tensor, " n"], like: Tensor) -> None:
        self._kept, self._place = kept, kept.cumsum(0) - 1
        self.values = like.new_zeros(int(kept.sum()), *like.shape)

    def add_rows(self, first: int, products: Float64[Tensor, "i k k"]) -> None:
        """Add the products of the rows of a tile, the first of them number `first`."""
        here = slice(first, first + len(products))
        kept = self._kept[here]
        self.values[self._place[here][kept].to(self.values.device)] += products[kept.to(products.device)]

    def add_columns(self, first: int, tile: Float[Tensor, "i k j"]) -> None:
        """Add the products of the columns of a tile, the first of them number `first`."""
        here = slice(first, first + tile.shape[2])
        kept = self._kept[here]
        if kept.any():
            by_column = tile.permute(2, 1, 0)[kept.to(tile.device)].contiguous()
            self.values[self._place[here][kept].to(self.values.device)] += torch.bmm(by_column, by_column.mT).double()


class _NormSums:
    """`Σ q^k q^l`, `Σ q^k` and `Σ q^k y` over centred rows y with squared norms q."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        self._widths, depths = widths, len(widths)
        shapes = (depths, depths), (depths,), (depths, sum(widths))
        self.products, self.trace, self.weighted = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)

    def add(self, y: Float[Tensor, "b w"]) -> None:
        """Add centred rows."""
        norms = squared_norms(y, self._widths)
        sums = (self.products, self.trace, self.weighted)
        self.products, self.trace, self.weighted = (part.to(y.device) for part in sums)
        with full_precision(y.device):
            self.products += norms.double().T @ norms.double()
            for first in range(0, len(y), FEW):  # few at a time: float32 products
                self.weighted += norms[first : first + FEW].T @ y[first : first + FEW]
        self.trace += norms.double().sum(0)
