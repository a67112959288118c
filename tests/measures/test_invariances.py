"""One tester for all measures: what a measure declares holds, and what it does not declare fails."""

from collections.abc import Callable

import naive_measures as naive
import numpy as np
import pytest
from naive_measures import Ragged, correlated

from anydepth.errors import DataError
from anydepth.measures import MEASURES, ArrayStates, similarities
from anydepth.measures.engine.states import JoinedStates
from anydepth.measures.measure import INVARIANCES

WIDTH = 6
EVERY = pytest.mark.parametrize("name", list(MEASURES))


def turn(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)))[0]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "orthogonal": lambda x: x @ turn(1),
    "scaling": lambda x: 7 * x,
    "translation": lambda x: x + np.array([3.0, -2, 5, 1, 0, 4]),
    "permutation": lambda x: x[:, [3, 0, 5, 1, 2, 4]],
    "linear": lambda x: x @ turn(2) @ np.diag([4.0, 1, 0.5, 3, 0.25, 2]) @ turn(3),
}


def two_depths(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(90, WIDTH)) * [5, 3, 2, 1, 1, 1] + 1
    return [x, np.tanh(x) + 0.5 * rng.normal(size=x.shape)]


def between(name: str, first: np.ndarray, second: np.ndarray) -> float:
    return float(similarities(ArrayStates({"a": first, "b": second}), [name])[name].value[0, 1])


def test_every_invariance_is_tried() -> None:
    assert CHANGES.keys() == INVARIANCES.keys()


@EVERY
@pytest.mark.parametrize("change", list(CHANGES))
def test_what_is_declared_holds_for_either_depth_and_nothing_else_does(name: str, change: str) -> None:
    x, y = two_depths()
    plain, moved = between(name, x, y), CHANGES[change]
    if change in MEASURES[name].invariances:
        assert between(name, moved(x), y) == pytest.approx(plain, abs=1e-6)
        assert between(name, x, moved(y)) == pytest.approx(plain, abs=1e-6)
    else:
        assert abs(between(name, moved(x), y) - plain) > 1e-3


@pytest.mark.parametrize("change", list(CHANGES))
def test_the_depth_that_gives_pwcca_no_weights_may_change_by_any_linear_map(change: str) -> None:
    x, y = two_depths()
    assert between("pwcca", x, CHANGES[change](y)) == pytest.approx(between("pwcca", x, y), abs=1e-6)


@EVERY
def test_the_order_of_the_rows_does_not_matter(name: str) -> None:
    x, y = two_depths()
    order = np.random.default_rng(0).permutation(len(x))
    assert between(name, x[order], y[order]) == pytest.approx(between(name, x, y), abs=1e-6)


@EVERY
def test_it_is_as_symmetric_as_declared_within_its_range_and_1_with_itself(name: str) -> None:
    measure = MEASURES[name]
    found = similarities(Ragged(correlated(90, (6, 6, 6))), [name])[name].value
    assert np.allclose(found, found.T, atol=1e-12) == measure.symmetric
    np.testing.assert_allclose(found.diagonal(), 1, atol=1e-12)
    assert measure.range[0] <= found.min() <= found.max() <= measure.range[1] + 1e-12
    assert measure.kind == "similarity"
    x, _ = two_depths()
    assert between(name, x, x) == pytest.approx(1, abs=1e-6)


@EVERY
def test_the_record_tells_whether_there_is_an_interval(name: str) -> None:
    measure = MEASURES[name]
    found = similarities(Ragged(correlated(60, (6, 6))), [name])[name]
    assert (found.low is not None) == (found.high is not None) == bool(measure.interval)
    assert measure.name == name
    assert measure.title
    assert measure.source


def test_only_mean_cca_is_blind_to_linear_maps() -> None:
    assert [name for name, measure in MEASURES.items() if "linear" in measure.invariances] == ["cca"]


# Across two models ---------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("n", [60, 300])
def test_across_models_it_is_the_block_of_the_joined_depths(name: str, n: int) -> None:
    arrays = correlated(n, (6, 8, 6, 5, 6), far=20)
    first, second = arrays[:2], arrays[2:]
    across = similarities(Ragged(first, [7, 30]), [name], other=Ragged(second, [9]))[name]
    within = similarities(Ragged(arrays), [name])[name]
    assert across.value.shape == (2, 3)
    for attribute in ("value", "low", "high", "quantiles"):
        block, whole = getattr(across, attribute), getattr(within, attribute)
        assert (block is None) == (whole is None)
        if block is not None:
            np.testing.assert_allclose(block, whole[..., :2, 2:], atol=1e-6)
    np.testing.assert_allclose(across.value, naive.reference(name, first, second), atol=1e-6)
    assert across.moments is None


@EVERY
def test_across_models_the_notes_name_the_model(name: str) -> None:
    arrays = correlated(60, (6, 6, 6, 6))
    arrays[1][:] = 3
    arrays[2][5, 1] = np.nan
    found = similarities(Ragged(arrays[:2]), [name], other=Ragged(arrays[2:]))[name]
    assert np.isfinite(found.value).tolist() == [[False, True], [False, False]]
    assert "depth 1 of the first model is the same for every row: no similarity is defined there" in found.notes
    assert "depth 0 of the second model holds NaN or infinite values: no similarity is defined there" in found.notes


def test_two_models_need_the_same_rows() -> None:
    arrays = correlated(60, (6, 6))
    with pytest.raises(DataError, match="60 rows and 50: states of two models need the same rows"):
        similarities(Ragged(arrays), ["cka"], other=Ragged([array[:50] for array in arrays]))
    for groups in (None, np.arange(60) // 3):
        with pytest.raises(
            DataError, match="the rows of the two models belong to different samples: expected the same"
        ):
            JoinedStates(Ragged(arrays, groups=np.arange(60) // 2), Ragged(arrays, groups=groups))
