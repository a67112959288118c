import pickle
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import naive_measures as naive
import numpy as np
import pytest
import torch
import torch.distributed as dist
from forks import ended, start
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_measures import Ragged, correlated

from anydepth.measures import CKA, Cosine, similarities
from anydepth.measures.engine.gram import gram_sums
from anydepth.measures.engine.hsic import cka, leave_one_out, row_shares
from anydepth.measures.engine.moments import GramSums, Moments, merge
from anydepth.measures.engine.states import ArrayStates, States, locate

Route = Callable[[States], GramSums]
BOTH = pytest.mark.parametrize("debiased", [True, False], ids=["debiased", "biased"])


def by_covariance(states: States) -> GramSums:
    moments = Moments.empty(states.widths)
    for rows in states.chunks(10**6):
        moments.update(rows)
    return moments.gram_sums()


def by_gram(states: States, tile: int = 64) -> GramSums:
    location = locate(states.chunks(tile), states.widths)
    sums, shares = gram_sums(lambda: states.chunks(tile), location, states.widths)
    assert shares is None
    return sums


ROUTES = pytest.mark.parametrize("route", [by_covariance, by_gram], ids=["covariance", "gram"])


def assert_cka(states: States, arrays: list[np.ndarray], route: Route, debiased: bool) -> None:
    found = cka(route(states), debiased=debiased).numpy()
    np.testing.assert_allclose(found, naive.cka(arrays, debiased=debiased), rtol=0, atol=1e-6)


@BOTH
@ROUTES
@pytest.mark.parametrize(
    ("n", "widths", "far"),
    [(4, (3, 2), 0), (30, (64, 8, 5), 0), (150, (16, 300), 1000), (700, (12, 40, 7), 1000), (600, (1, 1), 0)],
    ids=["four rows", "n < D", "n < D, one feature at +1000", "float32, one feature at +1000", "one feature"],
)
def test_it_is_the_definition(n: int, widths: tuple[int, ...], far: float, route: Route, debiased: bool) -> None:
    arrays = correlated(n, widths, far=far)
    assert_cka(Ragged(arrays), arrays, route, debiased)


@BOTH
@ROUTES
@settings(deadline=None, max_examples=25)
@given(n=st.integers(5, 300), cuts=st.lists(st.integers(1, 299), max_size=6), seed=st.integers(0, 99))
def test_it_does_not_depend_on_how_the_rows_are_cut(
    n: int, cuts: list[int], seed: int, route: Route, debiased: bool
) -> None:
    arrays = correlated(n, (9, 4, 6), seed=seed, far=100)
    assert_cka(Ragged(arrays, [*cuts, n - 1]), arrays, route, debiased)  # the last chunk is one row


@BOTH
@ROUTES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_of_any_dtype_are_as_exact(dtype: torch.dtype, route: Route, debiased: bool) -> None:
    tensors = [torch.from_numpy(array).to(dtype) for array in correlated(400, (20, 30), far=1000)]
    states = ArrayStates({str(depth): tensor for depth, tensor in enumerate(tensors)})
    assert_cka(states, [tensor.float().numpy() for tensor in tensors], route, debiased)


@BOTH
@ROUTES
@pytest.mark.parametrize("row", [0, 250, 499])
def test_one_massive_row_is_no_harm(row: int, route: Route, debiased: bool) -> None:
    """As the first token of a text has in many transformers; debiasing takes its product with itself off again."""
    arrays = correlated(500, (3, 5, 4))
    for array in arrays:
        array[row] += 300
    assert_cka(Ragged(arrays, [row + 1]), arrays, route, debiased)


@BOTH
@ROUTES
def test_rows_sorted_into_far_clusters_are_no_harm(route: Route, debiased: bool) -> None:
    arrays = correlated(900, (6, 5))
    for array in arrays:
        array += np.repeat([0, 100, -70], 300)[:, None].astype(np.float32)
        array[:300] *= 1e-2
    assert_cka(Ragged(arrays, [300, 600]), arrays, route, debiased)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(40, 80), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 999))
