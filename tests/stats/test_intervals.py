"""Intervals hold what they promise: coverage is simulated, and a method that would not do is shown not to."""

from collections.abc import Callable
from functools import partial

import hypothesis.extra.numpy
import hypothesis.strategies
import naive_measures as naive
import numpy as np
import pytest
from hypothesis import given
from naive_measures import Ragged
from scipy import stats
from simulation import coverage, mixed

from anydepth.errors import MeasureError
from anydepth.measures import similarities
from anydepth.stats.intervals import (
    around,
    around_correlation,
    bootstrap,
    ratio,
    satterthwaite,
    share_interval,
    t_interval,
    wilson,
)
from anydepth.stats.jackknife import PartSums, Split

# Proportions -------------------------------------------------------------------------------------------------------


def test_wilson_covers_whatever_the_proportion_where_walds_does_not() -> None:
    n, outcomes = 40, np.arange(41)
    low, high = wilson(outcomes, n)
    wald = 1.96 * np.sqrt(outcomes / n * (1 - outcomes / n) / n)
    proportions = np.linspace(0.01, 0.99, 99)
    held, held_by_wald = [], []
    for p in proportions:
        chance = stats.binom.pmf(outcomes, n, p)
        held.append(chance[(low <= p) & (p <= high)].sum())
        held_by_wald.append(chance[np.abs(outcomes / n - p) <= wald].sum())
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)
    assert min(held) > 0.83
    assert min(held_by_wald) < 0.4


def test_wilson_agrees_with_scipy_and_takes_counts_by_depth() -> None:
    successes, counts = np.array([0, 3, 10]), np.array([5, 9, 10])
    found = wilson(successes, counts, confidence=0.9)
    for column, (k, n) in enumerate(zip(successes.tolist(), counts.tolist(), strict=True)):
        expected = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
        np.testing.assert_allclose(found[:, column], [expected.low, expected.high], atol=1e-12)
    assert np.isnan(wilson(np.array([0, 1]), np.array([0, 1]))[:, 0]).all()


# Means -------------------------------------------------------------------------------------------------------------


def test_the_t_interval_is_scipys_and_covers() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 2))
    expected = stats.t.interval(0.95, 11, rows.mean(0), stats.sem(rows))
    np.testing.assert_allclose(t_interval(rows), np.stack(expected))
    assert coverage(lambda rng: t_interval(rng.normal(3, 2, size=8)), 3, runs=600) == pytest.approx(0.95, abs=0.03)


def test_the_bootstrap_covers_the_mean_of_skewed_rows() -> None:
    held = coverage(lambda rng: bootstrap(rng.exponential(size=80), resamples=300), 1, runs=200)
    assert 0.88 <= held <= 0.99


