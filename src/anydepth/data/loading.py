"""Load one split of a data set, find its columns, and draw a sample of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from anydepth.core.tokens import IGNORED
from anydepth.data.columns import Columns, GivenColumns, guess, is_text, is_words, type_name
from anydepth.data.folders import in_natural_order
from anydepth.data.objects import name_of, opened
from anydepth.data.sources import FILE, ROWS, TO_EVALUATE, choose_split
from anydepth.errors import DataError
from anydepth.models.label_names import name_of as label_name
from anydepth.storage.file_kinds import kind_of

BY_NUMBER = ":number"
"""Suffix of the name of a label column: its labels are class numbers, whatever the classes are called."""


@dataclass(frozen=True, kw_only=True)
class LoadedData:
    """Rows of a data set to run a model on.

    Attributes:
        dataset: a `datasets.Dataset` of the chosen rows, in their original order.
        name: as the user gave it.
        rows: the index of each row in the split.
        label_names: names of the classes over the whole split: a class label's own, else those of the labels there, in
            natural order; see `anydepth.models.label_names.name_of`.
        by_number: whether labels are class numbers, whatever the classes are called.
        notes: what a reader of the results should know, one sentence each.
    """

    dataset: Any
    columns: Columns
    name: str
    split: str
    rows: Int64[np.ndarray, " n"]
    label_names: tuple[str, ...] = ()
    other_splits: tuple[str, ...] = ()
    by_number: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def origin(self) -> dict[str, str]:
        """Name and split, for a provenance."""
        return {"name": self.name, "split": self.split}

    def where(self, index: int) -> str:
        """A description of one of the rows for a message, by its place in the file, not in the sample."""
        return f"row {self.rows[index]} of '{self.name}' ({self.split})"

    def select(self, rows: Any) -> LoadedData:
        """The same data with only some rows, by their indices."""
        return replace(self, dataset=self.dataset.select(rows), rows=self.rows[rows])


def load(
    source: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    text: str | None = None,
    label: str | None = None,
    image: str | None = None,
    id: str | None = None,
    seed: int = 0,
) -> LoadedData:
    """Load data by name.

    Args:
        source: see `anydepth.data.sources.splits`.
        split: the split; by default test, else validation, else the only one.
        limit: number of rows, drawn by `seed`; a smaller limit draws from within a larger one. The rows keep their
            order.
        text: the text column, or two as "first,second"; guessed if None, as are the next two.
        label: the label column; with the suffix ":number", labels are class numbers, whatever the classes are called.
        image: the image column.
        id: the column that names samples; their row in the split if None.
        seed: of the draw.

    Raises:
        DataError: nothing to be read, no such split or column, no rows, ids that are not unique.

    Example:
        >>> digits = load("digits", limit=5)
        >>> digits.split, len(digits), digits.columns.image, digits.columns.label
        ('test', 5, 'image', 'label')
    """
    return load_split(source, split, DataSelection(limit=limit, text=text, label=label, image=image, id=id, seed=seed))


def load_split(
    source: Any, split: str | None, wanted: DataSelection, held_out: tuple[str, ...] = TO_EVALUATE
) -> LoadedData:
    """Load a selection of rows and columns of a split of data by name, or of objects (`anydepth.data.objects.opened`).

    See `load`, and `choose_split` for which split by default.
    """
    parts, name = opened(source, wanted.given), name_of(source)
    chosen = choose_split(tuple(parts), split, name, held_out)
    loaded = wanted.of(parts, chosen, name)
    if split is not None or chosen in (FILE, ROWS):
        return loaded
    note = f"split {chosen}, " + (f"of {', '.join(parts)}" if len(parts) > 1 else "the only one")
    return replace(loaded, notes=(note, *loaded.notes))


@dataclass(frozen=True, kw_only=True)
class DataSelection:
    """Which rows and columns of a split to load: see `load`."""

    limit: int | None = None
    text: str | None = None
    label: str | None = None
    image: str | None = None
    id: str | None = None
    seed: int = 0

    @property
    def given(self) -> GivenColumns:
        """The given names of columns, as they may occur in a table."""
        texts = () if self.text is None else (self.text, *(part.strip() for part in self.text.split(",", 1)))
        label = () if self.label is None else (self.label, self.label.removesuffix(BY_NUMBER))
        others = tuple(name for name in (*label, self.image, self.id) if name is not None)
        return GivenColumns(texts=texts, others=others)

    def of(self, parts: Mapping[str, Any], split: str, source: str) -> LoadedData:
        """Select from one of the splits of `source`, which `anydepth.data.sources.splits` opened; raises as `load`."""
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit is {self.limit}, expected at least 1")
        dataset = parts[split].with_format(None)
        if any(isinstance(feature, dict) for feature in dataset.features.values()):
            dataset = dataset.flatten()
        by_number = self.label is not None and self.label not in dataset.features and self.label.endswith(BY_NUMBER)
        label = str(self.label).removesuffix(BY_NUMBER) if by_number else self.label
        columns = guess(dataset.features, text=self.text, label=label, image=self.image, id=self.id)
        _check_types(dataset, columns, given_text=self.text is not None)
        rows, notes = _filled_rows(dataset, columns, source)
        if self.limit is not None and self.limit < len(rows):
            notes.append(f"{self.limit:,} of {len(rows):,} rows, drawn with seed {self.seed}")
            rows = rows[draw(len(rows), self.limit, self.seed)]
        loaded = LoadedData(
            dataset=dataset.select(rows) if len(rows) < len(dataset) else dataset,
            columns=columns,
            name=source,
            split=split,
            rows=rows,
            label_names=_label_names(dataset, columns.label),
            other_splits=tuple(name for name in parts if name != split),
            by_number=by_number,
            notes=(*getattr(parts, "notes", ()), *notes),
        )
        _check_ids(loaded)
        return loaded


def draw(count: int, limit: int, seed: int) -> Int64[np.ndarray, " m"]:
    """Draw `limit` of `count` rows without replacement, in order; a smaller limit draws from within a larger one.

    Example:
        >>> draw(10, 3, seed=0).tolist(), draw(10, 4, seed=0).tolist()
        ([2, 4, 6], [2, 4, 6, 7])
    """
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def _check_types(dataset: Any, columns: Columns, given_text: bool) -> None:
    for name in filter(None, (columns.text, columns.pair) if given_text else ()):
        feature = dataset.features[name]
        if not (is_text(feature) or is_words(feature)):
            example = f" (row 0 holds {dataset[0][name]!r:.40})" if len(dataset) else ""
            raise DataError(f"column '{name}' is {type_name(feature)}, not text{example}: name another (text)")


def _filled_rows(dataset: Any, columns: Columns, source: str) -> tuple[Int64[np.ndarray, " n"], list[str]]:
    """All rows except the blank lines of a text file, which only divide it, and a note about these."""
    rows, notes = np.arange(len(dataset)), []
    if kind_of(Path(source)) == ".txt" and columns.text is not None:
        filled = np.array([bool(line and not line.isspace()) for line in dataset[columns.text]], dtype=bool)
        if not filled.all():
            notes.append(f"{(~filled).sum():,} blank lines left out")
            rows = rows[filled]
    if len(rows) == 0:
        raise DataError(f"'{source}' is empty: expected at least one row")
    return rows, notes


def _label_names(dataset: Any, label: str | None) -> tuple[str, ...]:
    if label is None:
        return ()
    feature = dataset.features[label]
    kind = getattr(feature, "feature", feature)  # a tagger's labels come as lists
    if hasattr(kind, "names"):
        return tuple(kind.names)
    if type_name(kind) == "bool":
        return ("False", "True")
    if not type_name(kind).startswith(("string", "large_string", "int", "uint", "float")):
        return ()
    values = dataset.unique(label) if kind is feature else {value for row in dataset[label] for value in row or ()}
    names = {label_name(value) for value in values if value not in (-1, IGNORED)} - {None}
    return tuple(in_natural_order(name for name in names if name is not None))


def _check_ids(data: LoadedData) -> None:
    if data.columns.id is None:
        return
    seen: dict[Any, int] = {}
    for index, value in enumerate(data.dataset[data.columns.id]):
        if not isinstance(value, int | str):
            raise DataError(f"the id in {data.where(index)} is {value!r:.40}, expected a string or an integer")
        if value in seen:
            raise DataError(f"id {value!r:.40} is in {data.where(seen[value])} and again in row {data.rows[index]}")
        seen[value] = index
