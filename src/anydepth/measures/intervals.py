"""Intervals, each by a method that is valid for what it is put on.

Proportions: Wilson. Means of rows: Student's t, or the bootstrap. CKA: the jackknife, in `jackknife`. Rows of one
sample (the tokens of a text) are not independent: pass `groups`, and whole samples are what counts.

An interval is stacked as (2, ...): low, then high.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from anydepth.errors import MeasureError

Groups = Int64[np.ndarray, " n"] | None


def wilson(
    successes: Shaped[np.ndarray, ...], count: Shaped[np.ndarray, ...] | int, confidence: float = 0.95
) -> Float64[np.ndarray, "2 ..."]:
    """Interval of a proportion (Wilson 1927), for rows that are independent.

    Args:
        successes: how many of each `count` succeeded.
        count: number of trials; 0 gives NaN.
        confidence: the share of such intervals that hold the true proportion.

    Returns:
        Low and high, within 0..1.

    Example:
        >>> wilson(np.array([8]), 10).round(3).tolist()
        [[0.49], [0.943]]
    """
    from scipy.special import ndtri

    z = float(ndtri(_upper(confidence)))
    n = np.where(np.asarray(count) > 0, count, np.nan).astype(np.float64)
    p = successes / n
    centre = p + z**2 / (2 * n)
    margin = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    bounds = np.stack([centre - margin, centre + margin]) / (1 + z**2 / n)
    return bounds.clip(0, 1)  # beyond by rounding only


def t_interval(
    rows: Float64[np.ndarray, "n ..."], groups: Groups = None, confidence: float = 0.95
) -> Float64[np.ndarray, "2 ..."]:
    """Interval of the mean of rows by Student's t, of samples where `groups` says which rows belong together.

    With groups, the mean over rows is a ratio of sums over samples, with the usual linearised variance.

    Returns:
        Low and high; NaN with fewer than two samples.

    Example:
        >>> t_interval(np.array([[1.0], [2.0], [3.0]])).round(2).tolist()
        [[-0.48], [4.48]]
    """
    if len(rows) < 2:
        return np.full((2, *rows.shape[1:]), np.nan)
    mean = rows.mean(0)
    deviations = rows - mean if groups is None else _sums_by_group(rows - mean, groups)
    samples = len(deviations)
    if samples < 2:
        return np.full((2, *mean.shape), np.nan)
    error = np.sqrt((deviations**2).sum(0) * samples / (samples - 1)) / len(rows)
    return around(mean, error, samples - 1, confidence)


def bootstrap(
    rows: Float64[np.ndarray, "n ..."],
    groups: Groups = None,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Float64[np.ndarray, "2 ..."]:
    """Percentile bootstrap interval of the mean of rows; all columns are resampled together (paired).

    Not for debiased CKA: rows drawn twice have products with each other that debiasing is there to leave out, and the
    interval misses the value altogether.

    Args:
        rows: what is averaged, one row a sample, or several where `groups` says so.
        groups: the sample of each row; whole samples are drawn.
        confidence: the share of such intervals that hold the true mean.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        Low and high.

    Example:
        >>> low, high = bootstrap(np.arange(100.0)[:, None])
        >>> bool(low[0] < 49.5 < high[0])
        True
    """
    ids = np.arange(len(rows)) if groups is None else groups
    sizes = _sums_by_group(np.ones(len(rows)), ids)
    sums = _sums_by_group(rows.reshape(len(rows), -1), ids)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, sums.shape[1]))
    for draw in range(resamples):
        times = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums))
        means[draw] = times @ sums / (times @ sizes)
    tail = 1 - _upper(confidence)
    return np.quantile(means, [tail, 1 - tail], axis=0).reshape(2, *rows.shape[1:])


def around(
    value: Float64[np.ndarray, ...], error: Float64[np.ndarray, ...], freedom: int, confidence: float = 0.95
) -> Float64[np.ndarray, "2 ..."]:
    """`value` plus and minus `error` times the quantile of Student's t."""
    from scipy.special import stdtrit

    margin = float(stdtrit(freedom, _upper(confidence))) * error
    return np.stack([value - margin, value + margin])


def around_correlation(
    value: Float64[np.ndarray, ...], error: Float64[np.ndarray, ...], freedom: int, confidence: float = 0.95
) -> Float64[np.ndarray, "2 ..."]:
    """The same on Fisher's scale, artanh, for values in -1..1: stays inside, and is as skewed as they are near 1."""
    # nearer to 1 than float32 products can tell, or beyond by rounding: what error there is, is rounding's own
    perfect = np.abs(value) >= 1 - 1e-7
    safe = np.where(perfect, 0, value)
    bounds = np.tanh(around(np.arctanh(safe), error / (1 - safe**2), freedom, confidence))
    return np.where(perfect, value, bounds)


def _sums_by_group(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    _, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((index.max() + 1, *rows.shape[1:]))
    np.add.at(sums, index, rows)
    return sums


def _upper(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise MeasureError(f"confidence is {confidence}: expected a share between 0 and 1, such as 0.95")
    return (1 + confidence) / 2