def clustered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 30 samples, 1 to 12 each, that differ more between samples than within."""
    groups = np.repeat(np.arange(30), rng.integers(1, 13, size=30))
    return rng.normal(size=30)[groups] + 0.3 * rng.normal(size=len(groups)), rng.permutation(30)[groups]


@pytest.mark.parametrize("method", [t_interval, partial(bootstrap, resamples=200)], ids=["t", "bootstrap"])
def test_rows_of_a_sample_count_once_and_would_mislead_if_they_did_not(method: Callable[..., np.ndarray]) -> None:
    assert coverage(lambda rng: method(*clustered(rng)), 0, runs=200) >= 0.88
    assert coverage(lambda rng: method(clustered(rng)[0]), 0, runs=100) < 0.75


def test_columns_are_resampled_together() -> None:
    x = np.random.default_rng(0).normal(size=50)
    low, high = bootstrap(np.stack([x, x + 1, 3 * x], axis=1), resamples=100)
    np.testing.assert_allclose([low[1], high[1]], [low[0] + 1, high[0] + 1])
    np.testing.assert_allclose([low[2], high[2]], [3 * low[0], 3 * high[0]])


def test_one_sample_has_no_interval() -> None:
    assert np.isnan(t_interval(np.ones((1, 3)))).all()
    assert np.isnan(t_interval(np.ones((0, 3)))).all()
    assert np.isnan(t_interval(np.ones((4, 3)), np.zeros(4, dtype=np.int64))).all()


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(MeasureError, match="expected a share between 0 and 1, such as 0.95"):
        t_interval(np.ones((4, 1)), confidence=confidence)


def test_an_interval_of_a_correlation_stays_inside_and_is_narrower_towards_one() -> None:
    low, high = around_correlation(np.array([0.97, 0.0, 1.0, np.nan]), np.array([0.02, 0.02, 0.0, 0.1]), 30)
    assert 0.97 - low[0] > high[0] - 0.97 > 0
    assert high[0] < 1
    assert -low[1] == pytest.approx(high[1])
    assert low[2] == high[2] == 1
    assert np.isnan(low[3])
    assert np.isnan(high[3])


# The jackknife -----------------------------------------------------------------------------------------------------


def test_samples_stay_whole_and_parts_are_even() -> None:
    groups = np.random.default_rng(0).integers(0, 5000, size=20_000)
    split = Split.of(20_000, groups, 10, rows=4000)
    assert split.parts == 50
    parts = split.part_of(groups)
    by_sample = {sample: set(parts[groups == sample].tolist()) for sample in range(0, 5000, 250)}
    assert all(len(seen) == 1 for seen in by_sample.values())
    sizes = np.bincount(parts, minlength=50)
    assert stats.chisquare(np.bincount(split.part_of(np.unique(groups)), minlength=50)).pvalue > 1e-3
    assert 3000 < sizes[:10].sum() < 5000


def test_few_samples_have_a_part_each() -> None:
    groups = np.array([70, 10, 70, -5])
    split = Split.of(4, groups, 10, rows=100)
    assert (split.parts, split.used) == (3, 3)
    assert split.part_of(groups).tolist() == [2, 1, 2, 0]
    assert Split.of(7, None, 10, rows=100).part_of(np.arange(7)).tolist() == list(range(7))


def test_the_error_of_a_mean_is_the_textbooks_and_unbiased_when_samples_share_parts() -> None:
    x = np.random.default_rng(0).normal(size=400)
    textbook = x.std(ddof=1) / 20

    def error(used: int, seed: int, rows: int = 400) -> float:
        parts = PartSums(Split.of(400, None, used, rows=rows, seed=seed), 1)
        dealt = parts.split.part_of(np.arange(400))
        looked = dealt < parts.split.used
        parts.add(dealt[looked], x[looked, None, None])
        return parts.error(400).item()

    assert error(400, 0) == pytest.approx(textbook)
    assert np.mean([error(20, seed) ** 2 for seed in range(300)]) == pytest.approx(textbook**2, rel=0.1)
    assert np.mean([error(20, seed, rows=200) ** 2 for seed in range(300)]) == pytest.approx(textbook**2, rel=0.1)


def test_fewer_than_two_groups_make_no_interval() -> None:
    with pytest.raises(MeasureError, match="jackknife_groups is 1: an interval needs at least 2"):
        Split.of(10, None, 1, rows=10)


def true_cka(width: int, noise: float) -> float:
    a, b = np.random.default_rng(7).normal(size=(2, 3, width))
    within = [((m.T @ m + noise**2 * np.eye(width)) ** 2).sum() for m in (a, b)]
    return float(((a.T @ b) ** 2).sum() / np.sqrt(within[0] * within[1]))


def test_the_interval_of_cka_is_the_delete_one_jackknife_where_samples_are_few() -> None:
    n = 30
    arrays = mixed(np.random.default_rng(0), n, 6, 1.0)
    found = similarities(Ragged(arrays), ["cka"], jackknife_groups=n)["cka"]
    value = naive.cka(arrays, debiased=True)[0, 1]
    without = [naive.cka([np.delete(a, i, axis=0) for a in arrays], debiased=True)[0, 1] for i in range(n)]
    error = np.sqrt((n - 1) / n * ((without - np.mean(without)) ** 2).sum())
    margin = stats.t.ppf(0.975, n - 1) * error / (1 - value**2)
    assert found.low is not None
    assert found.high is not None
    np.testing.assert_allclose(found.low[0, 1], np.tanh(np.arctanh(value) - margin), atol=1e-4)
    np.testing.assert_allclose(found.high[0, 1], np.tanh(np.arctanh(value) + margin), atol=1e-4)


@pytest.mark.parametrize(
    ("n", "width", "noise", "route"),
    [(150, 8, 1.0, "covariance"), (60, 40, 0.5, "covariance"), (60, 100, 1.0, "gram"), (60, 300, 6.0, "gram")],
    ids=["n > D", "high", "n < D", "n < D, noisy"],
)
def test_the_interval_of_cka_covers(n: int, width: int, noise: float, route: str) -> None:
    def interval(rng: np.random.Generator) -> np.ndarray:
        found = similarities(Ragged(mixed(rng, n, width, noise)), ["cka"], jackknife_groups=50)["cka"]
        assert (found.moments is None) == (route == "gram")
        assert found.low is not None
        assert found.high is not None
        return np.array([found.low[0, 1], found.high[0, 1]])

    assert 0.92 <= coverage(interval, true_cka(width, noise), runs=300) < 1


def naive_bootstrap(rng: np.random.Generator, arrays: list[np.ndarray]) -> np.ndarray:
    n = len(arrays[0])
    draws = [rng.integers(n, size=n) for _ in range(60)]
    return np.quantile([naive.cka([a[draw] for a in arrays], debiased=True)[0, 1] for draw in draws], [0.025, 0.975])


def test_the_naive_bootstrap_of_debiased_cka_would_not_cover() -> None:
    held = coverage(lambda rng: naive_bootstrap(rng, mixed(rng, 40, 100, 6.0)), true_cka(100, 6.0), runs=30)
    assert held < 0.2


def test_tokens_of_one_text_are_left_out_together() -> None:
    """Each sample gives eight nearly equal rows: as rows of their own they would make the interval far too narrow."""

    def interval(rng: np.random.Generator, grouped: bool) -> np.ndarray:
        arrays = [np.repeat(a, 8, axis=0) + 0.05 * rng.normal(size=(480, 8)) for a in mixed(rng, 60, 8, 1.0)]
        groups = np.repeat(np.arange(60), 8) if grouped else None
        found = similarities(Ragged(arrays, groups=groups), ["cka"], jackknife_groups=60)["cka"]
        assert found.low is not None
        assert found.high is not None
        return np.array([found.low[0, 1], found.high[0, 1]])

    truth = true_cka(8, 1.0)
    assert coverage(lambda rng: interval(rng, True), truth, runs=80) >= 0.85
    assert coverage(lambda rng: interval(rng, False), truth, runs=80) < 0.75


@pytest.mark.parametrize("grouped", [False, True], ids=["samples", "tokens"])
def test_the_interval_of_the_cosine_covers(grouped: bool) -> None:
    shape = np.random.default_rng(7).normal(size=(8, 8))

    def states(rng: np.random.Generator, n: int) -> list[np.ndarray]:
        h = rng.normal(size=(n, 8))
        return [h, np.maximum(h @ shape, 0)]

    truth = naive.cosines(states(np.random.default_rng(99), 100_000), centred=True)[:, 0, 1].mean()

    def interval(rng: np.random.Generator) -> np.ndarray:
        arrays, groups = states(rng, 80), None
        if grouped:
            arrays, groups = [np.repeat(array, 3, axis=0) for array in arrays], np.repeat(np.arange(80), 3)
        found = similarities(Ragged(arrays, groups=groups), ["cosine"], jackknife_groups=40)["cosine"]
        assert found.low is not None
        assert found.high is not None
        return np.array([found.low[0, 1], found.high[0, 1]])

    assert 0.89 <= coverage(interval, truth, runs=150) < 1


# Texts of unequal length -------------------------------------------------------------------------------------------


def texts(rng: np.random.Generator, count: int, share: float, pareto: bool) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and positions of texts; those of one text resemble each other."""
    sizes = np.ceil(10 * (1 + rng.pareto(1.2, count))).clip(max=3000) if pareto else np.full(count, 60.0)
    right = rng.binomial(sizes.astype(int), rng.beta(49 * share, 49 * (1 - share), count))
    return right.astype(float), sizes


