import naive_measures as naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_measures import Ragged, correlated
from scipy import stats
from simulation import covers, mixed

from anydepth.errors import MeasureError
from anydepth.measures import similarities
from anydepth.measures.rsa import distance_ranks, rank_influence
from anydepth.stats.ranks import mid_ranks


def directions(state: np.ndarray) -> torch.Tensor:
    y = state - state.mean(0)
    return torch.from_numpy(y / np.linalg.norm(y, axis=1, keepdims=True))


def values(arrays: list[np.ndarray], cuts: tuple[int, ...] = ()) -> np.ndarray:
    return similarities(Ragged(arrays, cuts), ["rsa"], jackknife_groups=None)["rsa"].value


@pytest.mark.parametrize(
    ("n", "widths", "far"),
    [(3, (3, 2), 0), (30, (64, 8, 5), 0), (150, (16, 200), 1000), (300, (12, 40, 7), 1000), (100, (1, 2), 0)],
    ids=["three rows", "n < D", "n < D, one feature at +1000", "n > D, at +1000", "one feature: two distances"],
)
def test_it_is_the_definition(n: int, widths: tuple[int, ...], far: float) -> None:
    arrays = correlated(n, widths, far=far)
    np.testing.assert_allclose(values(arrays, (n - 1,)), naive.reference("rsa", arrays), rtol=0, atol=1e-6)


