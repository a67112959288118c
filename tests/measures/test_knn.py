import naive_measures as naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_measures import Ragged, correlated

from anydepth.measures import similarities
from anydepth.measures.engine.neighbours import nearest

BOTH = pytest.mark.parametrize("name", ["knn", "cknna"])


def values(name: str, arrays: list[np.ndarray], cuts: tuple[int, ...] = ()) -> np.ndarray:
    return similarities(Ragged(arrays, cuts), [name])[name].value


@BOTH
@pytest.mark.parametrize(
    ("n", "widths", "far"),
    [(12, (3, 2), 0), (40, (64, 8), 0), (100, (16, 120), 1000), (600, (12, 7), 1000)],
    ids=["twelve rows", "n < D", "n < D, one feature at +1000", "two tiles, at +1000"],
)
def test_it_is_the_definition(name: str, n: int, widths: tuple[int, ...], far: float) -> None:
    arrays = correlated(n, widths, far=far)
    np.testing.assert_allclose(values(name, arrays, (n - 1,)), naive.reference(name, arrays), rtol=0, atol=1e-6)


@BOTH
def test_of_equally_near_rows_the_earlier_count(name: str) -> None:
    arrays = correlated(80, (6, 5, 3))
    arrays[0][20:50] = arrays[0][3]  # more rows with the same direction than there are neighbours
    arrays[1] = np.round(arrays[1][:, :2])
    arrays[2][:, 2] = 5
    np.testing.assert_allclose(values(name, arrays), naive.reference(name, arrays), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(m=st.integers(3, 40), seed=st.integers(0, 99), count=st.integers(1, 12))
def test_the_nearest_are_the_nearest(m: int, seed: int, count: int) -> None:
    count = min(count, m - 1)
    x = np.random.default_rng(seed).normal(size=(m, 3))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = nearest(torch.from_numpy(unit), count)
    cosines = unit @ unit.T
    for row in range(m):
        order = sorted(set(range(m)) - {row}, key=lambda j, row=row: -cosines[row, j])[:count]
        assert set(found.rows[row]) == set(order)
        assert found.rows[row, -1] == order[-1]
        np.testing.assert_allclose(found.cosines[row], cosines[row, found.rows[row]], atol=1e-6)
    np.testing.assert_allclose(found.mean, cosines.mean(1), atol=1e-12)


def test_what_float32_cannot_tell_apart_is_told_apart() -> None:
    angles = np.deg2rad(10) * (1 + 1e-9 * np.arange(30))
    angles[0] = 0
    unit = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert sorted(nearest(unit, 12).rows[0]) == list(range(1, 13))
    assert len(set((unit @ unit.T).float()[0, 1:].tolist())) == 1
    equal = torch.ones(30, 1).double()  # in the order of the rows
    assert sorted(nearest(equal, 12).rows[20]) == list(range(12))
    assert sorted(nearest(equal, 12).rows[4]) == [0, 1, 2, 3, *range(5, 13)]


def test_four_of_ten_neighbours_by_hand() -> None:
    # 24 directions, 15 degrees apart: the nearest to row 0 are 1 to 5 steps away. With the odd rows turned by half a
    # circle, those 2 and 4 steps away still are, and 11, 9 and 7 came in for 1, 3 and 5.
    around = np.arange(24) * 2 * np.pi / 24
    circles = [np.stack([np.cos(a), np.sin(a)], axis=1) for a in (around, around + np.pi * (np.arange(24) % 2))]
    assert values("knn", circles)[0, 1] == pytest.approx(0.4)


def test_unrelated_depths_share_as_many_neighbours_as_chance_gives() -> None:
    found = [values("knn", list(np.random.default_rng(seed).normal(size=(2, 60, 8))))[0, 1] for seed in range(40)]
    assert np.mean(found) == pytest.approx(10 / 59, abs=4 * np.std(found) / 40**0.5)


@BOTH
@pytest.mark.parametrize("n", [1, 2, 11])
def test_fewer_than_twelve_rows_are_undefined_and_said_so(name: str, n: int) -> None:
    found = similarities(Ragged(correlated(n, (4, 4))), [name])[name]
    assert np.isnan(found.value).all()
    title = {"knn": "kNN", "cknna": "CKNNA"}[name]
    assert f"similarity by {title} is undefined for {n} rows: it needs at least 12" in found.notes


@BOTH
def test_a_row_at_the_mean_has_no_neighbours(name: str) -> None:
    arrays = correlated(31, (4, 4))
    arrays[0][:15] = -arrays[0][16:]
    arrays[0][15] = 0
    found = similarities(Ragged(arrays), [name])[name]
    assert np.isnan(found.value[0]).all()
    assert found.value[1, 1] == 1
    assert "is undefined at depth 0, which is the mean in 1 of 31 rows: they have no direction" in found.notes[0]


@BOTH
def test_of_many_rows_some_are_taken_and_the_note_says_how_many(name: str, monkeypatch) -> None:
    for module in ("engine.context", "knn"):
        monkeypatch.setattr(f"anydepth.measures.{module}.NEIGHBOUR_ROWS", 50)
    arrays = correlated(200, (6, 4))
    found = similarities(Ragged(arrays, [7, 130]), [name])[name]
    title = {"knn": "kNN", "cknna": "CKNNA"}[name]
    assert found.notes == (f"similarity by {title}: over 50 of 200 rows",)
    drawn = np.sort(np.random.default_rng(0).choice(200, 50, replace=False))
    # seen from the mean of all rows, not only of those drawn
    shifted = [array.astype(np.float64) - array.astype(np.float64).mean(0) for array in arrays]
    monkeypatch.setattr(naive, "row_cosines", lambda y: y @ y.T)
    units = [state[drawn] / np.linalg.norm(state[drawn], axis=1, keepdims=True) for state in shifted]
    assert found.value[0, 1] == pytest.approx(naive.reference(name, units)[0, 1], abs=1e-6)


@BOTH
def test_it_has_no_interval(name: str) -> None:
    found = similarities(Ragged(correlated(50, (4, 4))), [name])[name]
    assert (found.low, found.high, found.notes) == (None, None, ())
