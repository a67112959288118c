"""Altair charts of traces: `plot` by name, the others one by one. Curves of several traces share a chart."""

from collections.abc import Callable, Iterable

import altair as alt
import numpy as np

from anydepth.errors import MeasureError
from anydepth.report import rows, theme
from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Chart, Domain
from anydepth.report.charts.files import save
from anydepth.report.formats import measure_title, percent, plain, plain_name
from anydepth.report.sentences import ends
from anydepth.report.traces import Traces, provenance_name
from anydepth.results.tables import sentence
from anydepth.results.trace_data import TraceData

__all__ = ["AnyChart", "by_class", "curve", "plot", "saturation", "save", "similarity_map", "spread", "to_last"]

AnyChart = Chart | alt.HConcatChart | alt.VConcatChart

STATISTICS = {
    "accuracy": "Accuracy by depth",
    "confidence": "Confidence by depth",
    "agreement": "Agreement with the last depth",
    "cross_entropy": "Cross-entropy by depth, in nats",
    "stays_correct": "Right here and at every later depth",
}
_SATURATION = ("saturate at this depth", "have saturated by this depth")
_NEGLIGIBLE = -0.02  # a similarity between this and 0 looks like 0: no second hue for it, no more room on an axis


def curve(traces: Traces, statistic: str) -> Chart:
    """A readout statistic by depth, with its interval as a band."""
    values, unit = rows.curve(traces, statistic), rows.unit_of(statistic)
    if unit is percent:
        axis, scale = enc.share_axis(), alt.Scale(domain=[0, 1])
    else:
        axis, scale = enc.value_axis(), alt.Scale(zero=True)
    y = alt.Y("value:Q", title=None, axis=axis, scale=scale)
    return enc.titled(
        enc.lines(values, y, enc.by_trace(traces), _names(traces), plain_name(statistic)),
        STATISTICS[statistic],
        f"Line chart: {STATISTICS[statistic]}. {ends(values, unit)}",
        _only_name(traces),
    )


def to_last(traces: Traces, measures: tuple[str, ...]) -> Chart:
    """The similarity of every depth to the last one: a line per measure or, of several traces, per trace."""
    values = rows.to_last(traces, measures)
    y = alt.Y("value:Q", title=None, axis=enc.similarity_axis(), scale=_from_zero(values, "value"))
    by_measure = {"color": enc.category("measure")}
    subject = sentence(measure_title(measures[0])) if len(measures) == 1 else "Similarity"
    return enc.titled(
        enc.lines(values, y, enc.by_trace(traces) or by_measure, _names(traces), subject),
        f"{subject} with the last depth",
        f"Line chart: {subject} of each depth with the last. {ends(values, plain)}",
        _only_name(traces),
    )


def similarity_map(trace: TraceData, measure: str, domain: Domain) -> Chart:
    """The similarity of every pair of depths as a map; undefined cells are dashed and say why.

    The colours span `domain`, (0, 1) or (-1, 1); a value has the same colour in both.
    """
    title = measure_title(measure)
    where = [alt.Tooltip("pair:N", title="depths")]
    value = [alt.Tooltip("text:N", title=title)]
    if measure in trace.quantiles:
        value.append(alt.Tooltip("middle:N", title="half of the samples"))
    base = alt.Chart(enc.data(rows.pairs(trace, measure))).encode(
        x=enc.depth_band(trace.names, "a"), y=enc.depth_band(trace.names, "b", downwards=True)
    )
    blank, known = enc.blank_and_known(base, enc.similarity_colour(domain))
    chart = enc.layered(
        blank.encode(tooltip=[*where, alt.Tooltip("why:N", title="blank")]), known.encode(tooltip=[*where, *value])
    )
    description = f"Map: {title} of every pair of depths."
    return enc.titled(chart, sentence(title), description, provenance_name(trace, "model"))


