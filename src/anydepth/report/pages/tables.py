"""Tables of the numbers behind the charts: to read, to copy, and for screen readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anydepth.measures.similarity import MEASURES
from anydepth.report.charts.trace import MAIN, STATISTICS
from anydepth.report.formats import Unit, interval, measure_title, percent, plain, plain_name
from anydepth.report.rows import last_column, saturated_by, statistic, unit_of
from anydepth.report.traces import blank_reason
from anydepth.results.tables import sentence
from anydepth.results.trace_data import TraceData
from anydepth.stats.means import Estimate


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number as text, as a float, and its interval; an undefined one says why."""

    text: str
    value: float | None = None
    interval: str = ""
    why: str = ""


@dataclass(frozen=True)
class Table:
    """Columns by name, rows by depth."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]  # the first of each row is its depth


def cell(value: float, unit: Unit, low: float = np.nan, high: float = np.nan, *, why: str) -> Cell:
    """A number with its interval; a dash where it is not finite, and `why`."""
    if not np.isfinite(value):
        return Cell(text="–", why=why)
    return Cell(text=unit(float(value)), value=float(value), interval=interval(low, high, unit))


def cells(estimate: Estimate, unit: Unit, why: str) -> list[Cell]:
    """A column of numbers with their intervals."""
    return [cell(value, unit, low, high, why=why) for value, low, high in estimate.rows]


def heads(names: Sequence[str]) -> list[Cell]:
    """The first column: names of rows, sorted by their number."""
    return [Cell(text=name, value=float(k)) for k, name in enumerate(names)]


def table(first: Sequence[Cell], columns: Mapping[str, Sequence[Cell]], title: str = "Depth") -> Table:
    """Columns side by side, behind the first one that names the rows."""
    return Table((title, *columns), tuple(zip(first, *columns.values(), strict=True)))


def numbers(trace: TraceData) -> Table:
    """One row per depth: every readout statistic, saturation, and the similarity to the last depth."""
    columns: dict[str, Sequence[Cell]] = {}
    for name in (name for name in STATISTICS if name in trace.statistics):
        why = "nothing is right at this depth" if name == "stays_correct" else "undefined at this depth"
        columns[sentence(plain_name(name))] = cells(statistic(trace, name), unit_of(name), why)
    if "agreement" in trace.statistics:
        columns["Saturate here"] = [Cell(text=f"{count:,}", value=float(count)) for count in trace.saturation]
        columns["Saturated by here"] = [cell(share, percent, why="") for share in saturated_by(trace)]
    for name in (name for name in MAIN if name in trace.similarity):
        columns[f"{sentence(measure_title(name)).partition(',')[0]} to last"] = [
            cell(value, plain, low, high, why=blank_reason(trace, k))
            for k, (value, low, high) in enumerate(last_column(trace, name).rows)
        ]
    return table(heads(trace.names), columns)


def matrix(trace: TraceData, measure: str) -> Table:
    """A similarity as numbers; of a symmetric one only the diagonal and what is below it."""
    value = trace.similarity[measure]
    depths = range(trace.depth + 1)
    symmetric = measure not in MEASURES or MEASURES[measure].symmetric
    body = tuple(
        (first, *(cell(value[a, b], plain, why=blank_reason(trace, a, b)) for b in depths if b <= a or not symmetric))
        for a, first in enumerate(heads(trace.names))
    )
    return Table(("Depth", *trace.names), body)
