"""What a training came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainingSummary:
    """What a training came to.

    Attributes:
        folder: where the model is.
        model: what it was trained from.
        data: what it was trained on.
        task: what it was trained for.
        objective: name of the objective.
        purpose: what that is for, in a sentence.
        separate_heads: whether each depth has a classifier of its own.
        measure: "accuracy", or "perplexity" of a language model.
        values: of depth 1..L, on what was kept apart; None where it is not finite.
        bounds: low and high of each accuracy (Wilson, 95 %); empty where answers of one text are not independent.
        evaluated: on what, in words.
        classes: names of the classes; empty for a language model.
        settings: those of the training that a reader wants to know.
        steps: optimizer steps.
        seconds: that training took since it last began or went on.
        notes: what a reader of the results should know, one sentence each.
        versions: of the libraries.
    """

    folder: Path
    model: str
    data: str
    task: str
    objective: str
    purpose: str
    separate_heads: bool
    measure: str
    values: tuple[float | None, ...]
    bounds: tuple[tuple[float, float], ...]
    evaluated: str
    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    steps: int
    seconds: int | float
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    def as_plain(self) -> dict[str, Any]:
        """Everything but the folder, which may move, as values that JSON holds."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}

    @classmethod
    def of(cls, folder: Path, plain: Mapping[str, Any]) -> TrainingSummary:
        """From what `as_plain` gave, read back; other entries are left alone."""
        known = {one.name: plain[one.name] for one in fields(cls) if one.name != "folder"}
        listed = {name: tuple(known[name]) for name in ("values", "classes", "notes")}
        return cls(folder=folder, **known | listed | {"bounds": tuple(tuple(pair) for pair in known["bounds"])})

    def value(self, depth: int) -> str:
        """The value at a depth, 1..L, as people write it."""
        found = self.values[depth - 1]
        if found is None:
            return "–"
        return f"{found:.3f}" if self.measure == "accuracy" else f"{found:,.2f}"
