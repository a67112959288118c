"""Batches in one form, out of all that people have: data sets, dicts, pairs, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from anydepth.core.model_io import Batch, BatchParts, device_of, sample_count, split_batch, to_device
from anydepth.core.stack import Stack
from anydepth.core.targets import are_matched
from anydepth.errors import DataError, LabelError


def as_batches(data: Iterable[Any]) -> Iterable[Any]:
    """Batches of any data: a `datasets.Dataset` is read in batches of tensors; everything else yields them already."""
    if hasattr(data, "with_format") and hasattr(data, "iter"):
        batches = _DatasetBatches(data)
        return batches if hasattr(data, "__len__") else iter(batches)
    if isinstance(data, Tensor | Mapping):
        raise DataError(f"data is a {type(data).__name__}, expected an iterable of batches; of one batch, give [data]")
    if not isinstance(data, Iterable):
        raise DataError(f"data is {type(data).__name__}, expected an iterable of batches")
    return data


def shown_to(stack: Stack, data: Iterable[Any]) -> Iterable[Any]:
    """The data, after a stack that does not know its blocks yet has learnt them from the first batch."""
    if stack.is_known:
        return data
    iterator = iter(data)
    items = list(islice(iterator, 1))
    for item in items:
        stack.verify(to_device(as_batch(item, 0, stack.model).inputs, device_of(stack.model)))
    return chain(items, iterator) if iterator is data else data


class _DatasetBatches:
    def __init__(self, dataset: Any, size: int = 32) -> None:
        self._dataset, self._size = _as_tensors(dataset), size

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._size)

    def __iter__(self) -> Iterator[Any]:
        for columns in self._dataset.iter(batch_size=self._size):
            batch = {name: _stacked(column) for name, column in columns.items()}
            ragged = [name for name, column in batch.items() if name != "id" and not isinstance(column, Tensor)]
            if ragged:
                raise DataError(
                    f"column {ragged[0]!r} does not stack into a tensor: tokenise and pad it, or remove it, "
                    "or give batches of your own (a DataLoader)"
                )
            yield batch


def _as_tensors(dataset: Any) -> Any:
    """The data set as tensors: the columns its user chose, or the output of the user's own transform."""
    chosen = getattr(dataset, "format", None)  # a streamed data set has none
    if chosen is None:
        return dataset.with_format("torch")
    return dataset if chosen["type"] == "custom" else dataset.with_format("torch", columns=chosen["columns"])


def _stacked(column: Any) -> Any:
    """A column as one tensor, if it stacks into one; a transform may return a list."""
    try:
        return torch.stack(column) if isinstance(column[0], Tensor) else torch.as_tensor(column)
    except (TypeError, ValueError, RuntimeError):
        return column


def as_batch(item: Any, first: int, model: nn.Module | None = None) -> BatchParts:
    """Inputs, labels and ids of whatever a loader yields, checked to belong together.

    Args:
        item: a batch as `split_batch` splits it.
        first: the id of the first sample where the data have no ids: its place in the data.
        model: whose own names of labels are set aside too.

    Returns:
        Labels are a tensor of B rows, or None, also where they are a mapping for each sample, which only the model's
        own loss can match with its answers; ids are a list of B integers or strings.

    Raises:
        DataError: it is no batch, holds no sample, or has other ids.
        LabelError: labels do not stack into a tensor, or are not one for each sample.
    """
    batch, labels, ids = split_batch(item, model)
    if not isinstance(batch, dict | Tensor):
        raise DataError(f"a batch is {type(item).__name__}, expected a dict of tensors, a pair (x, y), or a tensor")
    count = sample_count(batch)
    if not count:
        raise DataError("a batch holds no sample, expected at least one")
    ids = list(range(first, first + count)) if ids is None else plain_ids(ids)
    if len(ids) != count:
        raise DataError(f"a batch of {count} samples has {len(ids)} ids, expected one for each")
    return BatchParts(batch, None if labels is None or are_matched(labels) else _as_labels(labels, count), ids)


class Places:
    """Where the samples of batches lie in the data: as the batches know, or else after all before them.

    Batches of several data sets, or the same ones twice, may come one after the other: what was there before is not
    there again, so their samples lie behind it.

    Example:
        >>> from anydepth.data.batching import DataBatch
        >>> places, batch = Places(), DataBatch({}, np.array([2, 0]))
        >>> [places.of(item, 2).tolist() for item in (batch, {}, batch)]
        [[2, 0], [3, 4], [7, 5]]
    """

    def __init__(self) -> None:
        self._taken = np.zeros(1, dtype=bool)
        self._start = self._end = 0

    def of(self, item: Any, count: int) -> NDArray[np.int64]:
        """The places of the next batch's samples, (B,)."""
        known: NDArray[np.int64] | None = getattr(item, "numbers", None)
        numbers = self._end + np.arange(count) if known is None else self._start + known
        if self._taken[numbers[numbers < self._end]].any():
            numbers = numbers - self._start + self._end
            self._start = self._end
        self._end = max(self._end, int(numbers.max()) + 1)
        if self._end > len(self._taken):  # twice as much, or a long pass would copy it again for every batch
            self._taken = np.concatenate([self._taken, np.zeros(max(self._end, len(self._taken)), dtype=bool)])
        self._taken[numbers] = True
        return numbers


def _as_labels(labels: Any, count: int) -> Tensor:
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise LabelError(
            f"labels are {str(labels)[:40]}, expected whole numbers, one per sample, that stack into a tensor"
        ) from None
    if tensor.shape[:1] != (count,):
        raise LabelError(f"a batch of {count} samples has labels of shape {tuple(tensor.shape)}, expected one each")
    return tensor


def plain_ids(ids: Any) -> list[int | str]:
    """Ids as integers and strings, arrays and tensors converted; `DataError` if one is neither."""
    plain = [value.item() if hasattr(value, "item") else value for value in ids]
    for value in plain:
        if not isinstance(value, int | str):
            raise DataError(f"the id {value!r:.40} is a {type(value).__name__}, expected a string or an integer")
    return plain


def digest(batch: Batch) -> NDArray[np.uint64]:
    """A 64-bit hash of each sample's content without padding, so that it does not depend on the rest of the batch."""
    tensors = {"": batch} if isinstance(batch, Tensor) else {k: v for k, v in batch.items() if isinstance(v, Tensor)}
    count = sample_count(batch)
    mask = tensors["attention_mask"].cpu() if "attention_mask" in tensors else None
    arrays = {
        name: value.detach().cpu().contiguous().view(torch.int16 if value.dtype == torch.bfloat16 else value.dtype)
        for name, value in sorted(tensors.items())
        if name != "attention_mask" and value.ndim and value.shape[0] == count
    }
    digests = np.empty(count, dtype=np.uint64)
    for row in range(count):
        content = xxhash.xxh3_64()  # images have many pixels: a cryptographic hash takes a hundred times as long
        for name, values in arrays.items():
            sample = values[row]
            if mask is not None and mask.ndim > 1 and sample.shape[: mask.ndim - 1] == mask.shape[1:]:
                sample = sample[mask[row].bool()]
            content.update(name.encode())
            content.update(np.ascontiguousarray(sample.numpy()).data)
        digests[row] = content.intdigest()
    return digests