def students(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """As all texts counted alike."""
    value, count = sums.sum() / sizes.sum(), len(sums)
    error = np.sqrt(((sums - sizes * value) ** 2).sum() * count / (count - 1)) / sizes.sum()
    return value + stats.t.ppf([0.025, 0.975], count - 1) * error


@pytest.mark.parametrize("share", [0.5, 0.98])
@pytest.mark.parametrize("count", [5, 16])
@pytest.mark.parametrize("pareto", [False, True], ids=["equal", "Pareto"])
def test_the_interval_of_a_share_of_positions_covers(share: float, count: int, pareto: bool) -> None:
    held = coverage(lambda rng: share_interval(*texts(rng, count, share, pareto)), share, runs=400)
    assert held >= 0.91
    if pareto:
        assert coverage(lambda rng: students(*texts(rng, count, share, pareto)), share, runs=400) < held - 0.03


def test_the_interval_of_a_mean_covers_where_one_text_holds_much() -> None:
    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        _, sizes = texts(rng, 8, 0.5, True)
        return sizes * rng.normal(size=8) + np.sqrt(sizes) * rng.normal(size=8), sizes

    assert coverage(lambda rng: around(*ratio(*draw(rng))), 0, runs=500) >= 0.91
    assert coverage(lambda rng: students(*draw(rng)), 0, runs=500) < 0.89


def bell_mccaffrey(sizes: np.ndarray) -> float:
    """Satterthwaite's degrees of freedom of CR2 from its matrices, for a mean of rows as if all were independent."""
    n, place = int(sizes.sum()), np.repeat(np.arange(len(sizes)), sizes.astype(int))
    residual = np.eye(n) - np.full((n, n), 1 / n)
    columns = []
    for index in range(len(sizes)):
        own = place == index
        values, vectors = np.linalg.eigh(residual[np.ix_(own, own)])
        root = vectors @ np.diag(values**-0.5) @ vectors.T
        columns.append(residual[:, own] @ root @ np.full(own.sum(), 1 / n))
    products = np.array(columns) @ np.array(columns).T
    return float(np.trace(products) ** 2 / (products**2).sum())


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [1, 2, 3, 9], [20, 1, 1], [5, 7]], ids=str)
def test_degrees_of_freedom_are_those_of_the_matrices(sizes: list[int]) -> None:
    weights = np.array(sizes) / sum(sizes)
    assert satterthwaite(weights) == pytest.approx(bell_mccaffrey(np.array(sizes)))


@given(
    hypothesis.extra.numpy.arrays(np.float64, (6,), elements=hypothesis.strategies.integers(0, 40)),
    hypothesis.strategies.integers(0, 2**32 - 1),
)
def test_no_interval_of_a_share_leaves_0_to_1_or_its_value(sizes: np.ndarray, seed: int) -> None:
    right = np.random.default_rng(seed).binomial(sizes.astype(int), 0.9).astype(float)
    low, high = share_interval(right, sizes)
    if np.count_nonzero(sizes) < 2:
        assert np.isnan([low, high]).all()
    else:
        assert 0 <= low <= right.sum() / sizes.sum() <= high <= 1
        assert low < high


def test_one_row_in_each_text_is_a_plain_share_but_for_few_texts() -> None:
    right = np.arange(500) % 10 != 0
    low, high = share_interval(right.astype(float), np.ones(500))
    np.testing.assert_allclose([low, high], wilson(np.array(450), 500), atol=1e-3)
