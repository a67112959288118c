"""The report: one HTML file with everything a trace shows, readable offline, in light and dark, on paper and phone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from anydepth.errors import MeasureError
from anydepth.report import html, rows
from anydepth.report import sentences as words
from anydepth.report.charts import trace as charts
from anydepth.report.charts.trace import MAIN
from anydepth.report.pages import lens, positions, theory
from anydepth.report.pages.agreement import agreeing
from anydepth.report.pages.sections import Figure, Section, figure, flat
from anydepth.report.pages.tables import matrix, numbers
from anydepth.report.protocols import LensSource, Source, Sources, named
from anydepth.theory.findings import Theory

_WORDS = "Depth 0 is the embedding, depth l the raw output of block l."
_READ = {
    "accuracy": "Share of {unit} that are right when {reader} the state at that depth.",
    "confidence": "Mean probability of the top class. Where it is above the accuracy, the readout is surer than it "
    "should be.",
    "agreement": "Share of {unit} whose top class is already the one the model ends with, right or wrong.",
    "cross_entropy": "Mean of −log p(true class); lower is better. It also charges for being sure and wrong.",
    "stays_correct": "Of the {unit} that are right at a depth, the share that stay right at every later one. Where it "
    "is low, right answers are lost again on the way.",
}
_ABOUT = {
    "cosine": "Mean over samples of the cosine between a sample's states at two depths, each depth centred on its "
    "mean. It asks whether states point the same way.",
    "cka": "Linear CKA, debiased. It asks whether two depths arrange the samples alike, whatever the rotation and "
    "scale.",
    "cosine_raw": "The cosine without centring: what all samples share counts as well, and mostly raises it.",
    "cka_biased": "The usual estimate of linear CKA. With few samples and wide states it is too high.",
    "cca": "Mean canonical correlation: how well the best linear map predicts one depth from the other. Any invertible "
    "map counts as none.",
    "svcca": "The same over the leading directions of each depth, those that hold 99 % of its variance.",
    "pwcca": "Canonical correlations weighted by how much of the row's depth they stand for; not symmetric.",
    "procrustes": "How far two depths coincide after the best rotation and scaling.",
    "rsa": "Rank correlation of all cosine distances between samples: whether two depths find the same pairs alike.",
    "knn": "Share of a sample's ten nearest neighbours that are its neighbours at the other depth, too.",
    "cka_rbf": "CKA with a Gaussian kernel as wide as the median distance: near neighbours count more.",
    "cknna": "CKA over pairs that are near neighbours at both depths.",
}


def write(
    traces: Sequence[Source],
    path: str | Path,
    labels: Sequence[str] | None = None,
    theories: Sequence[Theory] = (),
    lenses: Sequence[LensSource] = (),
) -> Path:
    """Write the report of one trace, or of several side by side.

    Args:
        traces: what to show; the curves of several share their charts.
        path: where to, its folder made if missing; an existing file is replaced at once or not at all.
        labels: how to call the traces; by default as their models are called.
        theories: of the traces, one each, for a section on them.
        lenses: texts looked at, for a section on each.

    Returns:
        The path.

    Raises:
        MeasureError: there is no trace, or not one label for each.
        TraceFileError: the file cannot be written; nothing is left behind.
    """
    shown = label(traces, labels)
    content = render(shown, dict(zip(shown, theories, strict=True)) if theories else {}, lenses)
    return html.save(content, Path(path))


def label(traces: Sequence[Source], labels: Sequence[str] | None = None) -> dict[str, Source]:
    """Traces under names that differ."""
    if not traces:
        raise MeasureError("no trace came to report on; give at least one")
    names = list(labels) if labels is not None else [named(trace, "model", "states") for trace in traces]
    if len(names) != len(traces) or (labels is not None and len(set(names)) < len(names)):
        raise MeasureError(f"{len(traces)} traces came with the labels {names}; give each one of its own")
    unique: dict[str, Source] = {}
    for name, trace in zip(names, traces, strict=True):
        again = sum(known == name or known.startswith(f"{name} (") for known in unique)
        unique[f"{name} ({again + 1})" if name in unique else name] = trace
    return unique


def render(traces: Sources, theories: Mapping[str, Theory] | None = None, lenses: Sequence[LensSource] = ()) -> str:
    """The page as text."""
    theories = theories or {}
    told = [positions.section(trace, _tag(traces, name)) for name, trace in traces.items()]
    tested = [theory.section(one, traces[name].names, _tag(traces, name)) for name, one in theories.items()]
    read = [lens.section(one) for one in lenses]
    tables = {f"Theory of {name}, by depth": theory.table(one, traces[name].names) for name, one in theories.items()}
    sections = (_answer(traces), *told, _likeness(traces), *tested, *read)
    return html.page(
        title=" and ".join(traces),
        eyebrow="Traced by depth",
        fine=_WORDS if all("model" in trace.provenance for trace in traces.values()) else "",
        shown={name: (words.what(trace), words.findings(trace)) for name, trace in traces.items()},
        sections=[section for section in sections if section is not None],
        numbers={f"Every depth of {name}": numbers(trace) for name, trace in traces.items()} | tables,
        notes_title="What is blank, and what was chosen",
        notes={name: notes for name, trace in traces.items() if (notes := _notes(trace, theories.get(name)))},
        provenance={name: dict(flat(trace.provenance)) for name, trace in traces.items()},
    )


def _tag(traces: Sources, name: str) -> str:
    return f", {name}" if len(traces) > 1 else ""


def _notes(trace: Source, tested: Theory | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*trace.notes, *(tested.notes if tested else ()))))


def _answer(traces: Sources) -> Section | None:
    """Where the answer forms: everything that needs a readout."""
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
        one = unit.removesuffix("s")
        note = (
            f"A {one} settles at the first depth from which its top class never changes again. Labels play no part: it "
            "may settle on a wrong answer."
        )
        figures.append(figure(charts.saturation(traces), note))
    if "stays_correct" in have:
        figures.append(figure(charts.curve(traces, "stays_correct"), _READ["stays_correct"].format(unit=unit)))
    if "accuracy" in have:
        figures += _by_class({name: trace for name, trace in traces.items() if "accuracy" in trace.statistics})
    return Section("Where the answer forms", tuple(figures))


def _by_class(traces: Sources) -> Iterator[Figure]:
    """One map per trace, all in the order of the first."""
    order: tuple[str, ...] = ()
    for name, trace in traces.items():
        shown = tuple(dict.fromkeys(str(row["class"]) for row in rows.classes(trace)))
        if not shown:
            continue
        order = order or shown
        total = len(set(trace.by_class()["class"]))
        note = (
            "One row per class, the one that is right earliest on top. A row that is dark from the start is often the "
            "class that a shallow readout gives to everything."
        )
        if total > len(shown):
            note += f" Of {total} classes, the {len(shown)} most frequent are shown."
        tag = f", {name}" if len(traces) > 1 else ""
        yield figure(charts.by_class(trace, order), note, tag, shape="wide", height=24 * len(shown) + 100)


def _likeness(traces: Sources) -> Section | None:
    """How alike the depths are: maps, curves to the last depth, distributions over samples."""
    measures = tuple(dict.fromkeys(name for trace in traces.values() for name in trace.similarity))
    if not measures:
        return None
    main = tuple(name for name in MAIN if name in measures) or measures[:1]
    note = "The last row of the maps as curves" + (", with 95% intervals." if _any_interval(traces, main) else ".")
    if len(traces) == 1:
        figures = [figure(charts.to_last(traces, main), note, shape="wide")]
    else:
        figures = [figure(charts.to_last(traces, (name,)), note) for name in main]
    if any("cosine" in trace.quantiles for trace in traces.values()):
        note = "Line in the box: median over samples. Box: the middle half. Whiskers: 5th to 95th percentile."
        figures += [figure(charts.spread(traces, "cosine", side), note) for side in ("last", "next")]
    found = {name: agreeing(trace) for name, trace in traces.items()}
    more = tuple(_maps(traces, tuple(name for name in measures if name not in main)))
    agreements = {name: value for name, value in found.items() if value is not None}
    return Section("How alike the depths are", tuple(figures), tuple(_maps(traces, main)), agreements, more)


def _maps(traces: Sources, measures: tuple[str, ...]) -> Iterator[Figure]:
    """One map per trace and measure, in the same colours."""
    domain = charts.domain_of(traces, measures)
    for name, trace in traces.items():
        for measure in (m for m in measures if m in trace.similarity):
            chart = charts.similarity_map(trace, measure, domain)
            tag = f", {name}" if len(traces) > 1 else ""
            yield figure(chart, _ABOUT.get(measure, ""), tag, shape="map", table=matrix(trace, measure))


def _any_interval(traces: Sources, measures: tuple[str, ...]) -> bool:
    found = (trace.similarity_intervals.get(name) for trace in traces.values() for name in measures)
    return any(interval is not None and bool(np.isfinite(interval).any()) for interval in found)
