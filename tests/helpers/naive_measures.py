"""The measures written from their definitions in float64, with whole Gram matrices and loops: what ours are held to."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy import stats
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


# Canonical correlations, by singular value decompositions of the rows ------------------------------------------------


def spread(state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (n, r), singular values (r,), axes (r, d) of the centred rows; what is above 8 roundings of their size."""
    x = state.astype(np.float64)
    scores, scale, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    least = 8 * np.finfo(np.float32).eps * np.sqrt((x**2).sum())
    rank = min(int((scale > least).sum()), len(x) - 1)
    return scores[:, :rank], scale[:rank], axes[:rank]


def leading(scale: np.ndarray, share: float = 0.99) -> int:
    """The fewest singular values whose squares make up the share of all."""
    return next(r for r in range(1, len(scale) + 1) if (scale[:r] ** 2).sum() >= share * (scale**2).sum())


def cca(a: np.ndarray, b: np.ndarray, *, cut: bool = False) -> float:
    """Mean canonical correlation; of the leading directions only, where `cut`."""
    (z, s, _), (w, t, _) = spread(a), spread(b)
    r, q = (leading(s), leading(t)) if cut else (len(s), len(t))
    if max(r, q) >= len(a) - 1:
        return np.nan
    return float(np.linalg.svd(z[:, :r].T @ w[:, :q], compute_uv=False).mean())


def pwcca(a: np.ndarray, b: np.ndarray) -> float:
    """Morcos et al. 2018, weighted by the features of the first, from canonical variates over the rows."""
    (z, s, _), (w, t, _) = spread(a), spread(b)
    if max(len(s), len(t)) >= len(a) - 1:
        return np.nan
    left, correlations, _ = np.linalg.svd(z.T @ w, full_matrices=False)
    x = a.astype(np.float64) - a.astype(np.float64).mean(0)
    weights = [sum(abs(variate @ feature) for feature in x.T) for variate in (z @ left).T]
    return float(np.average(correlations, weights=weights))


def procrustes(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product of the rows after the best rotation of the first, found and applied."""
    x, y = (state.astype(np.float64) - state.astype(np.float64).mean(0) for state in (a, b))
    u, _, v = np.linalg.svd(x.T @ y, full_matrices=False)
    return float(((x @ u @ v) * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))


# All pairs of rows ---------------------------------------------------------------------------------------------------


def row_cosines(state: np.ndarray) -> np.ndarray:
    """(n, n) cosines of the rows, seen from their mean."""
    y = state.astype(np.float64) - state.astype(np.float64).mean(0)
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return y @ y.T


def rsa(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of cosine distances, of equal ones to 12 decimals the mean rank."""
    upper = np.triu_indices(len(a), 1)
    first, second = (np.round(1 - row_cosines(state)[upper], 12) for state in (a, b))
    if len(a) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    return float(stats.spearmanr(first, second).statistic)


def neighbours(state: np.ndarray, k: int = 10) -> list[list[int]]:
    """Of each row the nearest k, of equally near ones the earlier."""
    nearness, numbers = np.round(row_cosines(state) * 2**40), np.arange(len(state))
    orders = [np.lexsort((numbers, -nearness[row])) for row in numbers]
    return [[other for other in order.tolist() if other != row][:k] for row, order in enumerate(orders)]


def knn(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 12:
        return np.nan
    pairs = zip(neighbours(a), neighbours(b), strict=True)
    return float(np.mean([len(set(one) & set(other)) / 10 for one, other in pairs]))


def cknna(a: np.ndarray, b: np.ndarray) -> float:
    """Huh et al. 2024: the alignment of kernels over mutual neighbours, row by row about the kernels' means."""
    if len(a) < 12:
        return np.nan

    def alignment(one: np.ndarray, other: np.ndarray) -> float:
        first, second = (kernel - kernel.mean(1, keepdims=True) for kernel in map(row_cosines, (one, other)))
        total = 0.0
        for i, (near, near_too) in enumerate(zip(neighbours(one), neighbours(other), strict=True)):
            for j in set(near) & set(near_too):
                total += first[i, j] * second[i, j]
        return total

    return alignment(a, b) / np.sqrt(alignment(a, a) * alignment(b, b))


def cka_rbf(a: np.ndarray, b: np.ndarray) -> float:
    """HSIC1 of Gaussian kernels, as wide as the median distance of two rows."""
    if len(a) < 4:
        return np.nan
    kernels = []
    for state in (a, b):
        y = state.astype(np.float64) - state.astype(np.float64).mean(0)
        distances = np.sqrt(((y[:, None] - y[None]) ** 2).sum(-1))
        width = np.median(distances[np.triu_indices(len(a), 1)])
        kernels.append(np.exp(-(distances**2) / (2 * width**2)))
    first, second = kernels
    return _hsic1(first, second) / np.sqrt(_hsic1(first, first) * _hsic1(second, second))


PAIRWISE = {
    "cca": cca,
    "svcca": lambda a, b: cca(a, b, cut=True),
    "pwcca": pwcca,
    "procrustes": procrustes,
    "rsa": rsa,
    "knn": knn,
    "cknna": cknna,
    "cka_rbf": cka_rbf,
}


def reference(name: str, first: Matrices, second: Matrices | None = None) -> np.ndarray:
    """Any measure between all depths of one model, or those of one and of another."""
    if second is not None:
        return reference(name, [*first, *second])[: len(first), len(first) :]
    if name.startswith("cosine"):
        return cosines(first, centred=name == "cosine").mean(0)
    if name in ("cka", "cka_biased"):
        return cka(first, debiased=name == "cka")
    return np.array([[PAIRWISE[name](a, b) for b in first] for a in first])
