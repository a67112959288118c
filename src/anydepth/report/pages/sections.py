"""Sections of a page: figures under headings, and provenance as flat entries."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from anydepth.report.charts.encodings import Chart
from anydepth.report.pages.tables import Table


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart on the page."""

    title: str
    note: str  # how to read it
    spec: dict[str, Any]
    shape: str = "curve"  # or "map", square, or "wide", over the whole width
    height: int | None = None
    table: Table | None = None


@dataclass(frozen=True, kw_only=True)
class AgreementSummary:
    """How well the measures of a trace agree: two of them in words, all of them as a map."""

    title: str
    pearson: str
    spearman: str
    meaning: str
    map: Figure | None  # where there are more than two measures


@dataclass(frozen=True, kw_only=True)
class Section:
    """Figures under one heading."""

    title: str
    figures: tuple[Figure, ...] = ()
    maps: tuple[Figure, ...] = ()  # come first, and then how well they agree
    agreements: Mapping[str, AgreementSummary] = field(default_factory=dict)
    more: tuple[Figure, ...] = ()  # behind a disclosure


def figure(
    chart: Chart,
    note: str,
    tag: str = "",
    *,
    shape: str = "curve",
    height: int | None = None,
    table: Table | None = None,
) -> Figure:
    """A chart for the page: as large as its place, its heading in HTML, its colours from the page's theme."""
    # not compared with the schema of Vega-Lite, which takes longer than all the rest of a report: tests do that
    spec = chart.properties(width="container", height="container").to_dict(validate=False)
    title = spec.pop("title")["text"] + tag
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit", "contains": "padding"}
    return Figure(title=title, note=note, spec=spec, shape=shape, height=height, table=table)


def flat(entry: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested provenance as "model name" → "bert", in its order."""
    for key, value in entry.items():
        name = f"{above} {key}".strip()
        if key == "classes" and isinstance(value, Mapping):
            yield name, _shortened([str(label) for label in value.values()])
        elif isinstance(value, Mapping):
            yield from flat(value, name)
        elif isinstance(value, (list, tuple)):
            yield name, _shortened([str(item) for item in value])
        elif value is not None:
            counts = isinstance(value, int) and not isinstance(value, bool) and key != "seed"
            yield name, f"{value:,}" if counts else str(value)


def _shortened(values: list[str], most: int = 8) -> str:
    """The first of many values, and how many there are."""
    return ", ".join(values) if len(values) <= most else f"{', '.join(values[:most])}, ... ({len(values):,})"
