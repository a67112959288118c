from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth import trace_states
from anydepth.errors import MeasureError
from anydepth.stats.agreement import Agreement, agreement, agreements


def symmetric(values: np.ndarray) -> np.ndarray:
    """A similarity matrix with these values above the diagonal."""
    depths = round((1 + np.sqrt(1 + 8 * len(values))) / 2)
    matrix = np.eye(depths)
    matrix[np.triu_indices(depths, 1)] = values
    return np.triu(matrix) + np.triu(matrix, 1).T


def random_pair(depths: int, seed: int = 0, alike: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.uniform(size=depths * (depths - 1) // 2)
    return symmetric(values), symmetric(alike * values + rng.normal(size=len(values)) / 4)


def above(matrix: np.ndarray) -> np.ndarray:
    return np.array([matrix[a, b] for a in range(len(matrix)) for b in range(a + 1, len(matrix))])


@pytest.mark.parametrize("depths", [4, 5, 13])
@pytest.mark.parametrize("alike", [1.0, -0.5, 0.0])
def test_coefficients_are_scipys_over_pairs_of_different_depths(depths: int, alike: float) -> None:
    a, b = random_pair(depths, seed=depths, alike=alike)
    found = agreement(a, b)
    assert found.pairs == depths * (depths - 1) // 2
    assert found.pearson[0] == pytest.approx(scipy.stats.pearsonr(above(a), above(b)).statistic, abs=1e-12)
    assert found.spearman[0] == pytest.approx(scipy.stats.spearmanr(above(a), above(b)).statistic, abs=1e-12)


def test_of_a_measure_that_is_not_symmetric_a_pair_has_the_mean_of_its_two_values() -> None:
    a, b = random_pair(8)
    skew = np.random.default_rng(1).normal(size=b.shape)
    lopsided = b + skew - skew.T
    assert agreement(a, lopsided).pairs == 28
    for found in (agreement(a, lopsided), agreement(a, lopsided.T)):
        np.testing.assert_allclose(found.pearson, agreement(a, b).pearson, atol=1e-12)
        np.testing.assert_allclose(found.spearman, agreement(a, b).spearman, atol=1e-12)
    lopsided[2, 5] = np.nan
    assert agreement(a, lopsided).pairs == 27, "one direction is not defined, so the mean is not"


def test_every_two_measures_are_held_against_each_other() -> None:
    measures = dict(zip(("one", "two", "three"), (*random_pair(7), random_pair(7, seed=1)[0]), strict=True))
    found = agreements(measures)
    assert list(found) == [("one", "two"), ("one", "three"), ("two", "three")]
    for (first, second), one in found.items():
        assert one == agreement(measures[first], measures[second])
    assert agreements(measures, 0.5)["one", "two"] == agreement(measures["one"], measures["two"], 0.5)
    assert agreements({}) == agreements({"one": np.eye(3)}) == {}


def test_pwcca_of_real_states_is_held_against_the_others() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(60, 4))
    states = {str(depth): start + depth * rng.normal(size=(60, 4)) / 2 for depth in range(6)}
    trace = trace_states(states, measures=["pwcca", "cca"])
    weighted, plain = trace.similarity["pwcca"], trace.similarity["cca"]
    assert np.abs(weighted - weighted.T).max() > 1e-3
    found = trace.measure_agreement()["pwcca", "cca"]
    both = (weighted + weighted.T)[np.triu_indices(6, 1)] / 2
    assert found.spearman[0] == pytest.approx(scipy.stats.spearmanr(both, above(plain)).statistic, abs=1e-12)
    assert found.pearson[0] == pytest.approx(scipy.stats.pearsonr(both, above(plain)).statistic, abs=1e-12)


def test_ties_count_as_scipy_counts_them() -> None:
    a, b = random_pair(7)
    a, b = a.round(1), b.round(1)
    expected = scipy.stats.spearmanr(above(a), above(b)).statistic
    assert agreement(a, b).spearman[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("blank", [0, 3, 6])
@pytest.mark.parametrize("in_both", [True, False])
def test_blank_depths_are_left_out(blank: int, in_both: bool) -> None:
    a, b = random_pair(7)
    expected = agreement(np.delete(np.delete(a, blank, 0), blank, 1), np.delete(np.delete(b, blank, 0), blank, 1))
    for matrix in (a, b) if in_both else (b,):
        matrix[blank] = matrix[:, blank] = np.nan
    assert agreement(a, b) == expected
    assert expected.pairs == 15


def test_single_blank_pairs_are_left_out() -> None:
    a, b = random_pair(7)
    keep = np.ones(21, dtype=bool)
    keep[[2, 11]] = False
    first, second = (np.triu_indices(7, 1)[axis][~keep] for axis in (0, 1))
    for x, y in zip(first, second, strict=True):
        b[x, y] = b[y, x] = np.nan
    found = agreement(a, b)
    assert found.pairs == 19
    expected = scipy.stats.pearsonr(above(a)[keep], above(b)[keep]).statistic
    assert found.pearson[0] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_scale_and_shift_change_nothing(seed: int, scale: float, shift: float) -> None:
    a, b = random_pair(6, seed)
    one, other = agreement(a, b), agreement(a, scale * b + shift)
    np.testing.assert_allclose(one.pearson, other.pearson, atol=1e-8)
    assert one.spearman[0] == pytest.approx(other.spearman[0], abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_of_depths_and_of_measures_changes_nothing(seed: int) -> None:
    a, b = random_pair(6, seed)
    order = np.random.default_rng(seed).permutation(6)
    mixed = agreement(a[np.ix_(order, order)], b[np.ix_(order, order)])
    for found in (agreement(b, a), mixed):
        np.testing.assert_allclose(found.pearson, agreement(a, b).pearson, atol=1e-9)
        np.testing.assert_allclose(found.spearman, agreement(a, b).spearman, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([4, 6, 13]))
def test_the_interval_holds_the_value_and_stays_inside(seed: int, depths: int) -> None:
    a, b = random_pair(depths, seed)
    found = agreement(a, b)
    for value, low, high in (found.pearson, found.spearman):
        if depths == 4:  # one depth less leaves three pairs: no interval
            assert np.isfinite(value)
            assert np.isnan([low, high]).all()
        else:
            assert -1 <= low <= value <= high <= 1


@pytest.mark.parametrize("sign", [1, -1])
def test_measures_that_agree_perfectly(sign: int) -> None:
    a, _ = random_pair(6)
    found = agreement(a, sign * a)
    np.testing.assert_allclose(found.pearson, sign, atol=1e-6)
    np.testing.assert_allclose(found.spearman, sign, atol=1e-6)
    assert found.spearman[1] <= found.spearman[0] <= found.spearman[2]
    assert agreement(a, sign * a**3).spearman[0] == pytest.approx(sign, abs=1e-12)
    assert abs(agreement(a, sign * a**3).pearson[0]) < 1


NOTHING = (np.nan, np.nan, np.nan)


@pytest.mark.parametrize(
    ("a", "b", "pairs"),
    [
        (np.eye(1), np.eye(1), 0),
        (*random_pair(3), 3),
        (np.full((6, 6), np.nan), np.eye(6), 0),
        (np.ones((6, 6)), random_pair(6)[0], 15),  # no spread
    ],
)
def test_too_little_to_correlate_is_nan_not_a_number(a: np.ndarray, b: np.ndarray, pairs: int) -> None:
    found = agreement(a, b)
    assert found.pairs == pairs
    np.testing.assert_equal(found.pearson, NOTHING)
    np.testing.assert_equal(found.spearman, NOTHING)


def test_confidence_widens_the_interval() -> None:
    a, b = random_pair(9)

    def width(found: Agreement) -> float:
        return found.pearson[2] - found.pearson[1]

    narrow, usual, wide = (width(agreement(a, b, confidence)) for confidence in (0.5, 0.95, 0.99))
    assert 0 < narrow < usual < wide


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -1.0])
def test_confidence_is_a_share(confidence: float) -> None:
    a, b = random_pair(6)
    with pytest.raises(MeasureError, match=f"confidence is {confidence}: expected a share between 0 and 1"):
        agreement(a, b, confidence)


def depths_drawn(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two measures of depths drawn from one population: what pairs share comes from the depths they are made of."""
    place, first, second = rng.uniform(size=count), rng.normal(size=count), rng.normal(size=count)
    apart = np.abs(place[:, None] - place)
    a = np.exp(-2 * apart) + 0.08 * (first[:, None] + first)
    b = np.exp(-3 * apart**2) + 0.08 * (second[:, None] + second)
    return a, b


def test_the_interval_covers_what_other_depths_would_have_given() -> None:
    """Thirteen depths drawn 200 times, against the coefficient over two thousand."""
    rng = np.random.default_rng(0)
    a, b = depths_drawn(2000, rng)
    truth = np.corrcoef(above_fast(a), above_fast(b))[0, 1]
    assert 0.4 < truth < 0.9
    inside = naive = 0
    for _ in range(200):
        a, b = depths_drawn(13, rng)
        value, low, high = agreement(a, b).pearson
        inside += low <= truth <= high
        half = 1.96 / np.sqrt(78 - 3)  # as if the 78 pairs were independent
        naive += np.tanh(np.arctanh(value) - half) <= truth <= np.tanh(np.arctanh(value) + half)
    assert 0.88 <= inside / 200 <= 0.995
    assert naive / 200 < inside / 200 - 0.1, "independent pairs would promise far too much"


def above_fast(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), 1)]
