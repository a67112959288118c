import naive_measures as naive
import numpy as np
import pytest
from naive_measures import Ragged, correlated
from scipy import stats
from simulation import covers, mixed

from anydepth.measures import similarities


def values(arrays: list[np.ndarray], cuts: tuple[int, ...] = ()) -> np.ndarray:
    return similarities(Ragged(arrays, cuts), ["cka_rbf"], jackknife_groups=None)["cka_rbf"].value


@pytest.mark.parametrize(
    ("n", "widths", "far"),
    [(4, (3, 2), 0), (30, (64, 8, 5), 0), (150, (16, 200), 1000), (600, (12, 7), 1000), (1100, (4, 3), 1000)],
    ids=["four rows", "n < D", "n < D, one feature at +1000", "two tiles", "float32"],
)
def test_it_is_the_definition(n: int, widths: tuple[int, ...], far: float) -> None:
    arrays = correlated(n, widths, far=far)
    np.testing.assert_allclose(values(arrays, (n - 1,)), naive.reference("cka_rbf", arrays), rtol=0, atol=1e-6)


def test_awkward_features_are_no_harm() -> None:
    arrays = correlated(90, (8, 6, 10))
    arrays[0][:, 3] = arrays[0][:, 5]
    arrays[1][:, 2] = 7.5
    arrays[2][20:40] = arrays[2][3]
    np.testing.assert_allclose(values(arrays), naive.reference("cka_rbf", arrays), rtol=0, atol=1e-6)


def test_one_massive_row_among_many_is_no_harm() -> None:
    arrays = correlated(1100, (3, 4))
    for array in arrays:
        array[500] += 3000
    np.testing.assert_allclose(values(arrays), naive.reference("cka_rbf", arrays), rtol=0, atol=1e-6)


def test_float32_tiles_of_wide_depths_lose_nothing(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(1100, 400)).astype(np.float32)
    arrays = [first, first + rng.normal(size=first.shape).astype(np.float32)]
    single = values(arrays)
    monkeypatch.setattr("anydepth.measures.cka_rbf._FEW", len(first))
    np.testing.assert_allclose(single, values(arrays), rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [64, 7])
def test_the_size_of_tiles_does_not_matter(size: int, monkeypatch) -> None:
    states = Ragged(correlated(130, (6, 4)), [50])
    whole = similarities(states, ["cka_rbf"])["cka_rbf"]
    monkeypatch.setattr("anydepth.measures.cka_rbf._TILES", (size,))
    tiled = similarities(states, ["cka_rbf"])["cka_rbf"]
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(tiled, name), getattr(whole, name), atol=1e-9)


def test_two_clusters_by_hand() -> None:
    """Kernels of two values. CKA is the same as that of the indicator of the clusters, whatever the width."""
    labels = np.repeat([0.0, 1.0], 10)
    other = np.tile([0.0, 1.0], 10)
    rng = np.random.default_rng(0)
    assert values([labels[:, None], -3 * labels[:, None] + 1])[0, 1] == pytest.approx(1, abs=1e-9)
    found = values([labels[:, None], other[:, None]])[0, 1]
    linear = naive.cka([labels[:, None], other[:, None]], debiased=True)[0, 1]
    assert found == pytest.approx(linear, abs=1e-9)
    assert abs(values(list(rng.normal(size=(2, 400, 3))))[0, 1]) < 0.05


def test_what_leaves_no_kernel_is_undefined_and_said_so() -> None:
    arrays = [np.eye(20, dtype=np.float32), *correlated(20, (6, 6, 6))]
    arrays[1][:16] = arrays[1][0]
    found = similarities(Ragged(arrays), ["cka_rbf"])["cka_rbf"]
    for depth in (0, 1):
        assert np.isnan(found.value[depth]).all()
        assert (
            f"similarity by RBF-CKA is undefined at depth {depth}: distances between rows are all equal, or half of "
            "them 0" in found.notes
        )
    assert np.isfinite(found.value[2:, 2:]).all()
    assert np.isfinite(found.low[2:, 2:]).all()
    few = similarities(Ragged(correlated(3, (3, 3))), ["cka_rbf"])["cka_rbf"]
    assert np.isnan(few.value).all()
    assert few.notes == ("similarity by RBF-CKA is undefined for 3 rows: it needs at least 4",)


def test_of_many_rows_some_are_taken_and_the_note_says_how_many(monkeypatch) -> None:
    monkeypatch.setattr("anydepth.measures.cka_rbf.KERNEL_ROWS", 60)
    monkeypatch.setattr("anydepth.measures.cka_rbf.WIDTH_ROWS", 60)
    arrays = correlated(300, (6, 4))
    found = similarities(Ragged(arrays, [7, 130]), ["cka_rbf"])["cka_rbf"]
    assert found.notes == ("similarity by RBF-CKA: over 60 of 300 rows",)
    drawn = np.sort(np.random.default_rng(0).choice(300, 60, replace=False))
    expected = naive.reference("cka_rbf", [array[drawn] for array in arrays])
    np.testing.assert_allclose(found.value, expected, atol=1e-6)


# Intervals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [40, 1100], ids=["float64", "float32"])
def test_the_interval_is_the_delete_one_jackknife_with_the_width_as_it_is(n: int) -> None:
    arrays = mixed(np.random.default_rng(0), n, 6, 1.0)
    found = similarities(Ragged(arrays, [5]), ["cka_rbf"], jackknife_groups=n)["cka_rbf"]
    grams = []
    for state in arrays:
        distances = np.sqrt(((state[:, None] - state[None]) ** 2).sum(-1))
        grams.append(np.exp(-(distances**2) / (2 * np.median(distances[np.triu_indices(n, 1)]) ** 2)))

    def without(row: int) -> float:
        first, second = (np.delete(np.delete(gram, row, axis=0), row, axis=1) for gram in grams)
        products = [naive._hsic1(a, b) for a, b in ((first, second), (first, first), (second, second))]
        return products[0] / np.sqrt(products[1] * products[2])

    some = range(n) if n < 100 else range(0, n, 50)
    left = np.array([without(row) for row in some])
    value = found.value[0, 1]
    margin = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) ** 2 / n * left.var(ddof=1)) / (1 - value**2)
    tolerance = 1e-6 if n < 100 else 0.3 * margin  # of some rows, the error is an estimate
    np.testing.assert_allclose(found.low[0, 1], np.tanh(np.arctanh(value) - margin), atol=tolerance)
    np.testing.assert_allclose(found.high[0, 1], np.tanh(np.arctanh(value) + margin), atol=tolerance)


def test_the_interval_covers() -> None:
    assert 0.88 <= covers("cka_rbf", values, 100, 8, 1.0, runs=120, draws=10) < 1


@pytest.mark.slow
@pytest.mark.parametrize(("n", "width", "noise"), [(200, 8, 1.0), (200, 8, 0.2), (200, 100, 3.0), (1000, 8, 1.0)])
def test_the_interval_covers_95_percent(n: int, width: int, noise: float) -> None:
    found = covers("cka_rbf", values, n, width, noise, runs=500, draws=200)
    assert 0.92 <= found <= 0.98  # 95 ± 2 %, and 1 % is the error of 500 runs
