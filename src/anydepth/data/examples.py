"""What a trainer takes: data to learn from and data to be held against, as examples and the collator for them.

Examples are made the way `batches` makes what a trace reads, so that a model is trained on what it is evaluated on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from anydepth.data.augment import augmented
from anydepth.data.batching import Batches, batches, text_length, with_text
from anydepth.data.columns import describe
from anydepth.data.folders import in_natural_order
from anydepth.data.inputs import Padding, images_of, pixel_input, text_inputs, tokens_of, word_labels
from anydepth.data.loading import DataSelection, LoadedData, draw
from anydepth.data.sources import choose_split, splits, training_splits
from anydepth.errors import DataError, LabelError
from anydepth.models.label_names import are_numbers
from anydepth.models.loaded import LoadedModel

Example = dict[str, Tensor]
HELD_OUT = 0.1
"""The share of the rows that is kept apart where the data do not say what to evaluate on."""

_AT_ONCE = 1000  # texts tokenised by one call


@dataclass(frozen=True)
class Examples:
    """What Trainer takes as `train_dataset` or `eval_dataset`, and its `data_collator`.

    Attributes:
        dataset: sized, with an `Example` at each index: one sample's inputs without a batch axis, and its "labels".
        collate: from a list of examples to a batch.
        notes: what a reader of the results should know, one sentence each.
    """

    dataset: Dataset[Example]
    collate: Callable[[list[Example]], Example]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # torch's Dataset does not promise it; those here have one


def load_to_train(
    source: str,
    wanted: DataSelection,
    *,
    split: str | None,
    eval_source: str | None,
    eval_split: str | None,
    eval_limit: int | None = None,
) -> tuple[LoadedData, LoadedData]:
    """Load what to train on and what to evaluate on.

    Args:
        source: the data; see `anydepth.data.sources.splits`.
        wanted: columns, a limit for each of the two, and the seed of what is drawn.
        split: to train on; by default train, else the only one.
        eval_source: other data to evaluate on; their test split, else validation, unless `eval_split` says otherwise.
        eval_split: to evaluate on; by default validation, else test, else a tenth of the rows that is kept apart.
        eval_limit: rows of it, in place of the limit of `wanted`; the same rows whatever the seed.

    Raises:
        DataError: see `anydepth.data.load`; or there is only one row, and nothing to keep apart.

    Example:
        >>> train, held_out = load_to_train("digits", DataSelection(), split=None, eval_source=None, eval_split=None)
        >>> (train.split, len(train)), (held_out.split, len(held_out))
        (('train', 1347), ('test', 450))
    """
    parts = splits(source, given=wanted.given)
    names = tuple(parts)
    chosen, other = training_splits(names, split, None if eval_source else eval_split, source)
    train = wanted.of(parts, chosen, source)
    to_evaluate = wanted if eval_limit is None else replace(wanted, limit=eval_limit, seed=0)
    if eval_source:
        others = splits(eval_source, given=wanted.given)
        return train, to_evaluate.of(others, choose_split(tuple(others), eval_split, eval_source), eval_source)
    if other is not None:
        return train, to_evaluate.of(parts, other, source)
    return _parted(train, wanted.seed)


def _parted(data: LoadedData, seed: int) -> tuple[LoadedData, LoadedData]:
    """All rows but a tenth, and that tenth."""
    if len(data) < 2:
        raise DataError(f"'{data.name}' has one row, and none to evaluate on: give --eval-data")
    held_out = draw(len(data), max(1, round(HELD_OUT * len(data))), seed)
    kept = np.setdiff1d(np.arange(len(data)), held_out)
    note = f"evaluated on {len(held_out):,} of the {len(data):,} rows, kept apart by a draw with seed {seed}"
    return _rows(data, kept), replace(_rows(data, held_out), notes=(*data.notes, note))


def _rows(data: LoadedData, rows: Any) -> LoadedData:
    return replace(data, dataset=data.dataset.select(rows), rows=data.rows[rows])


def class_names(*parts: LoadedData) -> tuple[str, ...]:
    """Names of the classes a classifier for these data needs, in order.

    A class label's own where they have them; else the labels themselves in natural order. Whole numbers that begin with
    0 or 1 go on to the largest without a gap.

    Raises:
        LabelError: no labels are known, or they are all the same.

    Example:
        >>> from anydepth.data import load
        >>> class_names(load("digits", limit=3))
        ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """
    data, column = parts[0], parts[0].columns.label
    if column is None:
        raise LabelError(f"no labels known; {describe(data.dataset.features)}: name them with --label-column")
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
    """Make loaded data into what Trainer takes. All texts and labels are checked before any is learnt from.

    Args:
        data: from `load_to_train`.
        model: from `anydepth.models.loading.load`.
        max_length: cut texts at so many tokens; of a language model, the length of the blocks its texts are packed in.
        augment: give a random view of an image each time it is asked for; see `anydepth.data.augment`.

    Raises:
        DataError: no column of the kind the model takes, a text missing, a setting out of range; `augment` for texts.
        LabelError: a label is missing, or no class of the classifier.
    """
    if augment and model.kind != "image":
        raise DataError(f"'{model.name}' reads {model.kind}, and only images have random views: leave --augment out")
    if model.task == "causal-lm":
        return _packed(data, model, max_length)
    found = batches(data, model, batch_size=_AT_ONCE, max_length=max_length)
    if found.labels is None:
        raise LabelError(f"'{model.name}' learns from labels, and there are none: {found.notes[-1]}")
    if model.kind == "image":
        return Examples(_Images(found, augment=augment), default_collate, found.notes)
    return Examples(_texts(found), Padding.of(model), found.notes)


# --- Texts ----------------------------------------------------------------------------------------------------------


class _Texts(Dataset[Example]):
    """Tokenised once, and kept as flat columns of 32 bits: a quarter of what lists of numbers would take."""

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


def _texts(found: Batches) -> _Texts:
    """One example for each text; a tagger's labels are columns like its tokens."""
    columns: dict[str, list[Tensor]] = {}
    lengths: list[Tensor] = []
    tagged = found.model.task == "token-classification"
    for start in range(0, len(found.data), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        indices = range(start, min(start + _AT_ONCE, len(found.data)))
        batch = text_inputs(found.data.dataset[part], indices, found.data, found.model, found.max_length)
        if tagged and found.labels is not None:
            batch["labels"] = word_labels(batch.pop("words"), found.labels[part])
        mask = batch.pop("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        lengths.append(mask.sum(1))
        for name, values in batch.items():
            columns.setdefault(name, []).append(values[mask].int())
    flat = {name: torch.cat(parts) for name, parts in columns.items()}
    return _Texts(flat, torch.cat(lengths).cumsum(0), None if tagged else torch.tensor(found.labels))


def _packed(data: LoadedData, model: LoadedModel, max_length: int | None) -> Examples:
    """Texts one after the other, an end token after each, cut into blocks; the last block may be shorter."""
    notes: list[str] = []
    data = with_text(data, model, notes)
    length, end = text_length(model, max_length), model.processor.eos_token
    ids = tokens_of(data, model, ended=True).ids
    if len(ids) < 2:
        raise DataError(f"'{data.name}' holds {len(ids)} tokens, expected at least two: one to learn from another")
    if len(ids) % length == 1:
        ids = ids[:-1]  # a block of one token has no next one to tell
    ends = torch.arange(length, len(ids) + length, length).clamp(max=len(ids))
    closing = "" if end is None else f", each ended by {end}"
    blocks = "1 block" if len(ends) == 1 else f"{len(ends):,} blocks"
    notes.append(f"{len(data):,} texts{closing}, packed into {blocks} of {length:,} tokens")
    columns = {"input_ids": ids, "labels": ids}
    return Examples(_Texts(columns, ends, None), Padding.of(model), tuple(notes))


# --- Images ---------------------------------------------------------------------------------------------------------


class _Images(Dataset[Example]):
    """Decoded when asked for, a batch at a time. It has nothing of the model but the transform: workers get a copy."""

    def __init__(self, found: Batches, *, augment: bool) -> None:
        self.data, self.transform, self.augment = found.data, found.model.processor, augment
        self.name, self.dtype = pixel_input(found.model)
        self.labels = torch.tensor(found.labels)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        rows = self.data.dataset[indices]
        images = images_of(rows, indices, self.data)
        pixels = self.transform([augmented(one) for one in images] if self.augment else images).to(self.dtype)
        return [{self.name: one, "labels": self.labels[index]} for one, index in zip(pixels, indices, strict=True)]
