import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_measures import correlated
from safetensors.torch import load_file, save_file

from anydepth.errors import MeasureError
from anydepth.measures.engine.hsic import cka
from anydepth.measures.engine.moments import Moments, merge
from anydepth.measures.engine.precision import full_precision

WIDTHS = (3, 5, 4)


def stacked(n: int, widths: tuple[int, ...] = WIDTHS, **how: float) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(correlated(n, widths, **how), axis=1))


def naive_sums(rows: torch.Tensor, shift: np.ndarray, widths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The sums of the definition, row by row."""
    z = rows.double().numpy() - shift
    edges = np.cumsum([0, *widths])
    q = np.array([[part @ part for part in np.split(row, edges[1:-1])] for row in z])
    return {
        "total": z.sum(0),
        "cross": sum(np.outer(row, row) for row in z),
        "weighted": sum(np.outer(norms, row) for norms, row in zip(q, z, strict=True)),
        "products": sum(np.outer(norms, norms) for norms in q),
    }


def assert_sums(moments: Moments, rows: torch.Tensor, tolerance: float) -> None:
    expected = naive_sums(rows, moments.shift.numpy(), moments.widths)
    scale = {name: np.abs(value).max() for name, value in expected.items()}
    scale["total"] = len(rows)
    found = {"total": moments.total, "weighted": moments.norm_weighted, "products": moments.norm_products}
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=0, atol=tolerance * scale[name], err_msg=name)
    start = 0
    for width, panel in zip(moments.widths, moments.panels, strict=True):
        cross = expected["cross"][start : start + width, start:]
        np.testing.assert_allclose(panel.numpy(), cross, rtol=0, atol=tolerance * scale["cross"])
        start += width
    assert moments.count == len(rows)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 200), size=st.integers(1, 210), far=st.sampled_from([0.0, 10.0]), seed=st.integers(0, 99))
def test_the_sums_are_those_of_the_definition_for_any_chunk_size(n: int, size: int, far: float, seed: int) -> None:
    rows = stacked(n, far=far, seed=seed)
    moments = Moments.empty(WIDTHS)
    for chunk in rows.split(size):
        moments.update(chunk)
    assert_sums(moments, rows, 1e-6)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), seed=st.integers(0, 99), size=st.sampled_from([0.1, 1.0, 30.0]))
def test_moving_the_shift_is_exact(n: int, seed: int, size: float) -> None:
    rows = stacked(n, seed=seed)
    moments = Moments.empty(WIDTHS).update(rows)  # few rows: float64 throughout
    shift = torch.from_numpy(np.random.default_rng(seed).normal(scale=size, size=sum(WIDTHS)))
    moved = moments.about(shift)
    torch.testing.assert_close(moved.shift, shift)
    assert_sums(moved, rows, 1e-11)


def test_there_and_back_again_by_a_large_shift() -> None:
    moments = Moments.empty(WIDTHS).update(stacked(50))
    back = moments.about(moments.shift + 1e3).about(moments.shift)
    # |z|⁴ grows by 1e12, of which float64 keeps 16 digits
    torch.testing.assert_close(back.norm_products, moments.norm_products, rtol=1e-3, atol=0)
    torch.testing.assert_close(back.panels[0], moments.panels[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("first", [1, 3])
def test_a_first_chunk_far_from_the_others_does_no_harm(first: int) -> None:
    rows = stacked(500)
    rows[:first] += 1e3  # as the first token of a text may lie, and with it the first shift
    moments = Moments.empty(WIDTHS).update(rows[:first]).update(rows[first:])
    centred = Moments.empty(WIDTHS).update(rows.double())
    torch.testing.assert_close(cka(moments), cka(centred), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 150), cut=st.integers(1, 149), seed=st.integers(0, 99))
def test_a_merge_of_any_split_is_the_whole(n: int, cut: int, seed: int) -> None:
    rows = stacked(n, seed=seed)
    cut = min(cut, n)
    left, right = Moments.empty(WIDTHS).update(rows[:cut]), Moments.empty(WIDTHS).update(rows[cut:])
    before = left.data.clone(), right.data.clone()
    both = merge(left, right)
    assert_sums(both, rows, 1e-6)
    torch.testing.assert_close(both.location.mean, rows.double().mean(0), rtol=0, atol=1e-6)
    assert torch.equal(left.data, before[0])
    assert torch.equal(right.data, before[1])
    if n > 20:
        torch.testing.assert_close(cka(merge(right, left)), cka(both), rtol=0, atol=1e-6)


def test_merging_with_nothing_copies() -> None:
    some, none = Moments.empty(WIDTHS).update(stacked(9)), Moments.empty(WIDTHS)
    for merged in (merge(some, none), merge(none, some)):
        assert torch.equal(merged.data, some.data)
        merged.update(stacked(2))
        assert some.count == 9


def test_location_is_mean_and_spread_of_the_rows() -> None:
    rows = stacked(200, far=1000.0)
    location = Moments.empty(WIDTHS).update(rows[:50]).update(rows[50:]).location
    exact = rows.double()
    torch.testing.assert_close(location.mean, exact.mean(0), rtol=1e-9, atol=1e-6)
    parts = exact.split(WIDTHS, dim=1)
    variance = torch.stack([part.var(0, correction=0).sum() for part in parts])
    size = torch.stack([part.square().sum(1).mean() for part in parts])
    torch.testing.assert_close(location.variance, variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(location.size, size, rtol=1e-6, atol=0)


def test_only_the_upper_blocks_are_kept() -> None:
    widths = (384,) * 12
    assert Moments.size(widths) * 8 < 0.56 * 8 * sum(widths) ** 2


def test_an_update_leaves_the_rows_and_no_graph_behind() -> None:
    rows = stacked(30).requires_grad_()
    before = rows.detach().clone()
    moments = Moments.empty(WIDTHS).update(rows)
    assert not moments.data.requires_grad
    assert torch.equal(rows.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_any_dtype_are_summed_as_precisely(dtype: torch.dtype) -> None:
    rows = stacked(300).to(dtype)
    assert_sums(Moments.empty(WIDTHS).update(rows), rows.float() if dtype != torch.float64 else rows, 1e-6)


def test_the_callers_precision_settings_change_nothing() -> None:
    rows = stacked(400, (40, 40))
    expected = Moments.empty((40, 40)).update(rows).data
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = Moments.empty((40, 40)).update(rows).data
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected)


def test_precision_settings_are_put_back_when_something_fails() -> None:
    backend = torch.backends.mkldnn.matmul
    before, grad = backend.fp32_precision, torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), full_precision(torch.device("cpu")):
        _ = 1 / (backend.fp32_precision != "ieee")
    assert backend.fp32_precision == before
    assert torch.is_grad_enabled() == grad


def test_tensors_go_through_safetensors_and_back(tmp_path) -> None:
    moments = Moments.empty(WIDTHS).update(stacked(40))
    save_file(moments.to_tensors(), tmp_path / "sums.safetensors")
    back = Moments.from_tensors(load_file(tmp_path / "sums.safetensors"))
    assert back.widths == moments.widths
    assert torch.equal(back.data, moments.data)


def test_errors_say_what_came_and_what_was_expected() -> None:
    with pytest.raises(MeasureError, match=r"rows are 11 wide, but depths of widths \(3, 5, 4\) make up 12"):
        Moments.empty(WIDTHS).update(torch.zeros(2, 11))
    with pytest.raises(MeasureError, match=r"widths \(1,\) and \(2,\) cannot be merged"):
        merge(Moments.empty((1,)), Moments.empty((2,)))
    with pytest.raises(MeasureError, match="lack sums: expected widths and sums"):
        Moments.from_tensors({"widths": torch.tensor([1])})
    with pytest.raises(MeasureError, match=r"sums of CKA are \(3,\) torch.float32, but .* need 6 numbers"):
        Moments.from_tensors({"widths": torch.tensor([1]), "sums": torch.zeros(3)})
