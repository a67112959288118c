"""Every measure of numbers of any size: a factor or a shift changes none of them in silence."""

import warnings

import naive_measures as naive
import numpy as np
import pytest
import torch

from anydepth import trace_states
from anydepth.measures import CKA, MEASURES, ArrayStates, Moments, Similarity, merge, similarities
from anydepth.measures.engine.hsic import cka
from anydepth.measures.engine.states import locate

SHAPES = {"more rows": (300, (6, 6, 6)), "few rows": (60, (6, 6, 6)), "wide": (30, (40, 40, 40))}


def measured(arrays: list[np.ndarray], names: list[str] | None = None) -> dict[str, Similarity]:
    return similarities(ArrayStates({str(depth): one for depth, one in enumerate(arrays)}), names or list(MEASURES))


def same(found: dict[str, Similarity], expected: dict[str, Similarity], apart: float = 1e-6) -> None:
    for name, one in found.items():
        np.testing.assert_allclose(one.value, expected[name].value, rtol=0, atol=apart, err_msg=name)
        if one.low is not None and expected[name].low is not None:
            np.testing.assert_allclose(one.low, expected[name].low, rtol=0, atol=100 * apart, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_factor_changes_any_measure(shape: str) -> None:
    arrays = [one.astype(np.float64) for one in naive.correlated(*SHAPES[shape])]
    expected = measured(arrays)
    for factor in (1e19, 1e-100):
        same(measured([one * factor for one in arrays]), expected)
    same(measured([arrays[0] * 1e19, arrays[1], arrays[2] * 1e-23]), expected)


@pytest.mark.parametrize("power", [100, -130])
def test_powers_of_two_change_nothing_in_float32(power: int) -> None:
    """Down to numbers that are hardly held any more, where the reference is of what is left of them."""
    arrays = [np.ldexp(one, power) for one in naive.correlated(*SHAPES["few rows"])]
    assert all(np.isfinite(one).all() for one in arrays)
    same(measured(arrays), measured([np.ldexp(one.astype(np.float64), -power) for one in arrays]))


@pytest.mark.parametrize("far", [1e6, 1e9])
@pytest.mark.parametrize("features", [slice(None), slice(1)], ids=["all", "one"])
def test_a_large_mean_changes_no_centred_measure_of_float64(far: float, features: slice) -> None:
    arrays = [one.astype(np.float64) for one in naive.correlated(*SHAPES["few rows"])]
    centred = [name for name in MEASURES if "translation" in MEASURES[name].invariances]
    moved = [one.copy() for one in arrays]
    for one in moved:
        one[:, features] += far
    same(measured(moved, centred), measured(arrays, centred), 1e-5)
    raw = measured(moved, ["cosine_raw"])["cosine_raw"].value
    np.testing.assert_allclose(raw, naive.cosines(moved, centred=False).mean(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", list(MEASURES))
def test_a_large_mean_in_float32_is_right_or_blank_with_a_note(name: str) -> None:
    for far in (1e6, 3e7):
        arrays = naive.correlated(*SHAPES["few rows"])
        for one in arrays:
            one[:, 0] += far
        found = measured(arrays, [name])[name]
        values = [one.astype(np.float64) for one in arrays]
        if name != "cosine_raw":
            values = [one - one.mean(0) for one in values]
        wrong = ~(np.abs(found.value - naive.reference(name, values)) < 1e-5)
        assert not wrong.any() or any("rounding" in note or "undefined" in note for note in found.notes)
        assert np.isnan(found.value[wrong]).all() or any("left out" in note for note in found.notes)


def test_sums_are_those_of_the_states_as_they_came() -> None:
    arrays = naive.correlated(*SHAPES["more rows"])
    small = [np.ldexp(one, -40) for one in arrays]
    first, second = (measured([one[part] for one in small], ["cka"])["cka"] for part in (slice(150), slice(150, None)))
    assert first.moments is not None
    assert second.moments is not None
    whole = measured(arrays, ["cka"])["cka"].value
    np.testing.assert_allclose(cka(merge(first.moments, second.moments)).numpy(), whole, rtol=0, atol=1e-6)
    location = locate(iter([torch.from_numpy(np.concatenate(small, axis=1)[:150])]), (6, 6, 6))
    np.testing.assert_allclose(first.moments.location.mean, location.mean, rtol=1e-5, atol=1e-18)


@pytest.mark.parametrize("factor", [1.0, 1e25, 1e-25])
def test_the_metric_is_right_for_numbers_whose_squares_float32_does_not_hold(factor: float) -> None:
    arrays = naive.correlated(700, (6, 6))
    metric = CKA((6, 6))
    for part in (slice(400), slice(400, None)):
        metric.update([torch.from_numpy(one[part] * np.float32(factor)) for one in arrays])
    np.testing.assert_allclose(metric.compute(), naive.cka(arrays, debiased=True), rtol=0, atol=1e-6)
    assert isinstance(metric.moments, Moments)


def test_nothing_hangs_on_the_callers_settings() -> None:
    arrays = {str(depth): one for depth, one in enumerate(naive.correlated(40, (6, 6, 6)))}
    expected = trace_states(arrays, measures=list(MEASURES))
    before = torch.get_default_dtype()
    for dtype in (torch.float64, torch.bfloat16):
        try:
            torch.set_default_dtype(dtype)
            with np.errstate(all="raise"), torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("error")
                found = trace_states(arrays, measures=list(MEASURES))
        finally:
            torch.set_default_dtype(before)
        for name, value in found.similarity.items():
            np.testing.assert_array_equal(value, expected.similarity[name], err_msg=name)
