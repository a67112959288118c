"""The measures by their definitions, in float64 and with numpy alone: what each library says it computes.

Every function gives (K, K) matrices by name. Those named as anydepth names a measure are its definition of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from peers.chain import DEPTHS, depths
from peers.libraries import drawn

Found = dict[str, np.ndarray]

NEIGHBOURS = 10
WIDTH_ROWS = 2000  # rows of which anydepth takes the kernel's width


def references(file: Path) -> Found:
    """All of them, for the rows of a file."""
    found = {**cosine(file), **cka(file), **correlations(file), **procrustes(file), **ranks(file)}
    return {**found, **neighbours(file), **kernels(file)}


def states(file: Path) -> list[np.ndarray]:
    return [part.astype(np.float64) for part in depths(file)]


def about_mean(file: Path) -> list[np.ndarray]:
    return [part - part.mean(0) for part in states(file)]


def pairs() -> Iterator[tuple[int, int]]:
    return ((k, other) for k in range(DEPTHS) for other in range(k + 1, DEPTHS))


def empty(*names: str) -> Found:
    return {name: np.full((DEPTHS, DEPTHS), np.nan) for name in names}


def cosine(file: Path) -> Found:
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in about_mean(file)]
    return {"cosine": np.array([[(one * two).sum(1).mean() for two in unit] for one in unit])}


# CKA, linear -----------------------------------------------------------------------------------------------------


def cka(file: Path) -> Found:
    """Both estimators: from the whole Gram matrices, or from the features where those are too many."""
    parts = about_mean(file)
    n = len(parts[0])
    biased, off, sums = (gram_sums if n <= 10_000 else feature_sums)(parts)
    total = sums.sum(1)
    debiased = off + np.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * sums @ sums.T
    # repsim divides what is debiased by what is not
    mixed = (debiased / (n * (n - 3))) / (np.sqrt(np.outer(biased.diagonal(), biased.diagonal())) / (n - 1) ** 2)
    return {"cka": normalised(debiased), "cka_biased": normalised(biased), "cka_mixed": mixed}


def normalised(products: np.ndarray) -> np.ndarray:
    own = products.diagonal()
    return products / np.sqrt(np.outer(own, own))


Sums = tuple[np.ndarray, np.ndarray, np.ndarray]


def gram_sums(parts: list[np.ndarray], block: int = 250) -> Sums:
    """Products of the Gram matrices, with their diagonals and without, and the row sums without; a block at a time."""
    return matrix_sums(lambda rows: np.stack([part[rows] @ part.T for part in parts]), len(parts[0]), block)


def matrix_sums(blocks, n: int, block: int) -> Sums:  # type: ignore[no-untyped-def]
    """The same of any matrices, whose rows `blocks` gives."""
    biased, off, sums = np.zeros((DEPTHS, DEPTHS)), np.zeros((DEPTHS, DEPTHS)), np.zeros((DEPTHS, n))
    for start in range(0, n, block):
        found = blocks(slice(start, start + block))
        flat = found.reshape(DEPTHS, -1)
        biased += flat @ flat.T
        within = np.arange(found.shape[1])
        found[:, within, start + within] = 0
        off += flat @ flat.T
        sums[:, start : start + block] = found.sum(2)
    return biased, off, sums


def feature_sums(parts: list[np.ndarray]) -> Sums:
    """The same, from the covariances."""
    norms = np.stack([(part**2).sum(1) for part in parts])
    biased = np.zeros((DEPTHS, DEPTHS))
    for a in range(DEPTHS):
        for b in range(a, DEPTHS):
            biased[a, b] = biased[b, a] = ((parts[a].T @ parts[b]) ** 2).sum()
    sums = np.stack([part @ part.sum(0) for part in parts]) - norms
    return biased, biased - norms @ norms.T, sums


# CKA with a Gaussian kernel --------------------------------------------------------------------------------------


def kernels(file: Path, block: int = 250) -> Found:
    """σ² by three rules: the square of the median distance, of 2,000 rows or of all; the median of all squares."""
    parts = about_mean(file)
    n = len(parts[0])
    few = [squares(sampled(part), sampled(part)) for part in parts]
    upper = np.triu_indices(len(few[0]), 1)
    rules = {"cka_rbf": [np.median(np.sqrt(one[upper])) ** 2 for one in few]}
    if n <= WIDTH_ROWS:
        rules["cka_rbf_biased"] = rules["cka_rbf"]
        rules["cka_rbf_diagonal"] = [lower_median(one) for one in few]
    else:
        rules["cka_rbf_diagonal"] = [lower_median(squares(part, part)) for part in parts]
    found = {}
    for name, rule in rules.items():

        def rows(which: slice, rule: list[float] = rule) -> np.ndarray:
            found = [np.exp(-squares(part[which], part) / (2 * one)) for part, one in zip(parts, rule, strict=True)]
            return np.stack(found)

        if name == "cka_rbf_biased":
            whole = rows(slice(0, n))
            means = whole.mean(1, keepdims=True)
            flat = (whole - means - means.transpose(0, 2, 1) + means.mean(2, keepdims=True)).reshape(DEPTHS, -1)
            found[name] = normalised(flat @ flat.T)
            continue
        _, off, sums = matrix_sums(rows, n, block)
        total = sums.sum(1)
        found[name] = normalised(off + np.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * sums @ sums.T)
    return found


def squares(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    found = (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T
    return np.maximum(found, 0, out=found)


def lower_median(values: np.ndarray) -> float:
    """torch's: of an even number the lower of the two in the middle, and the zeros of the diagonal count."""
    flat = values.ravel()
    return float(np.partition(flat, (flat.size - 1) // 2)[(flat.size - 1) // 2])


def sampled(part: np.ndarray) -> np.ndarray:
    return drawn(part)  # as many rows as RSA draws, and the same


# Canonical correlations ------------------------------------------------------------------------------------------


def correlations(file: Path) -> Found:
    """CCA, SVCCA and PWCCA; and what other libraries mean by the latter two."""
    found = empty("cca", "svcca", "svcca_over_width", "svcca_sums", "svcca_whitened", "pwcca", "pwcca_mean")
    raw = states(file)
    parts = [part - part.mean(0) for part in raw]
    axes = [np.linalg.svd(part, full_matrices=False) for part in parts]
    by_sums, whitened = [summed(part) for part in raw], [cut_after_whitening(part) for part in raw]
    width = parts[0].shape[1]
    for k, other in pairs():
        left, rho, right = np.linalg.svd(axes[k][0].T @ axes[other][0])
        cut = np.linalg.svd(leading(axes[k]).T @ leading(axes[other]), compute_uv=False)
        values = {
            "cca": rho.mean(),
            "svcca": cut.mean(),
            "svcca_over_width": cut.sum() / width,
            "svcca_sums": np.linalg.svd(by_sums[k].T @ by_sums[other], compute_uv=False).mean(),
            "svcca_whitened": np.linalg.svd(whitened[k].T @ whitened[other], compute_uv=False).sum() / width,
        }
        for name, value in values.items():
            found[name][k, other] = found[name][other, k] = value
        for one, two, variates in ((k, other, axes[k][0] @ left), (other, k, axes[other][0] @ right.T)):
            weights = np.abs(variates.T @ parts[one]).sum(1)
            found["pwcca"][one, two] = weights @ rho / weights.sum()
    found["pwcca_mean"] = (found["pwcca"] + found["pwcca"].T) / 2
    return found


def leading(axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """The fewest leading left singular vectors that hold 99 % of the variance."""
    share = np.cumsum(axes[1] ** 2) / (axes[1] ** 2).sum()
    return axes[0][:, : np.searchsorted(share, 0.99) + 1]


def summed(raw: np.ndarray) -> np.ndarray:
    """anatome's cut: of the rows as they are, by the sum of singular values, one direction short; then centred."""
    _, scale, right = np.linalg.svd(raw, full_matrices=False)
    kept = int((np.cumsum(scale) / scale.sum() < 0.99).sum())
    scores = raw @ right[:kept].T
    return np.linalg.svd(scores - scores.mean(0), full_matrices=False)[0]


def cut_after_whitening(raw: np.ndarray) -> np.ndarray:
    """repsim's: an orthonormal basis of the rows as they are, centred, of which 99 % of the variance is kept."""
    basis = np.linalg.svd(raw, full_matrices=False)[0]
    return leading(np.linalg.svd(basis - basis.mean(0), full_matrices=False))


def procrustes(file: Path) -> Found:
    found, parts = empty("procrustes"), about_mean(file)
    for k, other in pairs():
        singular = np.linalg.svd(parts[k].T @ parts[other], compute_uv=False)
        value = singular.sum() / (np.linalg.norm(parts[k]) * np.linalg.norm(parts[other]))
        found["procrustes"][k, other] = found["procrustes"][other, k] = value
    return found


# Of all pairs of rows --------------------------------------------------------------------------------------------


def ranks(file: Path) -> Found:
    """RSA of cosines about the mean; and of correlations, which see every row from its own mean."""
    from scipy.stats import rankdata

    found = {}
    parts = about_mean(file)
    own = [part - part.mean(1, keepdims=True) for part in states(file)]
    for name, rows in (("rsa", parts), ("rsa_of_correlations", own)):
        ordered = []
        for part in rows:
            unit = drawn(part)
            unit /= np.linalg.norm(unit, axis=1, keepdims=True)
            ordered.append(rankdata(1 - (unit @ unit.T)[np.triu_indices(len(unit), 1)]))
        found[name] = np.corrcoef(np.stack(ordered))
    return found


def neighbours(file: Path) -> Found:
    """kNN and CKNNA; and Jaccard's index of Euclidean neighbours."""
    by_cosine, by_distance, above = [], [], []
    for part in about_mean(file):
        unit = part / np.linalg.norm(part, axis=1, keepdims=True)
        rows, cosines = largest(unit, unit)
        by_cosine.append(rows)
        above.append(cosines - (unit @ unit.mean(0))[:, None])
        # the nearest j has the largest x·y - |y|²/2
        lifted = np.concatenate([part, -(part**2).sum(1, keepdims=True) / 2], axis=1)
        by_distance.append(largest(np.concatenate([part, np.ones((len(part), 1))], axis=1), lifted)[0])
    found = empty("knn", "cknna", "jaccard")
    own = [(one**2).sum() for one in above]
    for k, other in pairs():
        same = by_cosine[k][:, :, None] == by_cosine[other][:, None, :]
        both = (same * (above[k][:, :, None] * above[other][:, None, :])).sum()
        near = (by_distance[k][:, :, None] == by_distance[other][:, None, :]).sum((1, 2))
        values = {
            "knn": same.sum() / (len(same) * NEIGHBOURS),
            "cknna": both / np.sqrt(own[k] * own[other]),
            "jaccard": (near / (2 * NEIGHBOURS - near)).mean(),
        }
        for name, value in values.items():
            found[name][k, other] = found[name][other, k] = value
    return found


def largest(left: np.ndarray, right: np.ndarray, block: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `left` the rows of `right` with the largest products, and these; not itself."""
    rows, products = [], []
    for start in range(0, len(left), block):
        found = left[start : start + block] @ right.T
        here = np.arange(len(found))
        found[here, start + here] = -np.inf
        nearest = np.argpartition(-found, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        rows.append(nearest)
        products.append(np.take_along_axis(found, nearest, axis=1))
    return np.concatenate(rows), np.concatenate(products)
