"""The measures written from their definitions in float64, with whole Gram matrices and loops: what ours are held to."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Matrices = Sequence[np.ndarray]


def cka(states: Matrices, *, debiased: bool) -> np.ndarray:
    """Kornblith et al. 2019 with HSIC0 (Gretton et al. 2005) or HSIC1 (Song et al. 2012, eq. 5) of the raw Grams."""
    grams = [state.astype(np.float64) @ state.astype(np.float64).T for state in states]
    hsic = _hsic1 if debiased else _hsic0
    products = np.array([[hsic(a, b) for b in grams] for a in grams])
    return products / np.sqrt(np.outer(products.diagonal(), products.diagonal()))


def _hsic0(a: np.ndarray, b: np.ndarray) -> float:
    centre = np.eye(len(a)) - 1 / len(a)
    return float(np.trace(a @ centre @ b @ centre)) / (len(a) - 1) ** 2


def _hsic1(a: np.ndarray, b: np.ndarray) -> float:
    n, ones = len(a), np.ones(len(a))
    a, b = a * (1 - np.eye(n)), b * (1 - np.eye(n))
    sums = (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
    return float(np.trace(a @ b) + sums - 2 / (n - 2) * (ones @ a @ b @ ones)) / (n * (n - 3))


def cosines(states: Matrices, *, centred: bool) -> np.ndarray:
    """(n, K, K): cosine of every row's states at every two depths, NaN between depths of different widths."""
    states = [state.astype(np.float64) for state in states]
    states = [state - state.mean(0) for state in states] if centred else states
    value = np.full((len(states[0]), len(states), len(states)), np.nan)
    for k, a in enumerate(states):
        for m, b in enumerate(states):
            if a.shape == b.shape:
                value[:, k, m] = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return value


class Ragged:
    """States whose chunks are cut where a test wants them, whatever size is asked for."""

    def __init__(self, states: Matrices, cuts: Sequence[int] = (), groups: np.ndarray | None = None) -> None:
        self.rows = torch.from_numpy(np.concatenate(states, axis=1).astype(np.float32))
        self.count, self.widths = len(self.rows), tuple(state.shape[1] for state in states)
        self.groups = groups
        self.cuts = [cut for cut in cuts if 0 < cut < self.count]

    def chunks(self, size: int) -> Iterator[Tensor]:
        edges = sorted({0, self.count, *self.cuts})
        for start, stop in pairwise(edges):
            for piece in self.rows[start:stop].split(size):
                yield piece.clone()


def correlated(n: int, widths: Sequence[int], *, seed: int = 0, far: float = 0.0) -> list[np.ndarray]:
    """States of depths that share five directions and have noise of their own; one feature of depth 1 at `far`."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 5))
    states = [shared @ rng.normal(size=(5, width)) + rng.normal(size=(n, width)) for width in widths]
    states = [state.astype(np.float32) for state in states]
    if len(states) > 1:
        states[1][:, 0] += far
    return states
