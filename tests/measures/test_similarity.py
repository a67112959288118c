import os
import subprocess
import sys
from pathlib import Path

import naive_measures as naive
import numpy as np
import pytest
import torch
from naive_measures import Ragged, correlated

from anydepth import measures
from anydepth.errors import DataError, MeasureError
from anydepth.measures import MEASURES, ArrayStates, States, similarities
from anydepth.measures.engine.gram import TILE
from anydepth.measures.engine.moments import Moments
from anydepth.measures.engine.plan import Plan, available_memory, plan

WIDTHS = (6, 6, 6, 6)


@pytest.mark.parametrize("n", [20, 21, 300], ids=["gram", "odd", "covariance"])
def test_all_measures_at_once_are_their_definitions(n: int) -> None:
    arrays = correlated(n, (40, 40, 40) if n < 100 else WIDTHS, far=1000)
    found = similarities(Ragged(arrays, [7, n - 1]), list(MEASURES))
    assert list(found) == list(MEASURES)
    for name, one in found.items():
        np.testing.assert_allclose(one.value, naive.reference(name, arrays), rtol=0, atol=1e-6, err_msg=name)
        if one.low is not None and one.high is not None:
            assert ((one.low <= one.value + 1e-12) & (one.value <= one.high + 1e-12)).all()


def test_which_measures_carry_what() -> None:
    found = similarities(Ragged(correlated(50, WIDTHS)), list(MEASURES))
    assert {name for name, one in found.items() if one.low is not None} == {
        "cosine",
        "cosine_raw",
        "cka",
        "rsa",
        "cka_rbf",
    }
    assert {name for name, one in found.items() if one.quantiles is not None} == {"cosine", "cosine_raw"}
    assert {name for name, one in found.items() if one.moments is not None} == {"cka", "cka_biased"}
    bare = similarities(Ragged(correlated(50, WIDTHS)), list(MEASURES), jackknife_groups=None)
    assert all(one.low is None and one.high is None for one in bare.values())


@pytest.mark.parametrize("name", list(MEASURES))
def test_a_value_does_not_depend_on_the_other_measures_asked_for(name: str) -> None:
    states = Ragged(correlated(70, WIDTHS, far=20), [30])
    alone, together = similarities(states, [name])[name], similarities(states, list(MEASURES))[name]
    np.testing.assert_array_equal(alone.value, together.value)
    np.testing.assert_equal(alone.low, together.low)
    assert alone.notes == together.notes


