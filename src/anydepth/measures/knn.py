"""Similarity of depths by the nearest neighbours of rows: mutual kNN and CKNNA."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from anydepth.measures.engine.context import MeasureContext
from anydepth.measures.engine.neighbours import LEAST_ROWS, NEIGHBOUR_ROWS, NEIGHBOURS, Neighbours
from anydepth.measures.measure import Similarity


def knn(run: MeasureContext) -> Similarity:
    """Mutual k nearest neighbours: `(1/m) Σ_i |N_k(i) ∩ N_l(i)| / 10`, N(i) the 10 nearest rows to row i at a depth.

    The nearest row has the largest cosine about the mean of all rows; of cosines equal to 2^-40, the earlier row is
    nearer. In 0..1; a similarity; 10 / (m - 1) on average for unrelated depths. Not changed by an orthogonal map,
    a factor or a shift of either depth; changed by other linear maps. Over at most 10,000 rows, drawn at random,
    since all pairs of them are compared; it depends on their number: neighbours are nearer among more rows.
    Undefined for fewer than 12 rows, of which all are neighbours. Huh et al. 2024, without their removal of outliers,
    and centred.

    It has no interval: leaving rows out changes their neighbours' lists in jumps, so that the jackknife is too wide (in
    simulations by 1.4 to 2.4), and rows taken as independent, which they are not, are too narrow (by 0.6 to 0.8).
    """
    values, sample = dict[tuple[int, int], float](), run.sample(NEIGHBOUR_ROWS)
    for k, other in _pairs(run):
        first, second = run.neighbours[k], run.neighbours[other]
        values[k, other] = float(shared(first, second).sum()) / (sample.count * NEIGHBOURS)
    return Similarity(run.block(run.filled(values, _defined(run))), notes=_notes(run, "kNN"))


def cknna(run: MeasureContext) -> Similarity:
    """CKNNA: `A(k, l) / √(A(k, k) A(l, l))`, CKA of the cosines of each row with those near it at both depths.

    `A(k, l) = Σ_i Σ_j (c_ij - c_i)(c'_ij - c'_i)` over the j that are among the 10 nearest rows to i at both depths, c
    the cosine at depth k and c' at depth l, seen from the mean of all rows, c_i the mean of c_ij over all rows j. Near
    is as in `knn`. At most 1; below 0 only where neighbours are farther than the average row. Not changed by an
    orthogonal map, a factor or a shift of either depth; changed by other linear maps. Over at most 10,000 rows. It has
    no interval. Huh et al. 2024, appendix, of rows of unit length (their code puts the masked kernels into HSIC1
    instead, and does not centre the rows).
    """
    values, sizes = dict[tuple[int, int], float](), dict[int, float]()
    for depth in _defined(run):
        sizes[depth] = float((_above_average(run.neighbours[depth]) ** 2).sum())
    for k, other in _pairs(run):
        first, second = run.neighbours[k], run.neighbours[other]
        both = np.einsum(
            "nab,na,nb->", shared(first, second), _above_average(first), _above_average(second), optimize=True
        )
        values[k, other] = float(both) / (sizes[k] * sizes[other]) ** 0.5
    return Similarity(run.block(run.filled(values, _defined(run))), notes=_notes(run, "CKNNA"))


def shared(first: Neighbours, second: Neighbours) -> Bool[np.ndarray, "m k k"]:
    """For each row, which of its nearest neighbours at one depth is which at the other."""
    same: Bool[np.ndarray, "m k k"] = first.rows[:, :-1, None] == second.rows[:, None, :-1]
    return same


def _above_average(neighbours: Neighbours) -> Float64[np.ndarray, "m k"]:
    return np.asarray(neighbours.cosines[:, :-1] - neighbours.mean[:, None])


def _defined(run: MeasureContext) -> set[int]:
    return {depth for depth, neighbours in run.neighbours.items() if not neighbours.directionless}


def _pairs(run: MeasureContext) -> list[tuple[int, int]]:
    return [(k, other) for k, other in run.pairs if {k, other} <= _defined(run)]


def _notes(run: MeasureContext, title: str) -> tuple[str, ...]:
    sample = run.sample(NEIGHBOUR_ROWS)
    notes = [*run.blank_notes, *sample.note(title)]
    if sample.count < LEAST_ROWS:
        notes.append(f"similarity by {title} is undefined for {sample.count} rows: it needs at least {LEAST_ROWS}")
    notes += [
        sample.directionless_note(title, run.named(depth), neighbours.directionless)
        for depth, neighbours in run.neighbours.items()
        if neighbours.directionless
    ]
    return tuple(notes)
