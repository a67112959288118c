"""Confidence intervals of proportions (Wilson), means (Student's t, bootstrap) and correlations (Fisher's scale).

Rows of one sample (the tokens of a text) are not independent: pass `groups`, and whole samples are what counts. How far
the samples tell the error of a mean is Satterthwaite's degrees of freedom, from their sizes: of five texts one of which
holds nearly everything, they are close to 1 and not 4. `confidence` is the share of such intervals that hold the true
value. An interval is stacked as (2, ...): low, then high.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from anydepth.errors import MeasureError

Groups = Int64[np.ndarray, " n"] | None


def wilson(
    successes: Shaped[np.ndarray, ...], count: Shaped[np.ndarray, ...] | int, confidence: float = 0.95
) -> Float64[np.ndarray, "2 ..."]:
    """Interval of a proportion of `count` independent trials (Wilson 1927), within 0..1; NaN of no trials.

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


def share_interval(
    successes: Float64[np.ndarray, "g ..."], counts: Float64[np.ndarray, "g ..."], confidence: float = 0.95
) -> Float64[np.ndarray, "2 ..."]:
    """Interval of a share of rows where those of one sample are not independent: within 0..1, never without width.

    Wilson's, with the number of independent rows that has the same variance (Kish's effective size), made smaller where
    few samples tell that variance (Korn and Graubard 1998). Where all rows agree, nothing tells how rows of one sample
    depend on each other: as if each sample were one row.

    `successes` and `counts` are numbers of rows of each sample. NaN with fewer than two samples.

    Example:
        >>> share_interval(np.array([9.0, 10.0, 10.0]), np.array([10.0, 10.0, 10.0])).round(2).tolist()
        [0.57, 1.0]
    """
    from scipy.special import ndtri, stdtrit

    upper = _upper(confidence)
    value, error, freedom = ratio(successes, counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = counts.sum(0) ** 2 / (counts**2).sum(0)
        effective = np.where(error > 0, value * (1 - value) / error**2, samples)
        effective = effective * (ndtri(upper) / stdtrit(freedom, upper)) ** 2
        trials = np.where(np.isfinite(freedom), np.minimum(counts.sum(0), effective), np.nan)
        low, high = wilson(np.asarray(value * trials), trials, confidence)
        return np.stack([np.minimum(low, value), np.maximum(high, value)])  # rounding must not leave the share out


def t_interval(
    rows: Float64[np.ndarray, "n ..."], groups: Groups = None, confidence: float = 0.95
) -> Float64[np.ndarray, "2 ..."]:
    """Interval of the mean of rows by Student's t, over the samples that `groups` names; NaN with fewer than two.

    With groups, the mean over rows is a ratio of sums over samples; see `ratio`.

    Example:
        >>> t_interval(np.array([[1.0], [2.0], [3.0]])).round(2).tolist()
        [[-0.48], [4.48]]
    """
    if len(rows) < 2:
        return np.full((2, *rows.shape[1:]), np.nan)
    if groups is None:
        mean = rows.mean(0)
        error = np.sqrt(((rows - mean) ** 2).sum(0) / (len(rows) - 1) / len(rows))
        return around(mean, error, len(rows) - 1, confidence)
    sums, sizes = sums_and_sizes(rows, groups)
    return around(*ratio(sums, np.broadcast_to(sizes.reshape(-1, *[1] * (rows.ndim - 1)), sums.shape)), confidence)


def ratio(
    sums: Float64[np.ndarray, "g ..."], sizes: Float64[np.ndarray, "g ..."]
) -> tuple[Float64[np.ndarray, ...], Float64[np.ndarray, ...], Float64[np.ndarray, ...]]:
    """Mean of the rows of samples of any size, its standard error, and the error's degrees of freedom.

    The linearised variance of a ratio of sums, each sample's part of it made up for what the sample takes of the mean
    itself: `error² = Σ_g (s_g - m_g mean)² / (1 - w_g) / n²`, w_g = m_g / n. It and its degrees of freedom are CR2 with
    Satterthwaite's approximation (Bell and McCaffrey 2002), which for a mean come to
    `1 / (Σ w² + (Σ a)² - Σ a²)`, `a_g = w_g² / (1 - w_g)`: one fewer than the samples where these are of one size.

    `sums` are those of the rows of each sample, `sizes` their numbers. Error and degrees of freedom are NaN where a
    single sample has all rows.

    Example:
        >>> value, error, freedom = ratio(np.array([1.0, 2.0, 3.0]), np.ones(3))
        >>> value.item(), error.round(3).item(), freedom.round(3).item()
        (2.0, 0.577, 2.0)
    """
    total = sizes.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.asarray(sums.sum(0) / total)
        weights = sizes / total
        others = np.where(weights < 1, 1 - weights, np.nan)
        error = np.sqrt(((sums - sizes * value) ** 2 / others).sum(0)) / total
    return value, np.asarray(error), satterthwaite(weights)


def satterthwaite(weights: Float64[np.ndarray, "g ..."]) -> Float64[np.ndarray, ...]:
    """Degrees of freedom of the error of a mean over samples, from the share of the rows that each holds; see `ratio`.

    Example:
        >>> satterthwaite(np.array([0.25, 0.25, 0.25, 0.25])).round(6).item()
        3.0
        >>> satterthwaite(np.array([0.9, 0.05, 0.05])).round(2).item()
        1.1
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        own = np.where(weights < 1, weights**2 / (1 - weights), np.nan)
        return np.asarray(1 / ((weights**2).sum(0) + own.sum(0) ** 2 - (own**2).sum(0)))


def bootstrap(
    rows: Float64[np.ndarray, "n ..."],
    groups: Groups = None,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Float64[np.ndarray, "2 ..."]:
    """Percentile bootstrap interval of the mean of rows; whole samples are drawn, all columns together (paired).

    Not for debiased CKA: rows drawn twice have products with each other that debiasing is there to leave out, and the
    interval misses the value altogether.

    Example:
        >>> low, high = bootstrap(np.arange(100.0)[:, None])
        >>> bool(low[0] < 49.5 < high[0])
        True
    """
    sums, sizes = sums_and_sizes(rows.reshape(len(rows), -1), groups)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, sums.shape[1]))
    for draw in range(resamples):
        times = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums))
        means[draw] = times @ sums / (times @ sizes)
    tail = 1 - _upper(confidence)
    return np.quantile(means, [tail, 1 - tail], axis=0).reshape(2, *rows.shape[1:])


def around(
    value: Float64[np.ndarray, ...],
    error: Float64[np.ndarray, ...],
    freedom: Float64[np.ndarray, ...] | float | int,
    confidence: float = 0.95,
) -> Float64[np.ndarray, "2 ..."]:
    """Student's t interval: `value` plus and minus `error` times the quantile; NaN for NaN."""
    from scipy.special import stdtrit

    margin = stdtrit(np.asarray(freedom, dtype=np.float64), _upper(confidence)) * error
    return np.stack([value - margin, value + margin])


def around_correlation(
    value: Float64[np.ndarray, ...],
    error: Float64[np.ndarray, ...],
    freedom: Float64[np.ndarray, ...] | float | int,
    confidence: float = 0.95,
) -> Float64[np.ndarray, "2 ..."]:
    """Interval of correlations by Fisher's scale, artanh: inside -1..1, and skewed near the ends."""
    # Nearer to 1 than float32 products can tell, or beyond by rounding: the error is then rounding alone.
    perfect = np.abs(value) >= 1 - 1e-7
    safe = np.where(perfect, 0, value)
    bounds = np.tanh(around(np.arctanh(safe), error / (1 - safe**2), freedom, confidence))
    return np.where(perfect, value, bounds)


def sums_and_sizes(
    rows: Float64[np.ndarray, "n ..."], groups: Groups
) -> tuple[Float64[np.ndarray, "g ..."], Float64[np.ndarray, " g"]]:
    """Sums of the rows of each sample, and how many rows it has; the samples in ascending order."""
    if groups is None:
        return rows, np.ones(len(rows))
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), *rows.shape[1:]))
    np.add.at(sums, index, rows)
    return sums, sizes.astype(np.float64)


def _upper(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise MeasureError(f"confidence is {confidence}: expected a share between 0 and 1, such as 0.95")
    return (1 + confidence) / 2