@pytest.mark.parametrize("name", list(MEASURES))
@pytest.mark.parametrize("n", [20, 200], ids=["gram", "covariance"])
def test_a_blank_depth_is_blank_named_and_touches_no_other(name: str, n: int) -> None:
    arrays = correlated(n, WIDTHS)
    expected = naive.reference(name, arrays)
    arrays[0][:] = 3.25
    arrays[2][n // 2, 1] = np.nan
    found = similarities(Ragged(arrays, [n // 3]), [name])[name]
    kept = np.ix_([1, 3], [1, 3])
    np.testing.assert_allclose(found.value[kept], expected[kept], rtol=0, atol=1e-6)
    for matrix in (found.value, found.low, found.high):
        if matrix is not None:
            assert np.isfinite(matrix[kept]).all()
            matrix[kept] = np.nan
            assert np.isnan(matrix).all()
    if found.quantiles is not None:
        assert np.isnan(found.quantiles[:, 0]).all()
        assert np.isfinite(found.quantiles[:, 1, 3]).all()
    assert "depth 0 is the same for every row: no similarity is defined there" in found.notes
    assert "depth 2 holds NaN or infinite values: no similarity is defined there" in found.notes
    assert not any(note.startswith(("depth 1", "depth 3")) for note in found.notes)


def test_a_zero_depth_and_a_zero_row_are_told_apart() -> None:
    arrays = correlated(40, WIDTHS)
    arrays[0][:] = 0
    arrays[1][[3, 5]] = 0
    found = similarities(Ragged(arrays), ["cosine_raw", "cosine"])
    assert found["cosine_raw"].notes == (
        "depth 0 is the same for every row: no similarity is defined there",
        "depth 1 is the zero vector in 2 of 40 rows, which have no cosine",
    )
    assert np.isnan(found["cosine_raw"].value[1]).all()
    assert np.isfinite(found["cosine"].value[1, 2:]).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_rows_for_debiased_cka_are_said_so(n: int) -> None:
    found = similarities(Ragged(correlated(n, WIDTHS)), list(MEASURES))
    assert np.isnan(found["cka"].value).all()
    assert f"debiased CKA is undefined for {n} rows: it needs at least 4" in found["cka"].notes
    assert not any("debiased" in note for note in found["cka_biased"].notes)
    if n == 3:
        np.testing.assert_allclose(
            found["cka_biased"].value, naive.reference("cka_biased", correlated(n, WIDTHS)), atol=1e-6
        )


def test_four_rows_have_a_value_but_no_interval_of_cka() -> None:
    found = similarities(Ragged(correlated(4, WIDTHS)), ["cka"])["cka"]
    assert np.isfinite(found.value).all()
    assert found.low is None


def test_rows_all_equally_far_apart_leave_debiasing_nothing() -> None:
    arrays = [np.eye(30, dtype=np.float32), *correlated(30, (6, 6))]
    for mergeable in (False, True):
        found = similarities(Ragged(arrays), ["cka", "cka_biased"], mergeable=mergeable)
        assert np.isnan(found["cka"].value[0]).all()
        assert np.isfinite(found["cka"].value[1:, 1:]).all()
        assert "depth 0 has no positive HSIC with itself: debiased CKA is undefined there" in found["cka"].notes
        assert np.isfinite(found["cka_biased"].value).all()


def test_the_seed_deals_the_samples_and_changes_no_value() -> None:
    states = Ragged(correlated(300, WIDTHS))
    first, again, other = (similarities(states, ["cka"], jackknife_groups=20, seed=seed)["cka"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.low, again.low)
    np.testing.assert_array_equal(first.value, other.value)
    assert not np.array_equal(first.low, other.low)


def test_depths_of_different_widths_have_cka_and_no_cosine() -> None:
    arrays = correlated(60, (6, 9, 6))
    found = similarities(Ragged(arrays), ["cosine", "cka"])
    assert np.isnan(found["cosine"].value[0, 1])
    assert np.isfinite(found["cosine"].value[0, 2])
    assert "cosine is undefined between depths of different widths (6, 9, 6)" in found["cosine"].notes
    np.testing.assert_allclose(found["cka"].value, naive.reference("cka", arrays), atol=1e-6)


@pytest.mark.parametrize("n", [80, 700])
def test_both_routes_give_the_same_values_and_intervals(n: int, monkeypatch) -> None:
    states = Ragged(correlated(n, (30, 20), far=30), [17], groups=np.arange(n) // 4)
    by_route = {}
    for route in ("covariance", "gram"):
        monkeypatch.setattr(
            "anydepth.measures.engine.context.plan", lambda *_, mergeable, route=route: Plan(route, 64, "as told")
        )
        by_route[route] = similarities(states, ["cka"], jackknife_groups=15)["cka"]
    covariance, gram = by_route["covariance"], by_route["gram"]
    assert covariance.moments is not None
    assert gram.moments is None
    np.testing.assert_allclose(gram.value, covariance.value, rtol=0, atol=1e-6)
    np.testing.assert_allclose(gram.low, covariance.low, rtol=0, atol=1e-4)
    np.testing.assert_allclose(gram.high, covariance.high, rtol=0, atol=1e-4)
    assert gram.low[0, 1] < gram.value[0, 1] < gram.high[0, 1]
    np.testing.assert_array_equal(gram.low.diagonal(), 1)


def test_progress_tells_rows_done_of_all_and_what_for() -> None:
    seen: list[tuple[int, int, str]] = []
    similarities(Ragged(correlated(50, WIDTHS), [20]), list(MEASURES), progress=lambda *told: seen.append(told))
    labels = list(dict.fromkeys(label for _, _, label in seen))
    by_depth = ["ranks of distances", "nearest neighbours"]
    assert sorted(labels) == sorted(
        [
            "mean",
            "cosine",
            "raw cosine",
            "covariance",
            "covariances",
            "products",
            "intervals",
            "kernel tiles",
            *by_depth,
        ]
    )
    for label in by_depth:
        assert [told[:2] for told in seen if told[2] == label] == [(done, 4) for done in range(1, 5)]
    seen = [told for told in seen if told[2] not in by_depth]
    for label in set(labels) - set(by_depth):
        assert [done for done, _, told in seen if told == label] == [20, 50]
    assert {total for _, total, _ in seen} == {50}
    seen.clear()
    similarities(Ragged(correlated(20, (40, 40)), [8]), ["cka"], progress=lambda *told: seen.append(told))
    assert [told for told in seen if told[2] == "Gram tiles"] == [(8, 20, "Gram tiles"), (20, 20, "Gram tiles")]


def test_errors_are_one_line_that_says_what_to_do() -> None:
    states = Ragged(correlated(20, WIDTHS))
    with pytest.raises(MeasureError, match="unknown measure 'kca', expected one of cosine, cosine_raw, cka, cka_b"):
        similarities(states, ["kca"])
    with pytest.raises(MeasureError, match="no rows to measure: expected at least one sample"):
        similarities(ArrayStates({"a": np.zeros((0, 3))}), ["cka"])
    with pytest.raises(MeasureError, match="but 0.0 GB are allowed: allow more memory or measure fewer depths"):
        similarities(states, ["cka"], memory=10)


# The planner -------------------------------------------------------------------------------------------------------


def test_the_cheaper_route_that_fits_is_taken() -> None:
    small, large = (384,) * 13, (4096,) * 33
    assert plan(50_000, small, 2**31).route == "covariance"
    assert plan(2_000, small, 2**31).route == "gram"
    assert plan(2_000, large, 2**33).route == "gram"
    forced = plan(50_000, small, 2**28)
    assert forced.route == "gram"
    assert forced.note == "CKA by Gram tiles: the covariance of all depths would need 0.4 GB, 0.3 GB are allowed"
    assert plan(10**6, large, 2**31).route == "gram"  # its covariance takes 73 GB


def test_a_long_computation_is_told_with_its_cost_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, str]] = []
    monkeypatch.setattr("anydepth.measures.engine.context._LONG", 1e5)
    similarities(Ragged(correlated(200, (40, 40))), ["cka"], progress=lambda *report: told.append(report))
    note = "CKA by the covariance of all depths: cheaper than Gram tiles for 200 rows of 80 features"
    reports = [report for report in told if report[2] != "mean"]
    assert reports[0] == (0, 200, f"{note}; 0.0e12 multiply-adds")


def test_mergeable_sums_are_had_wherever_they_fit() -> None:
    states = Ragged(correlated(20, (40, 40)))
    assert similarities(states, ["cka"])["cka"].moments is None
    found = similarities(states, ["cka"], mergeable=True)["cka"]
    assert found.moments is not None
    assert "CKA by the covariance of all depths: its sums can be merged with those of other samples" in found.notes
    assert plan(2_000, (4096,) * 33, 2**33, mergeable=True).route == "gram"


@pytest.mark.parametrize("memory", [2**26, 2**28, 2**30, 2**33])
def test_the_plan_keeps_to_the_memory(memory: int) -> None:
    for count in (100, 5000, 10**6):
        chosen = plan(count, (384,) * 13, memory)
        if chosen.route == "covariance":
            assert 8 * Moments.size((384,) * 13) + 2 * 4 * chosen.rows * 384 * 13 < memory
        else:
            assert 4 * (TILE + 4 * chosen.rows * 384 * 13) <= memory
            assert chosen.rows == min(count, 13_445) or memory < 2**31, "files are read a few times"


def test_available_memory_is_sensible() -> None:
    assert 2**26 < available_memory() < 2**50


MEMORY = """
import numpy as np, torch
from anydepth.measures import similarities

class Endless:
    widths, groups = (32,) * 4, None
    def __init__(self, count):
        self.count = count
    def chunks(self, size):
        rng = np.random.default_rng(0)
        block = torch.from_numpy(rng.normal(size=(size, 128)).astype(np.float32))
        for start in range(0, self.count, size):
            yield block[: self.count - start] * (1 + start / self.count)

def peak(count):
    similarities(Endless(count), ["cosine", "cka"])
    # not getrusage: its peak is inherited from the process that started this one
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

print(peak(200_000), peak(500_000))  # a chunk is of 131,072 rows
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's peak memory")
def test_memory_does_not_grow_with_the_rows() -> None:
    # what is freed goes back at once: the pieces that a heap keeps otherwise differ by up to 90 MB between runs
    bare = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    output = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=bare).stdout
    few, many = map(int, output.split())
    assert many - few < 50  # MB, of which 7 are pages of the file of cosines; the further rows alone are 150


# What is public ----------------------------------------------------------------------------------------------------


def test_array_states_are_states_and_take_what_people_have(tmp_path) -> None:
    a = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (7, 2))
    a[:] = np.arange(14).reshape(7, 2)
    a = np.load(tmp_path / "a.npy", mmap_mode="r")
    states = ArrayStates({"a": a, "b": torch.ones(7, 3, dtype=torch.bfloat16), "c": np.zeros((7, 1), dtype=np.int64)})
    assert isinstance(states, States)
    assert (states.names, states.count, states.widths, states.groups) == (("a", "b", "c"), 7, (2, 3, 1), None)
    chunks = list(states.chunks(3))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    assert all(chunk.dtype == torch.float64 for chunk in chunks)  # as the integers ask for
    np.testing.assert_array_equal(torch.cat(chunks)[:, :2], a)


def test_array_states_say_what_is_wrong() -> None:
    with pytest.raises(DataError, match="no states were given"):
        ArrayStates({})
    with pytest.raises(DataError, match=r"states 'a' have shape \(3,\): expected \(n, D\)"):
        ArrayStates({"a": np.zeros(3)})
    with pytest.raises(DataError, match="states 'a' are of dtype <U1: expected real numbers"):
        ArrayStates({"a": np.array([["x"]])})
    with pytest.raises(DataError, match=r"the same rows, but they number \{'a': 3, 'b': 4\}"):
        ArrayStates({"a": np.zeros((3, 1)), "b": np.zeros((4, 1))})
    with pytest.raises(DataError, match=r"groups have shape \(2,\): expected one for each of the 3 rows"):
        ArrayStates({"a": np.zeros((3, 1))}, groups=np.zeros(2, dtype=np.int64))


def test_the_public_names_are_there_and_torchmetrics_waits_until_it_is_needed() -> None:
    for name in measures.__all__:
        assert hasattr(measures, name)
    with pytest.raises(AttributeError, match="no attribute 'KCA'"):
        _ = measures.KCA
    code = "import sys, anydepth.measures; print('torchmetrics' in sys.modules, 'scipy' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]
