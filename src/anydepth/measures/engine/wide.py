"""Depths of more features than there are rows, rotated into as many features as rows.

The centred rows of a depth with n < D are `L Q`, L an (n, n) triangle and the rows of Q orthonormal. What a rotation of
a depth does not change follows from L alone, at a cost in n instead of D.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64
from torch import Tensor

from anydepth.measures.engine.covariance import PairTile, TileCovariances, principal_axes

if TYPE_CHECKING:
    from anydepth.measures.engine.context import MeasureContext


def rotated(run: MeasureContext, *, axes: bool = False) -> Iterator[TileCovariances] | None:
    """What `Covariances` finds, after a rotation of each depth by itself that leaves it at most n features.

    Args:
        run: of n rows.
        axes: find the principal axes as well: those of the rotated rows.

    Returns:
        A depth with all that it is paired with, one after the other; None where no depth has more features than there
        are rows, or where the rotated rows of all depths do not fit in memory.
    """
    widths = [run.states.widths[depth] for depth in run.whole]
    if run.states.count >= max(widths, default=0) or _bytes(run.states.count, widths) > run.memory:
        return None
    return _found(run, axes)


def triangle(y: Float64[Tensor, "n d"]) -> Float64[Tensor, "n c"]:
    """Rows with the same inner products, of at most as many features as rows.

    Example:
        >>> y = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]).double()
        >>> found = triangle(y)
        >>> found.shape, torch.allclose(found @ found.T, y @ y.T)
        (torch.Size([2, 2]), True)
    """
    return y if len(y) >= y.shape[1] else torch.linalg.qr(y.T, mode="r")[1].T


def _bytes(n: int, widths: list[int]) -> int:
    """The rotated rows of all depths, with their axes and one depth's products; and two depths as they are read."""
    return 8 * n * sum(3 * min(n, width) for width in widths) + 16 * n * max(widths)


def _found(run: MeasureContext, axes: bool) -> Iterator[TileCovariances]:
    rows = {
        depth: triangle(y.to(run.states.device))
        for depth, y in run.sample(run.states.count).centred(run.location, run.whole, run.memory // 4)
    }
    kept = {depth: principal_axes(one.T @ one, run.location, depth) for depth, one in rows.items() if axes}
    watched = run.states.during("covariances")
    for done, k in enumerate(run.whole, start=1):
        pairs = tuple(pair for pair in run.pairs if pair[0] == k)
        yield TileCovariances(PairTile(tuple(rows), pairs), kept, {pair: rows[k].T @ rows[pair[1]] for pair in pairs})
        watched.tell(done, len(run.whole))
