"""Results of the commands in the terminal: tables for people, JSON for machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from anydepth.cli.terminal import output, say, write_json
from anydepth.results.result import Result
from anydepth.results.tables import Style, Table
from anydepth.storage.files import plain

if TYPE_CHECKING:  # a command imports what it shows: each would pay for all the others
    from anydepth.exits.summary import ExitSummary
    from anydepth.jobs.calibrate_lm import LmCalibrateResult
    from anydepth.jobs.compare import CompareResult
    from anydepth.jobs.demo import DemoResult
    from anydepth.jobs.generate import GenerateResult
    from anydepth.jobs.predict import PredictResult
    from anydepth.jobs.trace import TraceResult
    from anydepth.jobs.truncate import TruncateResult
    from anydepth.onnx.exporter import ExportResult
    from anydepth.tracing.trace import Trace
    from anydepth.training.summary import TrainingSummary

_STYLES: dict[Style, str] = {
    "": "",
    "title": "italic",
    "head": "bold",
    "detail": "dim",
    "good": "green",
    "bad": "red",
    "open": "yellow",
}


def as_plain(trace: Trace, folder: Path) -> dict[str, Any]:
    """A trace as `--json` prints it: the numbers of the table (None where undefined), notes, provenance, and paths."""
    return {
        "out": str(folder),
        "report": str(folder / "report.html"),
        "depths": [
            {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
            for row in trace.to_frame().to_dict("records")
        ],
        "notes": list(trace.notes),
        "provenance": dict(trace.provenance),
    }


def show_trace(result: TraceResult, *, as_json: bool) -> None:
    """The table of a trace, findings on the theory if there are any, notes, and where the report is."""
    values = as_plain(result.trace, result.folder)
    if result.theory is not None:
        from anydepth.theory.findings import FILE

        values["theory"] = str(result.folder / FILE)
    present(result, values, f"Report: {result.folder / 'report.html'}", as_json)


def show_demo(result: DemoResult, *, as_json: bool) -> None:
    """The traces of both objectives side by side, and where the report is."""
    report = result.folder / "report.html"
    traces = {name: as_plain(trace, result.folder / name) for name, trace in result.traces.items()}
    present(result, {"out": str(result.folder), "report": str(report), **traces}, f"Report: {report}", as_json)


def show_aligned(summary: TrainingSummary, *, as_json: bool) -> None:
    """Accuracy or perplexity of a trained model by depth, and where it is."""
    present(summary, {"out": str(summary.folder), **summary.as_plain()}, f"Model: {summary.folder}", as_json)


def show_cut(result: TruncateResult, *, as_json: bool) -> None:
    """The depth of a cut, its certificate, and where the model is."""
    values = {"out": str(result.folder) if result.folder else None, **result.as_plain()}
    last = f"Model: {result.folder}" if result.folder else "Nothing was written: the model stays as it is."
    present(result, values, last, as_json)


def show_calibrated(summary: ExitSummary | LmCalibrateResult, *, as_json: bool) -> None:
    """The guarantee of exits, what they save, and where the calibrated model is."""
    values, last = {"out": str(summary.folder)}, f"Calibrated model: {summary.folder}"
    if (report := summary.folder / "report.html").exists():
        values["report"], last = str(report), f"{last}; report: {report}"
    present(summary, values | plain(summary.as_plain()), last, as_json)


def show_predicted(result: PredictResult, *, as_json: bool) -> None:
    """How many samples exited at each depth, and where the predictions are."""
    last = f"Predictions: {result.folder / 'predictions.csv'}"
    present(result, {"out": str(result.folder), **result.as_plain()}, last, as_json)


def show_exported(result: ExportResult, *, as_json: bool) -> None:
    """The graphs and their sizes, how closely onnxruntime agrees with torch, and how to run them."""
    last = f'Exported: {result.folder}; in Python: anydepth.onnx.Router("{result.folder}")'
    present(result, {"out": str(result.folder), **result.as_plain()}, last, as_json)


def show_compared(result: CompareResult, *, as_json: bool) -> None:
    """Differences between each model and the first, depth by depth, and where the report is."""
    report = result.folder / "report.html"
    values = {"out": str(result.folder), "report": str(report), **result.as_plain()}
    present(result, values, f"Report: {report}", as_json)


def show_generated(result: GenerateResult, *, stats: bool, as_json: bool) -> None:
    """Statistics of generated text, on standard error, so that the text can go elsewhere."""
    if as_json:
        write_json(plain(result.as_plain()))
        return
    way, *statistics = result.sentences()
    if stats or result.advice is not None:
        say(way)
    for sentence in (*statistics, *result.notes) if stats else ():
        say(sentence)


def present(result: Result, values: dict[str, Any], last: str, as_json: bool) -> None:
    """Print values as a line of JSON for machines; or a result and a last line for people."""
    if as_json:
        write_json(values)
    else:
        notes = getattr(result, "notes", ())
        print_parts(result.tables(), result.sentences(), notes, last)


def print_parts(tables: Sequence[Table], sentences: Sequence[str], notes: Sequence[str], last: str) -> None:
    """Print tables, sentences, notes, and a last line."""
    for table in tables:
        print_table(table)
    console = output()
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=True)
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print(Text(last), soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table that fits the terminal."""
    console = output()
    for line in table.lines(console.width):
        text = Text.assemble(*((part.text, _STYLES[part.style]) for part in line))
        text.rstrip()
        console.print(text, soft_wrap=True)
