"""The numbers of the charts as tables: to read, to copy, and for screen readers."""

from dataclasses import dataclass

import numpy as np

from anydepth.measures.similarity import MEASURES
from anydepth.report.charts.trace import MAIN, STATISTICS
from anydepth.report.formats import Unit, interval, measure_title, percent, plain, plain_name, sentence
from anydepth.report.protocols import Source, reason, statistic
from anydepth.report.rows import unit_of


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, as it is, and its interval; an undefined one says why."""

    text: str
    value: float | None = None
    interval: str = ""
    why: str = ""


@dataclass(frozen=True)
class Table:
    """Columns by name, rows by depth."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]  # the first of each row is its depth


def numbers(trace: Source) -> Table:
    """One row per depth: every readout statistic, saturation, and the similarity to the last depth."""
    columns: dict[str, list[Cell]] = {}
    for name in (name for name in STATISTICS if name in trace.statistics):
        value, (low, high) = statistic(trace, name), trace.interval(name)
        why = "nothing is right at this depth" if name == "stays_correct" else "undefined at this depth"
        columns[sentence(plain_name(name))] = [
            _cell(v, unit_of(name), why, lo, hi) for v, lo, hi in zip(value, low, high, strict=True)
        ]
    if "agreement" in trace.statistics:
        columns |= _saturation(trace)
    for name in (name for name in MAIN if name in trace.similarity):
        value, ends = trace.similarity[name][:, -1], trace.similarity_intervals.get(name)
        low, high = np.full((2, len(value)), np.nan) if ends is None else ends[:, :, -1]
        columns[f"{sentence(measure_title(name)).partition(',')[0]} to last"] = [
            _cell(v, plain, reason(trace, k), lo, hi)
            for k, (v, lo, hi) in enumerate(zip(value, low, high, strict=True))
        ]
    depths = [Cell(name, float(k)) for k, name in enumerate(trace.names)]
    return Table(("Depth", *columns), tuple(zip(depths, *columns.values(), strict=True)))


def matrix(trace: Source, measure: str) -> Table:
    """A similarity as numbers; of a symmetric one below and on the diagonal, above it would only be repeated."""
    value = trace.similarity[measure]
    depths = range(trace.depth + 1)
    whole = measure in MEASURES and not MEASURES[measure].symmetric
    body = []
    for a in depths:
        others = depths if whole else range(a + 1)
        cells = (_cell(value[a, b], plain, reason(trace, a, b)) for b in others)
        body.append((Cell(trace.names[a], float(a)), *cells))
    return Table(("Depth", *trace.names), tuple(body))


def _saturation(trace: Source) -> dict[str, list[Cell]]:
    counts = statistic(trace, "saturation")
    share = np.cumsum(counts) / max(int(counts.sum()), 1)
    return {
        "Settle here": [Cell(f"{int(count):,}", float(count)) for count in counts],
        "Settled by here": [Cell(percent(float(s)), float(s)) for s in share],
    }


def _cell(value: float, unit: Unit, why: str, low: float = np.nan, high: float = np.nan) -> Cell:
    if not np.isfinite(value):
        return Cell("–", why=why)
    return Cell(unit(float(value)), float(value), interval(low, high, unit))