def saturation(traces: Traces) -> Chart:
    """Share of samples that saturate at each depth (bars), and that have saturated by it (line)."""
    base = alt.Chart(enc.data(rows.saturation(traces))).encode(x=enc.depth_band(_names(traces)))
    bar_split, line_split = enc.by_trace(traces, side_by_side=True), enc.by_trace(traces)
    here, by_then = base, base
    if len(traces) == 1:
        here, by_then = (base.transform_calculate(shows=f"'{name}'") for name in _SATURATION)
        legend = alt.Legend(orient="bottom", title=None)
        scale = alt.Scale(domain=list(_SATURATION))
        bar_split = line_split = {"color": alt.Color("shows:N", scale=scale, legend=legend)}
    share = alt.Y("share:Q", title=None, axis=enc.share_axis(), scale=alt.Scale(domain=[0, 1]))
    tooltip = [
        *_trace_tooltip(traces),
        alt.Tooltip("depth:O"),
        alt.Tooltip("count:Q", title="saturate here", format=",d"),
        alt.Tooltip("share:Q", title="share", format=".1%"),
        alt.Tooltip("cumulative:Q", title="saturated by here", format=".1%"),
    ]
    bars = here.mark_bar(style="bars").encode(y=share, tooltip=tooltip, **bar_split)
    line = by_then.mark_line().encode(y="cumulative:Q", **line_split)
    points = by_then.mark_point().encode(y="cumulative:Q", tooltip=tooltip, **line_split)
    return enc.titled(
        enc.layered(bars, line, points),
        "Saturation depth of the answers",
        "Bar chart: share of samples that saturate at each depth. Line: the share saturated by then.",
        _only_name(traces),
    )


def spread(traces: Traces, measure: str, against: str) -> Chart:
    """The distribution of a similarity over samples: median, middle half, 5th to 95th percentile.

    Against "last" of each depth with the last, against "next" with the one after it.
    """
    values = rows.spread(traces, measure, against)
    # Both sides on one scale: they are looked at side by side.
    both = values + rows.spread(traces, measure, "next" if against == "last" else "last")
    title, other = measure_title(measure), f"the {against} depth"
    percentiles = (("95", "95th percentile"), ("75", "75th"), ("50", "median"), ("25", "25th"), ("05", "5th"))
    tooltip = [
        *_trace_tooltip(traces),
        alt.Tooltip("pair:N", title="depths"),
        alt.Tooltip("mean:Q", title=f"mean {title}", format=".3f"),
        *(alt.Tooltip(f"q{q}:Q", title=text, format=".3f") for q, text in percentiles),
    ]
    base = alt.Chart(enc.data(values)).encode(
        x=enc.depth_band(_names(traces)), tooltip=tooltip, **enc.by_trace(traces, side_by_side=True)
    )
    width = alt.RelativeBandSize(band=0.6)
    low = alt.Y("q05:Q", title=None, axis=enc.similarity_axis(), scale=_from_zero(both, "q05"))
    whisker = base.mark_rule(style="whisker").encode(y=low, y2="q95:Q")
    box = base.mark_bar(style="box", width=width).encode(y="q25:Q", y2="q75:Q")
    median = base.mark_tick(style="median", thickness=2.5, width=width).encode(y="q50:Q")
    return enc.titled(
        enc.layered(whisker, box, median),
        f"{sentence(title)} with {other}, sample by sample",
        f"Box-like chart: distribution over samples of {title} of each depth with {other}.",
        _only_name(traces),
    )


