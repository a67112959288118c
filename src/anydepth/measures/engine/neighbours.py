"""Exact nearest neighbours of rows by cosine: in float32 by tiles, and in float64 where float32 is too coarse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from anydepth.measures.engine.precision import full_precision

NEIGHBOURS = 10  # k, as Huh et al. 2024
LEAST_ROWS = NEIGHBOURS + 2  # with one fewer, all other rows are neighbours
NEIGHBOUR_ROWS = 10_000  # rows compared with each other; the work grows with their square

_TILE = 512
_CLOSE = 1e-5  # cosines closer to each other than that are compared in float64
_STEPS = 2**40  # cosines are equal when they are the same number of 2^-40ths, and then the earlier row is nearer
_PLACES = 2**20  # more than NEIGHBOUR_ROWS


@dataclass(frozen=True)
class Neighbours:
    """The k nearest neighbours of each row, and the next one.

    Attributes:
        rows: their numbers, (m, k + 1); the last one is the next nearest, the others in any order.
        cosines: with each of them.
        mean: mean cosine of each row with all rows, itself included.
        directionless: rows at the mean, which have no direction; if there are any, the rest is empty.
    """

    rows: Int64[np.ndarray, "m c"]
    cosines: Float64[np.ndarray, "m c"]
    mean: Float64[np.ndarray, " m"]
    directionless: int = 0


def nearest(unit: Float64[Tensor, "m d"], count: int = NEIGHBOURS + 1) -> Neighbours:
    """The `count` < m other rows with the largest cosines, of m rows of unit length; of equal ones, the earlier.

    Example:
        >>> angles = torch.tensor([0.0, 0.1, 0.3, 2.0]).double()
        >>> nearest(torch.stack([angles.cos(), angles.sin()], dim=1), count=1).rows.ravel().tolist()
        [1, 0, 1, 2]
    """
    m, directionless = len(unit), int(unit.isnan().any(1).sum())
    if directionless:
        return Neighbours(np.empty((0, count), np.int64), np.empty((0, count)), np.empty(0), directionless)
    rows, cosines = torch.empty(m, count, dtype=torch.int64), torch.empty(m, count, dtype=torch.float64)
    single = unit.float()
    with full_precision(unit.device):
        mean = unit @ unit.mean(0)
        for start in range(0, m, _TILE):
            here = torch.arange(start, min(start + _TILE, m), device=unit.device)
            (values, indices), close = _roughly(single, here, count)
            if len(close):
                exact, indices[close] = _exactly(unit, here[close], count)
                values[close] = exact.to(values.dtype)
            cosines[start : start + _TILE], rows[start : start + _TILE] = values.double(), indices
    return Neighbours(rows.cpu().numpy(), cosines.cpu().numpy(), mean.cpu().numpy())


def _roughly(
    unit: Float[Tensor, "m d"], here: Int64[Tensor, " b"], count: int
) -> tuple[tuple[Tensor, Tensor], Int64[Tensor, " c"]]:
    """Largest cosines in float32 and their rows; and the rows for which float32 is too coarse to decide."""
    cosines = unit[here] @ unit.T
    cosines[torch.arange(len(here)), here] = -torch.inf
    values, rows = cosines.topk(min(count + 1, len(unit) - 1), dim=1)
    gaps = values[:, max(count - 2, 0) : -1] - values[:, max(count - 1, 1) :]  # where the list, and its last, end
    close = (gaps < _CLOSE).any(1).nonzero()[:, 0]
    return (values[:, :count], rows[:, :count]), close


def _exactly(unit: Float64[Tensor, "m d"], here: Int64[Tensor, " b"], count: int) -> tuple[Tensor, Tensor]:
    """Largest cosines in float64 and their rows, ties broken by the order of the rows."""
    cosines = unit[here] @ unit.T
    keys = (cosines * _STEPS).round().long() * _PLACES - torch.arange(len(unit), device=unit.device)
    keys[torch.arange(len(here)), here] = torch.iinfo(torch.int64).min
    rows = keys.topk(count, dim=1).indices
    return cosines.gather(1, rows), rows
