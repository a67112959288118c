"""What came out, in the terminal: a trace, and what a training is worth by depth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from anydepth.aligned import Aligned
from anydepth.cutting import Cut
from anydepth.result import Trace
from anydepth.terminal import output

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


def as_comparison(traces: Mapping[str, Trace]) -> Table:
    """One line per depth, traces side by side: accuracy with its interval, saturation, similarity to the last."""
    first = next(iter(traces.values())).provenance
    table = Table(title=f"{escape(first['data']['name'])}: {first['samples']:,} samples", title_justify="left")
    table.add_column("depth", justify="right")
    frames = {name: trace.to_frame().to_dict("records") for name, trace in traces.items()}
    for what in ("accuracy", "saturates", "cka to last"):
        for name in frames:
            table.add_column(f"{name}:\n{what}", justify="right", no_wrap=True)
    for rows in zip(*frames.values(), strict=True):
        accuracies = [_with_interval(row, "accuracy") for row in rows]
        settled = ["" if str(row["depth"]) == "0" else str(row["saturated"]) for row in rows]
        table.add_row(str(rows[0]["depth"]), *accuracies, *settled, *(_number(row["cka_to_last"]) for row in rows))
    return table


def as_quality(found: Aligned) -> Group:
    """One line per depth of a trained model: accuracy with its 95 % interval, or perplexity."""
    title = f"{found.model} on {found.data}, {found.objective}: {found.steps:,} steps; {found.evaluated}"
    table = Table()
    table.add_column("depth", justify="right")
    table.add_column(found.measure, justify="right", no_wrap=True)
    for depth in range(1, len(found.values) + 1):
        interval = ""
        if found.bounds:
            low, high = found.bounds[depth - 1]
            interval = f" [dim]{low:.3f}–{high:.3f}[/dim]"
        table.add_row(str(depth), found.value(depth) + interval)
    return Group(Text(title, style="italic"), table)  # as a table's own title it would be as narrow as the table


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


def show_trace(found: Trace, folder: Path, *, as_json: bool) -> None:
    """A trace: the table, what to know about it, and where the report is."""
    _present(as_plain(found, folder), as_table(found), found.notes, f"Report: {folder / 'report.html'}", as_json)


def show_aligned(found: Aligned, *, as_json: bool) -> None:
    """What a training came to, and where the model is."""
    plain = {"out": str(found.folder), **found.as_plain()}
    _present(plain, as_quality(found), found.notes, f"Model: {found.folder}", as_json)


def show_cut(found: Cut, *, as_json: bool) -> None:
    """The depth of a cut, what is promised of it, and where the model is."""
    plain = {"out": str(found.folder) if found.folder else None, **found.as_plain()}
    what = str(found.minimal) if found.minimal else f"depth {found.depth} of {found.last}"
    last = f"Model: {found.folder}" if found.folder else "Nothing was written: the model stays as it is."
    _present(plain, Text(f"{found.model}: {what}"), found.notes, last, as_json)


def _present(plain: dict[str, Any], shown: Any, notes: Sequence[str], last: str, as_json: bool) -> None:
    """For machines one line of JSON; for people what there is to see, to know about it, and where it is."""
    if as_json:
        print(json.dumps(plain, allow_nan=False))
        return
    console = output()
    console.print(shown, soft_wrap=isinstance(shown, Text))
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print(last, highlight=False, soft_wrap=True)
