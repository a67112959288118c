"""What came out, in the terminal: a trace, and what a training is worth by depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from anydepth.cli.terminal import output, say, write_json
from anydepth.exits.summary import ExitSummary
from anydepth.jobs.calibrate_lm import LmCalibrateResult
from anydepth.jobs.generate import GenerateResult
from anydepth.jobs.predict import PredictResult
from anydepth.jobs.truncate import TruncateResult
from anydepth.onnx.exporter import ExportResult
from anydepth.results.comparison import Comparison
from anydepth.storage.files import plain
from anydepth.storage.sizes import in_words
from anydepth.theory.findings import FILE, Theory
from anydepth.tracing.trace import Trace
from anydepth.training.summary import TrainingSummary

if TYPE_CHECKING:
    import pandas

_HEADS = {"accuracy": "accuracy", "cross_entropy": "cross-entropy", "confidence": "confidence", "agreement": "agrees"}


def as_table(trace: Trace) -> Table:
    """One line per depth: readout statistics (accuracy with its 95 % interval), saturation, similarity to the last."""
    origin = trace.provenance
    model, data = origin.get("model", {}).get("name", "states"), origin.get("data", {}).get("name", "")
    title = f"{model} on {data}" if data else str(model)
    table = Table(title=f"{title}: {origin.get('samples', 0):,} samples", title_justify="left")
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
        cells: list[str | Text] = [str(row["depth"])]
        cells += [_with_interval(row, name) if name == "accuracy" else _number(row[name]) for name in shown]
        if "saturated" in row:
            cells.append(str(row["saturated"]) if str(row["depth"]) != "0" else "")
        cells += [_number(row[f"{name}_to_last"]) for name in similar]
        table.add_row(*cells)
    return table


def as_comparison(traces: Mapping[str, Trace]) -> Table:
    """One line per depth, traces side by side: accuracy with its interval, saturation, similarity to the last."""
    first = next(iter(traces.values())).provenance
    table = Table(title=f"{first['data']['name']}: {first['samples']:,} samples", title_justify="left")
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


def as_quality(found: TrainingSummary) -> Group:
    """One line per depth of a trained model: accuracy with its 95 % interval, or perplexity."""
    title = f"{found.model} on {found.data}, {found.objective}: {found.steps:,} steps; {found.evaluated}"
    table = Table()
    table.add_column("depth", justify="right")
    table.add_column(found.measure, justify="right", no_wrap=True)
    for depth in range(1, len(found.values) + 1):
        low, high = found.bounds[depth - 1] if found.bounds else (math.nan, math.nan)
        table.add_row(str(depth), _with_bounds(found.value(depth), _between(low, high)))
    return Group(Text(title, style="italic"), table)  # as a table's own title it would be as narrow as the table


def _with_interval(row: dict[str, Any], name: str) -> Text:
    return _with_bounds(_number(row[name]), _between(row[f"{name}_low"], row[f"{name}_high"]))


def _with_bounds(value: str, bounds: str) -> Text:
    """A number, and beside it what it may be, in a lighter tone."""
    return Text.assemble(value, " " if bounds else "", (bounds, "dim"))


def _between(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{low:.3f}–{high:.3f}"


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


def show_trace(found: Trace, folder: Path, *, theory: Theory | None = None, as_json: bool) -> None:
    """A trace: the table, what the theory says of it if it was asked, what to know, and where the report is."""
    last = f"Report: {folder / 'report.html'}"
    if theory is None:
        present(as_plain(found, folder), as_table(found), found.notes, last, as_json)
        return
    from anydepth.report.theory_sentences import sentences

    plain = as_plain(found, folder) | {"theory": str(folder / FILE)}
    said = [Text(f"• {sentence}") for sentence in sentences(theory)]
    present(plain, Group(as_table(found), *said), (*found.notes, *theory.notes), last, as_json)


def show_aligned(found: TrainingSummary, *, as_json: bool) -> None:
    """What a training came to, and where the model is."""
    plain = {"out": str(found.folder), **found.as_plain()}
    present(plain, as_quality(found), found.notes, f"Model: {found.folder}", as_json)


def show_cut(found: TruncateResult, *, as_json: bool) -> None:
    """The depth of a cut, what is promised of it, and where the model is."""
    plain = {"out": str(found.folder) if found.folder else None, **found.as_plain()}
    what = str(found.minimal) if found.minimal else f"depth {found.depth} of {found.last}"
    last = f"Model: {found.folder}" if found.folder else "Nothing was written: the model stays as it is."
    present(plain, Text(f"{found.model}: {what}"), found.notes, last, as_json)


def show_exited(found: ExitSummary, *, as_json: bool) -> None:
    """What was certified, what it saves, and where the calibrated model is."""
    plain = {"out": str(found.folder), "report": str(found.folder / "report.html"), **found.as_plain()}
    promise = Text(str(found.calibration)[:1].upper() + str(found.calibration)[1:])
    shown = Group(as_exits(found), promise) if found.calibration.certificate else promise
    last = f"Calibrated model: {found.folder}; report: {found.folder / 'report.html'}"
    present(plain, shown, found.notes, last, as_json)


def as_exits(found: ExitSummary) -> Table:
    """What the certified policy does on the samples that had no say in it, beside the full model."""
    table = Table(title=f"{found.model} on {found.data}", title_justify="left")
    for name in ("", "mean depth", "accuracy", "agrees", "speed-up", "predicted", "blocks counted"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    full = "" if found.full_accuracy is None else f"{found.full_accuracy:.3f}"
    right = Text()
    if found.accuracy is not None:
        right = _with_bounds(f"{found.accuracy:.3f}", _between(*found.interval(found.accuracy)))
    times = (f"{one:.2f} ×" for one in (1 / found.measured, 1 / found.predicted, found.last / found.depth))
    table.add_row("full model", str(found.last), full, "1.000", "1.00 ×", "1.00 ×", "1.00 ×")
    table.add_row("early exit", f"{found.depth:.2f}", right, f"{found.agreement:.3f}", *times)
    return table


def show_predicted(found: PredictResult, *, as_json: bool) -> None:
    """How many were answered at what depth, and where the answers are."""
    total = sum(found.leaving)
    table = Table("depth", "samples", "share")
    for depth, count in enumerate(found.leaving, 1):
        table.add_row(str(depth), f"{count:,}", f"{count / total:.3f}")
    full = total * len(found.leaving)
    said = f"{total:,} samples, mean depth {found.depth:.2f}: {found.blocks:,} blocks run of {full:,}"
    said_of_it = [] if found.promise is None else [found.promise]
    if found.undecided:
        said_of_it.append(f"scores that are NaN: {found.undecided:,}; those samples went on to the next tested depth")
    plain = {"out": str(found.folder), **found.as_plain()}
    last = f"Predictions: {found.folder / 'predictions.csv'}"
    present(plain, Group(table, Text(said)), (*said_of_it, *found.notes), last, as_json)


def show_exported(found: ExportResult, *, as_json: bool) -> None:
    """What graphs there are, that they answer as torch does, and what runs them."""
    table = Table("blocks", "graph", Column("size", justify="right"))
    for start, stop, file, size in zip((0, *found.exits), found.exits, found.files, found.bytes, strict=False):
        table.add_row(f"{start + 1}–{stop}", file, in_words(size))
    same = f"onnxruntime answers as torch does, to {found.apart:.1e}, on inputs of {_listed(found.batches)}"
    title = Text(f"{found.model}: {found.policy}", style="italic")
    plain = {"out": str(found.folder), **found.as_plain()}
    last = f'Exported: {found.folder}; in Python: anydepth.onnx.Router("{found.folder}")'
    present(plain, Group(title, table, Text(same)), found.notes, last, as_json)


def _listed(shapes: Sequence[Sequence[int]]) -> str:
    return ", ".join(" × ".join(map(str, shape)) for shape in shapes)


def show_compared(found: Sequence[Comparison], folder: Path, *, as_json: bool) -> None:
    """What differs between each model and the first, depth by depth, and where the report is."""
    plain = {
        "out": str(folder),
        "report": str(folder / "report.html"),
        "comparisons": [one.as_plain() for one in found],
    }
    notes = tuple(dict.fromkeys(note for one in found for note in one.notes))
    tables = Group(*(as_differences(one) for one in found))
    present(plain, tables, notes, f"Report: {folder / 'report.html'}", as_json)


def as_differences(found: Comparison) -> Table:
    """One line per pair of depths: difference in accuracy (or agreement), its joint band, and which depth is alike."""
    a, b = found.names
    table = Table(title=f"{b} against {a}: {found.samples:,} samples", title_justify="left")
    name = next((one for one in ("accuracy", "agreement") if one in found.differences), None)
    table.add_column("depths", justify="right")
    for column in (f"{name}, first", "second", "difference (for all depths together)", "so it is") if name else ():
        table.add_column(column, justify="right")
    measure = next(iter(found.similarity), None)
    matches = found.matches(measure) if measure else ()
    if measure:
        table.add_column(f"most alike by {measure}", justify="right")
    for place, (one, other) in enumerate(found.depths):
        cells: list[str | Text] = [str(one) if one == other else f"{one} and {other}"]
        if name:
            means, shown = found.values[name][:, place], found.differences[name]
            band = f"{shown.low_all[place]:+.3f} to {shown.high_all[place]:+.3f}"
            cells += [_number(means[0]), _number(means[1])]
            cells += [_with_bounds(f"{shown.value[place]:+.3f}", band), shown.verdicts[place]]
        if measure:
            match = matches[one]
            cells.append("" if match is None else f"{match.depth} ({match.value:.3f})")
        table.add_row(*cells)
    return table


def show_spoken(found: GenerateResult, *, stats: bool, as_json: bool) -> None:
    """What it took to write the text, beside it: on standard error, so that the text can go elsewhere."""
    if as_json:
        write_json(plain(found.as_plain()))
        return
    if stats or found.advice is not None:
        say(found.way)
    if not stats:
        return
    say(f"{found.tokens:,} tokens in {found.seconds:.2f} s: {found.tokens / found.seconds:.1f} tokens per second")
    spent = found.spent
    if spent is None:
        return
    say(f"blocks run: {spent.blocks:,}, readouts: {spent.readouts:,}")
    if spent.filled:
        say(f"blocks that only left keys and values: {spent.filled:,}")
    if spent.depths:
        say(f"mean depth: {sum(spent.depths) / len(spent.depths):.2f}")
    if spent.drafted:
        kept = f"{spent.accepted:,} of {spent.drafted:,} drafts accepted ({spent.acceptance:.0%})"
        say(f"{kept}, {spent.rounds:,} rounds")
    for note in found.notes:
        say(note)


def show_promised(found: LmCalibrateResult, *, as_json: bool) -> None:
    """What is promised of a language model's exits, what the path showed, and where the calibrated model is."""
    table = Table(title=f"{found.model} on {found.data}", title_justify="left")
    for name in ("threshold", "sequences that fail", "tokens that differ", "mean depth", ""):
        table.add_column(name, justify="right")
    for place, step in enumerate(found.promise.steps, start=1):
        verdict = "certified" if place <= found.promise.passed else "not certified: the path ends here"
        table.add_row(
            f"{step.threshold:g}", f"{step.failures:,}", f"{step.differing:.2%}", f"{step.depth:.2f}", verdict
        )
    promise = str(found.promise)
    shown = Group(table, Text(promise[:1].upper() + promise[1:]))
    what = {"out": str(found.folder), **plain(found.as_plain())}
    present(what, shown, found.notes, f"Calibrated model: {found.folder}", as_json)


def present(plain: dict[str, Any], shown: Any, notes: Sequence[str], last: str, as_json: bool) -> None:
    """For machines one line of JSON; for people what there is to see, to know about it, and where it is."""
    if as_json:
        write_json(plain)
        return
    console = output()
    console.print(shown, soft_wrap=isinstance(shown, Text))
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print(Text(last), soft_wrap=True)