def test_equal_rows_have_equal_distances_which_share_their_rank() -> None:
    arrays = correlated(80, (6, 5))
    arrays[0][20:50] = arrays[0][3]
    arrays[1] = np.round(arrays[1][:, :2])
    np.testing.assert_allclose(values(arrays), naive.reference("rsa", arrays), rtol=0, atol=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_are_those_of_scipy(drawn: list[int]) -> None:
    numbers = np.array(drawn, dtype=np.float64)
    np.testing.assert_array_equal(mid_ranks(numbers), stats.rankdata(numbers) - 1)


def test_three_rows_by_hand() -> None:
    # 01, 02 and 12 are 100, 120 and 140 degrees apart at one depth, 110, 90 and 160 at the other
    states = []
    for angle in np.deg2rad([[0, 100, 240], [0, 110, 270]]):
        unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        sizes = np.linalg.svd(unit.T)[2][-1]  # of one sign, and such that the mean is the origin
        states.append(unit * sizes[:, None])
    assert values(states)[0, 1] == pytest.approx(0.5, abs=1e-9)  # ranks 0 1 2 and 1 0 2


def test_rows_all_equally_far_apart_are_undefined_and_said_so() -> None:
    arrays = [np.eye(20, dtype=np.float32), *correlated(20, (6, 6))]
    found = similarities(Ragged(arrays), ["rsa"])["rsa"]
    assert np.isnan(found.value[0]).all()
    assert np.isfinite(found.value[1:, 1:]).all()
    assert found.notes == ("similarity by RSA is undefined at depth 0: its rows are all equally far apart",)
    assert np.isnan(values(correlated(2, (3, 3)))).all()


def test_a_row_at_the_mean_leaves_its_depth_undefined() -> None:
    arrays = correlated(21, (4, 4))
    arrays[0][:10] = -arrays[0][11:21]
    arrays[0][10] = 0
    found = similarities(Ragged(arrays), ["rsa"])["rsa"]
    assert np.isnan(found.value[0]).all()
    assert found.value[1, 1] == 1
    assert found.notes == (
        "similarity by RSA is undefined at depth 0, which is the mean in 1 of 21 rows: they have no direction",
    )


def test_of_many_rows_some_are_taken_and_the_note_says_how_many(monkeypatch) -> None:
    monkeypatch.setattr("anydepth.measures.rsa.RSA_ROWS", 60)
    arrays = correlated(300, (6, 4))
    states = Ragged(arrays, [7, 130])
    first, again, other = (similarities(states, ["rsa"], seed=seed)["rsa"] for seed in (0, 0, 1))
    assert first.notes == ("similarity by RSA: over 60 of 300 rows",)
    np.testing.assert_array_equal(first.value, again.value)
    assert first.value[0, 1] != other.value[0, 1]
    whole = naive.reference("rsa", arrays)[0, 1]
    assert first.low[0, 1] < whole < first.high[0, 1]
    drawn = np.sort(np.random.default_rng(0).choice(300, 60, replace=False))
    mean = [array - array.astype(np.float64).mean(0) for array in arrays]
    units = [state[drawn] / np.linalg.norm(state[drawn], axis=1, keepdims=True) for state in mean]
    distances = [(1 - unit @ unit.T)[np.triu_indices(60, 1)] for unit in units]
    assert first.value[0, 1] == pytest.approx(stats.spearmanr(*distances).statistic, abs=1e-6)


def test_memory_that_does_not_suffice_is_refused() -> None:
    with pytest.raises(MeasureError, match="RSA over 200 rows of 2 depths needs 0.0 GB, but 0.0 GB are allowed"):
        similarities(Ragged(correlated(200, (3, 3))), ["rsa"], memory=1000)


# Intervals -----------------------------------------------------------------------------------------------------------


def test_the_influence_of_a_row_is_what_leaving_it_out_does() -> None:
    """Ranked anew without it; the mean that rows are seen from stays."""
    n = 120
    units = [directions(x) for x in mixed(np.random.default_rng(0), n, 6, 1.0)]
    ranks = [distance_ranks(unit) for unit in units]
    found = rank_influence(ranks[0], ranks[1], np.arange(n))
    upper, kept = np.triu_indices(n - 1, 1), [np.delete(np.arange(n), i) for i in range(n)]
    distances = [1 - (unit @ unit.T).numpy() for unit in units]
    without = [stats.spearmanr(*(one[np.ix_(rows, rows)][upper] for one in distances)).statistic for rows in kept]
    expected = (n - 1) * (np.mean(without) - np.array(without))
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


def test_the_influence_of_some_rows_is_nearly_theirs_among_all() -> None:
    n, some = 300, np.arange(0, 300, 2)
    arrays = mixed(np.random.default_rng(0), n, 6, 1.0)
    ranks = [distance_ranks(directions(x)) for x in arrays]
    whole = rank_influence(ranks[0], ranks[1], np.arange(n))[some]
    found = rank_influence(ranks[0][some], ranks[1][some], some)
    np.testing.assert_allclose(found - found.mean(), whole - whole.mean(), atol=0.05 * np.abs(whole).max())


def test_the_interval_covers() -> None:
    assert 0.88 <= covers("rsa", values, 100, 8, 1.0, runs=120, draws=10) < 1


@pytest.mark.slow
@pytest.mark.parametrize(("n", "width", "noise"), [(200, 8, 1.0), (200, 8, 0.2), (200, 100, 3.0), (1000, 8, 1.0)])
def test_the_interval_covers_95_percent(n: int, width: int, noise: float) -> None:
    found = covers("rsa", values, n, width, noise, runs=500, draws=200)
    assert 0.92 <= found <= 0.98  # 95 ± 2 %, and 1 % is the error of 500 runs


def test_tokens_of_one_text_are_left_out_together() -> None:
    arrays = [np.repeat(a, 4, axis=0) + 0.05 for a in mixed(np.random.default_rng(0), 60, 8, 1.0)]
    arrays = [a + 0.05 * np.random.default_rng(1).normal(size=a.shape) for a in arrays]
    groups = np.repeat(np.arange(60), 4)
    together = similarities(Ragged(arrays, groups=groups), ["rsa"])["rsa"]
    apart = similarities(Ragged(arrays), ["rsa"])["rsa"]
    assert together.value[0, 1] == apart.value[0, 1]
    assert (together.high - together.low)[0, 1] > 1.5 * (apart.high - apart.low)[0, 1]
