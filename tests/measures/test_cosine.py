import os
from functools import partial

import naive_measures as naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_measures import Ragged, correlated

from anydepth.errors import MeasureError
from anydepth.measures import Cosine
from anydepth.measures.cosine import QUANTILES, cosine, pair_cosines
from anydepth.measures.engine.states import ArrayStates

BOTH = pytest.mark.parametrize("centred", [True, False], ids=["centred", "raw"])


def assert_cosines(states: Ragged | ArrayStates, arrays: list[np.ndarray], centred: bool) -> None:
    found, rows = cosine(states, centred=centred), naive.cosines(arrays, centred=centred)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.std, rows.std(0, ddof=1) if len(rows) > 1 else np.nan * rows[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.quantiles, np.quantile(rows, QUANTILES, axis=0), rtol=0, atol=1e-6)


@BOTH
@pytest.mark.parametrize(
    ("n", "widths", "far"),
    [(50, (6, 6, 6), 0), (7, (40, 40), 1000), (400, (12, 12, 12), 1000), (30, (6, 4, 6, 4), 0), (20, (3,), 0)],
    ids=["plain", "n < D, one feature at +1000", "one feature at +1000", "differing widths", "one depth"],
)
def test_it_is_the_definition(n: int, widths: tuple[int, ...], far: float, centred: bool) -> None:
    arrays = correlated(n, widths, far=far)
    assert_cosines(Ragged(arrays), arrays, centred)


@BOTH
@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 200), cuts=st.lists(st.integers(1, 199), max_size=6), seed=st.integers(0, 99))
def test_it_does_not_depend_on_how_the_rows_are_cut(n: int, cuts: list[int], seed: int, centred: bool) -> None:
    arrays = correlated(n, (8, 8, 8), seed=seed, far=100)
    if n == 1 and centred:
        return  # a single row is its own mean: no direction is left
    assert_cosines(Ragged(arrays, [*cuts, n - 1]), arrays, centred)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_states_of_low_precision_are_as_exact(dtype: torch.dtype, centred: bool) -> None:
    tensors = [torch.from_numpy(array).to(dtype) for array in correlated(100, (20, 20), far=1000)]
    states = ArrayStates({str(depth): tensor for depth, tensor in enumerate(tensors)})
    assert_cosines(states, [tensor.float().numpy() for tensor in tensors], centred)


def test_known_angles() -> None:
    rows = torch.tensor([[1.0, 0.0, 1.0, 1.0, -2.0, 0.0]])
    value = pair_cosines(rows, (2, 2, 2))[0].numpy()
    np.testing.assert_allclose(value, [[1, 0.5**0.5, -1], [0.5**0.5, 1, -(0.5**0.5)], [-1, -(0.5**0.5), 1]], atol=1e-12)


def test_centring_matters_and_is_the_global_mean_not_the_chunks() -> None:
    arrays = [array + 30 for array in correlated(60, (6, 6))]
    arrays[0][:20] -= 10  # chunks with means of their own
    raw, centred = (cosine(Ragged(arrays, [20]), centred=centred).mean[0, 1] for centred in (False, True))
    assert raw > 0.9
    assert abs(centred) < 0.5


def test_a_row_without_direction_is_counted_and_not_made_up() -> None:
    arrays = correlated(30, (4, 4, 4))
    arrays[1][[3, 9]] = 0
    found = cosine(Ragged(arrays), centred=False)
    assert found.directionless.tolist() == [0, 2, 0]
    assert np.isnan(found.mean[1]).all()
    assert np.isnan(found.quantiles[:, 1]).all()
    assert np.isfinite(found.mean[0, 2])
    assert np.isfinite(found.quantiles[:, 0, 2]).all()


def test_a_full_disk_is_one_line_that_says_how_much_is_needed(monkeypatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    full = partial(open, "/dev/full", "r+b", buffering=0)
    monkeypatch.setattr("anydepth.measures.cosine.TemporaryFile", full)
    with pytest.raises(MeasureError, match=r"every row need 0 MB .* \(No space left on device\): set TMPDIR"):
        cosine(Ragged(correlated(30, (4, 4))))


def test_the_metric_is_the_mean_of_raw_cosines_for_any_batches() -> None:
    arrays = correlated(53, (6, 6, 6), far=10)
    expected = naive.cosines(arrays, centred=False).mean(0)
    for size in (1, 20, 53):
        metric = Cosine((6, 6, 6))
        for batch in zip(*(torch.from_numpy(array).bfloat16().float().split(size) for array in arrays), strict=True):
            metric.update([state.bfloat16() for state in batch])
        rounded = [torch.from_numpy(array).bfloat16().float().numpy() for array in arrays]
        np.testing.assert_allclose(metric.compute().numpy(), naive.cosines(rounded, centred=False).mean(0), atol=1e-6)
    np.testing.assert_allclose(metric.compute().numpy(), expected, atol=0.02)
