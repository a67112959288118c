from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.core.model_io import predicts_next_token
from anydepth.errors import DataError, LabelError
from anydepth.passes.batches import as_batch, digest

TEXTS = naive.sentences(11)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("size", [1, 4, 11])
def test_a_texts_digest_is_the_same_in_any_batch(size: int, left: bool) -> None:
    expected = [digest({"input_ids": text[None]})[0] for text in TEXTS]
    batches = naive.padded(TEXTS, None, size, left=left)
    assert np.concatenate([digest(batch) for batch in batches]).tolist() == expected
    assert len(set(expected)) == len(TEXTS)


def test_what_stands_at_padding_is_no_content() -> None:
    (batch,) = naive.padded(TEXTS, None, 11)
    spoilt = batch | {"input_ids": batch["input_ids"] + 7 * (1 - batch["attention_mask"])}
    assert digest(spoilt).tolist() == digest(batch).tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10), st.data())
def test_any_change_of_a_sample_changes_its_digest_alone(row: int, data: st.DataObject) -> None:
    (batch,) = naive.padded(TEXTS, None, 11)
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    changed["input_ids"][row, data.draw(st.integers(0, len(TEXTS[row]) - 1))] += 1
    different = digest(changed) != digest(batch)
    assert different.nonzero()[0].tolist() == [row]


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3, 4)])
def test_tensors_of_every_kind_have_digests(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (torch.arange(int(np.prod(shape))).reshape(shape) % 2 if dtype == torch.bool else torch.rand(shape) * 100).to(
        dtype
    )
    x.view(-1)[: x[0].numel()] = 1
    plain = digest(x)
    assert plain.dtype == np.uint64
    assert digest({"pixel_values": x}).shape == (5,)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert digest(strided).tolist() == plain.tolist()
    assert digest(x.flip(0)).tolist() == plain.tolist()[::-1]
    assert digest(x.requires_grad_() if dtype.is_floating_point else x).tolist() == plain.tolist()


def test_names_count_and_what_is_not_per_sample_does_not() -> None:
    x = torch.rand(5, 3)
    assert digest({"a": x, "b": x + 1}).tolist() == digest({"b": x + 1, "a": x}).tolist()
    assert digest({"a": x, "b": x + 1}).tolist() != digest({"b": x, "a": x + 1}).tolist()
    assert digest({"a": x, "scale": torch.ones(2), "flag": True}).tolist() == digest({"a": x}).tolist()


def test_a_batch_taken_apart() -> None:
    x, y = torch.rand(3, 2), torch.tensor([0, 1, 0])
    whole = {"x": x, "labels": y, "id": ["a", "b", "c"]}
    batch, labels, ids = as_batch(whole, first=100)
    assert list(batch) == ["x"]
    assert labels is y
    assert ids == ["a", "b", "c"]
    assert list(whole) == ["x", "labels", "id"], "the caller's batch is the caller's"
    assert as_batch((x, y), first=100)[2] == [100, 101, 102]
    assert as_batch(x, first=0)[1] is None
    both = {"x": x, "label": y + 1, "labels": y}
    assert as_batch(both, 0)[1] is y
    assert list(as_batch(both, 0)[0]) == ["x"]


@pytest.mark.parametrize(
    ("ids", "plain"),
    [
        (torch.tensor([3, 1, 2]), [3, 1, 2]),
        (np.array([3, 1, 2]), [3, 1, 2]),
        (np.array(["a", "b", "c"]), ["a", "b", "c"]),
        ([np.int32(3), torch.tensor(1), 2], [3, 1, 2]),
        (("a", 1, "c"), ["a", 1, "c"]),
        ((str(one) for one in range(3)), ["0", "1", "2"]),
    ],
)
def test_ids_become_plain(ids: Any, plain: list[Any]) -> None:
    _, _, found = as_batch({"x": torch.rand(3, 2), "id": ids}, 0)
    assert found == plain
    assert {type(one) for one in found} <= {int, str}


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [
        (
            {"x": torch.rand(3, 2), "id": [None] * 3},
            DataError,
            "the id None is a NoneType, expected a string or an int",
        ),
        ({"x": torch.rand(3, 2), "id": torch.rand(3)}, DataError, r"the id 0.\d+ is a float"),
        ({"x": torch.rand(3, 2), "id": range(4)}, DataError, "a batch of 3 samples has 4 ids"),
        ({"x": torch.rand(3, 2), "labels": 1}, LabelError, r"labels of shape \(\), expected one each"),
        (
            {"x": torch.rand(3, 2), "labels": [[1], [1, 2], []]},
            LabelError,
            r"labels are \[\[1\], \[1, 2\], \[\]\], expected",
        ),
        ({"x": torch.rand(3, 2), "labels": [None] * 3}, LabelError, r"labels are \[None, None, None\], expected whole"),
        ({}, DataError, r"a batch holds no tensor: \[\]"),
        ([torch.rand(3, 2)] * 3, DataError, "a batch is list, expected a dict of tensors, a pair"),
        (None, DataError, "a batch is NoneType"),
        (([1, 2], [1, 2]), DataError, "a batch is tuple"),
    ],
)
def test_what_is_no_batch(item: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        as_batch(item, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", True),
        ("llama", True),
        ("bert", False),
        ("bert tagger", False),
        ("gpt2 classifier", False),
        ("vit", False),
    ],
)
def test_which_models_answer_with_the_next_token(name: str, expected: bool) -> None:
    assert predicts_next_token(tiny_models.build(name)[0]) is expected


def test_a_masked_language_model_does_not() -> None:
    config = transformers.BertConfig(**tiny_models._USUAL, **tiny_models._SPECIAL)
    assert not predicts_next_token(transformers.BertForMaskedLM(config))
    assert not predicts_next_token(tiny_models.Nobodys())


def test_a_list_of_one_is_that_one() -> None:
    """As `DataLoader(TensorDataset(x))` gives it."""
    x = torch.rand(3, 2)
    batch, labels, ids = as_batch([x], 5)
    assert batch is x
    assert labels is None
    assert ids == [5, 6, 7]
