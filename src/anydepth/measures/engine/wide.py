"""Products of depths with more features than rows, after a rotation into as many features as rows.

The centred rows of a depth with n < D are `L Q`, L an (n, n) triangle and the rows of Q orthonormal. What a rotation of
a depth does not change follows from L alone, at a cost in n instead of D.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float64
from torch import Tensor

from anydepth.measures.engine.context import MeasureContext
from anydepth.measures.engine.covariance import TileCovariances, principal_axes


def rotated(run: MeasureContext, *, axes: bool = False) -> Iterator[TileCovariances] | None:
    """The results of `Covariances` after a rotation of each depth into at most n features, depth by depth.

    None where no depth has more features than rows, or where the rotated rows of all depths do not fit in memory.
    """
    widths = [run.states.widths[depth] for depth in run.whole]
    if run.states.count >= max(widths, default=0) or _bytes(run.states.count, widths) > run.memory:
        return None
    return _products(run, axes)


def triangle(y: Float64[Tensor, "n d"]) -> Float64[Tensor, "n c"]:
    """Rows with the same inner products, of at most as many features as rows.

    Example:
        >>> y = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]).double()
        >>> rows = triangle(y)
        >>> rows.shape, torch.allclose(rows @ rows.T, y @ y.T)
        (torch.Size([2, 2]), True)
    """
    return y if len(y) >= y.shape[1] else torch.linalg.qr(y.T, mode="r")[1].T


def _bytes(n: int, widths: list[int]) -> int:
    """Memory for the rotated rows of all depths, their axes, one depth's products, and two depths as they are read."""
    return 8 * n * sum(3 * min(n, width) for width in widths) + 16 * n * max(widths)


def _products(run: MeasureContext, axes: bool) -> Iterator[TileCovariances]:
    rows = {
        depth: triangle(y.to(run.states.device))
        for depth, y in run.sample(run.states.count).centred(run.location, run.whole, run.memory // 4)
    }
    kept = {depth: principal_axes(y.T @ y, run.location, depth) for depth, y in rows.items() if axes}
    states = run.states.during("covariances")
    for done, k in enumerate(run.whole, start=1):
        yield TileCovariances(kept, {pair: rows[k].T @ rows[pair[1]] for pair in run.pairs if pair[0] == k})
        states.report(done, len(run.whole))
