import naive_measures as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_measures import Ragged, correlated

from anydepth.measures import similarities


def values(arrays: list[np.ndarray], cuts: tuple[int, ...] = ()) -> np.ndarray:
    return similarities(Ragged(arrays, cuts), ["procrustes"])["procrustes"].value


@pytest.mark.parametrize(
    ("n", "widths", "far"),
    [(2, (3, 2), 0), (30, (64, 8, 5), 0), (150, (16, 200), 1000), (700, (12, 40, 7), 1000), (600, (1, 1), 0)],
    ids=["two rows", "n < D", "n < D, one feature at +1000", "several chunks, at +1000", "one feature"],
)
def test_it_is_the_inner_product_after_the_best_rotation(n: int, widths: tuple[int, ...], far: float) -> None:
    arrays = correlated(n, widths, far=far)
    np.testing.assert_allclose(values(arrays, (n - 1,)), naive.reference("procrustes", arrays), rtol=0, atol=1e-6)


def test_awkward_features_are_no_harm() -> None:
    arrays = correlated(90, (8, 6, 10))
    arrays[0][:, 3] = arrays[0][:, 5]
    arrays[1][:, 2] = 7.5
    arrays[2][:, 4:] = arrays[2][:, :4] @ np.ones((4, 6), np.float32)
    np.testing.assert_allclose(values(arrays), naive.reference("procrustes", arrays), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
def test_the_distance_it_stands_for_is_the_least_over_rotations(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 40, 5))
    y += x
    value = values([scale * x, y])[0, 1]
    x, y = ((state - state.mean(0)) / np.linalg.norm(state - state.mean(0)) for state in (x, y))
    others = [np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(50)]
    distances = [np.linalg.norm(x @ turn - y) ** 2 for turn in others]
    assert min(distances) >= 2 - 2 * value - 1e-6
    u, _, v = np.linalg.svd(x.T @ y)
    assert np.linalg.norm(x @ u @ v - y) ** 2 == pytest.approx(2 - 2 * value, abs=1e-6)


def test_a_rotation_into_more_features_is_no_difference() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4))
    into = np.linalg.qr(np.random.default_rng(1).normal(size=(9, 4)))[0].T
    assert values([x, 3 * x @ into + 1])[0, 1] == pytest.approx(1, abs=1e-6)


def test_of_single_features_it_is_the_size_of_their_correlation() -> None:
    x = np.random.default_rng(0).normal(size=(80, 1))
    y = np.random.default_rng(1).normal(size=(80, 1)) - x
    assert values([x, y])[0, 1] == pytest.approx(abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]), abs=1e-6)


def test_it_has_no_interval() -> None:
    found = similarities(Ragged(correlated(50, (4, 4))), ["procrustes"])["procrustes"]
    assert (found.low, found.high, found.notes) == (None, None, ())