def by_class(trace: TraceData, order: tuple[str, ...] = ()) -> Chart:
    """Accuracy of each class at each depth as a map.

    `order` names the classes from top to bottom; by default the class that is right earliest comes first.
    """
    values = rows.classes(trace)
    names = list(order or dict.fromkeys(str(row["class"]) for row in values))
    base = alt.Chart(enc.data(values)).encode(
        x=enc.depth_band(trace.names),
        y=alt.Y("class:N", title=None, sort=names, axis=enc.band_axis()),
        tooltip=[
            alt.Tooltip("class:N"),
            alt.Tooltip("depth:O"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("saturated:Q", title="saturated by here", format=".1%"),
            alt.Tooltip("count:Q", title="samples of the class", format=",d"),
        ],
    )
    chart = enc.layered(*enc.blank_and_known(base, enc.accuracy_colour(), "accuracy"))
    title = "Accuracy by class and depth"
    return enc.titled(chart, title, "Map: accuracy by class and depth.", provenance_name(trace, "model"))


def domain_of(traces: Traces, measures: tuple[str, ...]) -> Domain:
    """The values that the colours of maps side by side span: (0, 1), or (-1, 1) where a similarity is negative."""
    maps = [trace.similarity[name] for trace in traces.values() for name in measures if name in trace.similarity]
    known = np.concatenate([np.zeros(1), *(m[np.isfinite(m)] for m in maps)])
    return (-1.0, 1.0) if known.min() < _NEGLIGIBLE else (0.0, 1.0)


def _names(traces: Traces) -> tuple[str, ...]:
    """Names of the depths: those of the deepest trace."""
    return max(traces.values(), key=lambda trace: trace.depth).names


def _only_name(traces: Traces) -> str:
    return next(iter(traces)) if len(traces) == 1 else ""


def _trace_tooltip(traces: Traces) -> list[alt.Tooltip]:
    return [alt.Tooltip("trace:N")] if len(traces) > 1 else []


def _from_zero(values: list[rows.Row], field: str) -> alt.Scale:
    low = min((row[field] for row in values if row[field] is not None), default=0.0)
    return alt.Scale(domain=[float(np.floor(low * 5) / 5) if low < _NEGLIGIBLE else 0.0, 1.0])


# --- By name ---------------------------------------------------------------------------------------------------------

MAIN = ("cosine", "cka")  # the two that are shown side by side


def main_measures(names: Iterable[str]) -> tuple[str, ...]:
    """The measures to show first: those in `MAIN`, or else the first of all."""
    names = tuple(names)
    return tuple(name for name in MAIN if name in names) or names[:1]


def _require_similarity(trace: TraceData, chart: str) -> Iterable[str]:
    if not trace.similarity:
        raise MeasureError(
            f"the chart {chart!r} needs a similarity, which this trace lacks (its similarities: none); trace again "
            "with a measure such as 'cka'"
        )
    return trace.similarity


def _require_statistic(trace: TraceData, name: str, chart: str) -> None:
    if name not in trace.statistics:
        have = ", ".join(trace.statistics) or "none: the model has no classifier, or the readout was left out"
        raise MeasureError(
            f"the chart {chart!r} needs {name}, which this trace lacks (its readout statistics: {have}); "
            "trace a model with a classifier on labelled data"
        )


def _similarity(trace: TraceData, traces: Traces) -> AnyChart:
    names = main_measures(_require_similarity(trace, "similarity"))
    domain = domain_of(traces, names)
    return alt.hconcat(*(_sized(similarity_map(trace, name, domain), 330, 330) for name in names), spacing=36)


def _to_last(trace: TraceData, traces: Traces) -> AnyChart:
    return _sized(to_last(traces, main_measures(_require_similarity(trace, "similarity_to_last"))), 560, 300)


def _distributions(trace: TraceData, traces: Traces) -> AnyChart:
    if not trace.quantiles:
        raise MeasureError(
            "the chart 'distributions' needs quantiles of a cosine, which this trace lacks; trace again with the "
            "measure 'cosine'"
        )
    measure = "cosine" if "cosine" in trace.quantiles else next(iter(trace.quantiles))
    return alt.hconcat(*(_sized(spread(traces, measure, side), 420, 280) for side in ("last", "next")), spacing=36)


def _saturation(trace: TraceData, traces: Traces) -> AnyChart:
    _require_statistic(trace, "agreement", "saturation")
    return _sized(saturation(traces), 560, 300)


def _classes(trace: TraceData, traces: Traces) -> AnyChart:
    _require_statistic(trace, "accuracy", "classes")
    chart = by_class(trace)
    return _sized(chart, 560, 24 * len({row["class"] for row in rows.classes(trace)}))


def _statistic(name: str) -> Callable[[TraceData, Traces], AnyChart]:
    def draw(trace: TraceData, traces: Traces) -> AnyChart:
        _require_statistic(trace, name, name)
        return _sized(curve(traces, name), 560, 300)

    return draw


def _overview(trace: TraceData, traces: Traces) -> AnyChart:
    top = _similarity(trace, traces)
    if "accuracy" not in trace.statistics or "agreement" not in trace.statistics:
        return alt.vconcat(top, _to_last(trace, traces), spacing=36)
    sides = (_sized(curve(traces, "accuracy"), 330, 240), _sized(saturation(traces), 330, 240))
    below = alt.hconcat(*sides, spacing=36).resolve_scale(color="independent")
    chart: AnyChart = alt.vconcat(top, below, spacing=36).resolve_scale(color="independent")
    return chart


def _sized(chart: Chart, width: int, height: int) -> Chart:
    return chart.properties(width=width, height=height)


PLOTS: dict[str, Callable[[TraceData, Traces], AnyChart]] = {
    "similarity": _similarity,
    "similarity_to_last": _to_last,
    **{name: _statistic(name) for name in ("accuracy", "confidence", "cross_entropy", "agreement")},
    "saturation": _saturation,
    "distributions": _distributions,
    "classes": _classes,
    "stays_correct": _statistic("stays_correct"),
    "overview": _overview,
}


def plot(trace: TraceData, name: str) -> AnyChart:
    """A chart of one trace by its name in `PLOTS`, to show in a notebook or to `save`.

    Raises:
        MeasureError: no chart has that name, or the trace lacks the numbers it shows.
    """
    if name not in PLOTS:
        raise MeasureError(f"no chart is called {name!r}; choose one of {', '.join(PLOTS)}")
    chart: AnyChart = PLOTS[name](trace, {provenance_name(trace, "model", "states"): trace})
    chart.config = theme.config()
    return chart
