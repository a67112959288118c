import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.errors import LabelError
from anydepth.measures import readout
from anydepth.measures.readout import by_class, readout_rows, saturation_depth, saturation_histogram, stays_correct


def naive_rows(logits: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    prediction, confidence, entropy = [], [], []
    for row, label in zip(logits.double().numpy(), labels.tolist(), strict=True):
        weights = np.exp(row - row.max())
        share = weights / weights.sum()
        prediction.append(int(np.argmax(row)))
        confidence.append(share.max())
        entropy.append(-(row[label] - row.max() - np.log(weights.sum())))
    return np.array(prediction), np.array(confidence), np.array(entropy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize("classes", [2, 10, 5000])
def test_rows_are_the_definition(dtype: torch.dtype, offset: float, classes: int) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(40, classes, generator=rng) * 5 + offset).to(dtype)
    labels = torch.randint(0, classes, (40,), generator=rng)
    rows = readout_rows(logits, labels)
    prediction, confidence, entropy = naive_rows(logits, labels)
    np.testing.assert_array_equal(rows.prediction.numpy(), prediction)
    np.testing.assert_allclose(rows.confidence.numpy(), confidence, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows.cross_entropy.numpy(), entropy, rtol=1e-6, atol=1e-6)


def test_extreme_logits_stay_finite_and_masked_classes_are_impossible() -> None:
    logits = torch.tensor([[1e30, 0.0, 0.0], [0.0, -torch.inf, 0.0], [-1e4, 1e4, 0.0]])
    rows = readout_rows(logits, torch.tensor([0, 2, 1]))
    torch.testing.assert_close(rows.confidence, torch.tensor([1.0, 0.5, 1.0]).double())
    torch.testing.assert_close(rows.cross_entropy, torch.tensor([0.0, np.log(2), 0.0]).double(), rtol=0, atol=1e-7)


@settings(deadline=None)
@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(1, 9),
    st.integers(0, 99),
    st.booleans(),
)
def test_entropy_is_that_of_the_definition(dtype: torch.dtype, classes: int, seed: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (30 * torch.rand(classes, generator=generator) * torch.randn(6, classes, generator=generator)).to(dtype)
    if masked:
        logits[:, 1::2] = -torch.inf
    given = logits.clone()
    found = readout_rows(logits).entropy
    expected = torch.special.entr(logits.double().softmax(1)).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert (found >= 0).all()
    assert torch.equal(logits, given)


def test_entropy_at_its_ends() -> None:
    found = readout_rows(torch.tensor([[7.0, 7.0, 7.0, 7.0], [1e30, 0.0, 0.0, -torch.inf], [torch.nan, 0.0, 0.0, 0.0]]))
    assert found.entropy[:2].tolist() == pytest.approx([np.log(4), 0.0])
    assert found.entropy[2].isnan()


def test_logits_that_are_not_numbers_make_no_prediction() -> None:
    rows = readout_rows(torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [0.0, 1.0]]), torch.tensor([1, 1, 1]))
    assert rows.prediction.tolist() == [-1, -1, 1]
    assert rows.confidence.isnan().tolist() == [True, True, False]
    assert rows.cross_entropy.isnan().tolist() == [True, True, False]


def test_the_first_of_equal_classes_wins() -> None:
    assert readout_rows(torch.zeros(3, 4)).prediction.tolist() == [0, 0, 0]


def test_pieces_give_the_same_rows(monkeypatch) -> None:
    logits, labels = torch.randn(23, 7), torch.arange(23) % 7
    whole = readout_rows(logits, labels)
    monkeypatch.setattr(readout, "PIECE", 20)
    pieces = readout_rows(logits, labels)
    assert torch.equal(whole.prediction, pieces.prediction)
    assert torch.equal(whole.cross_entropy, pieces.cross_entropy)
    torch.testing.assert_close(whole.entropy, pieces.entropy)
    assert readout_rows(logits).cross_entropy is None


def test_no_rows_are_no_rows() -> None:
    rows = readout_rows(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert len(rows.prediction) == len(rows.confidence) == len(rows.entropy) == len(rows.cross_entropy) == 0


def test_labels_out_of_range_are_named() -> None:
    with pytest.raises(LabelError, match=r"labels lie in 0..3, but the classifier has 3 classes: expected 0..2"):
        readout_rows(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(LabelError, match=r"labels lie in -100..1"):
        readout_rows(torch.zeros(2, 3), torch.tensor([1, -100]))


predictions = st.integers(2, 6).flatmap(
    lambda depths: st.lists(st.lists(st.integers(0, 2), min_size=depths, max_size=depths), min_size=1, max_size=20)
)


@settings(deadline=None)
@given(predictions)
def test_saturation_is_the_first_depth_from_which_nothing_changes(rows: list[list[int]]) -> None:
    table = np.array(rows)
    last = table.shape[1] - 1
    expected = [next(l for l in range(1, last + 1) if all(c == row[-1] for c in row[l:])) for row in rows]  # noqa: E741
    found = saturation_depth(table)
    assert found.tolist() == expected
    counts = saturation_histogram(found, last)
    assert counts.tolist() == [expected.count(depth) for depth in range(last + 1)]
    assert counts[0] == 0
    assert counts.sum() == len(rows)


def test_the_embedding_output_plays_no_part_in_saturation() -> None:
    assert saturation_depth(np.array([[5, 5, 5], [9, 5, 5]])).tolist() == [1, 1]


@settings(deadline=None)
@given(predictions)
def test_stays_correct_counts_those_right_from_a_depth_to_the_end(rows: list[list[int]]) -> None:
    correct = np.array(rows) == 1
    found = stays_correct(correct)
    for depth in range(correct.shape[1]):
        right = [row for row in correct if row[depth]]
        expected = sum(all(row[depth:]) for row in right) / len(right) if right else np.nan
        np.testing.assert_equal(found[depth], expected)


@settings(deadline=None)
@given(predictions, st.randoms(use_true_random=False))
def test_by_class_is_accuracy_and_saturation_of_the_rows_of_a_class(rows: list[list[int]], random) -> None:
    table = np.array(rows)
    labels = np.array([random.choice([0, 2, 7]) for _ in rows])
    found = by_class(labels, table)
    assert found.label.tolist() == sorted(set(labels.tolist()))
    saturation = saturation_depth(table)
    for index, label in enumerate(found.label):
        own = labels == label
        assert found.count[index] == own.sum()
        np.testing.assert_allclose(found.accuracy[index], (table[own] == label).mean(0))
        settled = [(saturation[own] <= depth).mean() for depth in range(table.shape[1])]
        np.testing.assert_allclose(found.saturated[index], settled)
        assert found.saturated[index, -1] == 1
        assert found.saturated[index, 0] == 0
