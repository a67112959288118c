"""Arrays in all the forms people have them in, and what is none."""

from typing import Any

import numpy as np
import pytest
import torch

from anydepth import Trace, compare, trace_states
from anydepth.errors import AnydepthError, DataError, IncompatibleTraces, MeasureError

RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(24, 6))
DEPTHS = [FIRST, FIRST @ RNG.normal(size=(6, 6)), RNG.normal(size=(24, 6))]
MEASURES = ["cka", "cosine"]
NAMES = [f"s{index}" for index in range(24)]


class Foreign:
    """An array of a library that nobody here has heard of."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array if dtype is None else self.array.astype(dtype)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.setflags(write=False)
    return array


FORMS = {
    "dict": lambda: dict(zip("012", DEPTHS, strict=True)),
    "list": lambda: list(DEPTHS),
    "tuple": lambda: tuple(DEPTHS),
    "one array": lambda: np.stack(DEPTHS),
    "one tensor": lambda: torch.from_numpy(np.stack(DEPTHS)),
    "tensors with gradients": lambda: [torch.from_numpy(one).requires_grad_() for one in DEPTHS],
    "foreign": lambda: [Foreign(one) for one in DEPTHS],
    "nested lists": lambda: [one.tolist() for one in DEPTHS],
    "transposed": lambda: [np.ascontiguousarray(one.T).T for one in DEPTHS],
    "backwards and back": lambda: [one[::-1].copy()[::-1] for one in DEPTHS],
    "read-only": lambda: [read_only(one) for one in DEPTHS],
    "big-endian": lambda: [one.astype(">f8") for one in DEPTHS],
    "longdouble": lambda: [one.astype(np.longdouble) for one in DEPTHS],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form: str) -> None:
    expected, found = trace_states(FORMS["dict"](), measures=MEASURES), trace_states(FORMS[form](), measures=MEASURES)
    assert found.names == ("0", "1", "2")
    for name, value in expected.similarity.items():
        np.testing.assert_array_equal(found.similarity[name], value)


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint16, np.int32, np.int64, np.uint64, np.bool_])
def test_every_kind_of_number_is_taken_for_what_it_is(dtype: Any) -> None:
    given = [np.abs(one * 3).astype(dtype) for one in DEPTHS]
    found = trace_states(given, measures=MEASURES)
    expected = trace_states([one.astype(np.float64) for one in given], measures=MEASURES)
    for name, value in expected.similarity.items():
        np.testing.assert_allclose(found.similarity[name], value, atol=1e-7)


def test_hidden_states_have_a_row_for_each_position_that_is_not_padding() -> None:
    states = [torch.from_numpy(one).view(6, 4, 6) for one in DEPTHS]
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[2, 1:] = mask[5, 3] = False
    rows = np.flatnonzero(mask.numpy())
    expected = trace_states([one[rows] for one in DEPTHS], groups=rows // 4, measures=MEASURES)
    found = trace_states(tuple(states), mask=mask, measures=MEASURES)
    for name, value in expected.similarity.items():
        np.testing.assert_array_equal(found.similarity[name], value)
        np.testing.assert_array_equal(found.similarity_intervals[name], expected.similarity_intervals[name])
    assert found.notes[0] == "each of 20 positions of 6 samples is a row"
    assert trace_states(states).notes[0].endswith("if some are padding, leave them out with mask=")


@pytest.mark.parametrize(
    ("given", "settings", "says"),
    [
        ([one + 1j for one in DEPTHS], {}, "states '0' are of dtype complex128: expected real numbers"),
        ([torch.ones(3, 2, dtype=torch.complex64)], {}, "states '0' are a tensor of strided complex64"),
        ([torch.eye(3).to_sparse()], {}, "states '0' are a tensor of sparse_coo float32"),
        ([np.array([["a", "b"]])], {}, "states '0' are of dtype <U1: expected real numbers"),
        ([np.array([[None, 1]])], {}, "states '0' are of dtype object: expected real numbers"),
        ([[[1.0, 2.0], [3.0]]], {}, "states '0' are a list that is no array: expected .* rows of one length"),
        ([np.ma.masked_less(FIRST, 0)], {}, "states '0' have masked entries"),
        ([[1.0, 2.0], [3.0, 4.0]], {}, r"states '0' have shape \(2,\): expected \(n, D\)"),
        (FIRST, {}, r"one array of shape \(24, 6\), expected \(K, n, D\)"),
        (np.array(3.0), {}, r"one array of shape \(\), expected \(K, n, D\)"),
        ("states", {}, "states 'of all depths' are of dtype <U6"),
        ([], {}, "no states were given"),
        (np.zeros((0, 4, 2)), {}, "no states were given"),
        (DEPTHS, {"groups": np.array(NAMES)}, "groups are of dtype <U3: expected whole numbers, as numpy.unique"),
        (DEPTHS, {"groups": np.full(24, 0.5)}, "groups are of dtype float64: expected whole numbers"),
        (DEPTHS, {"ids": NAMES[1:]}, "23 ids for 24 rows, expected one for each"),
        (DEPTHS, {"ids": [*NAMES[1:], "s3"]}, "the id 's3' names two samples"),
        (DEPTHS, {"ids": np.arange(24) / 2}, "the id 0.0 is a float, expected a string or an integer"),
        (DEPTHS, {"ids": ["a", "b"], "groups": np.arange(24) // 8}, r"2 ids for groups 0..2, expected .*: 0..1"),
        (DEPTHS, {"mask": np.ones((6, 4))}, r"a mask came with states of one row a sample"),
        ([np.zeros((2, 3, 4))], {"mask": np.ones((3, 2))}, r"the mask has shape \(3, 2\): expected \(2, 3\)"),
        ([np.zeros((2, 3, 4))], {"groups": [0, 1]}, r"states of shape \(B, T, D\) came with groups"),
        ([np.zeros((2, 3, 4)), np.zeros((2, 2, 4))], {}, r"came with samples and positions \[\(2, 2\), \(2, 3\)\]"),
        ([np.zeros((2, 3, 4)), FIRST], {}, r"states '0' have shape \(2, 3, 4\): expected \(n, D\)"),
    ],
)
def test_what_is_no_array_of_states_is_refused_in_one_line(given: Any, settings: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        trace_states(given, **settings)
    assert "\n" not in str(caught.value)


def test_no_rows_are_refused() -> None:
    with pytest.raises(MeasureError, match="no rows to measure"):
        trace_states([np.zeros((0, 3))])


def test_two_of_them_are_compared_by_their_ids(tmp_path: Any) -> None:
    order = RNG.permutation(24)
    first = trace_states(DEPTHS[:2], ids=NAMES, measures=["cka"])
    second = trace_states([one[order] for one in DEPTHS], ids=[NAMES[index] for index in order], measures=["cka"])
    expected = trace_states(DEPTHS, measures=["cka"]).similarity["cka"]
    first.save(tmp_path)
    for one in (first, Trace.load(tmp_path)):
        found = compare(one, second)
        assert found.samples == 24
        np.testing.assert_allclose(found.similarity["cka"], expected[:2], atol=1e-6)
    with pytest.raises(
        IncompatibleTraces, match=r"the second trace names no samples.*trace_states\(\.\.\., ids=\.\.\.\)"
    ):
        compare(first, trace_states(DEPTHS))


def test_two_of_them_are_merged() -> None:
    halves = [trace_states([one[part] for one in DEPTHS], ids=NAMES[part]) for part in (slice(0, 10), slice(10, None))]
    merged, whole = halves[0].merge(halves[1]), trace_states(DEPTHS)
    assert merged.ids == tuple(NAMES)
    for name, value in whole.similarity.items():
        np.testing.assert_allclose(merged.similarity[name], value, atol=1e-6)
    with pytest.raises(AnydepthError, match="'s0' is in both traces"):
        halves[0].merge(trace_states(DEPTHS, ids=NAMES))
