"""From the labels of a data set to the classes of a classifier."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from anydepth.data.columns import describe, is_words, type_name
from anydepth.data.loading import LoadedData
from anydepth.errors import LabelError
from anydepth.loaded import LoadedModel
from anydepth.tokens import IGNORED

_GENERIC = re.compile(r"(LABEL_)?\d+")
_SHOWN = 8


def class_indices(
    values: Sequence[Any],
    classes: Sequence[str],
    *,
    names: Sequence[str] = (),
    numbered: bool = False,
    where: Callable[[int], str] = "row {}".format,
    advice: str = "",
) -> tuple[Int64[np.ndarray, " n"], str | None]:
    """Number labels as the classifier numbers its classes.

    Names are matched to the classifier's, whatever the case. If they do not match, a class label keeps its own order,
    names that are numbers are those numbers, and other names are numbered in sorted order if the classifier does
    not name its classes and has as many.

    Args:
        values: one label a row: integers, whole floats, booleans, or strings.
        classes: the classifier's names for its classes, in order.
        names: names of the data's classes, if it has any.
        numbered: the values are indices into `names`, as those of a class label.
        where: words for a row, for messages.
        advice: what to do about missing labels, for that message.

    Returns:
        The class of each row, and a note on how names were matched where that was a guess.

    Raises:
        LabelError: a label is missing, no class, or outside the classifier's range; or the names do not match.

    Example:
        >>> class_indices(["good", "bad"], ["NEGATIVE", "POSITIVE"], names=["bad", "good"])
        Traceback (most recent call last):
        anydepth.errors.LabelError: the data's classes (bad, good) are not the classifier's (NEGATIVE, POSITIVE): ...
        >>> class_indices(["good", "bad"], ["LABEL_0", "LABEL_1"], names=["bad", "good"])
        (array([1, 0]), 'label names are numbered in sorted order: bad = 0, good = 1')
    """
    table, note = _numbering(names, classes, numbered) if names else ({}, None)
    indices = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        if _is_missing(value, numbered):
            raise LabelError(f"the label in {where(row)} is missing ({value!r}){advice}")
        if numbered and isinstance(value, int) and 0 <= value < len(names):
            value = names[value]
        index = table.get(value) if isinstance(value, str) else _whole(value)
        if index is None:
            raise LabelError(f"the label in {where(row)} is {value!r:.40}, expected a class: an integer or a name")
        if not 0 <= index < len(classes):
            raise LabelError(
                f"the label in {where(row)} is {index}, outside the classifier's {len(classes)} classes "
                f"(0 to {len(classes) - 1}): choose the column with --label-column"
            )
        indices[row] = index
    return indices, note


def _numbering(names: Sequence[str], classes: Sequence[str], numbered: bool) -> tuple[dict[str, int], str | None]:
    """The classifier's number for each name in the data."""
    by_name = {name.casefold(): index for index, name in enumerate(classes)}
    if len(by_name) == len(classes) and all(name.casefold() in by_name for name in names):
        table = {name: by_name[name.casefold()] for name in names}
        moved = numbered and list(table.values()) != list(range(len(names)))
        return table, "labels are matched to the classifier's classes by name, not by number" if moved else None
    generic = all(_GENERIC.fullmatch(name) for name in classes)
    numbers = {name: int(name) for name in names if name.isdecimal()}
    if len(numbers) == len(names) and (not numbered or sorted(numbers.values()) == list(range(len(names)))):
        return numbers, None
    own_order = {name: index for index, name in enumerate(names)}
    if numbered:
        note = f"the data's classes ({_list(names)}) are not the classifier's ({_list(classes)}): matched by number"
        return own_order, None if generic else note
    if generic and len(names) == len(classes):
        return own_order, "label names are numbered in sorted order: " + _list(
            [f"{name} = {index}" for name, index in own_order.items()]
        )
    raise LabelError(
        f"the data's classes ({_list(names)}) are not the classifier's ({_list(classes)}): "
        "use the classifier's names or numbers, or choose the column with --label-column"
    )


def _is_missing(value: Any, numbered: bool) -> bool:
    """None and NaN; and -1, the hub's mark for labels that are kept back."""
    return value is None or value != value or (value == -1 and not isinstance(value, str)) or (value == "")


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value == int(value) else None


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def labels_of(data: LoadedData, model: LoadedModel, notes: list[str]) -> list[Any] | None:
    """Class of each row, for a tagger of each word of each row; None where there is no classifier or no label.

    Args:
        data: the rows.
        model: whose classes they are to be.
        notes: grows by what was guessed or left out.

    Raises:
        LabelError: see `class_indices`; or rows are labelled and the model labels words, or the other way round.
    """
    config = getattr(model.model, "config", None)
    if not model.classes:
        return None
    if len(model.classes) == 1 or getattr(config, "problem_type", None) in ("regression", "multi_label_classification"):
        notes.append("labels are left out: the head is no choice of one class among several")
        return None
    column = data.columns.label
    if column is None:
        notes.append(f"no labels known; {describe(data.dataset.features)}: name them with --label-column")
        return None
    notes.append(f"labels: column '{column}'")
    kind = type_name(data.dataset.features[column])
    if kind.startswith("list of") != (model.task == "token-classification"):
        one = "one class a word" if model.task == "token-classification" else "one class a row"
        raise LabelError(
            f"column '{column}' is {kind}, and the model takes {one}: choose the column with --label-column"
        )
    if model.task == "token-classification":
        return _tags(data, model, column, notes)
    return _classes(data, model, list(data.dataset[column]), list(range(len(data))), kind, notes)


def _tags(data: LoadedData, model: LoadedModel, column: str, notes: list[str]) -> list[list[int]]:
    """Class of each word of each row; `IGNORED` stays."""
    if data.columns.text is None or not is_words(data.dataset.features[data.columns.text]):
        raise LabelError(
            f"column '{column}' labels words, and the text is not split into words: name one with --text-column"
        )
    if not model.processor.is_fast:
        raise LabelError(
            f"the tokenizer of '{model.name}' does not tell which word a token is from: it must be a fast one"
        )
    tags = list(data.dataset[column])
    for index, (words, of_words) in enumerate(zip(data.dataset[data.columns.text], tags, strict=True)):
        if of_words is None or len(words) != len(of_words):
            count = 0 if of_words is None else len(of_words)
            raise LabelError(f"{data.where(index)} has {len(words)} words and {count} labels, expected as many")
    scored = [(index, value) for index, of_words in enumerate(tags) for value in of_words if value != IGNORED]
    kind = type_name(data.dataset.features[column]).removeprefix("list of ")
    found = iter(_classes(data, model, [value for _, value in scored], [index for index, _ in scored], kind, notes))
    return [[IGNORED if value == IGNORED else next(found) for value in of_words] for of_words in tags]


def _classes(
    data: LoadedData, model: LoadedModel, values: list[Any], rows: list[int], kind: str, notes: list[str]
) -> list[int]:
    others = ", ".join(data.other_splits)
    indices, note = class_indices(
        values,
        model.classes,
        names=data.label_names,
        numbered=kind == "class label",
        where=lambda index: data.where(rows[index]),
        advice=f": another split may have them (--split, of {others})" if others else ": fill it or leave the row out",
    )
    if note:
        notes.append(note)
    return [int(index) for index in indices]
