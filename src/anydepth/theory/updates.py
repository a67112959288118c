"""Directions of the blocks' updates: along the weight of the row's class, in the span of the others, or orthogonal.

Theorem 2.2 assumes that an update is δ w_k + η with η orthogonal to every class weight. Softmax does not depend on what
all weights have in common, so their mean is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from anydepth.errors import MeasureError
from anydepth.measures.engine.states import States
from anydepth.stats.means import Estimate, Means
from anydepth.theory.paths import Paths

_ROUNDING = 1e-6  # singular values of float32 weights below this share of the largest are rounding


@dataclass(frozen=True, kw_only=True)
class Updates:
    """Shares of the squared length of updates z_l - z_(l-1) of the classifier's input, by direction.

    Attributes:
        own: (L,) along the weight of the row's class; in 0..1.
        others: (L,) in the span of the weights, and not along that one.
        outside: (L,) orthogonal to all weights: it changes no probability. The three add up to 1.
        towards: (L,) share of rows whose update goes towards the weight of the row's class rather than away from it.
        rank: dimensions of the span: C - 1, or less.
        width: D. A random direction has 1 / D along the weight of the row's class, and rank / D in the span.
    """

    own: Estimate
    others: Estimate
    outside: Estimate
    towards: Estimate
    rank: int
    width: int


def updates(
    features: States, classes: Int64[np.ndarray, " n"], weight: Float[np.ndarray, "c d"], *, seed: int = 0
) -> Updates:
    """Decompose the updates by direction, streamed.

    `features` are the classifier's inputs at each depth, of one width D: logits are `features @ weight.T` and a bias.

    Raises:
        MeasureError: classes, weights and rows do not fit together, or the features are no paths.

    Example:
        >>> from anydepth.measures.engine.states import ArrayStates
        >>> weight = np.eye(2, 3)
        >>> features = ArrayStates({"0": np.zeros((1, 3)), "1": [[1.0, -1.0, 1.0]], "2": [[1.0, -1.0, 3.0]]})
        >>> result = updates(features, np.array([0]), weight)
        >>> result.own.value.round(3), result.outside.value.round(3), result.rank
        (array([0.667, 0.   ]), array([0.333, 1.   ]), 1)
    """
    if len(classes) != features.count:
        raise MeasureError(f"{len(classes)} classes came for {features.count} rows: expected one for each")
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(weight):
        raise MeasureError(f"classes lie in {classes.min()}..{classes.max()}, and there are {len(weight)} weights")
    if weight.shape[1] != features.widths[0]:
        raise MeasureError(f"weights of width {weight.shape[1]} came for features of width {features.widths[0]}")
    about = torch.from_numpy(np.asarray(weight, np.float64))
    about = about - about.mean(0)
    span = _span(about)
    own = torch.nn.functional.normalize(about, dim=1)
    means = Means(features.count, features.groups, seed)
    for which, z in Paths(features, centred=False):
        means.add(_of_rows(z, own[torch.from_numpy(classes[which])], span))
    shares = {name: means.mean(name) for name in ("own", "others", "outside")}
    return Updates(**shares, towards=means.share("towards"), rank=len(span), width=weight.shape[1])


def _span(weight: Float64[Tensor, "c d"]) -> Float64[Tensor, "r d"]:
    """An orthonormal basis of the span of the weights; QR first, for there may be far more classes than features."""
    _, scale, axes = torch.linalg.svd(torch.linalg.qr(weight, mode="r").R, full_matrices=False)
    return torch.as_tensor(axes[scale > _ROUNDING * scale[0]])


def _of_rows(
    z: Float64[Tensor, "b k d"], own: Float64[Tensor, "b d"], span: Float64[Tensor, "r d"]
) -> dict[str, Float64[Tensor, "b l"]]:
    change = z.diff(dim=1)
    length = change.square().sum(2)
    length = torch.where(length > 0, length, torch.nan)
    along = (change @ own[:, :, None])[..., 0]
    inside = (change @ span.mT).square().sum(2) / length
    along_own = along.square() / length
    return {
        "own": along_own,
        "others": (inside - along_own).clamp(min=0),  # below by rounding only
        "outside": (1 - inside).clamp(min=0),
        "towards": torch.where(along != 0, (along > 0).double(), torch.nan),
    }
