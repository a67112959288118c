"""Class indices of a classifier from the labels of a data set."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from anydepth.core.tokens import IGNORED
from anydepth.data.columns import describe, is_words, type_name
from anydepth.data.loading import BY_NUMBER, LoadedData
from anydepth.errors import LabelError, listed
from anydepth.models.label_names import NameMatch, are_numbers, are_placeholders, match_names, name_of
from anydepth.models.loaded import LoadedModel


def class_indices(
    values: Sequence[Any],
    classes: Sequence[str],
    *,
    names: Sequence[str] = (),
    numbered: bool = False,
    by_number: bool = False,
    where: Callable[[int], str] = "row {}".format,
    advice: str = "",
) -> tuple[Int64[np.ndarray, " n"], str | None]:
    """Map labels to the classifier's class indices.

    Names decide wherever they match, whatever the type: the whole number 3, the text "3" and the class label called "3"
    are the class "3"; true is "True". Numbers count only where no name matches: of whole numbers, and of names where
    the classifier's are placeholders (LABEL_0, ...), which are then numbered as the class label numbers them, else in
    sorted order if there are as many.

    Args:
        values: one label a row: integers, whole floats, booleans, or strings.
        classes: the classifier's names for its classes, in order.
        names: names of all classes of the data, some of which may have no row here; those of the values if empty.
        numbered: the values are indices into `names`, as those of a class label.
        by_number: labels are class numbers, whatever the classes are called.
        where: describes a row, for messages.
        advice: what to do about missing labels, for that message.

    Returns:
        The class of each row, and a note on how they were matched where that was a guess.

    Raises:
        LabelError: a label is missing, no class, or outside the classifier's range; or the names do not match.

    Example:
        >>> class_indices(["good", "bad"], ["NEGATIVE", "POSITIVE"], names=["bad", "good"])
        Traceback (most recent call last):
        anydepth.errors.LabelError: the data's classes (bad, good) are not the classifier's (NEGATIVE, POSITIVE): ...
        >>> class_indices(["good", "bad"], ["LABEL_0", "LABEL_1"], names=["bad", "good"])
        (array([1, 0]), 'label names are numbered in sorted order: bad = 0, good = 1')
        >>> class_indices([True, False], ["True", "False"])[0]
        array([0, 1])
    """
    present: list[str] = []
    for row, value in enumerate(values):
        if _is_missing(value):
            raise LabelError(f"the label in {where(row)} is missing ({value!r}){advice}")
        in_range = numbered and isinstance(value, int) and 0 <= value < len(names)
        name = names[value] if in_range else name_of(value)
        if name is None or (numbered and not in_range):
            raise LabelError(f"the label in {where(row)} is {value!r:.40}, expected a class: an integer or a name")
        present.append(name)
    if numbered and list(names) == list(classes):  # even where two classes share a name
        return np.array(values, dtype=np.int64), None
    used = [name for name in names or dict.fromkeys(present) if name not in ("", "-1", str(IGNORED))]
    truth = any(isinstance(value, bool) for value in values)
    table, note = _number_names(used, classes, numbered=numbered, by_number=by_number, truth=truth)
    indices = np.empty(len(values), dtype=np.int64)
    for row, name in enumerate(present):
        index = table.get(name)
        if index is None or not 0 <= index < len(classes):
            raise LabelError(
                f"the label in {where(row)} is {name if index is None else index}, outside the classifier's "
                f"{len(classes)} classes (0 to {len(classes) - 1}): choose another column (label)"
            )
        indices[row] = index
    return indices, note


def _number_names(
    names: Sequence[str], classes: Sequence[str], *, numbered: bool, by_number: bool, truth: bool
) -> tuple[dict[str, int], str | None]:
    """The classifier's class index for each name in the data, and a note where it was a guess."""
    own = _own_numbers(names, numbered=numbered, truth=truth)
    if by_number:
        if own is None:
            raise LabelError(
                f"the data's classes ({listed(names)}) are no numbers, expected some: leave {BY_NUMBER} out"
            )
        return own, f"labels are taken as numbers of classes, as asked for: {_pairs(own, classes)}"
    match = match_names(names, classes)
    if not match.unmatched:
        return dict(match.table), _match_note(match, own)
    difference = f"the data's classes ({listed(names)}) are not the classifier's ({listed(classes)})"
    if match.partial:
        raise LabelError(
            f"{difference}, and only some have the same names, not {listed(match.unmatched)}: rename them, or take all "
            f"as numbers (label='NAME{BY_NUMBER}')"
        )
    anonymous = are_placeholders(classes)
    if are_numbers(names) and (not numbered or sorted(map(int, names)) == list(range(len(names)))):
        numbers = {name: int(name) for name in names}
        guessed = not anonymous or (numbered and numbers != own)
        return numbers, f"labels are taken as numbers of classes: {_pairs(numbers, classes)}" if guessed else None
    if anonymous and own is not None:
        return own, f"the classifier has no names for its classes, labels go by number: {_pairs(own, classes)}"
    if anonymous and len(names) == len(classes):
        table = {name: index for index, name in enumerate(sorted(names))}
        return table, "label names are numbered in sorted order: " + listed([f"{n} = {i}" for n, i in table.items()])
    numbers_too = f", or take them as numbers (label='NAME{BY_NUMBER}')" if own is not None else ""
    raise LabelError(
        f"{difference}: use the classifier's names or numbers, or choose another column (label){numbers_too}"
    )


