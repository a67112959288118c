from collections.abc import Sequence
from functools import cache

import naive_measures as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_measures import Ragged, correlated

from anydepth.errors import MeasureError
from anydepth.measures import similarities
from anydepth.measures.engine.covariance import tiles

FAMILY = ("cca", "svcca", "pwcca")
EACH = pytest.mark.parametrize("name", FAMILY)


def values(name: str, arrays: Sequence[np.ndarray], cuts: Sequence[int] = (), **how: int) -> np.ndarray:
    return similarities(Ragged(arrays, cuts), [name], **how)[name].value


def assert_definition(name: str, arrays: Sequence[np.ndarray], cuts: Sequence[int] = ()) -> None:
    np.testing.assert_allclose(values(name, arrays, cuts), naive.reference(name, arrays), rtol=0, atol=1e-6)


def orthonormal(n: int, columns: int, seed: int = 0) -> np.ndarray:
    """Columns of unit length that are orthogonal to each other and sum to zero."""
    x = np.random.default_rng(seed).normal(size=(n, columns))
    return np.linalg.qr(x - x.mean(0))[0]


def hard(kind: str) -> list[np.ndarray]:
    arrays = correlated(120, (8, 6, 10))
    if kind == "duplicated":
        arrays[0][:, 3] = arrays[0][:, 5]
    elif kind == "constant":
        arrays[1][:, 2] = 7.5
    elif kind == "rank-deficient":  # by sums in float32: what is left of the lost directions is their rounding
        arrays[2][:, 4:] = arrays[2][:, :4] @ np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    elif kind == "nearly dependent":
        arrays[0][:, 3] = arrays[0][:, 5] * (1 + 3e-4 * np.random.default_rng(2).normal(size=120).astype(np.float32))
    elif kind == "one row far out":
        arrays[1][60] += 300
    return arrays


@EACH
@pytest.mark.parametrize(
    ("n", "widths", "far"),
    [(12, (3, 2), 0), (40, (64, 8, 5), 0), (150, (16, 40), 1000), (700, (12, 40, 7), 1000), (600, (1, 1), 0)],
    ids=["few rows", "one depth n < D", "one feature at +1000", "several chunks, at +1000", "one feature"],
)
def test_it_is_the_definition(name: str, n: int, widths: tuple[int, ...], far: float) -> None:
    assert_definition(name, correlated(n, widths, far=far), [n - 1])


@EACH
@pytest.mark.parametrize("kind", ["duplicated", "constant", "rank-deficient", "nearly dependent", "one row far out"])
def test_awkward_features_are_no_harm(name: str, kind: str) -> None:
    assert_definition(name, hard(kind), [40, 119])


@EACH
@settings(deadline=None, max_examples=10)
@given(n=st.integers(25, 300), cuts=st.lists(st.integers(1, 299), max_size=5), seed=st.integers(0, 99))
def test_it_does_not_depend_on_how_the_rows_are_cut(name: str, n: int, cuts: list[int], seed: int) -> None:
    assert_definition(name, correlated(n, (9, 4, 6), seed=seed, far=100), [*cuts, n - 1])


def test_features_that_say_nothing_new_do_not_count() -> None:
    plain = correlated(120, (8, 6, 10))
    doubled = [np.concatenate([state, state[:, :2], np.ones((120, 1))], axis=1) for state in plain]
    np.testing.assert_allclose(values("cca", doubled), values("cca", plain), atol=1e-9)


# Closed forms --------------------------------------------------------------------------------------------------------


def test_mean_cca_is_the_mean_cosine_of_known_principal_angles() -> None:
    columns, angles = orthonormal(50, 6), np.array([0.2, 0.7, 1.3])
    first = columns[:, :3]
    second = first * np.cos(angles) + columns[:, 3:] * np.sin(angles)
    rng = np.random.default_rng(1)
    mixed = [first @ rng.normal(size=(3, 3)), second @ rng.normal(size=(3, 3)) + 4]
    assert values("cca", mixed)[0, 1] == pytest.approx(np.cos(angles).mean(), abs=1e-6)


@EACH
def test_of_single_features_it_is_the_size_of_their_correlation(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 1))
    y = -x + rng.normal(size=(80, 1))
    expected = abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    assert values(name, [x, y])[0, 1] == pytest.approx(expected, abs=1e-6)


def test_svcca_keeps_the_fewest_axes_with_99_percent_of_the_variance() -> None:
    columns = orthonormal(60, 4)
    # of squares 90, 9.1, .9: two axes hold 99.1 %, though by singular values (9.5, 3, .9) they would be 93 %
    first = columns[:, :3] * np.sqrt([90, 9.1, 0.9])
    second = columns[:, [3, 1, 2]] * np.sqrt([90, 9.1, 0.9])
    assert values("svcca", [first, second])[0, 1] == pytest.approx((0 + 1) / 2, abs=1e-6)
    assert values("cca", [first, second])[0, 1] == pytest.approx((0 + 1 + 1) / 3, abs=1e-6)
    second *= np.array([0.01, 1, 1])  # now its third axis is among those that count
    assert values("svcca", [first, second])[0, 1] == pytest.approx((0 + 1) / 2, abs=1e-6)


