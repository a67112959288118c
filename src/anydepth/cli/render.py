"""Results of the commands in the terminal: tables for people, JSON for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from anydepth.cli.terminal import output, say, write_json
from anydepth.storage.files import plain
from anydepth.storage.sizes import in_words

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
    from anydepth.results.comparison import Comparison
    from anydepth.tracing.trace import Trace
    from anydepth.training.summary import TrainingSummary

_HEADS = {"accuracy": "accuracy", "cross_entropy": "cross-entropy", "confidence": "confidence", "agreement": "agrees"}


def as_table(trace: Trace) -> Table:
    """One line per depth: readout statistics (accuracy with its 95 % interval), saturation, similarity to the last."""
    origin = trace.provenance
    model, data = origin.get("model", {}).get("name", "states"), origin.get("data", {}).get("name", "")
    title = f"{model} on {data}" if data else str(model)
    table = Table(title=f"{title}: {origin.get('samples', 0):,} samples", title_justify="left")
    frame = trace.to_frame()
    table.add_column("depth", justify="right")
    begins = dict(zip(trace.stages.values(), _without_common_ends(list(trace.stages)), strict=True))
    if begins:
        table.add_column("stage")
    statistics = [name for name in _HEADS if name in trace.statistics]
    for name in statistics:
        table.add_column(_HEADS[name], justify="right", no_wrap=True)
    if "saturated" in frame:
        table.add_column("saturates", justify="right")
    similar = [name for name in ("cosine", "cka") if name in trace.similarity] or list(trace.similarity)[:2]
    for name in similar:
        table.add_column(f"{name} to last", justify="right")
    for depth, row in enumerate(frame.to_dict("records")):
        cells: list[str | Text] = [str(row["depth"]), *([begins.get(depth, "")] if begins else [])]
        cells += [_with_interval(row, name) if name == "accuracy" else _number(row[name]) for name in statistics]
        if "saturated" in row:
            cells.append(str(row["saturated"]) if str(row["depth"]) != "0" else "")
        cells += [_number(row[f"{name}_to_last"]) for name in similar]
        table.add_row(*cells)
    return table


def _without_common_ends(names: Sequence[str]) -> list[str]:
    """Dotted names without the parts in front and at the end that all share: "layers.0.blocks" is "0"."""
    parts = [name.split(".") for name in names]
    for end in (0, -1):
        while parts and len({part[end] for part in parts}) == 1 < min(map(len, parts)):
            for part in parts:
                part.pop(end)
    return [".".join(part) for part in parts]


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
        saturated = ["" if str(row["depth"]) == "0" else str(row["saturated"]) for row in rows]
        table.add_row(str(rows[0]["depth"]), *accuracies, *saturated, *(_number(row["cka_to_last"]) for row in rows))
    return table


def as_quality(summary: TrainingSummary) -> Group:
    """One line per depth of a trained model: accuracy with its 95 % interval, or perplexity."""
    title = f"{summary.model} on {summary.data}, {summary.objective}: {summary.steps:,} steps; {summary.evaluated}"
    table = Table()
    table.add_column("depth", justify="right")
    table.add_column(summary.measure, justify="right", no_wrap=True)
    for depth in range(1, len(summary.values) + 1):
        low, high = (summary.bounds and summary.bounds[depth - 1]) or (math.nan, math.nan)
        table.add_row(str(depth), _with_bounds(summary.value(depth), _between(low, high)))
    return Group(Text(title, style="italic"), table)  # as a table's own title it would be as narrow as the table


def _with_interval(row: dict[str, Any], name: str) -> Text:
    return _with_bounds(_number(row[name]), _between(row[f"{name}_low"], row[f"{name}_high"]))


def _with_bounds(value: str, bounds: str) -> Text:
    """A number and its interval, which is dim."""
    return Text.assemble(value, " " if bounds else "", (bounds, "dim"))


def _between(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{low:.3f}–{high:.3f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


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
    trace, theory = result.trace, result.theory
    values, shown, notes = as_plain(trace, result.folder), Group(as_table(trace)), trace.notes
    if theory is not None:
        from anydepth.report.theory_sentences import sentences
        from anydepth.theory.findings import FILE

        values["theory"] = str(result.folder / FILE)
        shown = Group(*shown.renderables, *(Text(f"• {sentence}") for sentence in sentences(theory)))
        notes = (*notes, *theory.notes)
    present(values, shown, notes, f"Report: {result.folder / 'report.html'}", as_json)


def show_demo(result: DemoResult, *, as_json: bool) -> None:
    """The traces of both objectives side by side, and where the report is."""
    report = result.folder / "report.html"
    traces = {name: as_plain(trace, result.folder / name) for name, trace in result.traces.items()}
    values = {"out": str(result.folder), "report": str(report), **traces}
    present(values, as_comparison(result.traces), (), f"Report: {report}", as_json)


def show_aligned(summary: TrainingSummary, *, as_json: bool) -> None:
    """Accuracy or perplexity of a trained model by depth, and where it is."""
    values = {"out": str(summary.folder), **summary.as_plain()}
    present(values, as_quality(summary), summary.notes, f"Model: {summary.folder}", as_json)


def show_cut(result: TruncateResult, *, as_json: bool) -> None:
    """The depth of a cut, its certificate, and where the model is."""
    values = {"out": str(result.folder) if result.folder else None, **result.as_plain()}
    what = str(result.minimal) if result.minimal else f"depth {result.depth} of {result.last}"
    last = f"Model: {result.folder}" if result.folder else "Nothing was written: the model stays as it is."
    present(values, Text(f"{result.model}: {what}"), result.notes, last, as_json)


def show_calibrated(summary: ExitSummary, *, as_json: bool) -> None:
    """The certificate of an exit policy, what it saves, and where the calibrated model is."""
    report = summary.folder / "report.html"
    values = {"out": str(summary.folder), "report": str(report), **summary.as_plain()}
    guarantee = Text(_capitalized(str(summary.calibration)))
    shown = Group(as_exits(summary), guarantee) if summary.calibration.certificate else guarantee
    last = f"Calibrated model: {summary.folder}; report: {report}"
    present(values, shown, summary.notes, last, as_json)


def _capitalized(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def as_exits(summary: ExitSummary) -> Table:
    """The certified policy on the held-out test samples, beside the full model."""
    table = Table(title=f"{summary.model} on {summary.data}", title_justify="left")
    for name in ("", "mean depth", "accuracy", "agrees", "speed-up", "predicted", "blocks counted"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    full, accuracy = ("" if summary.full_accuracy is None else f"{summary.full_accuracy:.3f}"), Text()
    if summary.accuracy is not None:
        accuracy = _with_bounds(f"{summary.accuracy:.3f}", _between(*summary.interval(summary.accuracy)))
    speedups = (1 / summary.measured, 1 / summary.predicted, summary.last / summary.depth)
    times = (f"{speedup:.2f} ×" for speedup in speedups)
    table.add_row("full model", str(summary.last), full, "1.000", "1.00 ×", "1.00 ×", "1.00 ×")
    table.add_row("early exit", f"{summary.depth:.2f}", accuracy, f"{summary.agreement:.3f}", *times)
    return table


def show_predicted(result: PredictResult, *, as_json: bool) -> None:
    """How many samples exited at each depth, and where the predictions are."""
    total = sum(result.leaving)
    table = Table("depth", "samples", "share")
    for depth, count in enumerate(result.leaving, 1):
        table.add_row(str(depth), f"{count:,}", f"{count / total:.3f}")
    full = total * len(result.leaving)
    summary = f"{total:,} samples, mean depth {result.depth:.2f}: {result.blocks:,} blocks run of {full:,}"
    notes = [] if result.promise is None else [result.promise]
    if result.undecided:
        notes.append(f"scores that are NaN: {result.undecided:,}; those samples went on to the next tested depth")
    values = {"out": str(result.folder), **result.as_plain()}
    last = f"Predictions: {result.folder / 'predictions.csv'}"
    present(values, Group(table, Text(summary)), (*notes, *result.notes), last, as_json)


def show_exported(result: ExportResult, *, as_json: bool) -> None:
    """The graphs and their sizes, how closely onnxruntime agrees with torch, and how to run them."""
    table = Table("blocks", "graph", Column("size", justify="right"))
    for start, stop, file, size in zip((0, *result.exits), result.exits, result.files, result.bytes, strict=False):
        table.add_row(f"{start + 1}–{stop}", file, in_words(size))
    shapes = ", ".join(" × ".join(map(str, shape)) for shape in result.batches)
    agreement = f"onnxruntime answers as torch does, to {result.apart:.1e}, on inputs of {shapes}"
    title = Text(f"{result.model}: {result.policy}", style="italic")
    values = {"out": str(result.folder), **result.as_plain()}
    last = f'Exported: {result.folder}; in Python: anydepth.onnx.Router("{result.folder}")'
    present(values, Group(title, table, Text(agreement)), result.notes, last, as_json)


def show_compared(result: CompareResult, *, as_json: bool) -> None:
    """Differences between each model and the first, depth by depth, and where the report is."""
    report = result.folder / "report.html"
    values = {"out": str(result.folder), "report": str(report), **result.as_plain()}
    notes = tuple(dict.fromkeys(note for comparison in result.comparisons for note in comparison.notes))
    tables = Group(*(as_differences(comparison) for comparison in result.comparisons))
    present(values, tables, notes, f"Report: {report}", as_json)


def as_differences(comparison: Comparison) -> Table:
    """One line per pair of depths: difference in accuracy (or agreement), its joint band, the most similar depth."""
    first, second = comparison.names
    table = Table(title=f"{second} against {first}: {comparison.samples:,} samples", title_justify="left")
    statistic = next((name for name in ("accuracy", "agreement") if name in comparison.differences), None)
    table.add_column("depths", justify="right")
    for column in (
        (f"{statistic}, first", "second", "difference (for all depths together)", "so it is") if statistic else ()
    ):
        table.add_column(column, justify="right")
    measure = next(iter(comparison.similarity), None)
    matches = comparison.matches(measure) if measure else ()
    if measure:
        table.add_column(f"most alike by {measure}", justify="right")
    for place, (depth, other) in enumerate(comparison.depths):
        cells: list[str | Text] = [str(depth) if depth == other else f"{depth} and {other}"]
        if statistic:
            means, difference = comparison.values[statistic][:, place], comparison.differences[statistic]
            band = f"{difference.low_all[place]:+.3f} to {difference.high_all[place]:+.3f}"
            cells += [_number(means[0]), _number(means[1])]
            cells += [_with_bounds(f"{difference.value[place]:+.3f}", band), difference.verdicts[place]]
        if measure:
            match = matches[depth]
            cells.append("" if match is None else f"{match.depth} ({match.value:.3f})")
        table.add_row(*cells)
    return table


def show_generated(result: GenerateResult, *, stats: bool, as_json: bool) -> None:
    """Statistics of generated text, on standard error, so that the text can go elsewhere."""
    if as_json:
        write_json(plain(result.as_plain()))
        return
    if stats or result.advice is not None:
        say(result.way)
    if not stats:
        return
    say(f"{result.tokens:,} tokens in {result.seconds:.2f} s: {result.tokens / result.seconds:.1f} tokens per second")
    counts = result.spent
    if counts is None:
        return
    say(f"blocks run: {counts.blocks:,}, readouts: {counts.readouts:,}")
    if counts.filled:
        say(f"blocks that only left keys and values: {counts.filled:,}")
    if counts.depths:
        say(f"mean depth: {sum(counts.depths) / len(counts.depths):.2f}")
    if counts.drafted:
        accepted = f"{counts.accepted:,} of {counts.drafted:,} drafts accepted ({counts.acceptance:.0%})"
        say(f"{accepted}, {counts.rounds:,} rounds")
    for note in result.notes:
        say(note)


def show_lm_calibrated(result: LmCalibrateResult, *, as_json: bool) -> None:
    """The guarantee of a language model's exits, the thresholds that were tested, and where the calibrated model is."""
    table = Table(title=f"{result.model} on {result.data}", title_justify="left")
    for name in ("threshold", "sequences that fail", "tokens that differ", "mean depth", ""):
        table.add_column(name, justify="right")
    for place, step in enumerate(result.promise.steps, start=1):
        verdict = "certified" if place <= result.promise.passed else "not certified: the path ends here"
        table.add_row(
            f"{step.threshold:g}", f"{step.failures:,}", f"{step.differing:.2%}", f"{step.depth:.2f}", verdict
        )
    shown = Group(table, Text(_capitalized(str(result.promise))))
    values = {"out": str(result.folder), **plain(result.as_plain())}
    present(values, shown, result.notes, f"Calibrated model: {result.folder}", as_json)


def present(values: dict[str, Any], shown: Any, notes: Sequence[str], last: str, as_json: bool) -> None:
    """Print values as a line of JSON for machines; or what is to be shown, notes, and a last line for people."""
    if as_json:
        write_json(values)
        return
    console = output()
    console.print(shown, soft_wrap=isinstance(shown, Text))
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print(Text(last), soft_wrap=True)
