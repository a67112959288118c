"""The permutation test: its values are CKA's, its p-values have the size they promise, and it finds what is there."""

from __future__ import annotations

import naive_measures as naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_measures import Ragged, correlated

from anydepth.errors import DataError, MeasureError
from anydepth.measures.permutation_test import CHANCE_ROWS, aligned_gram, chance, for_all_together

# --- the values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "widths"), [(4, (3, 2)), (30, (5, 50)), (60, (4, 4))])
@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_products_of_grams_are_debiased_cka(n: int, widths: tuple[int, int], far: float) -> None:
    states = [state.astype(np.float64) for state in correlated(n, widths, far=far)]
    first, second = (aligned_gram(torch.from_numpy(state)) for state in states)
    expected = naive.cka([state - state.mean(0) for state in states], debiased=True)
    assert float((first * second).sum()) == pytest.approx(expected[0, 1], abs=1e-6)
    assert float((first * first).sum()) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(first.sum(0), 0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_permuting_rows_permutes_the_gram(order: list[int]) -> None:
    x = torch.from_numpy(correlated(12, (4,))[0]).double()
    torch.testing.assert_close(aligned_gram(x[order]), aligned_gram(x)[order][:, order], atol=1e-6, rtol=0)


def test_where_nothing_is_defined() -> None:
    assert aligned_gram(torch.randn(3, 5).double()).isnan().all(), "debiased CKA needs four rows"
    assert aligned_gram(torch.eye(6).double()).isnan().all(), "all rows equally far from each other"


def test_the_range_by_chance_is_that_of_permuted_samples() -> None:
    """Of one pair: the 95 % quantile over other permutations, each by the definition of debiased CKA."""
    x, y = correlated(40, (3, 5))
    found = chance(Ragged([x]), Ragged([y]), permutations=800)
    rng = np.random.default_rng(1)
    permuted = [naive.cka([x, y[rng.permutation(40)]], debiased=True)[0, 1] for _ in range(800)]
    assert found.high[0, 0] == pytest.approx(np.quantile(permuted, 0.95), abs=0.012)
    assert found.p[0, 0] == pytest.approx(1 / 801)
    assert (found.samples, found.permutations) == (40, 800)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 30), st.integers(1, 3), st.integers(1, 3))
def test_p_values_for_all_together(seed: int, outcomes: int, a: int, b: int) -> None:
    values = np.random.default_rng(seed).normal(size=(outcomes, a, b))
    found = for_all_together(values)
    units = [
        [[(values[r, i, j] - values[:, i, j].mean()) / values[:, i, j].std() for j in range(b)] for i in range(a)]
        for r in range(outcomes)
    ]
    for i in range(a):
        for j in range(b):
            reached = sum(max(max(row) for row in units[r]) >= units[0][i][j] - 1e-12 for r in range(outcomes))
            assert found[i, j] == pytest.approx(reached / outcomes)
    assert 1 / outcomes <= found.min()


def test_an_entry_that_is_undefined_leaves_the_others() -> None:
    values = np.random.default_rng(0).normal(size=(50, 2, 2))
    alone = for_all_together(values[:, :1])
    values[:, 1] = np.nan
    found = for_all_together(values)
    np.testing.assert_array_equal(found[:1], alone)
    assert np.isnan(found[1]).all()


# --- size and power --------------------------------------------------------------------------------------------------


def independent(rng: np.random.Generator, n: int, each: int = 1) -> tuple[Ragged, Ragged]:
    """Two models of two depths each that share nothing; heavy tails, and `each` nearly equal rows for a sample."""
    states = []
    for _ in range(2):
        first = rng.standard_t(3, size=(n, 3))
        states.append([first, np.maximum(first @ rng.normal(size=(3, 6)), 0)])
    groups = None if each == 1 else np.repeat(np.arange(n), each)
    rows = [[np.repeat(one, each, axis=0) + 1e-3 * (each > 1) for one in model] for model in states]
    return Ragged(rows[0], groups=groups), Ragged(rows[1], groups=groups)


