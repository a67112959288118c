"""Training and evaluation data sets with their collator, made as `batches` makes its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from anydepth.data.augment import augmented
from anydepth.data.batching import Batches, batches, text_length, with_text
from anydepth.data.columns import describe
from anydepth.data.folders import in_natural_order
from anydepth.data.inputs import TEXTS_AT_ONCE, Padding, images_of, pixel_input, text_inputs, tokens_of, word_labels
from anydepth.data.loading import DataSelection, LoadedData, draw
from anydepth.data.objects import name_of, opened
from anydepth.data.sources import choose_split, training_splits
from anydepth.errors import DataError, LabelError
from anydepth.models.label_names import are_numbers
from anydepth.models.loaded import LoadedModel

Example = dict[str, Tensor]
HELD_OUT = 0.1
"""The share of the rows that is held out where the data have no split to evaluate on."""


@dataclass(frozen=True)
class Examples:
    """The `train_dataset` or `eval_dataset` of a `Trainer`, its `data_collator`, and notes for the reader.

    The data set has an `Example` at each index: one sample's inputs without a batch axis, and its "labels".
    """

    dataset: Dataset[Example]
    collate: Callable[[list[Example]], Example]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # torch's Dataset need not have a length; those here do

    def sorted_by_length(self) -> Dataset[Example]:
        """The data set with texts of about one length together, for what does not depend on their order."""
        if not isinstance(self.dataset, _Texts):
            return self.dataset
        lengths = np.diff(self.dataset.ends.numpy(), prepend=0)
        return Subset(self.dataset, np.argsort(lengths, kind="stable").tolist())


def load_to_train(
    source: Any,
    wanted: DataSelection,
    *,
    split: str | None,
    eval_source: Any | None,
    eval_split: str | None,
    eval_limit: int | None = None,
) -> tuple[LoadedData, LoadedData]:
    """Load training data and evaluation data.

    Args:
        source: the data; see `anydepth.data.objects.opened`.
        wanted: columns, a limit for each of the two, and the seed of the draws.
        split: the training split; by default train, else the only one.
        eval_source: other data to evaluate on; by default their test split, else validation.
        eval_split: the evaluation split; by default validation, else test, else a held-out tenth of the rows.
        eval_limit: number of evaluation rows, in place of the limit of `wanted`; the same rows whatever the seed.

    Raises:
        DataError: see `anydepth.data.load`; or there is only one row.

    Example:
        >>> train, held_out = load_to_train("digits", DataSelection(), split=None, eval_source=None, eval_split=None)
        >>> (train.split, len(train)), (held_out.split, len(held_out))
        (('train', 1347), ('test', 450))
    """
    parts, name = opened(source, wanted.given), name_of(source)
    chosen, other = training_splits(tuple(parts), split, None if eval_source is not None else eval_split, name)
    train = wanted.of(parts, chosen, name)
    to_evaluate = wanted if eval_limit is None else replace(wanted, limit=eval_limit, seed=0)
    if eval_source is not None:
        others, other_name = opened(eval_source, wanted.given), name_of(eval_source)
        return train, to_evaluate.of(others, choose_split(tuple(others), eval_split, other_name), other_name)
    if other is not None:
        return train, to_evaluate.of(parts, other, name)
    return _hold_out(train, wanted.seed)


def _hold_out(data: LoadedData, seed: int) -> tuple[LoadedData, LoadedData]:
    """All rows except a tenth, and that tenth."""
    if len(data) < 2:
        raise DataError(f"'{data.name}' has one row, and none to evaluate on: give data for that (eval_source)")
    held_out = draw(len(data), max(1, round(HELD_OUT * len(data))), seed)
    kept = np.setdiff1d(np.arange(len(data)), held_out)
    note = f"evaluated on {len(held_out):,} of the {len(data):,} rows, kept apart by a draw with seed {seed}"
    return data.select(kept), replace(data.select(held_out), notes=(*data.notes, note))


def class_names(*parts: LoadedData) -> tuple[str, ...]:
    """Names of the classes of a classifier for these data, in order.

    Those of the class label where the data have one; else the labels themselves in natural order. Whole numbers that
    begin with 0 or 1 continue to the largest without a gap.

    Raises:
        LabelError: no labels are known, or they are all the same.

    Example:
        >>> from anydepth.data import load
        >>> class_names(load("digits", limit=3))
        ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """
    data, column = parts[0], parts[0].columns.label
    if column is None:
        raise LabelError(f"no labels known; {describe(data.dataset.features)}: name their column (label)")
    kind = getattr(data.dataset.features[column], "feature", data.dataset.features[column])
    names: tuple[str, ...] = tuple({name for part in parts for name in part.label_names if name})
    if hasattr(kind, "names"):
        names = data.label_names
        if data.by_number:
            names = tuple(map(str, range(len(names))))
    elif are_numbers(names):
        numbers = sorted(map(int, names))
        names = tuple(map(str, range(numbers[0], numbers[-1] + 1) if numbers[0] in (0, 1) else numbers))
    else:
        names = tuple(in_natural_order(names))
    if len(names) < 2:
        raise LabelError(f"column '{column}' holds one class ({', '.join(names)}), expected at least two to tell apart")
    return names


def examples(data: LoadedData, model: LoadedModel, *, max_length: int | None = None, augment: bool = False) -> Examples:
    """Make a training data set of loaded data. All texts and labels are checked before any is learnt from.

    Texts are truncated at `max_length`, which is the length of the packed blocks for a language model. With `augment`,
    each access to an image gives another random view of it; see `anydepth.data.augment`.

    Raises:
        DataError: no column of the kind the model takes, a text missing, a setting out of range; `augment` for texts.
        LabelError: a label is missing, or no class of the classifier.
    """
    if augment and model.kind != "image":
        raise DataError(f"'{model.name}' reads {model.kind}, and only images have random views: leave augment out")
    if model.task == "causal-lm":
        return _packed(data, model, max_length)
    rows = batches(data, model, batch_size=TEXTS_AT_ONCE, max_length=max_length)
    if rows.labels is None:
        raise LabelError(f"'{model.name}' learns from labels, and there are none: {rows.notes[-1]}")
    if model.kind == "image":
        return Examples(_Images(rows, augment=augment), default_collate, rows.notes)
    return Examples(_tokenize(rows), Padding.of(model), rows.notes)


class _Texts(Dataset[Example]):
    """Tokenised texts as flat 32-bit columns: a quarter of the memory of lists."""

    def __init__(self, columns: Mapping[str, Tensor], ends: Tensor, labels: Tensor | None) -> None:
        self.columns, self.ends, self.labels = columns, ends, labels

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Example:
        start, end = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        example = {name: column[start:end].long() for name, column in self.columns.items()}
        if self.labels is not None:
            example["labels"] = self.labels[index]
        return example


def _tokenize(rows: Batches) -> _Texts:
    """One example for each text; the labels of a tagger are a column like its tokens."""
    columns: dict[str, list[Tensor]] = {}
    lengths: list[Tensor] = []
    tagged = rows.model.task == "token-classification"
    for start in range(0, len(rows.data), TEXTS_AT_ONCE):
        part = slice(start, start + TEXTS_AT_ONCE)
        indices = range(start, min(start + TEXTS_AT_ONCE, len(rows.data)))
        batch = text_inputs(rows.data.dataset[part], indices, rows.data, rows.model, rows.max_length)
        if tagged and rows.labels is not None:
            batch["labels"] = word_labels(batch.pop("words"), rows.labels[part])
        mask = batch.pop("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        lengths.append(mask.sum(1))
        for name, values in batch.items():
            columns.setdefault(name, []).append(values[mask].int())
    flat = {name: torch.cat(parts) for name, parts in columns.items()}
    return _Texts(flat, torch.cat(lengths).cumsum(0), None if tagged else torch.tensor(rows.labels))


def _packed(data: LoadedData, model: LoadedModel, max_length: int | None) -> Examples:
    """Concatenated texts, an end token after each, cut into blocks; the last block may be shorter."""
    notes: list[str] = []
    data = with_text(data, model, notes)
    length, end = text_length(model, max_length), model.processor.eos_token
    ids = tokens_of(data, model, ended=True).ids
    if len(ids) < 2:
        raise DataError(f"'{data.name}' holds {len(ids)} tokens, expected at least two: one to learn from another")
    if len(ids) % length == 1:
        ids = ids[:-1]  # a block of one token has no next one to predict
    ends = torch.arange(length, len(ids) + length, length).clamp(max=len(ids))
    closing = "" if end is None else f", each ended by {end}"
    blocks = "1 block" if len(ends) == 1 else f"{len(ends):,} blocks"
    notes.append(f"{len(data):,} texts{closing}, packed into {blocks} of {length:,} tokens")
    columns = {"input_ids": ids, "labels": ids}
    return Examples(_Texts(columns, ends, None), Padding.of(model), tuple(notes))


class _Images(Dataset[Example]):
    """Images decoded at access, a batch at a time. It holds only the model's transform, since workers get a copy."""

    def __init__(self, rows: Batches, *, augment: bool) -> None:
        self.data, self.transform, self.augment = rows.data, rows.model.processor, augment
        self.name, self.dtype = pixel_input(rows.model)
        self.labels = torch.tensor(rows.labels)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        images = images_of(self.data.dataset[indices], indices, self.data)
        pixels = self.transform([augmented(image) for image in images] if self.augment else images).to(self.dtype)
        return [{self.name: image, "labels": self.labels[index]} for image, index in zip(pixels, indices, strict=True)]
