"""Match the names of labels in data with the class names of a classifier."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.errors import ModelError

TEMPLATE = "a photo of a {}."
"""The text of a class in zero-shot classification; {} stands for its name."""


def texts_of(labels: Sequence[str], template: str = TEMPLATE) -> list[str]:
    """The text of each class, for zero-shot classification.

    Raises:
        ModelError: a template without {}, fewer than two labels, or one that occurs twice.

    Example:
        >>> texts_of(["cat", "dog"])
        ['a photo of a cat.', 'a photo of a dog.']
    """
    check_template(template)
    labels = [labels] if isinstance(labels, str) else list(labels)
    if len(set(labels)) < max(2, len(labels)):
        twice = next((label for label in labels if labels.count(label) > 1), None)
        came = f"hold {twice!r} twice" if twice is not None else f"are {labels}"
        raise ModelError(f"labels {came}, expected the names of at least two classes, all different")
    return [template.replace("{}", label) for label in labels]


def check_template(template: str) -> str:
    """The template of texts of classes; a `ModelError` if it has no {} for the name of a class.

    Example:
        >>> check_template("a photo")
        Traceback (most recent call last):
        anydepth.errors.ModelError: the template of texts is 'a photo', expected {} where the name of a class goes: ...
    """
    if "{}" not in template:
        raise ModelError(
            f"the template of texts is {template!r:.80}, expected {{}} where the name of a class goes: {TEMPLATE!r}"
        )
    return template


def name_of(label: Any) -> str | None:
    """The name of a label of any type: a whole number's digits, "True" or "False", a text as it is.

    None for values that name no class: a missing value, a fraction, a list.

    Example:
        >>> name_of(3), name_of(3.0), name_of(True), name_of("3"), name_of(0.5)
        ('3', '3', 'True', '3', None)
    """
    if isinstance(label, str):
        return label
    if isinstance(label, bool):
        return str(label)
    return str(int(label)) if isinstance(label, int | float) and label == label and label == int(label) else None


@dataclass(frozen=True, kw_only=True)
class NameMatch:
    """Result of matching names in data with the classes of a classifier.

    Attributes:
        table: the class index of each name that matches.
        unmatched: the names without a class.
        inexact: the names that match except for case or spaces, each with the name of its class.
    """

    table: Mapping[str, int]
    unmatched: tuple[str, ...]
    inexact: Mapping[str, str]

    @property
    def partial(self) -> bool:
        """Whether some match and some do not."""
        return bool(self.table) and bool(self.unmatched)


def match_names(names: Sequence[str], classes: Sequence[str]) -> NameMatch:
    """Find the class of each name in data: the one of that name, else the only one that differs in case or spaces.

    Example:
        >>> match_names(["good", " Bad"], ["bad", "good", "fair"]).table
        {'good': 1, ' Bad': 0}
        >>> match_names(["us"], ["US", "Us"]).unmatched
        ('us',)
    """
    exact, folded = _unique(classes), _unique([_folded(name) for name in classes])
    table = {}
    for name in names:
        index = exact.get(name, folded.get(_folded(name)))
        if index is not None:
            table[name] = index
    return NameMatch(
        table=table,
        unmatched=tuple(name for name in names if name not in table),
        inexact={name: classes[index] for name, index in table.items() if name != classes[index]},
    )


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _unique(names: Sequence[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names) if names.count(name) == 1}


def are_placeholders(classes: Sequence[str]) -> bool:
    """Whether class names are placeholders that only number the classes: LABEL_0, LABEL_1, or 0, 1.

    Example:
        >>> are_placeholders(["LABEL_0", "LABEL_1"]), are_placeholders(["0", "1"]), are_placeholders(["1", "2"])
        (True, True, False)
    """
    return list(classes) in ([f"LABEL_{index}" for index in range(len(classes))], [*map(str, range(len(classes)))])


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are whole numbers."""
    return bool(names) and all(re.fullmatch("-?[0-9]{1,18}", name) for name in names)