def share_found(runs: int, n: int, permutations: int, each: int = 1, *, told: bool = True) -> float:
    """Share of simulations in which some pair of depths comes out as more than chance at 5 %."""
    found, rng = 0, np.random.default_rng(1)
    for run in range(runs):
        first, second = independent(rng, n, each)
        if not told:
            first.groups = second.groups = None
        found += bool((chance(first, second, permutations=permutations, seed=run).p <= 0.05).any())
    return found / runs


def test_the_size_is_right_for_all_pairs_together() -> None:
    assert 0.02 <= share_found(runs=300, n=12, permutations=39) <= 0.08  # 5 %, and 1.3 % is the error of 300 runs


@pytest.mark.slow
@pytest.mark.parametrize(("n", "runs"), [(10, 3000), (200, 600), (1000, 200)])
def test_the_size_is_right_however_many_samples(n: int, runs: int) -> None:
    error = (0.05 * 0.95 / runs) ** 0.5
    assert abs(share_found(runs, n, permutations=99) - 0.05) <= 3 * error


def test_rows_of_one_sample_are_not_permuted_apart() -> None:
    assert share_found(runs=150, n=12, permutations=19, each=4) <= 0.1
    assert share_found(runs=50, n=12, permutations=19, each=4, told=False) > 0.5, "they would seem more than chance"


def test_what_two_models_share_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(2, 150, 4))
    first = Ragged([rng.normal(size=(150, 5)), shared @ rng.normal(size=(4, 5))])
    second = Ragged([shared + rng.normal(size=(150, 4)), own])
    found = chance(first, second, permutations=199)
    assert found.p[1, 0] == 1 / 200
    assert (found.p[[0, 0, 1], [0, 1, 1]] > 0.05).all()
    assert found.in_words() == (
        "more than chance in 1 of 4 pairs of depths, at 5% for all together (199 permutations of 150 samples)"
    )


# --- which rows ------------------------------------------------------------------------------------------------------


def test_of_many_samples_some_are_drawn_and_told() -> None:
    x = np.random.default_rng(0).normal(size=(700, 3))
    found = chance(Ragged([x], [13, 400]), Ragged([x + 1], [90]), permutations=19)
    assert found.samples == CHANCE_ROWS
    assert found.p[0, 0] == 0.05, "the same rows of both"
    again, other = (chance(Ragged([x]), Ragged([x**2]), permutations=19, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.high, chance(Ragged([x]), Ragged([x**2]), permutations=19).high)
    assert again.high[0, 0] != other.high[0, 0]
    assert chance(Ragged([x]), Ragged([x]), permutations=19, memory=8 * 3 * 100**2).samples == 100


def test_of_a_sample_with_several_rows_one_is_drawn() -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(30), rng.integers(1, 6, size=30)))
    x = rng.normal(size=(len(groups), 3))
    assert chance(Ragged([x], groups=groups), Ragged([x], groups=groups), permutations=19).samples == 30


def test_blank_depths_and_too_few_samples() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    found = chance(Ragged([np.ones((20, 3)), x]), Ragged([x]), permutations=19)
    assert np.isnan(found.p[0]).all()
    assert np.isnan(found.high[0]).all()
    assert found.p[1, 0] == 0.05
    assert "in 1 of 1 pairs" in found.in_words()
    few = chance(Ragged([x[:3]]), Ragged([x[:3]]), permutations=19)
    assert np.isnan(few.p).all()
    assert "in 0 of 0 pairs" in few.in_words()


def test_progress_tells_permutations() -> None:
    x, told = np.random.default_rng(0).normal(size=(20, 3)), list[tuple[int, int, str]]()
    chance(Ragged([x]), Ragged([x]), permutations=19, progress=lambda *said: told.append(said))
    assert told[-1] == (19, 19, "permutations")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("permutations", [-1, 0, 18])
def test_permutations_that_can_show_nothing(permutations: int) -> None:
    x = np.ones((5, 2))
    with pytest.raises(MeasureError) as caught:
        chance(Ragged([x]), Ragged([x]), permutations=permutations)
    assert str(caught.value) == f"{permutations} permutations can show nothing at 5 %: expected at least 19"


def test_states_of_other_rows() -> None:
    with pytest.raises(DataError, match="20 rows and 19: states of two models need the same rows"):
        chance(Ragged([np.ones((20, 2))]), Ragged([np.ones((19, 2))]))