def test_its_declared_invariances_hold_and_no_other(n: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) * np.array([5.0, 3, 2, 1, 1, 1])
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    squeeze = np.diag([0.01, 0.01, 0.01, 1, 1, 1])  # invertible, and a similarity of subspaces would not see it
    states = {"x": x, "turned": x @ turn * scale, "moved": x + 10 * rng.normal(size=6), "squeezed": x @ squeeze}
    sums = by_covariance(ArrayStates(states))
    for debiased in (True, False):
        value = cka(sums, debiased=debiased).numpy()
        np.testing.assert_allclose(value.diagonal(), 1, atol=1e-12)
        np.testing.assert_allclose(value, value.T, atol=0)
        np.testing.assert_allclose(value[0, 1:3], 1, atol=1e-5)
        assert value[0, 3] < 0.9
        assert np.abs(value).max() <= 1 + 1e-9
    assert value.min() >= 0  # biased


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999))
def test_the_order_of_rows_and_depths_does_not_matter(seed: int) -> None:
    arrays = correlated(60, (4, 6, 3), seed=seed)
    value = cka(by_covariance(Ragged(arrays))).numpy()
    order = np.random.default_rng(seed).permutation(60)
    np.testing.assert_allclose(cka(by_covariance(Ragged([a[order] for a in arrays]))).numpy(), value, atol=1e-6)
    np.testing.assert_allclose(cka(by_covariance(Ragged(arrays[::-1]))).numpy(), value[::-1, ::-1], atol=1e-6)


def test_debiased_is_zero_on_average_for_independent_rows_where_biased_is_not() -> None:
    values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sums = by_covariance(Ragged([rng.normal(size=(20, 60)), rng.normal(size=(20, 60))]))
        values.append([cka(sums, debiased=debiased)[0, 1].item() for debiased in (True, False)])
    debiased, biased = np.mean(values, axis=0)
    error = np.std(values, axis=0)[0] / np.sqrt(len(values))
    assert abs(debiased) < 3 * error < 0.05
    assert biased > 0.6


@BOTH
@ROUTES
def test_constant_and_non_finite_depths_are_blank_and_touch_no_other(route: Route, debiased: bool) -> None:
    arrays = correlated(90, (5, 5, 5, 5, 5))
    expected = naive.cka(arrays, debiased=debiased)
    arrays[1][:] = 1234.5678
    arrays[2][7, 3] = np.nan
    arrays[4][80, 0] = np.inf
    sums = route(Ragged(arrays, cuts=[50]))
    value = cka(sums, debiased=debiased).numpy()
    kept = np.ix_([0, 3], [0, 3])
    np.testing.assert_allclose(value[kept], expected[kept], atol=1e-6)
    value[kept] = np.nan
    assert np.isnan(value).all()
    assert sums.location.blank == {
        1: "is the same for every row",
        2: "holds NaN or infinite values",
        4: "holds NaN or infinite values",
    }


def test_noise_of_the_last_bit_is_constant_and_small_spread_is_not() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=8).astype(np.float32) * 100
    rounding = (base * (1 + 1e-7 * rng.normal(size=(50, 8)))).astype(np.float32)
    spread = (base * (1 + 1e-4 * rng.normal(size=(50, 8)))).astype(np.float32)
    assert set(by_covariance(Ragged([rounding, spread])).location.blank) == {0}
    assert set(by_gram(Ragged([rounding, spread])).location.blank) == {0}


@ROUTES
def test_debiased_is_undefined_up_to_three_rows(route: Route) -> None:
    for n in (1, 2, 3):
        assert cka(route(Ragged(correlated(n, (4, 4))))).isnan().all()
    assert cka(route(Ragged(correlated(2, (4, 4)))), debiased=False).isfinite().all()
    assert cka(route(Ragged(correlated(4, (4, 4))))).isfinite().all()


