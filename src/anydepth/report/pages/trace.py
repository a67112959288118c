"""The HTML report of traces: one file, readable offline, in light and dark, on paper and phone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from anydepth.measures.similarity import MEASURES
from anydepth.report import html, rows
from anydepth.report import sentences as words
from anydepth.report.charts import trace as charts
from anydepth.report.lens_source import LensSource
from anydepth.report.pages import agreement, lens, positions, theory
from anydepth.report.pages.sections import Figure, Section, figure, flat
from anydepth.report.pages.tables import matrix, numbers
from anydepth.report.traces import Traces, label
from anydepth.results.trace_data import TraceData
from anydepth.theory.findings import Theory

_DEPTHS = "Depth 0 is the embedding, depth l the raw output of block l."
_READ = {
    "accuracy": "Share of {unit} that are right when {reader} the state at that depth.",
    "confidence": "Mean probability of the top class. Where it is above the accuracy, the readout is surer than it "
    "should be.",
    "agreement": "Share of {unit} whose top class is already the one the model ends with, right or wrong.",
    "cross_entropy": "Mean of −log p(true class); lower is better. It also charges for being sure and wrong.",
    "stays_correct": "Of the {unit} that are right at a depth, the share that stay right at every later one. Where it "
    "is low, right answers are lost again on the way.",
}


def write(
    traces: Sequence[TraceData],
    path: str | Path,
    labels: Sequence[str] | None = None,
    theories: Sequence[Theory] = (),
    lenses: Sequence[LensSource] = (),
) -> Path:
    """Write the report of one trace, or of several side by side, and return its path.

    Args:
        traces: the curves of several share their charts.
        path: its folder is made if missing; an existing file is replaced at once or not at all.
        labels: of the traces; by default the names of their models.
        theories: of the traces, one each, for a section on them.
        lenses: for a section on each.

    Raises:
        MeasureError: there is no trace, or not one label for each.
        TraceFileError: the file cannot be written; nothing is left behind.
    """
    named = label(traces, labels)
    content = render(named, dict(zip(named, theories, strict=True)) if theories else {}, lenses)
    return html.save(content, Path(path))


def render(traces: Traces, theories: Mapping[str, Theory] | None = None, lenses: Sequence[LensSource] = ()) -> str:
    """The page as text."""
    theories = theories or {}
    sections = [
        _readout_section(traces),
        *(positions.section(trace, _tag(traces, name)) for name, trace in traces.items()),
        _similarity_section(traces),
        *(theory.section(value, traces[name].names, _tag(traces, name)) for name, value in theories.items()),
        *(lens.section(one_lens) for one_lens in lenses),
    ]
    tables = {f"Theory of {name}, by depth": theory.table(t, traces[name].names) for name, t in theories.items()}
    return html.page(
        title=" and ".join(traces),
        eyebrow="Traced by depth",
        fine=_DEPTHS if all("model" in trace.provenance for trace in traces.values()) else "",
        shown={name: (words.what(trace), words.findings(trace)) for name, trace in traces.items()},
        sections=[section for section in sections if section is not None],
        numbers={f"Every depth of {name}": numbers(trace) for name, trace in traces.items()} | tables,
        notes_title="What is blank, and what was chosen",
        notes={name: notes for name, trace in traces.items() if (notes := _notes(trace, theories.get(name)))},
        provenance={name: dict(flat(trace.provenance)) for name, trace in traces.items()},
    )


def _tag(traces: Traces, name: str) -> str:
    return f", {name}" if len(traces) > 1 else ""


def _notes(trace: TraceData, of_trace: Theory | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*trace.notes, *(of_trace.notes if of_trace else ()))))


def _readout_section(traces: Traces) -> Section | None:
    """Everything that needs a readout."""
    have = [name for name in charts.STATISTICS if any(name in trace.statistics for trace in traces.values())]
    if not have:
        return None
    first = next(iter(traces.values()))
    unit = words.unit_of(first)
    figures = [
        figure(charts.curve(traces, name), _READ[name].format(unit=unit, reader=words.reader(first)))
        for name in have
        if name != "stays_correct"
    ]
    if "agreement" in have:
        note = (
            f"A {unit.removesuffix('s')} saturates at the first depth from which its top class never changes again. "
            "Labels play no part: it may saturate on a wrong answer."
        )
        figures.append(figure(charts.saturation(traces), note))
    if "stays_correct" in have:
        figures.append(figure(charts.curve(traces, "stays_correct"), _READ["stays_correct"].format(unit=unit)))
    if "accuracy" in have:
        figures += _by_class({name: trace for name, trace in traces.items() if "accuracy" in trace.statistics})
    return Section(title="Where the answer forms", figures=tuple(figures))


def _by_class(traces: Traces) -> Iterator[Figure]:
    """One map per trace, all in the order of the first."""
    order: tuple[str, ...] = ()
    for name, trace in traces.items():
        names = tuple(dict.fromkeys(str(row["class"]) for row in rows.classes(trace)))
        if not names:
            continue
        order = order or names
        total = len(set(trace.by_class()["class"]))
        note = (
            "One row per class, the one that is right earliest on top. A row at 100 % from the start is often the "
            "class that a shallow readout gives to everything."
        )
        if total > len(names):
            note += f" Of {total} classes, the {len(names)} most frequent are shown."
        chart = charts.by_class(trace, order)
        yield figure(chart, note, _tag(traces, name), shape="wide", height=24 * len(names) + 100)


def _similarity_section(traces: Traces) -> Section | None:
    """How alike the depths are: maps, curves to the last depth, distributions over samples."""
    measures = tuple(dict.fromkeys(name for trace in traces.values() for name in trace.similarity))
    if not measures:
        return None
    main = charts.main_measures(measures)
    note = "The last row of the maps as curves" + (", with 95% intervals." if _any_interval(traces, main) else ".")
    if len(traces) == 1:
        figures = [figure(charts.to_last(traces, main), note, shape="wide")]
    else:
        figures = [figure(charts.to_last(traces, (name,)), note) for name in main]
    if any("cosine" in trace.quantiles for trace in traces.values()):
        note = "Line in the box: median over samples. Box: the middle half. Whiskers: 5th to 95th percentile."
        figures += [figure(charts.spread(traces, "cosine", side), note) for side in ("last", "next")]
    summaries = {name: agreement.summary(trace) for name, trace in traces.items()}
    return Section(
        title="How alike the depths are",
        figures=tuple(figures),
        maps=tuple(_maps(traces, main)),
        agreements={name: summary for name, summary in summaries.items() if summary is not None},
        more=tuple(_maps(traces, tuple(name for name in measures if name not in main))),
    )


def _maps(traces: Traces, measures: tuple[str, ...]) -> Iterator[Figure]:
    """One map per trace and measure, in the same colours."""
    domain = charts.domain_of(traces, measures)
    for name, trace in traces.items():
        for measure in (m for m in measures if m in trace.similarity):
            note = MEASURES[measure].about if measure in MEASURES else ""
            chart = charts.similarity_map(trace, measure, domain)
            yield figure(chart, note, _tag(traces, name), shape="map", table=matrix(trace, measure))


def _any_interval(traces: Traces, measures: tuple[str, ...]) -> bool:
    intervals = (trace.similarity_intervals.get(name) for trace in traces.values() for name in measures)
    return any(interval is not None and bool(np.isfinite(interval).any()) for interval in intervals)
