"""Geometry of the path of hidden states from h[0] to h[L]: straightness, angles, lengths, cosines (Theorem 2.1).

Everything is a mean over rows of a number computed for each row, to be compared with that of null paths that do not
depend on the data (`paths.NULLS`): most of it is not surprising for a random walk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from anydepth.measures.engine.context import blank_notes
from anydepth.measures.engine.hsic import normalised
from anydepth.measures.engine.states import States
from anydepth.stats.means import Estimate, Means
from anydepth.theory.paths import Null, Paths

TIE = 1e-6
"""Cosines of float32 states that are closer than this count as equal."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Geometry of the rows' paths through L + 1 = K depths. Means over rows, with intervals over samples.

    Attributes:
        violations: share of the triples k < l < m in which the far pair is more similar than one of the near ones,
            cos(h_k, h_m) > min(cos(h_k, h_l), cos(h_l, h_m)); in 0..1.
        monotone: share of rows without one such triple.
        closer: (L,) of the rows whose cosine with h[L] changes from depth l - 1 to l, the share in which it rises.
        straightness: chord over path, |h_L - h_0| / Σ |Δ_l|; 1 on a straight line, 0 for a closed path.
        turning: (L - 1,) angle between the updates into and out of each depth between the ends, in degrees: 0 straight
            on, 90 without relation, 180 back.
        residual: (K,) distance of h_l from the straight line through the ends, over the length of the chord.
        progress: (K,) how far along the chord h_l is: 0 at h_0, 1 at h_L.
        step: (L,) length of each update.
        norm: (K,) |h_l|, about the mean if the paths are centred.
        cosine: (K,) cos(h_l, h_L).
        predicted: (K,) that cosine by Theorem 2.1, see `line`.
        gap: mean of |cosine - predicted| over the depths between the ends.
        notes: depths at which something is undefined, and why.
    """

    violations: Estimate
    monotone: Estimate
    closer: Estimate
    straightness: Estimate
    turning: Estimate
    residual: Estimate
    progress: Estimate
    step: Estimate
    norm: Estimate
    cosine: Estimate
    predicted: Estimate
    gap: Estimate
    notes: tuple[str, ...] = ()


_SHARES = ("monotone", "closer")
_SINGLE = ("violations", "monotone", "straightness", "gap")


def geometry(states: States, *, centred: bool = True, null: Null | None = None, seed: int = 0) -> Geometry:
    """Geometry of the paths through the depths, streamed in two passes over the rows (one, if not centred).

    Args:
        states: of depths of one width.
        centred: subtract each depth's mean over all rows, as the paper's COS does.
        null: one of `paths.NULLS`, for the geometry of null paths, made of the (centred) paths.
        seed: of the null, and of the split of samples for intervals.

    Raises:
        MeasureError: fewer than two depths, no rows, or depths of different widths.

    Example:
        >>> from anydepth.measures.engine.states import ArrayStates
        >>> x = torch.randn(20, 8)
        >>> line = geometry(ArrayStates({"0": x, "1": 2 * x, "2": 5 * x}), centred=False)
        >>> line.violations.value.item(), line.straightness.value.item(), line.progress.value.tolist()
        (0.0, 1.0, [0.0, 0.25, 1.0])
    """
    paths, means = Paths(states, centred=centred, null=null, seed=seed), Means(states.count, states.groups, seed)
    for _, h in paths:
        means.add(of_rows(h))
    estimates = {name: means.share(name) if name in _SHARES else means.mean(name) for name in means.names}
    estimates |= {name: estimates[name][0] for name in _SINGLE}
    return Geometry(**estimates, notes=() if paths.location is None else blank_notes(paths.location))


def of_rows(h: Float64[Tensor, "b k d"]) -> dict[str, Float64[Tensor, "b _"]]:
    """Values of each row whose means are in `Geometry`; NaN where undefined.

    Example:
        >>> square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
        >>> values = of_rows(square)
        >>> values["straightness"], values["turning"]
        (tensor([[0.3333]], dtype=torch.float64), tensor([[90., 90.]], dtype=torch.float64))
    """
    cosines = normalised(h @ h.mT)
    to_last = cosines[:, :, -1]
    violated, defined = _triples(cosines)
    updates, chord = h.diff(dim=1), h[:, -1] - h[:, 0]
    step, length = torch.linalg.vector_norm(updates, dim=2), torch.linalg.vector_norm(chord, dim=1)
    from_start = h - h[:, :1]
    progress = (from_start @ chord[:, :, None])[..., 0] / _positive(length.square())[:, None]
    beside = from_start - progress[..., None] * chord[:, None]
    predicted, depths = line(h), torch.arange(h.shape[1])
    between = (depths > _start(h)[:, None]) & (depths < h.shape[1] - 1)
    return {
        "violations": (violated / _positive(defined))[:, None],
        "monotone": torch.where(defined > 0, (violated == 0).double(), torch.nan)[:, None],
        "closer": rises(to_last),
        "straightness": (length / _positive(step.sum(1)))[:, None],
        "turning": angles(updates[:, :-1], updates[:, 1:]),
        "residual": torch.linalg.vector_norm(beside, dim=2) / _positive(length)[:, None],
        "progress": progress,
        "step": step,
        "norm": torch.linalg.vector_norm(h, dim=2),
        "cosine": to_last,
        "predicted": predicted,
        "gap": torch.where(between, (to_last - predicted).abs(), torch.nan).nanmean(1, keepdim=True),
    }


def line(h: Float64[Tensor, "b k d"]) -> Float64[Tensor, "b k"]:
    """Cosine with the last state by Theorem 2.1: with all states on the straight line between the measured ends.

    cos((1 - x_l) a + x_l h_L, h_L), with a the first state that has a direction (h_0, unless that is the origin), and
    x_l the share of the path's length from there to l: only the ends and the lengths of the steps are taken from the
    states.

    Example:
        >>> h = torch.tensor([[[1.0, 0.0], [9.0, 9.0], [0.0, 1.0]]], dtype=torch.float64)
        >>> line(h).square()
        tensor([[0.0000, 0.5000, 1.0000]], dtype=torch.float64)
    """
    rows, start = torch.arange(len(h)), _start(h)
    step = torch.linalg.vector_norm(h.diff(dim=1), dim=2)
    travelled = torch.cat([torch.zeros_like(step[:, :1]), step.cumsum(1)], dim=1)
    travelled = travelled - travelled[rows, start][:, None]
    x = torch.where(travelled >= 0, travelled / _positive(travelled[:, -1:]), torch.nan)[..., None]
    on_line = (1 - x) * h[rows, start][:, None] + x * h[:, -1:]
    lengths = torch.linalg.vector_norm(on_line, dim=2) * torch.linalg.vector_norm(h[:, -1:], dim=2)
    return (on_line @ h[:, -1, :, None])[..., 0] / _positive(lengths)


def _start(h: Float64[Tensor, "b k d"]) -> Int64[Tensor, " b"]:
    """The first depth at which each row has a direction."""
    return (h != 0).any(2).int().argmax(1)


def rises(values: Float64[Tensor, "b k"], least: float = TIE) -> Float64[Tensor, "b _"]:
    """1 where a value is larger at the next depth, 0 where it is smaller, NaN where it is equal or undefined.

    Example:
        >>> rises(torch.tensor([[0.1, 0.3, 0.3, 0.2]], dtype=torch.float64))
        tensor([[1., nan, 0.]], dtype=torch.float64)
    """
    change = values.diff(dim=1)
    return torch.where(change.abs() > least, (change > 0).double(), torch.nan)


def angles(u: Float64[Tensor, "b l d"], v: Float64[Tensor, "b l d"]) -> Float64[Tensor, "b l"]:
    """Angles between vectors in degrees, exact near 0 and 180, too (Kahan's formula); NaN where one is zero."""
    u, v = (x / _positive(torch.linalg.vector_norm(x, dim=2))[..., None] for x in (u, v))
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=2), torch.linalg.vector_norm(u + v, dim=2)).rad2deg()


def _triples(cosines: Float64[Tensor, "b k k"]) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Numbers of triples k < l < m whose far pair is more similar, and of those with all three cosines defined."""
    violated, defined = torch.zeros(2, len(cosines), dtype=torch.float64)
    for middle in range(1, cosines.shape[1] - 1):
        far = cosines[:, :middle, middle + 1 :]
        near = torch.minimum(cosines[:, :middle, middle, None], cosines[:, None, middle, middle + 1 :])
        violated += (far > near + TIE).sum((1, 2))
        defined += (far.isfinite() & near.isfinite()).sum((1, 2))
    return violated, defined


def _positive(x: Float64[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
    """Divisor with NaN in place of 0."""
    return torch.where(x > 0, x, torch.nan)
