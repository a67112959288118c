"""The result of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from anydepth.results.result import Result
from anydepth.results.tables import Column, Table, bounds


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TrainingSummary(Result):
    """The trained model, its quality at every depth, and the settings of the training.

    Attributes:
        model: the model before the training.
        purpose: of the objective, in a sentence.
        measure: "accuracy", or "perplexity" of a language model.
        values: of depth 1..L, on held-out data; None where it is not finite.
        bounds: low and high of each accuracy (Wilson, 95 %), None at depths that cannot be read out; empty where
            outputs of one text are not independent.
        evaluated: the held-out data, in words.
        classes: names of the classes; empty for a language model.
        settings: of the training, without those left at None or False.
        seconds: of training since it last began or resumed.
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
    bounds: tuple[tuple[float, float] | None, ...]
    evaluated: str
    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    steps: int
    seconds: int | float
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    def as_plain(self) -> dict[str, Any]:
        """All fields but the folder, which may move, as values for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}

    @classmethod
    def of(cls, folder: Path, plain: Mapping[str, Any]) -> TrainingSummary:
        """The summary from the output of `as_plain`; other entries are ignored."""
        known = {field.name: plain[field.name] for field in fields(cls) if field.name != "folder"}
        listed = {name: tuple(known[name]) for name in ("values", "classes", "notes")}
        return cls(
            folder=folder, **known | listed | {"bounds": tuple(pair and tuple(pair) for pair in known["bounds"])}
        )

    def line(self) -> str:
        """The objective, and the quality at the first and last depth."""
        last = len(self.values)
        first = next((depth for depth in range(1, last) if self.values[depth - 1] is not None), last)
        quality = f"{self.measure} {self.value(first)} at depth {first}, {self.value(last)} at {last}"
        return f"{self.model} on {self.data}, {self.objective}: {self.steps:,} steps, {quality}"

    def tables(self) -> tuple[Table, ...]:
        """The quality at each depth."""
        depths = range(1, len(self.values) + 1)
        quality = Column(
            head=self.measure,
            cells=tuple(self.value(depth) for depth in depths),
            details=tuple("" if ends is None else bounds(*ends) for ends in self.bounds),
        )
        title = f"{self.model} on {self.data}, {self.objective}: {self.steps:,} steps; {self.evaluated}"
        return (Table(title=title, columns=(Column(head="depth", cells=tuple(map(str, depths))), quality)),)

    def value(self, depth: int) -> str:
        """The value at a depth, 1..L, as text."""
        value = self.values[depth - 1]
        if value is None:
            return "–"
        return f"{value:.3f}" if self.measure == "accuracy" else f"{value:,.2f}"
