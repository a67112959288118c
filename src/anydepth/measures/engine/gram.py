"""Sums for CKA from tiles of the Gram matrices, for wide depths or few rows, where the covariance is more expensive.

The Gram matrices of K depths over n rows cost `n² ΣD / 2` products, the covariance of all depths `n (ΣD)² / 2`. Only
one tile of rows × rows per depth is in memory at a time; it is multiplied with those of the other depths and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from anydepth.measures.engine.moments import GramSums
from anydepth.measures.engine.precision import full_precision
from anydepth.measures.engine.states import StateMoments, depth_slices, squared_norms

FEW = 512  # rows up to which float64 tiles are cheap


def gram_sums(
    chunks: Callable[[], Iterator[Tensor]],
    location: StateMoments,
    widths: tuple[int, ...],
    *,
    kept: Bool[Tensor, " n"] | None = None,
    done: Callable[[int], None] = lambda rows: None,
) -> tuple[GramSums, Float64[Tensor, "m k k"] | None]:
    """Sums over the Gram matrices of all pairs of depths; and for kept rows i, in order, `Σ_{j ≠ i} G^k_ij G^l_ij`.

    `chunks` is called for each pass over the rows (b, sum of widths); a tile is one chunk by another. `done` is called
    with the number of rows whose tiles are finished.
    """

    def centred(skipped: int = 0) -> Iterator[Tensor]:
        for rows in islice(chunks(), skipped, None):
            y = location.centre(rows)
            yield y.double() if location.count <= FEW else y

    diagonal, trace, weighted = _norm_sums(centred(), widths)
    cross, shares, start = torch.zeros_like(diagonal), [], 0
    for index, left in enumerate(centred()):
        wanted = torch.zeros(len(left), dtype=torch.bool) if kept is None else kept[start : start + len(left)]
        share = cross.new_zeros(int(wanted.sum()), *cross.shape)
        # The Gram matrix is symmetric: tiles left of the diagonal are needed for the shares of rows only.
        first = 0 if len(share) else index
        for column, right in enumerate(centred(first), start=first):
            products = row_products(left[wanted] if column < index else left, right, widths, same=column == index)
            if column >= index:
                cross += products.sum(0) * (1 if column == index else 2)
                products = products[wanted]
            share += products
        shares.append(share)
        start += len(left)
        done(start)
    sums = GramSums(location=location, cross=cross, diagonal=diagonal, trace=trace, weighted=weighted)
    return sums, None if kept is None else torch.cat(shares)


def row_products(
    left: Float[Tensor, "b w"], right: Float[Tensor, "c w"], widths: tuple[int, ...], *, same: bool
) -> Float64[Tensor, "b k k"]:
    """For each row i of `left`, `Σ_j G^k_ij G^l_ij` over the rows j of `right`; over j ≠ i where they are the same."""
    tile = left.new_empty(len(left), len(widths), len(right))
    with full_precision(left.device):
        for depth, part in enumerate(depth_slices(widths)):
            torch.mm(left[:, part], right[:, part].T, out=tile[:, depth])
        if same:
            tile.diagonal(dim1=0, dim2=2).zero_()
        return torch.bmm(tile, tile.mT).double()


def _norm_sums(chunks: Iterator[Tensor], widths: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """`Σ q^k q^l`, `Σ q^k` and `Σ q^k y` over centred rows y with squared norms q."""
    shapes = (len(widths), len(widths)), (len(widths),), (len(widths), sum(widths))
    products, trace, weighted = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
    for y in chunks:
        norms = squared_norms(y, widths)
        products, trace, weighted = (part.to(y.device) for part in (products, trace, weighted))
        with full_precision(y.device):
            products += norms.double().T @ norms.double()
            weighted += norms.T @ y
        trace += norms.double().sum(0)
    return products, trace, weighted
