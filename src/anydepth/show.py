"""A trace in the terminal: as a table for people, and as plain values for machines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from anydepth.result import Trace

if TYPE_CHECKING:
    import pandas

_HEADS = {"accuracy": "accuracy", "cross_entropy": "cross-entropy", "confidence": "confidence", "agreement": "agrees"}


def as_table(trace: Trace) -> Table:
    """One line per depth: readout statistics (accuracy with its 95 % interval), saturation, similarity to the last."""
    origin = trace.provenance
    model, data = origin.get("model", {}).get("name", "states"), origin.get("data", {}).get("name", "")
    title = f"{model} on {data}" if data else str(model)
    table = Table(title=escape(f"{title}: {origin.get('samples', 0):,} samples"), title_justify="left")
    frame = trace.to_frame()
    table.add_column("depth", justify="right")
    shown = [name for name in _HEADS if name in trace.statistics]
    for name in shown:
        table.add_column(_HEADS[name], justify="right", no_wrap=True)
    if "saturated" in frame:
        table.add_column("saturates", justify="right")
    similar = [name for name in ("cosine", "cka") if name in trace.similarity] or list(trace.similarity)[:2]
    for name in similar:
        table.add_column(f"{name} to last", justify="right")
    for row in frame.to_dict("records"):
        cells = [str(row["depth"])]
        cells += [_with_interval(row, name) if name == "accuracy" else _number(row[name]) for name in shown]
        if "saturated" in row:
            cells.append(str(row["saturated"]) if str(row["depth"]) != "0" else "")
        cells += [_number(row[f"{name}_to_last"]) for name in similar]
        table.add_row(*cells)
    return table


def _with_interval(row: dict[str, Any], name: str) -> str:
    return f"{_number(row[name])} [dim]{_number(row[f'{name}_low'])}–{_number(row[f'{name}_high'])}[/dim]"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def as_plain(trace: Trace, folder: Path) -> dict[str, Any]:
    """What `--json` prints: the table's numbers (None where undefined), notes, provenance, and where the files are."""
    return {
        "out": str(folder),
        "report": str(folder / "report.html"),
        "depths": _records(trace.to_frame()),
        "notes": list(trace.notes),
        "provenance": dict(trace.provenance),
    }


def _records(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
