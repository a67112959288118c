"""Orthogonal Procrustes similarity: how far two depths coincide after the best rotation."""

from __future__ import annotations

import torch

from anydepth.measures.engine.context import MeasureContext
from anydepth.measures.engine.wide import rotated
from anydepth.measures.measure import Similarity


def procrustes(run: MeasureContext) -> Similarity:
    """Orthogonal Procrustes as a similarity: `|Y_kᵀ Y_l|_* / (|Y_k|_F |Y_l|_F)`, Y the centred rows of a depth.

    |·|_* is the nuclear norm, the sum of singular values: the largest inner product of Y_k Q and Y_l over all
    orthogonal Q (with orthonormal rows or columns where the widths differ). In 0..1. As a distance of the depths
    scaled to |Y|_F = 1, `min_Q |Y_k Q - Y_l|² = 2 - 2 value`; arccos of the value is a metric (Williams et al. 2021).
    Not changed by an orthogonal map, a factor or a shift of either depth; changed by other linear maps.

    It is above 0 for independent rows, the more so the fewer there are for the widths, and has no interval: what it
    suffers from is bias, which no interval shows. Schönemann 1966; for networks Ding et al. 2021.
    """
    size = (run.location.variance * run.location.count).sqrt().tolist()
    values = {
        (k, other): float(torch.linalg.svdvals(cross).sum()) / (size[k] * size[other])
        for tile in rotated(run) or run.products
        for (k, other), cross in tile.products.items()
    }
    return Similarity(run.block(run.filled(values, set(run.whole))), notes=tuple(run.blank_notes))