@pytest.mark.parametrize("n", [5, 12, 600])
def test_leaving_a_row_out_is_computing_without_it(n: int) -> None:
    arrays, widths = correlated(n, (6, 3), far=5), (6, 3)
    states = Ragged(arrays)
    moments = Moments.empty(widths).update(states.rows)
    by_cov = moments.gram_sums()
    y = by_cov.location.centre(states.rows)
    shares = row_shares([panel.float() for panel in moments.centred_panels()], y, widths)
    without = leave_one_out(by_cov, y, shares, widths).numpy()
    for row in {0, n // 2, n - 1}:
        expected = naive.cka([np.delete(array, row, axis=0) for array in arrays], debiased=True)
        np.testing.assert_allclose(without[row], expected, atol=1e-5)


def test_rows_shares_are_the_same_by_both_routes() -> None:
    states, widths = Ragged(correlated(300, (6, 3, 9), far=5), cuts=[10, 170]), (6, 3, 9)
    moments = Moments.empty(widths).update(states.rows)
    location = moments.location
    kept = torch.arange(300) % 3 == 1
    _, shares = gram_sums(lambda: states.chunks(64), location, widths, kept=kept)
    y = location.centre(states.rows[kept]).double()
    expected = row_shares(list(moments.centred_panels()), y, widths)
    torch.testing.assert_close(shares, expected, rtol=1e-4, atol=1e-3)


def test_leaving_one_of_four_rows_is_undefined() -> None:
    states = Ragged(correlated(4, (3, 3)))
    sums = by_covariance(states)
    assert leave_one_out(sums, states.rows, torch.zeros(4, 2, 2).double(), (3, 3)).isnan().all()


def seen(metric: CKA, arrays: list[np.ndarray], size: int) -> CKA:
    tensors = [torch.from_numpy(array) for array in arrays]
    for batch in zip(*(tensor.split(size) for tensor in tensors), strict=True):
        metric.update(batch)
    return metric


@BOTH
def test_the_metric_does_not_depend_on_the_batches(debiased: bool) -> None:
    arrays = correlated(101, (5, 8), far=1000)
    expected = naive.cka(arrays, debiased=debiased)
    for size in (1, 10, 101):
        metric = seen(CKA((5, 8), debiased=debiased), arrays, size)
        np.testing.assert_allclose(metric.compute().numpy(), expected, atol=1e-6)


def test_the_metric_pickles_clones_resets_merges_and_adds_up_in_forward() -> None:
    arrays = correlated(80, (5, 8))
    expected = naive.cka(arrays, debiased=True)
    first, rest = [a[:30] for a in arrays], [a[30:] for a in arrays]

    half = pickle.loads(pickle.dumps(seen(CKA((5, 8)), first, 7))).clone()
    whole = seen(half, rest, 11)
    np.testing.assert_allclose(whole.compute().numpy(), expected, atol=1e-6)
    whole.reset()
    assert whole.moments.count == 0

    merged = seen(CKA((5, 8)), first, 30)
    merged.merge_state(seen(CKA((5, 8)), rest, 50))
    np.testing.assert_allclose(merged.compute().numpy(), expected, atol=1e-6)

    forward = CKA((5, 8))
    for part in (first, rest):
        batch = forward(list(map(torch.from_numpy, part)))
        np.testing.assert_allclose(batch.numpy(), naive.cka(part, debiased=True), atol=1e-6)
    np.testing.assert_allclose(forward.compute().numpy(), expected, atol=1e-6)


def test_the_metric_names_a_blank_depth_in_a_warning() -> None:
    arrays = correlated(30, (5, 5, 5))
    arrays[1][:] = 2
    with pytest.warns(UserWarning, match="depth 1 is the same for every row: no similarity is defined there"):
        value = seen(CKA((5, 5, 5)), arrays, 10).compute()
    assert value[1].isnan().all()
    assert value[0, 2].isfinite()


def test_gathered_states_of_ranks_are_merged_jointly_not_summed() -> None:
    arrays = correlated(90, (5, 8), far=20)
    parts = [slice(0, 40), slice(40, 41), slice(41, 90)]
    ranks = [seen(CKA((5, 8)), [a[part] for a in arrays], 16) for part in parts]
    ranks.append(CKA((5, 8)))  # a rank that got no data
    gathered = torch.stack([rank.sums for rank in ranks])
    metric = CKA((5, 8))
    metric.sums = metric._reductions["sums"](gathered)  # what torchmetrics does after its all-gather
    expected = naive.cka(arrays, debiased=True)
    np.testing.assert_allclose(cka(metric.moments).numpy(), expected, atol=1e-6)
    metric.sums = gathered.sum(0)
    assert not np.allclose(cka(metric.moments).numpy(), expected, atol=1e-2)


def measured_by_rank(rank: int, arrays: list[np.ndarray], folder: Path) -> None:
    """One of two processes: what it has after the sums of both were gathered goes into a file."""
    place, patience = f"file://{folder}/meet", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=patience)
    rows = slice(0, 20) if rank == 0 else slice(20, None)
    metrics = CKA((5, 5)), Cosine((5, 5))
    for metric in metrics:
        metric.update([torch.from_numpy(array[rows]) for array in arrays])
    np.save(folder / f"{rank}.npy", np.stack([metric.compute().numpy() for metric in metrics]))
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    arrays = correlated(70, (5, 5), far=20)
    ranks = [start(partial(measured_by_rank, rank, arrays, tmp_path)) for rank in range(2)]
    assert [ended(rank) for rank in ranks] == [0, 0]
    expected = naive.cka(arrays, debiased=True), naive.cosines(arrays, centred=False).mean(0)
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{rank}.npy"), expected, atol=1e-6)


def test_merged_sums_give_the_value_of_the_whole() -> None:
    arrays = correlated(200, (7, 7), far=50)
    whole = similarities(Ragged(arrays), ["cka"])["cka"]
    parts = [[a[:63] for a in arrays], [a[63:] for a in arrays]]
    halves = [similarities(Ragged(part), ["cka"])["cka"] for part in parts]
    assert halves[0].moments is not None
    assert halves[1].moments is not None
    merged = cka(merge(halves[0].moments, halves[1].moments)).numpy()
    np.testing.assert_allclose(merged, whole.value, atol=1e-6)
