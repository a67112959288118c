"""Paths of hidden states from h[0] to h[L], and null models of such paths: random walk, shuffled updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from anydepth.errors import MeasureError
from anydepth.measures.engine.states import StateMoments, States, locate, rows_per_chunk

Null = Callable[[Float64[Tensor, "b k d"], np.random.Generator], Float64[Tensor, "b k d"]]
"""Maps paths to null paths. Its draws go row by row, so that results do not depend on the size of chunks."""


def random_walk(h: Float64[Tensor, "b k d"], rng: np.random.Generator) -> Float64[Tensor, "b k d"]:
    """Null paths from the same h[0] with steps of the same lengths in random directions, uniform on the sphere.

    Example:
        >>> h = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]], dtype=torch.float64)
        >>> walk = random_walk(h, np.random.default_rng(0))
        >>> torch.linalg.vector_norm(walk.diff(dim=1), dim=2)
        tensor([[5., 1.]], dtype=torch.float64)
    """
    updates = h.diff(dim=1)
    directions = torch.from_numpy(rng.standard_normal(updates.shape))
    directions /= torch.linalg.vector_norm(directions, dim=2, keepdim=True)
    return _from(h, directions * torch.linalg.vector_norm(updates, dim=2, keepdim=True))


def shuffled(h: Float64[Tensor, "b k d"], rng: np.random.Generator) -> Float64[Tensor, "b k d"]:
    """Null paths of the same updates in a random order for each row: the same ends, and the same length.

    Example:
        >>> h = torch.tensor([[[0.0], [1.0], [3.0], [7.0]]], dtype=torch.float64)
        >>> shuffled(h, np.random.default_rng(0)).flatten().tolist()
        [0.0, 4.0, 6.0, 7.0]
    """
    updates = h.diff(dim=1)
    order = torch.from_numpy(rng.random(updates.shape[:2]).argsort(axis=1))
    return _from(h, updates.gather(1, order[:, :, None].expand_as(updates)))


def _from(h: Float64[Tensor, "b k d"], updates: Float64[Tensor, "b l d"]) -> Float64[Tensor, "b k d"]:
    start = h[:, :1]
    return torch.cat([start, start + updates.cumsum(1)], dim=1)


NULLS: dict[str, Null] = {"random walk": random_walk, "shuffled": shuffled}


class Paths:
    """Rows of states as paths (rows, K, D) in float64, optionally centred, or null paths made of them.

    Args:
        states: of depths of one width.
        centred: subtract each depth's mean, as the paper's cosine does; a depth that is the same for every row is then
            exactly 0.
        null: a null model to apply to each path.
        seed: of the null.

    Raises:
        MeasureError: fewer than two depths, no rows, or depths of different widths.
    """

    def __init__(self, states: States, *, centred: bool = True, null: Null | None = None, seed: int = 0) -> None:
        widths = set(states.widths)
        if len(states.widths) < 2 or len(widths) > 1:
            raise MeasureError(
                f"depths of the widths {states.widths} came: a path needs at least two depths, all of one width"
            )
        if not states.count:
            raise MeasureError("states without rows came: expected at least one")
        self.states, self.null, self.seed = states, null, seed
        self._rows = rows_at_once(states)
        self.location: StateMoments | None = locate(states.chunks(self._rows), states.widths) if centred else None

    def __iter__(self) -> Iterator[tuple[Int64[np.ndarray, " b"], Float64[Tensor, "b k d"]]]:
        """Yield indices of rows, and their paths."""
        rng, start = np.random.default_rng(self.seed), 0
        for rows in self.states.chunks(self._rows):
            h = by_depth(rows if self.location is None else self.location.centre(rows), len(self.states.widths))
            if self.location is not None:
                h[:, list(self.location.blank)] = 0
            yield np.arange(start, start + len(rows)), h if self.null is None else self.null(h, rng)
            start += len(rows)


def rows_at_once(states: States) -> int:
    """Rows per chunk, for arithmetic in float64 on (rows, K, D) and (rows, K, K)."""
    return rows_per_chunk((max(sum(states.widths), len(states.widths) ** 2),), megabytes=8)


def by_depth(rows: Tensor, depths: int) -> Float64[Tensor, "b k d"]:
    """Rows with their depths side by side, as (rows, K, D) in float64."""
    return rows.double().reshape(len(rows), depths, -1)
