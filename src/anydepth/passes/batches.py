"""Batches as a model takes them, out of all that people have: data sets, dicts, pairs, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.core.model_io import (
    Batch,
    sample_count,
    split_labels,
)
from anydepth.errors import DataError, LabelError


def as_batches(data: Iterable[Any]) -> Iterable[Any]:
    """A `datasets.Dataset` is read in batches of tensors; everything else yields batches already."""
    if hasattr(data, "with_format") and hasattr(data, "iter"):
        found = _DatasetBatches(data)
        return found if hasattr(data, "__len__") else iter(found)
    if isinstance(data, Tensor | Mapping):
        raise DataError(f"data is a {type(data).__name__}, expected an iterable of batches; of one batch, give [data]")
    if not isinstance(data, Iterable):
        raise DataError(f"data is {type(data).__name__}, expected an iterable of batches")
    return data


class _DatasetBatches:
    def __init__(self, dataset: Any, size: int = 32) -> None:
        self._dataset, self._size = _as_tensors(dataset), size

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._size)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._dataset.iter(batch_size=self._size):
            batch = {name: _stacked(column) for name, column in batch.items()}
            ragged = next((name for name, one in batch.items() if name != "id" and not isinstance(one, Tensor)), None)
            if ragged is not None:
                raise DataError(
                    f"column {ragged!r} does not stack into a tensor: tokenise and pad it, or remove it, "
                    "or give batches of your own (a DataLoader)"
                )
            yield batch


def _as_tensors(dataset: Any) -> Any:
    """The data set, giving tensors: of the columns its user chose, or whatever a transform of theirs makes."""
    chosen = getattr(dataset, "format", None)  # a streamed data set has none
    if chosen is None:
        return dataset.with_format("torch")
    return dataset if chosen["type"] == "custom" else dataset.with_format("torch", columns=chosen["columns"])


def _stacked(column: Any) -> Any:
    """What a transform leaves as a list, as one tensor if it fits into one."""
    try:
        return torch.stack(column) if isinstance(column[0], Tensor) else torch.as_tensor(column)
    except (TypeError, ValueError, RuntimeError):
        return column


def as_batch(item: Any, first: int, model: nn.Module | None = None) -> tuple[Batch, Tensor | None, list[Any]]:
    """What the model takes, the labels, and the samples' ids, out of whatever a loader yields.

    Args:
        item: a dict (with "labels", "label" or "label_ids", and "id", if there are any), a pair (x, y), or a tensor.
        first: the id of the first sample where the data give none: its place in the data.
        model: whose own names of labels are set aside too.
    """
    labels: Any = None
    ids: Any = None
    batch: Any = item
    if isinstance(item, Mapping):
        content = dict(item)
        ids = content.pop("id", None)
        batch, labels = split_labels(content, model)
    elif isinstance(item, tuple | list) and len(item) == 1:  # as torch's TensorDataset gives them
        (batch,) = item
    elif isinstance(item, tuple | list) and len(item) == 2:
        batch, labels = item
        batch = dict(batch) if isinstance(batch, Mapping) else batch
    if not isinstance(batch, dict | Tensor):
        raise DataError(f"a batch is {type(item).__name__}, expected a dict of tensors, a pair (x, y), or a tensor")
    count = sample_count(batch)
    if not count:
        raise DataError("a batch holds no sample, expected at least one")
    return batch, _as_labels(labels, count), list(range(first, first + count)) if ids is None else _as_ids(ids, count)


def _as_labels(labels: Any, count: int) -> Tensor | None:
    if labels is None:
        return None
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        shown = str(labels)[:40]
        raise LabelError(
            f"labels are {shown}, expected whole numbers, one per sample, that stack into a tensor"
        ) from None
    if found.shape[:1] != (count,):
        raise LabelError(f"a batch of {count} samples has labels of shape {tuple(found.shape)}, expected one each")
    return found


def _as_ids(ids: Any, count: int) -> list[int | str]:
    # arrays and tensors, and the scalars they fall into, become plain numbers
    found = [one.item() if hasattr(one, "item") else one for one in ids]
    if len(found) != count:
        raise DataError(f"a batch of {count} samples has {len(found)} ids, expected one for each")
    for one in found:
        if not isinstance(one, int | str):
            raise DataError(f"the id {one!r:.40} is a {type(one).__name__}, expected a string or an integer")
    return found


def digest(batch: Batch) -> NDArray[np.uint64]:
    """64 bits for each sample's content, the same whatever else is in its batch: padding left out."""
    tensors = {"": batch} if isinstance(batch, Tensor) else {k: v for k, v in batch.items() if isinstance(v, Tensor)}
    count = sample_count(batch)
    mask = tensors["attention_mask"].cpu() if "attention_mask" in tensors else None
    arrays = {
        name: value.detach().cpu().contiguous().view(torch.int16 if value.dtype == torch.bfloat16 else value.dtype)
        for name, value in sorted(tensors.items())
        if name != "attention_mask" and value.ndim and value.shape[0] == count
    }
    found = np.empty(count, dtype=np.uint64)
    for row in range(count):
        content = xxhash.xxh3_64()  # of pixels there are many: this costs a hundredth of what a cryptographic hash does
        for name, values in arrays.items():
            own = values[row]
            if mask is not None and mask.ndim == 2 and own.shape[:1] == mask.shape[1:]:
                own = own[mask[row].bool()]
            content.update(name.encode())
            content.update(np.ascontiguousarray(own.numpy()).data)
        found[row] = content.intdigest()
    return found