def _own_numbers(names: Sequence[str], *, numbered: bool, truth: bool) -> dict[str, int] | None:
    """The numbers of the classes in the data; None for texts."""
    if numbered:
        return {name: index for index, name in enumerate(names)}
    if truth:
        return {"False": 0, "True": 1}
    return {name: int(name) for name in names} if are_numbers(names) else None


def _match_note(match: NameMatch, own: Mapping[str, int] | None) -> str | None:
    notes = []
    if own is not None and any(own.get(name) != index for name, index in match.table.items()):
        notes.append("labels are matched to the classifier's classes by name, not by number")
    if match.inexact:
        pairs = listed([f"{name!r} is {class_name!r}" for name, class_name in match.inexact.items()])
        notes.append(f"labels match the classifier's classes but for case or spaces: {pairs}")
    return "; ".join(notes) or None


def _pairs(numbers: Mapping[str, int], classes: Sequence[str]) -> str:
    known = [(name, index) for name, index in numbers.items() if 0 <= index < len(classes)]
    return listed([f"{name} = {classes[index]}" for name, index in known])


def _is_missing(value: Any) -> bool:
    """None and NaN; and -1, the hub's mark for labels that are kept back."""
    return value is None or value != value or (value == -1 and not isinstance(value, str)) or (value == "")


def labels_of(data: LoadedData, model: LoadedModel, notes: list[str]) -> list[Any] | None:
    """Class of each row, for a tagger of each word of each row; None where there is no classifier or no label.

    What was guessed or left out is added to `notes`. A `LabelError` is raised as by `class_indices`, and where rows are
    labelled and the model labels words, or the other way round.
    """
    config = getattr(model.model, "config", None)
    if not model.classes:
        return None
    if len(model.classes) == 1 or getattr(config, "problem_type", None) in ("regression", "multi_label_classification"):
        notes.append("labels are left out: the head is no choice of one class among several")
        return None
    column = data.columns.label
    if column is None:
        notes.append(f"no labels known; {describe(data.dataset.features)}: name their column (label)")
        return None
    notes.append(f"labels: column '{column}'")
    kind = type_name(data.dataset.features[column])
    if kind.startswith("list of") != (model.task == "token-classification"):
        unit = "word" if model.task == "token-classification" else "row"
        raise LabelError(
            f"column '{column}' is {kind}, and the model takes one class a {unit}: choose another column (label)"
        )
    if model.task == "token-classification":
        return _tags(data, model, column, notes)
    return _classes(data, model, list(data.dataset[column]), list(range(len(data))), kind, notes)


def _tags(data: LoadedData, model: LoadedModel, column: str, notes: list[str]) -> list[list[int]]:
    """Class of each word of each row; `IGNORED` stays."""
    if data.columns.text is None or not is_words(data.dataset.features[data.columns.text]):
        raise LabelError(f"column '{column}' labels words, and the text is not split into words: name one (text)")
    if not model.processor.is_fast:
        raise LabelError(
            f"the tokenizer of '{model.name}' does not tell which word a token is from: it must be a fast one"
        )
    tags = list(data.dataset[column])
    for index, (words, row_tags) in enumerate(zip(data.dataset[data.columns.text], tags, strict=True)):
        if row_tags is None or len(words) != len(row_tags):
            count = 0 if row_tags is None else len(row_tags)
            raise LabelError(f"{data.where(index)} has {len(words)} words and {count} labels, expected as many")
    scored = [(index, value) for index, row_tags in enumerate(tags) for value in row_tags if value != IGNORED]
    kind = type_name(data.dataset.features[column]).removeprefix("list of ")
    classes = iter(_classes(data, model, [value for _, value in scored], [index for index, _ in scored], kind, notes))
    return [[IGNORED if value == IGNORED else next(classes) for value in row_tags] for row_tags in tags]


def _classes(
    data: LoadedData, model: LoadedModel, values: list[Any], rows: list[int], kind: str, notes: list[str]
) -> list[int]:
    others = ", ".join(data.other_splits)
    indices, note = class_indices(
        values,
        model.classes,
        names=data.label_names,
        numbered=kind == "class label",
        by_number=data.by_number,
        where=lambda index: data.where(rows[index]),
        advice=f": another split may have them (split, of {others})" if others else ": fill it or leave the row out",
    )
    if note:
        notes.append(note)
    return [int(index) for index in indices]
