"""Statistics of readouts: prediction, confidence, entropy, cross-entropy of each row; the depth where it saturates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

from anydepth.errors import LabelError

# Logits taken at a time: vocabularies are large. On the CPU what stays in the cache is twice as fast; elsewhere every
# piece is a wait for the device.
PIECE, PIECE_ELSEWHERE = 2**20, 2**26
_IMPOSSIBLE = -1e4  # below the largest logit: its exponential is 0 in every dtype, and 0 times it is 0, as 0 · log 0 is


@dataclass(frozen=True, kw_only=True)
class ReadoutRows:
    """Statistics of the logits of each row at one depth, on the CPU.

    Attributes:
        prediction: the top class; the first of several equal ones, -1 where the logits hold NaN.
        confidence: its probability, in 0..1.
        entropy: of all probabilities, in nats, 0..log C.
        cross_entropy: of the label, in nats; None without labels.
    """

    prediction: Int64[Tensor, " n"]
    confidence: Float64[Tensor, " n"]
    entropy: Float64[Tensor, " n"]
    cross_entropy: Float64[Tensor, " n"] | None


def readout_rows(logits: Float[Tensor, "n c"], labels: Integer[Tensor, " n"] | None = None) -> ReadoutRows:
    """Prediction, confidence, entropy and cross-entropy of each row of logits.

    Exponentials are float32 or better whatever the logits' dtype, taken below the largest logit, and summed in float64.
    A few rows at a time are converted.

    Raises:
        LabelError: a label outside 0..C-1.

    Example:
        >>> rows = readout_rows(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        >>> rows.prediction, rows.confidence, rows.cross_entropy
        (tensor([0, 0]), tensor([0.8808, 0.5000], dtype=torch.float64), tensor([0.1269, 0.6931], dtype=torch.float64))
        >>> rows.entropy
        tensor([0.3653, 0.6931], dtype=torch.float64)
    """
    classes = logits.shape[1]
    if labels is not None and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise LabelError(
            f"labels lie in {int(labels.min())}..{int(labels.max())}, but the classifier has {classes} classes: "
            f"expected 0..{classes - 1}"
        )
    return readout_rows_in_pieces([logits], labels)


def readout_rows_in_pieces(
    pieces: Iterable[Float[Tensor, "_ c"]], labels: Integer[Tensor, " n"] | None = None
) -> ReadoutRows:
    """`readout_rows` of logits that come a few rows at a time, in order; labels are among their classes.

    At least one piece is expected, which may be of no row.
    """
    columns, start, scratch = [], 0, torch.empty(2, 0, 0)
    for logits in pieces:
        step = max(1, (PIECE if logits.device.type == "cpu" else PIECE_ELSEWHERE) // logits.shape[1])
        for rows in torch.split(logits.detach(), step):
            if scratch.shape[1] < len(rows) or scratch.shape[2] != rows.shape[1]:
                # kept: what is allocated anew for each few rows leaves holes that the allocator does not fill
                exact = torch.float64 if rows.dtype == torch.float64 else torch.float32
                scratch = torch.empty(2, *rows.shape, dtype=exact, device=rows.device)
            own = None if labels is None else labels[start : start + len(rows)]
            columns.append(_statistics(rows, own, *scratch[:, : len(rows)]))
            start += len(rows)
    # What remains is a few numbers a row, in float64 on the CPU: MPS has no float64.
    prediction, total, mean, at_label = (torch.cat(column).cpu() for column in zip(*columns, strict=True))
    log_sum = total.double().log()
    return ReadoutRows(
        prediction=torch.where(log_sum.isnan(), -1, prediction),
        confidence=(-log_sum).exp(),
        entropy=log_sum - mean.double() / total.double(),
        cross_entropy=None if labels is None else log_sum - at_label.double(),
    )


def _statistics(
    logits: Tensor, labels: Tensor | None, below: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row: top class, sum of exponentials, sum of each times its exponent, the label's exponent.

    Exponents are logits below the largest; without labels, there is none of the label. `below` and `weights` are of
    the shape of the logits, and written to.
    """
    below.copy_(logits)
    top, prediction = _top(below)
    below -= top[:, None]
    at_label = top if labels is None else below.gather(1, labels.long()[:, None])[:, 0]
    torch.exp(below.clamp_(min=_IMPOSSIBLE), out=weights)
    total = weights.sum(dim=1)  # a blocked sum: its rounding stays near 1e-7
    return prediction, total, below.mul_(weights).sum(dim=1), at_label


def _top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row, and its class, the first of several."""
    if logits.device.type != "cpu":
        values, classes = logits.max(dim=1)
        return values, classes
    # numpy's search takes a tenth of the time of torch's, which is a quarter of all that is done with a logit here
    return logits.amax(dim=1), torch.from_numpy(logits.numpy().argmax(axis=1))


def saturation_depth(
    predictions: Integer[np.ndarray, "n k"], blank: Bool[np.ndarray, " k"] | None = None
) -> Int64[np.ndarray, " n"]:
    """The first depth in 1..L from which on the prediction is the final one (the paper's saturation layer).

    Labels play no part; L means that the answer did not saturate before the end.

    Args:
        predictions: of each row at the depths 0..L.
        blank: depths without a prediction, which are passed over.

    Example:
        >>> saturation_depth(np.array([[7, 3, 7, 7], [3, 7, 7, 3]]))
        array([2, 3])
    """
    final = predictions[:, 1:] == predictions[:, -1:]
    if blank is not None:
        final |= blank[1:]
    trailing = np.logical_and.accumulate(final[:, ::-1], axis=1).sum(axis=1)
    depths: Int64[np.ndarray, " n"] = (predictions.shape[1] - trailing).astype(np.int64)
    if blank is None:
        return depths
    known = np.flatnonzero(~blank)
    return np.asarray(known[np.searchsorted(known, depths)], dtype=np.int64)


def saturation_histogram(saturation: Int64[np.ndarray, " n"], depth: int) -> Int64[np.ndarray, " k"]:
    """Number of rows that saturate at each depth 0..L = `depth`; none does at 0.

    Example:
        >>> saturation_histogram(np.array([2, 3, 3]), depth=3)
        array([0, 0, 1, 2])
    """
    return np.bincount(saturation, minlength=depth + 1).astype(np.int64)


def correct_from_here(correct: Bool[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
    """Whether each row is correct at a depth and at every later one.

    Example:
        >>> correct_from_here(np.array([[True, False, True]]))
        array([[False, False,  True]])
    """
    return np.asarray(np.logical_and.accumulate(correct[:, ::-1], axis=1)[:, ::-1])


def stays_correct(correct: Bool[np.ndarray, "n k"]) -> Float64[np.ndarray, " k"]:
    """Of the rows correct at a depth, the share that is correct at every later depth, too.

    Returns:
        (K,) in 0..1; 1 at the last depth; NaN where no row is right.

    Example:
        >>> stays_correct(np.array([[True, False, True], [True, True, True]]))
        array([0.5, 1. , 1. ])
    """
    correct_later = correct_from_here(correct).sum(axis=0)
    right = correct.sum(axis=0)
    return np.asarray(np.divide(correct_later, right, out=np.full(len(right), np.nan), where=right > 0))


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Readout statistics by class, over the classes that occur.

    Attributes:
        label: the classes, ascending.
        count: rows of each.
        accuracy: of its rows, at each depth.
        saturated: share of its rows that have saturated by each depth.
    """

    label: Int64[np.ndarray, " c"]
    count: Int64[np.ndarray, " c"]
    accuracy: Float64[np.ndarray, "c k"]
    saturated: Float64[np.ndarray, "c k"]


def by_class(
    labels: Integer[np.ndarray, " n"],
    predictions: Integer[np.ndarray, "n k"],
    blank: Bool[np.ndarray, " k"] | None = None,
) -> ClassTable:
    """Accuracy and share of saturated rows by class and depth; accuracy is NaN at blank depths.

    Example:
        >>> table = by_class(np.array([0, 1, 1]), np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1]]))
        >>> table.accuracy
        array([[1. , 1. , 1. ], [0.5, 0.5, 1. ]])
    """
    label, index, count = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((2, len(label), predictions.shape[1]))
    np.add.at(sums[0], index, predictions == labels[:, None])
    np.add.at(sums[1], index, saturation_depth(predictions, blank)[:, None] <= np.arange(predictions.shape[1]))
    accuracy, saturated = sums / count[:, None]
    if blank is not None:
        accuracy[:, blank] = np.nan
    label, count = label.astype(np.int64), count.astype(np.int64)
    return ClassTable(label=label, count=count, accuracy=accuracy, saturated=saturated)
