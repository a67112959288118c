"""`Result`: how a result looks as one line, as a summary, and in a notebook; and when two results are equal."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any

import numpy as np

from anydepth.results.tables import WIDTH, Table
from anydepth.safe_text import printable

_LONGEST = 200
_WHEN = "created"  # in provenance: two results of the same content may have been made at different times


class Result(ABC):
    """A result: one line as its `repr`, a `summary`, a table in notebooks; equal to another of the same content.

    A dataclass that is one is made with `repr=False, eq=False`, and says how it looks by `line`, `tables`, `sentences`
    and `chart`. Fields with `compare=False`, and when it was made, do not count for equality.
    """

    @abstractmethod
    def line(self) -> str:
        """The result in one line."""

    def tables(self) -> tuple[Table, ...]:
        """Its numbers as tables, to print at any width."""
        return ()

    def sentences(self) -> tuple[str, ...]:
        """What it says beside the tables, one sentence each."""
        return ()

    def chart(self) -> str:
        """Its chart as an HTML image; empty without one."""
        return ""

    def __repr__(self) -> str:
        line = f"{type(self).__name__}({printable(self.line())})"
        return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 2]}…)"

    def summary(self, width: int = WIDTH) -> str:
        """Tables, findings and notes as text of that width."""
        parts = [table.text(width) for table in self.tables()]
        lines = [*self.sentences(), *getattr(self, "notes", ())]
        return "\n".join([*parts, *(textwrap.fill(printable(line), width) for line in lines)]) or repr(self)

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        """What notebooks show."""
        parts = [table.html() for table in self.tables()]
        parts += [f"<p>{escape(printable(line))}</p>" for line in self.sentences()]
        parts += [f"<p><small>{escape(printable(line))}</small></p>" for line in getattr(self, "notes", ())]
        return "\n".join([*parts, self.chart()]) or f"<p>{escape(repr(self))}</p>"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _same(self, other)

    def __hash__(self) -> int:
        return hash(repr(self))  # of the content, so equal results have it in common


def _same(a: Any, b: Any) -> bool:
    """Whether two values have the same content; NaN is the same as NaN."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        floats = np.asarray(a).dtype.kind in "fc"
        return np.array_equal(a, b, equal_nan=floats and np.asarray(b).dtype.kind in "fc")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a if key != _WHEN)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if is_dataclass(a) and type(a) is type(b):
        return all(_same(getattr(a, item.name), getattr(b, item.name)) for item in fields(a) if item.compare)
    return bool(a == b) or (a != a and b != b)
