"""Data that are given as objects instead of by name: rows to be read, rows of tokens, or batches."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from anydepth.core.model_io import LABELS
from anydepth.core.tokens import IGNORED
from anydepth.data.columns import GivenColumns, guess
from anydepth.data.sources import ROWS, Splits, splits
from anydepth.errors import DataError, one_line

Form = Literal["name", "rows", "tokens", "batches"]
TOKENS = "input_ids"


def form_of(data: Any) -> Form:
    """What data are: a name, rows of texts or images, rows of tokens, or batches.

    Example:
        >>> form_of("digits"), form_of(["a text"]), form_of([[5, 6], [7]]), form_of([torch.zeros(2, 3)])
        ('name', 'rows', 'tokens', 'batches')
        >>> form_of([{"text": "a", "label": 0}]), form_of([{"input_ids": torch.ones(2, 3), "labels": torch.ones(2)}])
        ('rows', 'batches')
    """
    if isinstance(data, str | os.PathLike):
        return "name"
    if is_frame(data) or _is_splits(data):
        return "rows"
    if is_dataset(data):
        return _form_of_dataset(data)
    first = data[0] if isinstance(data, list | tuple) and data else None
    if isinstance(first, Mapping):
        if _are_ids(first.get(TOKENS)):
            return "tokens"
        return "batches" if any(isinstance(value, Tensor) for value in first.values()) else "rows"
    if _is_content(first) or (isinstance(first, tuple) and first and _is_content(first[0])):
        return "rows"
    return "tokens" if isinstance(first, list) and _are_ids(first) else "batches"


def name_of(data: Any) -> str:
    """What data are called in results: the name they were given by, or what kind of object they are."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    if isinstance(data, list | tuple) and form_of(data) == "rows":
        return {str: "texts", Image: "images"}.get(_kind_of(data[0]), "rows")
    return type(data).__name__


def opened(data: Any, given: GivenColumns) -> Splits:
    """All splits of data by name (see `anydepth.data.sources.splits`), or of rows that are objects.

    Raises:
        DataError: see `splits`; or a column of the rows holds values of several types.

    Example:
        >>> parts = opened([{"text": "good", "label": 1}, {"text": "bad", "label": 0}], GivenColumns())
        >>> list(parts), parts["rows"].column_names
        (['rows'], ['text', 'label'])
    """
    if isinstance(data, str | os.PathLike):
        return splits(os.fspath(data), given=given)
    if _is_splits(data):
        return Splits(data)
    return Splits({ROWS: data if is_dataset(data) else _as_dataset(_columns_of(data))})


def batches_of(data: Any, *, processor: Any, collate_fn: Callable[[list[Any]], Any] | None, batch_size: int) -> Any:
    """Batches of data that are no rows to be read: as they are, by `collate_fn`, or of tokens padded by `processor`.

    Raises:
        DataError: `collate_fn` came with what has no length or cannot be indexed; a list of tokens without a processor.
    """
    if collate_fn is None and form_of(data) == "tokens":
        if not hasattr(processor, "pad") and not is_dataset(data):
            raise DataError("data are rows of tokens, which have to be padded: give the tokenizer (processor)")
        if hasattr(processor, "pad"):
            data = data if is_dataset(data) else _as_dataset(_columns_of(data))
            collate_fn = _Padded(processor)
    if collate_fn is None:
        return data
    if is_frame(data):
        data = _as_dataset(_columns_of(data))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(f"collate_fn makes batches of rows, and data is {type(data).__name__}: leave it out")
    # a generator of its own, or the order of its draw would change torch's
    return DataLoader(data, batch_size, collate_fn=collate_fn, generator=torch.Generator())


class _Padded:
    """Collator of rows of tokens, by the processor's own padding, on the right; labels of tokens are padded too."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        names = [name for name in rows[0] if name in self._processor.model_input_names]
        tokens = [{name: row[name] for name in names} for row in rows]
        batch = dict(self._processor.pad(tokens, padding=True, padding_side="right", return_tensors="pt"))
        for name in (name for name in rows[0] if name in (*LABELS, "id")):
            values = [row[name] for row in rows]
            if name == "id":
                batch[name] = values
            elif np.ndim(values[0]):
                batch[name] = pad_sequence([torch.as_tensor(value) for value in values], True, IGNORED)
            else:
                batch[name] = torch.as_tensor(values)
        return batch


def is_dataset(data: Any) -> bool:
    """Whether data are a `datasets.Dataset`."""
    return hasattr(data, "with_format") and hasattr(data, "iter")


def is_frame(data: Any) -> bool:
    """Whether data are a frame of pandas, which is imported if they are."""
    return "pandas" in sys.modules and isinstance(data, sys.modules["pandas"].DataFrame)


def _is_splits(data: Any) -> bool:
    return isinstance(data, dict) and bool(data) and all(map(is_dataset, data.values()))


def _form_of_dataset(dataset: Any) -> Form:
    features, chosen = getattr(dataset, "features", None), getattr(dataset, "format", None)
    if features is None or chosen is None:
        return "batches"
    if TOKENS in chosen["columns"] and chosen["type"] != "custom":
        return "tokens"
    columns = guess(features)
    return "rows" if chosen["type"] is None and (columns.text or columns.image) else "batches"


def _are_ids(value: Any) -> bool:
    """Whether a value is the token ids of one row."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 1
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def _kind_of(item: Any) -> Any:
    first = item[0] if isinstance(item, tuple) else item
    return Image if isinstance(first, Image | np.ndarray) else type(first)


def _is_content(item: Any) -> bool:
    return isinstance(item, str | Image | np.ndarray)


def _columns_of(data: Any) -> dict[str, list[Any]]:
    """The columns of a frame, or of a list of texts, images, pairs with a label, tokens or dicts."""
    if is_frame(data):
        return {str(name): _plain(data[name].astype(object).where(data[name].notna(), None)) for name in data}
    first = data[0]
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for row in data for name in row)
        return {str(name): _plain([row.get(name) for row in data]) for name in names}
    if isinstance(first, list):
        return {TOKENS: list(data)}
    name = "text" if isinstance(first[0] if isinstance(first, tuple) else first, str) else "image"
    if isinstance(first, tuple):
        return {name: _plain(row[0] for row in data), "label": _plain(row[1] for row in data)}
    return {name: _plain(data)}


def _plain(values: Iterable[Any]) -> list[Any]:
    """Values as the standard library has them, which arrow takes."""
    return [value.tolist() if isinstance(value, Tensor | np.generic | np.ndarray) else value for value in values]


def _as_dataset(columns: Mapping[str, Sequence[Any]]) -> Any:
    import datasets

    try:
        return datasets.Dataset.from_dict(dict(columns))
    except (TypeError, ValueError) as error:  # pyarrow's are such
        raise DataError(f"the rows are no table, expected one type in each column: {one_line(error)}") from error