def test_pwcca_takes_its_weights_from_the_depth_of_the_row() -> None:
    columns, cosines = orthonormal(50, 4), np.array([0.9, 0.3])
    first = columns[:, :2] * [10, 1]
    second = (columns[:, :2] * cosines + columns[:, 2:] * np.sqrt(1 - cosines**2)) * [2, 3]
    found = values("pwcca", [first, second])
    assert found[0, 1] == pytest.approx((10 * 0.9 + 1 * 0.3) / 11, abs=1e-6)
    assert found[1, 0] == pytest.approx((2 * 0.9 + 3 * 0.3) / 5, abs=1e-6)
    across = similarities(Ragged([first]), ["pwcca"], other=Ragged([second]))["pwcca"].value
    assert across[0, 0] == pytest.approx(found[0, 1], abs=1e-12)


# Where it is undefined, and where it means little ------------------------------------------------------------------


@EACH
def test_a_depth_that_spans_all_rows_is_undefined_and_says_so(name: str) -> None:
    arrays = correlated(30, (6, 40, 4))
    rng = np.random.default_rng(0)
    arrays[1] = rng.normal(size=(30, 40)).astype(np.float32)  # so that 99 % of the variance takes n - 1 axes as well
    arrays[1] -= arrays[1].mean(0)
    u, _, v = np.linalg.svd(arrays[1], full_matrices=False)
    arrays[1] = u[:, :29] @ v[:29]
    found = similarities(Ragged(arrays), [name])[name]
    assert np.isnan(found.value[1]).all()
    assert np.isnan(found.value[:, 1]).all()
    assert np.isfinite(found.value[np.ix_([0, 2], [0, 2])]).all()
    title = name.upper()
    assert found.notes == (
        f"similarity by {title} is undefined at depth 1, which has as many directions as 30 rows can have: every "
        "correlation is 1",
    )


@EACH
def test_correlations_that_are_1_by_arithmetic_are_said_so(name: str) -> None:
    rng = np.random.default_rng(0)
    found = similarities(Ragged(list(rng.normal(size=(3, 20, 12)))), [name])[name]
    note = (
        f"similarity by {name.upper()}: in 3 pairs of depths some correlations are 1 whatever the states hold, since "
        "the ranks add up to more than 19: take more rows"
    )
    assert found.notes == (note,)
    assert (found.value > 0.6).all()


@EACH
@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_rows_have_no_correlations(name: str, n: int) -> None:
    assert np.isnan(values(name, correlated(n, (3, 2)))).all()


@EACH
def test_a_depth_without_a_partner_is_alike_itself(name: str) -> None:
    arrays = correlated(50, (4, 5))
    arrays[1][:] = 2
    found = values(name, arrays)
    assert found[0, 0] == 1
    assert np.isnan(found[[0, 1, 1], [1, 0, 1]]).all()
    assert values(name, arrays[:1]).tolist() == [[1]]


# Memory --------------------------------------------------------------------------------------------------------------


def pairs_of(depths: int) -> list[tuple[int, int]]:
    return [(k, other) for k in range(depths) for other in range(k + 1, depths)]


@EACH
@pytest.mark.parametrize("passes", [1, 3, 6, 10])
def test_with_less_memory_there_are_more_passes_and_the_same_values(name: str, passes: int) -> None:
    arrays = correlated(150, (6, 9, 6, 8, 8))
    memory = _least_memory(tuple(array.shape[1] for array in arrays))[passes]
    np.testing.assert_allclose(values(name, arrays, memory=memory), naive.reference(name, arrays), atol=1e-9)
    across = similarities(Ragged(arrays[:2]), [name], other=Ragged(arrays[2:]), memory=memory)[name].value
    np.testing.assert_allclose(across, naive.reference(name, arrays[:2], arrays[2:]), atol=1e-9)


@cache
def _least_memory(widths: tuple[int, ...]) -> dict[int, int]:
    """Of each number of passes, the least memory that it takes, to 1,000 bytes."""
    sizes, pairs = range(1_700_000, 3_200_000, 1000), pairs_of(len(widths))
    return {_passes(pairs, widths, size): size for size in reversed(sizes)}


def _passes(pairs: list[tuple[int, int]], widths: tuple[int, ...], memory: int) -> int:
    try:
        return len(tiles(pairs, set(range(len(widths))), widths, memory))
    except MeasureError:
        return 0


def test_tiles_hold_every_pair_once_and_keep_to_the_memory() -> None:
    widths = (1000,) * 8
    pairs = pairs_of(8)
    counts = []
    for memory in (2**34, 2**29, 2**28):
        found = tiles(pairs, set(range(8)), widths, memory)
        counts.append(len(found))
        assert sorted(pair for tile in found for pair in tile.pairs) == pairs
        assert all(tile.bytes(widths) <= memory for tile in found)
    assert counts[0] == 1 < counts[1] < counts[2]


def test_memory_for_less_than_two_depths_is_refused() -> None:
    message = "covariances of two depths of widths [40, 50] need 0.0 GB, but 0.0 GB are allowed: allow more memory"
    with pytest.raises(MeasureError) as caught:
        values("cca", correlated(60, (50, 40, 30)), memory=1000)
    assert message in str(caught.value)
