"""Curves and single numbers of a trace that recipes compare."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

from anydepth.exits.exit_scores import ExitScores
from anydepth.tracing.trace import Trace

THRESHOLDS = tuple(float(p) for p in (*np.arange(0.3, 0.95, 0.05).round(2), 0.95, 0.97, 0.99, 0.995, 0.999, 1.0))
"""Top probabilities at which the paper's exit is swept; 1 is never exceeded: every sample goes to depth L."""
CLOSE = 0.03
"""How far below the last depth's accuracy counts as enough. (The paper's ε is as large, and counts from 1.)"""


def by_depth(trace: Trace) -> dict[str, Any]:
    """Curves of a trace by depth, and single numbers about them.

    Returns:
        By depth 0..L: accuracy, cross_entropy, confidence; cosine, cosine_raw and cka to the last depth; saturated, the
        share of answers that have saturated by then. Single: early, the share that saturates before L; pearson and
        spearman of cosine with CKA over pairs of depths, and the same of cosine_raw; enough, the share of the depths
        after which the accuracy is within 3 points of the last; largest_fall of the accuracy from one depth to the
        next; exit_accuracy and exit_blocks, the mean share of blocks run, at each of `THRESHOLDS`.
    """
    values: dict[str, Any] = {name: matrix[:, -1] for name, matrix in trace.similarity.items()}
    agreements = trace.measure_agreement()
    for name in ("cosine", "cosine_raw"):
        if (name, "cka") in agreements:
            agreement = agreements[name, "cka"]
            values |= {f"{name}_pearson": agreement.pearson[0], f"{name}_spearman": agreement.spearman[0]}
    if "confidence" in trace.statistics:
        values["confidence"] = trace.confidence
        counts = trace.saturation
        values["saturated"] = counts.cumsum() / counts.sum()
        values["early"] = 1 - counts[-1] / counts.sum()
    if "accuracy" in trace.statistics:
        values |= {"accuracy": trace.accuracy, "cross_entropy": trace.cross_entropy}
        accuracy = trace.accuracy[1:]
        values["enough"] = (int(np.flatnonzero(accuracy >= accuracy[-1] - CLOSE)[0]) + 1) / trace.depth
        values["largest_fall"] = float(largest_fall(trace.accuracy))
        values["exit_accuracy"], values["exit_blocks"] = exits(trace)
    return values


def largest_fall(curve: Float64[np.ndarray, "... k"]) -> Float64[np.ndarray, ...]:
    """The largest fall from one depth to the next, from depth 1 on; 0 where there is none.

    Args:
        curve: by depth 0..L along the last axis.

    Example:
        >>> largest_fall(np.array([[0.9, 0.1, 0.5, 0.25], [0.0, 0.1, 0.2, 0.3]]))
        array([0.25, 0.  ])
    """
    return np.asarray((-np.diff(curve[..., 1:])).max(-1, initial=0.0))


def exits(trace: Trace) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
    """The paper's exit, the first depth whose top probability exceeds a threshold, swept over `THRESHOLDS`.

    Returns:
        Accuracy, and the mean share of the blocks that are run, at each threshold: the paper's speed-up, which counts
        blocks and leaves out what it costs to look, is the reciprocal. `anydepth exit` measures the clock.
    """
    rows, depths = trace.rows, tuple(range(1, trace.depth + 1))
    assert rows is not None
    confidence, predictions = rows.confidence[:, 1:-1].astype(np.float64), rows.prediction[:, 1:].astype(np.int64)
    scores = ExitScores(depths=depths, scores=confidence, predictions=predictions, labels=rows.label)
    # A policy exits where its level is reached, the paper where the threshold is exceeded: at the next number.
    reached = [float(np.nextafter(np.float32(threshold), np.float32(2))) for threshold in THRESHOLDS]
    accuracy = [(scores.answers(level) == rows.label).mean() for level in reached]
    return np.array(accuracy), np.array([scores.mean_depth(level) / trace.depth for level in reached])


def accuracy_at(blocks: Float64[np.ndarray, " t"], accuracy: Float64[np.ndarray, " t"], share: float) -> float:
    """Accuracy of early exit at this mean share of blocks run, interpolated on its curve; NaN beyond its ends.

    Example:
        >>> accuracy_at(np.array([0.2, 0.6, 1.0]), np.array([0.5, 0.8, 0.9]), 0.4)
        0.65
    """
    order = np.argsort(blocks)
    return float(np.interp(share, blocks[order], accuracy[order], left=np.nan, right=np.nan))
