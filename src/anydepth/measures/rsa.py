"""Representational similarity analysis (RSA): rank correlation of the distances between rows at two depths."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from anydepth.errors import MeasureError
from anydepth.measures.engine.context import MeasureContext
from anydepth.measures.engine.hsic import normalised
from anydepth.measures.engine.sample import Sample
from anydepth.measures.measure import Similarity
from anydepth.stats.ranks import mid_ranks

RSA_ROWS = 2000  # rows of which all pairs are ranked: 2 million

_INTERVAL_ROWS = 1000
_BINS = 1024  # of ranks, in the influence of rows: an error bar needs no finer
_DECIMALS = 12  # of distances, beyond which they are equal

Ranks = Float32[np.ndarray, "m m"]


def rsa(run: MeasureContext) -> Similarity:
    """Representational similarity analysis: Spearman's correlation between the cosine distances of rows at two depths.

    Over all pairs of different rows, `1 - cosine` of the two, seen from the mean of all rows, is ranked at each depth,
    equal distances (to 12 decimals) sharing their mean rank; the value is Pearson's correlation of the ranks. In
    -1..1; a similarity; 0 on average for unrelated depths. Not changed by an orthogonal map, a factor or a shift of
    either depth; changed by other linear maps. Over at most 2,000 rows, drawn at random, all pairs of which are
    ranked. Undefined for fewer than 3 rows, and where all distances are equal. Kriegeskorte, Mur, Bandettini 2008;
    much code correlates within rows instead, which centres each row by itself.

    Its interval is the jackknife over samples on Fisher's scale, by the influence of rows on the correlation and on
    the ranks.
    """
    sample = run.sample(RSA_ROWS)
    ranks, notes = _all_ranks(run, sample)
    value = np.full((run.depths, run.depths), np.nan)
    ranked = sorted(ranks)
    value[np.ix_(ranked, ranked)] = correlations([ranks[depth] for depth in ranked])
    parts, part = run.parts_of(sample, _INTERVAL_ROWS) if ranks else (None, None)
    if parts is not None and part is not None:
        kept = np.flatnonzero(part < parts.split.used)
        parts.count_rows(part[kept])
        for k, other in (pair for pair in run.pairs if set(pair) <= ranks.keys()):
            parts.add_pair((k, other), part[kept], rank_influence(ranks[k][kept], ranks[other][kept], kept))
    low, high = run.correlation_interval(value, parts, sample.count)
    return Similarity(run.block(value), low=low, high=high, notes=(*run.blank_notes, *sample.note("RSA"), *notes))


def _all_ranks(run: MeasureContext, sample: Sample) -> tuple[dict[int, Ranks], list[str]]:
    """Ranks of distances at every depth where they are defined, and notes on the others."""
    needed = 4 * sample.count**2 * (len(run.whole) + 8)
    if needed > run.memory:
        raise MeasureError(
            f"RSA over {sample.count} rows of {len(run.whole)} depths needs {needed / 1e9:.1f} GB, but "
            f"{run.memory / 1e9:.1f} GB are allowed: allow more memory or measure fewer depths"
        )
    ranks, notes, states = dict[int, Ranks](), list[str](), run.states.during("ranks of distances")
    for done, (depth, unit) in enumerate(sample.directions(run.location, run.whole, run.memory // 4), start=1):
        if directionless := int(unit.isnan().any(1).sum()):
            notes.append(sample.directionless_note("RSA", run.named(depth), directionless))
        elif (ranks_here := distance_ranks(unit)) is None:
            notes.append(f"similarity by RSA is undefined at {run.named(depth)}: its rows are all equally far apart")
        else:
            ranks[depth] = ranks_here
        states.report(done, len(run.whole))
    return ranks, notes


def distance_ranks(unit: Float64[Tensor, "m d"]) -> Ranks | None:
    """Ranks of the distances between rows of unit length, minus their mean, 0 on the diagonal; None if all equal."""
    m = len(unit)
    upper = np.triu_indices(m, 1)
    distances = np.round(1 - (unit @ unit.T).cpu().numpy()[upper], _DECIMALS)
    if len(distances) < 2 or not np.ptp(distances) > 0:
        return None
    ranks = np.zeros((m, m), np.float32)
    ranks[upper] = mid_ranks(distances) - (len(distances) - 1) / 2
    return ranks + ranks.T


def correlations(ranks: list[Ranks]) -> Float64[np.ndarray, "k k"]:
    """Pearson's correlation of centred ranks, for all pairs of depths."""
    products = np.zeros((len(ranks), len(ranks)))
    for start in range(0, len(ranks[0]) if ranks else 0, 128):
        rows = np.stack([matrix[start : start + 128].ravel() for matrix in ranks]).astype(np.float64)
        products += rows @ rows.T
    value: Float64[np.ndarray, "k k"] = normalised(torch.from_numpy(products)).numpy()
    return value


def rank_influence(
    first: Float32[np.ndarray, "b m"], second: Float32[np.ndarray, "b m"], own: Int64[np.ndarray, " b"]
) -> Float64[np.ndarray, " b"]:
    """Influence of each row on Spearman's correlation of distances.

    With u, v in -½..½ the shares of pairs below a pair at either depth, the correlation is 12 times the mean of uv. A
    pair adds to it its own product, and moves the shares of the pairs above it: `a = uv + A(u) + B(v)`, A(u) the mean
    over all pairs of `v` where they are above u, and 0 elsewhere; B likewise. The influence of a row is twice what
    its pairs add on average (Hájek's projection of a U-statistic of pairs).

    `first` and `second` are the centred ranks of the pairs of the rows `own` with all m rows, at the two depths.
    """
    m = first.shape[1]
    u, v = (ranks / np.float32(m * (m - 1) // 2) for ranks in (first, second))
    in_u, in_v = (np.minimum(((share + np.float32(0.5)) * _BINS).astype(np.int64), _BINS - 1) for share in (u, v))
    added = np.einsum("bm,bm->b", u, v, dtype=np.float64)
    for bins, shares in ((in_u, v), (in_v, u)):
        moved = _above(bins, shares)[bins]
        added += moved.sum(1) - moved[np.arange(len(own)), own]
    scale = np.sqrt(np.mean(u.astype(np.float64) ** 2) * np.mean(v.astype(np.float64) ** 2)) * m / (m - 1)
    return np.asarray(2 * (added - added.mean()) / ((m - 1) * scale))


def _above(bins: Int64[np.ndarray, "b m"], shares: Float32[np.ndarray, "b m"]) -> Float64[np.ndarray, " bins"]:
    """Mean over pairs of their share at one depth where they are above a bin of the other, and 0 elsewhere."""
    count = len(bins) * (bins.shape[1] - 1)
    within = np.bincount(bins.ravel(), shares.ravel(), _BINS) / count
    return np.asarray(within[::-1].cumsum()[::-1] - within / 2)
