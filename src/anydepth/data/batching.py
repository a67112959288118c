"""Batches of model inputs, made from loaded data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from anydepth.data.columns import describe, type_name
from anydepth.data.inputs import (
    Padding,
    images_of,
    nothing_in,
    pixel_input,
    text_inputs,
    token_counts,
    word_labels,
)
from anydepth.data.labels import labels_of
from anydepth.data.loading import LoadedData
from anydepth.data.windowing import Windows, windows_of
from anydepth.errors import DataError
from anydepth.models.image_transform import has_16_bits
from anydepth.models.loaded import LoadedModel

# Default maximum lengths of texts: a language model may allow a hundred times as many tokens, and a model without a
# table of positions any number.
_LANGUAGE_MODEL_LENGTH = 1024
_UNKNOWN_LENGTH = 512

_WINDOW = 50  # batches: what they hold is sorted by length, so that little of what is computed is padding


class DataBatch(dict[str, Any]):
    """A batch that knows the places of its samples in the data: `numbers`, (B,)."""

    def __init__(self, content: dict[str, Any], numbers: Int64[np.ndarray, " b"]) -> None:
        super().__init__(content)
        self.numbers = numbers


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A sized iterable of batches that can be iterated repeatedly.

    Each batch is a dict on the CPU: the model's own inputs, "id" (an int64 tensor, or a list of strings), and "labels"
    (an int64 tensor, (B,) or (B, T) for a tagger) where there are any. A language model's labels are its own tokens:
    they are included only where windows overlap, with -100 at tokens that an earlier window predicts. Texts of one
    length come together: `numbers` of a batch are the places of its samples in the data, by which whatever collects
    results restores the order of the data.

    Attributes:
        batch_size: rows (or windows) in a batch; the last may have fewer.
        max_length: maximum number of tokens of a row, or window; None for images.
        labels: class of each row, for a tagger of each word of each row; None where there are none.
        notes: what a reader of the results should know, one sentence each.
        windows: samples instead of rows, where texts are read in windows.
        sorted_batches: texts are sorted by length inside so many batches; 1 for batches in the order of the data.
    """

    data: LoadedData
    model: LoadedModel
    batch_size: int
    max_length: int | None
    labels: Sequence[Any] | None
    notes: tuple[str, ...]
    windows: Windows | None = None
    sorted_batches: int = _WINDOW

    def __len__(self) -> int:
        return -(-self._samples // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = self.batch_size * self.sorted_batches
        for first in range(0, self._samples, step):
            stop = min(first + step, self._samples)
            for part in by_length(self._lengths(first, stop), self.batch_size):
                yield DataBatch(self._batch((first + part).tolist()), first + part)

    def _lengths(self, first: int, stop: int) -> Int64[np.ndarray, " n"]:
        """Tokens of each sample from `first` to `stop`; images are of one size."""
        if self.model.kind == "image" or stop - first <= self.batch_size:
            return np.zeros(stop - first, np.int64)
        if self.windows is not None:
            return np.diff(self.windows.spans[first:stop, :2])[:, 0]
        return token_counts(self.data.dataset[first:stop], self.data, self.model, self.max_length)

    @property
    def _samples(self) -> int:
        return len(self.data if self.windows is None else self.windows)

    def _batch(self, indices: list[int]) -> dict[str, Any]:
        if self.windows is not None:
            examples = Padding.of(self.model)(self.windows.examples(indices))
            return {**examples, "id": [self.windows.ids[index] for index in indices]}
        rows = self.data.dataset[indices]
        if self.model.kind == "image":
            name, dtype = pixel_input(self.model)
            batch = {name: self.model.processor(images_of(rows, indices, self.data)).to(dtype)}
        else:
            batch = text_inputs(rows, indices, self.data, self.model, self.max_length)
        words = batch.pop("words", None)  # the word of each token, where words are labelled
        if self.labels is not None:
            labels = [self.labels[index] for index in indices]
            batch["labels"] = torch.tensor(labels) if words is None else word_labels(words, labels)
        ids = self.data.rows[indices].tolist() if self.data.columns.id is None else rows[self.data.columns.id]
        batch["id"] = list(ids) if isinstance(ids[0], str) else torch.tensor(ids)
        return batch


def by_length(lengths: Int64[np.ndarray, " n"], batch_size: int) -> list[Int64[np.ndarray, " b"]]:
    """The samples of each batch, by their places, where those of about one length are together.

    The first batch is of the mean length, since much is estimated from it (disk, time); those of longer ones follow,
    then those of shorter ones, from the shortest on. That of the longest may have fewer samples, all others are full.

    Example:
        >>> [batch.tolist() for batch in by_length(np.array([9, 1, 5, 2, 6, 8, 2]), batch_size=2)]
        [[6, 2], [4, 5], [0], [1, 3]]
        >>> [batch.tolist() for batch in by_length(np.array([4, 4, 4]), batch_size=2)]
        [[0, 1], [2]]
    """
    order, starts = np.argsort(lengths, kind="stable"), range(batch_size, len(lengths), batch_size)
    parts = np.split(order, starts)
    distances = [abs(lengths[part].mean() - lengths.mean()) for part in parts if len(part) == len(parts[0])]
    first = int(np.argmin(distances))
    return parts[first:] + parts[:first]


def batches(
    data: LoadedData,
    model: LoadedModel,
    *,
    batch_size: int,
    max_length: int | None = None,
    labels: bool = True,
    stride: int | None = None,
    pack: bool = False,
) -> Batches:
    """Make batches of model inputs. All texts and labels are checked before any is run.

    A text is a sample, truncated at `max_length`, unless a causal language model reads it in windows: with `stride`, a
    longer text becomes several; with `pack`, all texts are joined and cut. Each token with one before it then counts in
    exactly one window. A window is a sample, named after the text it starts in and the token it starts at: 'cp26[64:]'
    (see `anydepth.core.windows`).

    Args:
        data: from `anydepth.data.load`.
        model: from `anydepth.models.loading.load`.
        batch_size: rows in a batch.
        max_length: tokens at which texts are truncated; by default the model's maximum, a language model's at most
            1,024.
        labels: add labels to the batches, where the model has a classifier and the data have labels.
        stride: tokens from the start of a window to that of the next: 1 to `max_length` - 1. A token has at least
            `max_length` - `stride` others before it, or all there are.
        pack: join texts, each closed by the end token where the tokenizer has one, into full windows. Without
            `stride`, a window begins with the last token of the one before.

    Raises:
        DataError: no column of the kind the model takes, a text missing, a setting out of range, or windows for what
            is no causal language model with labels.
        LabelError: a label is missing, or no class of the classifier.
    """
    if batch_size < 1:
        raise DataError(f"batch size is {batch_size}, expected at least 1")
    notes: list[str] = []
    windows = None
    if stride is not None or pack:
        _require_windows(model, labels)
        data, max_length = with_text(data, model, notes), text_length(model, max_length)
        windows = windows_of(data, model, max_length, stride, pack=pack)
        notes += windows.notes
    elif model.kind == "text":
        data = with_text(data, model, notes)
        max_length = text_length(model, max_length)
        notes.append(f"texts are cut at {max_length:,} tokens")
    elif model.kind == "image":
        data, max_length = _with_images(data, notes), None
    else:
        raise DataError(f"'{model.name}' takes tensors: give batches of your own")
    return Batches(
        data=data,
        model=model,
        batch_size=batch_size,
        max_length=max_length,
        labels=labels_of(data, model, notes) if labels and windows is None else None,
        notes=tuple(notes),
        windows=windows,
    )


def _require_windows(model: LoadedModel, labels: bool) -> None:
    if model.task != "causal-lm":
        raise DataError(
            f"'{model.name}' ({model.task}) answers for a sample as a whole: windows (stride, pack) are for causal "
            "language models"
        )
    if not labels:
        raise DataError(
            "windows (stride, pack) overlap, and labels say which of them counts a token: expected labels=True"
        )


def _required_column(data: LoadedData, kind: str) -> str:
    column: str | None = getattr(data.columns, kind)
    if column is None:
        raise DataError(
            f"the model takes {kind}s, and '{data.name}' has no column known to hold them; "
            f"{describe(data.dataset.features)}: name the column ({kind})"
        )
    return column


def _select_columns(data: LoadedData, *used: str | None) -> LoadedData:
    """The data with only the columns in use, so that nothing else is read or decoded."""
    names = {*used, data.columns.label, data.columns.id} - {None}
    return replace(data, dataset=data.dataset.select_columns([c for c in data.dataset.column_names if c in names]))


def _with_images(data: LoadedData, notes: list[str]) -> LoadedData:
    import datasets

    image = _required_column(data, "image")
    notes.append(f"images: column '{image}'")
    data = _select_columns(data, image)
    if type_name(data.dataset.features[image]) == "image":
        # Decoded here rather than by `datasets`, so that a broken file can be named.
        data = replace(data, dataset=data.dataset.cast_column(image, datasets.Image(decode=False)))
    if has_16_bits(images_of(data.dataset[:1], [0], data)[0]):
        notes.append("images of 16 bits are scaled to 8: 65,535 is white")
    return data


def with_text(data: LoadedData, model: LoadedModel, notes: list[str]) -> LoadedData:
    """The data with only the columns in use; for a causal language model without blank texts.

    The columns, and how many texts were left out, are added to `notes`.

    Raises:
        DataError: there is no column of texts, a text is missing, one becomes no tokens, or all are blank.
    """
    text, pair = _required_column(data, "text"), data.columns.pair
    notes.append(f"text: column '{text}'" + (f" with '{pair}'" if pair else ""))
    data = _select_columns(data, text, pair)
    for column in filter(None, (text, pair)):
        for index, value in enumerate(data.dataset[column]):
            if value is None:
                raise DataError(f"column '{column}' has no text in {data.where(index)}: fill it or leave the row out")
    if model.task == "causal-lm":
        return _without_blanks(data, text, notes)
    if not model.processor("")["input_ids"]:
        _require_tokens(data, text, pair, model)
    return data


def _require_tokens(data: LoadedData, text: str, pair: str | None, model: LoadedModel) -> None:
    """Raise for blank texts without tokens, if the tokenizer adds none of its own; other texts are checked later."""
    for index, value in enumerate(data.dataset[text]):
        second = None if pair is None else data.dataset[pair][index]
        words = {"is_split_into_words": isinstance(value, list)}
        blank = _is_blank(value) and _is_blank(second)
        if blank and not (value and model.processor(value, second, **words)["input_ids"]):
            raise DataError(nothing_in(data, index))


def _without_blanks(data: LoadedData, text: str, notes: list[str]) -> LoadedData:
    """The data without blank texts, which have no next token to predict."""
    kept = [index for index, value in enumerate(data.dataset[text]) if not _is_blank(value)]
    if not kept:
        raise DataError(f"'{data.name}' holds nothing but blank texts in column '{text}'")
    if len(kept) == len(data):
        return data
    notes.append(f"{len(data) - len(kept):,} blank texts left out")
    return data.select(np.array(kept))


def _is_blank(value: Any) -> bool:
    return not value or (isinstance(value, str) and value.isspace())


def text_length(model: LoadedModel, requested: int | None) -> int:
    """The maximum number of tokens of a text: `requested`, else the model's, and 1,024 for a longer language model.

    A request for fewer than two, or for more than the model takes, raises a DataError.
    """
    if requested is None:
        length = model.max_length or _UNKNOWN_LENGTH
        return min(length, _LANGUAGE_MODEL_LENGTH) if model.task == "causal-lm" else length
    if requested < 2 or (model.max_length is not None and requested > model.max_length):
        most = "any number" if model.max_length is None else f"{model.max_length:,}"
        raise DataError(f"max length is {requested:,} tokens, expected at least 2 and at most {most}")
    return requested
