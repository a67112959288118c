"""Charts and page of an early-exit calibration: quality against depth, operations and time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from anydepth.errors import MeasureError
from anydepth.exits.curve import ExitCurve
from anydepth.exits.summary import ExitSummary
from anydepth.report import html
from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Chart
from anydepth.report.formats import interval, number, percent, plain
from anydepth.report.pages.sections import Section, figure, flat
from anydepth.report.pages.tables import Cell, Table, cell, cells, table
from anydepth.report.rows import Row
from anydepth.report.sentences import Finding
from anydepth.results.tables import sentence
from anydepth.stats.means import Estimate

Curves = Mapping[str, ExitCurve]

AXES = {
    "depth": "mean depth",
    "flops": "operations, of the plain model's",
    "time": "time, of the plain model's (from measured costs)",
}
_WAYS = {
    "paper_speedup": "blocks counted (the paper's)",
    "flops": "operations",
    "predicted": "measured costs",
    "measured": "clock",
}


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A model without exits to compare with: one trained shallow from the start.

    Attributes:
        name: of the kind; rivals of one name are one series.
        depth: its blocks.
        quality: its accuracy.
        low: lower end of the 95 % interval of the accuracy.
        high: upper end.
    """

    name: str
    depth: int
    quality: float
    low: float
    high: float


def tradeoff(
    curves: Curves,
    against: str = "depth",
    *,
    points: Mapping[str, tuple[float, float]] | None = None,
    rivals: Sequence[Rival] = (),
) -> Chart:
    """Quality over the range of thresholds, against what it costs.

    Args:
        curves: by name; they share the chart.
        against: a key of `AXES`.
        points: name → (cost, quality) of its calibrated policy.
        rivals: models without exits, against depth only.

    Raises:
        MeasureError: no such axis.
    """
    if against not in AXES:
        raise MeasureError(f"curves are drawn against {', '.join(AXES)}, not {against!r}")
    values = [row for name, curve in curves.items() for row in _rows(name, curve, against)]
    names = [*curves, *dict.fromkeys(rival.name for rival in rivals)]
    colour: dict[str, Any] = {} if len(names) == 1 else {"color": enc.category("curve", names)}
    title = "Accuracy" if all(curve.accuracy is not None for curve in curves.values()) else "Agreement"
    scale = alt.Scale(domain=_range([row["low"] for row in values], [row["high"] for row in values]))
    x = alt.X("cost:Q", title=AXES[against], scale=alt.Scale(zero=False, nice=False), axis=_axis(against))
    y = alt.Y("quality:Q", title=None, axis=enc.share_axis(), scale=scale)
    tooltip = [alt.Tooltip("curve:N"), alt.Tooltip("cost:Q", format=".2f", title=AXES[against]), alt.Tooltip("text:N")]
    base = alt.Chart(enc.data(values)).encode(x=x, **colour)
    layers = [
        base.mark_area(style="band").encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        base.mark_line().encode(y=y, order="place:Q"),
        base.mark_point(size=16).encode(y=y, tooltip=tooltip),
    ]
    certified = [
        {"curve": name, "cost": cost, "quality": quality, "text": f"certified: {percent(quality)}"}
        for name, (cost, quality) in (points or {}).items()
    ]
    if certified:
        diamonds = alt.Chart(enc.data(certified)).encode(x=x, y=y, tooltip=tooltip, **colour)
        layers.append(diamonds.mark_point(size=170, filled=True, shape="diamond", opacity=1))
    if rivals:
        layers += _rivals(rivals, x, y, colour)
    return enc.titled(
        enc.layered(*layers),
        f"{title} against {AXES[against].partition(',')[0]}",
        f"Line chart: {title.lower()} at every threshold against {AXES[against]}.",
    )


def _rivals(rivals: Sequence[Rival], x: alt.X, y: alt.Y, colour: dict[str, Any]) -> Iterator[alt.Chart]:
    rows = [
        {"curve": rival.name, "cost": rival.depth} | _quality(rival.quality, rival.low, rival.high) for rival in rivals
    ]
    base = alt.Chart(enc.data(rows)).encode(x=x, **colour)
    yield base.mark_rule(style="whisker").encode(y="low:Q", y2="high:Q")
    yield base.mark_point(size=70, filled=True, shape="square").encode(y=y, tooltip=["curve:N", "text:N"])


def _rows(name: str, curve: ExitCurve, against: str) -> list[Row]:
    cost = {"depth": curve.depth, "flops": curve.flops, "time": curve.predicted}[against]
    low, high = curve.interval()
    return [
        {"curve": name, "place": place, "cost": number(cost[place])}
        | _quality(curve.quality[place], low[place], high[place])
        for place in range(len(cost))
    ]


def _quality(value: float, low: float, high: float) -> Row:
    text = f"{percent(value)} ({interval(low, high, percent)})"
    return {"quality": number(value), "low": number(low), "high": number(high), "text": text}


def _axis(against: str) -> alt.Axis:
    if against == "depth":
        return alt.Axis(grid=False, format="d", tickMinStep=1)
    return alt.Axis(grid=False, format=".0%", tickCount=8)


def _range(low: Sequence[float], high: Sequence[float]) -> list[float]:
    """What an axis of shares spans: a little more than the values, in steps of five points."""
    return [max(0.0, float(np.floor(min(low) * 20) / 20)), min(1.0, float(np.ceil(max(high) * 20) / 20))]


def speedups(curve: ExitCurve) -> Chart:
    """How many times faster than the plain model: as blocks are counted, as costs predict, and by the clock."""
    speedup = {
        "paper_speedup": curve.paper_speedup,
        "flops": 1 / curve.flops,
        "predicted": 1 / curve.predicted,
        "measured": 1 / curve.measured,
    }
    values = [
        {"way": _WAYS[way], "depth": float(depth), "times": float(times), "text": f"{times:.2f} ×"}
        for way, all_times in speedup.items()
        for depth, times in zip(curve.depth, all_times, strict=True)
        if np.isfinite(times)
    ]
    base = alt.Chart(enc.data(values)).encode(
        x=alt.X("depth:Q", title="mean depth", scale=alt.Scale(zero=False, nice=False), axis=_axis("depth")),
        y=alt.Y("times:Q", title=None, axis=alt.Axis(format=".1f", domain=False, ticks=False)),
        color=enc.category("way", list(_WAYS.values())),
        tooltip=["way:N", alt.Tooltip("depth:Q", format=".2f"), "text:N"],
    )
    clock = f"datum.way === '{_WAYS['measured']}'"
    return enc.titled(
        enc.layered(
            base.transform_filter(f"!({clock})").mark_line(),
            base.transform_filter(clock).mark_point(size=60, filled=True, opacity=1),
        ),
        "Speed-up, counted and measured",
        "Line chart: speed-up against mean depth, as blocks, operations and measured costs tell it, and by the clock.",
    )


def exit_depths(counts: Sequence[int]) -> Chart:
    """The share of samples that exit at each depth; `counts` is (L,), from depth 1 on."""
    total = sum(counts)
    values = [{"depth": depth, "share": count / total, "count": count} for depth, count in enumerate(counts, 1)]
    bars = (
        alt.Chart(enc.data(values))
        .mark_bar(style="bars")
        .encode(
            x=alt.X("depth:O", title="depth", axis=enc.band_axis()),
            y=alt.Y("share:Q", title=None, axis=enc.share_axis()),
            tooltip=["depth:O", alt.Tooltip("count:Q", format=",d"), alt.Tooltip("share:Q", format=".1%")],
        )
    )
    return enc.titled(enc.layered(bars), "Where samples exit", "Bar chart: share of samples that exit at each depth.")


# --- the page --------------------------------------------------------------------------------------------------------


def write(summaries: Mapping[str, ExitSummary], path: Path) -> Path:
    """Write the page of one calibration, or of several side by side, and return its path."""
    content = html.page(
        eyebrow="Calibrated for early exit",
        fine="Depth l is the raw output of block l. Charts and shares are of the held-out test set.",
        title=" and ".join(summaries),
        shown={name: (_what(summary), list(_findings(summary))) for name, summary in summaries.items()},
        sections=[_quality_section(summaries), *(_savings_section(name, summaries) for name in summaries)],
        numbers={f"Thresholds of {name}": _numbers(summary.curve) for name, summary in summaries.items()},
        notes_title="What was chosen, and what it costs here",
        notes={name: summary.notes for name, summary in summaries.items() if summary.notes},
        provenance={name: dict(flat(_origin(summary))) for name, summary in summaries.items()},
    )
    return html.save(content, path)


def _what(summary: ExitSummary) -> str:
    return f"{summary.model} on {summary.data}: {summary.last} blocks; {sum(summary.calibration.samples):,} samples."


def _findings(summary: ExitSummary) -> Iterator[Finding]:
    if summary.calibration.certificate is None:
        yield Finding("Nothing could be certified", "Every sample goes to the last depth, so nothing is saved.")
        return
    yield Finding(
        f"A mean depth of {summary.depth:.2f} instead of {summary.last}",
        f"By the clock {1 / summary.measured:.2f} times as fast as the plain model, in batches of "
        f"{summary.curve.batch}; measured costs predict {1 / summary.predicted:.2f}, blocks counted alone "
        f"{summary.last / summary.depth:.2f}.",
    )
    guarantee = sentence(str(summary.calibration))
    yield Finding(f"{percent(summary.agreement)} of the answers are the full model's", f"{guarantee}.")
    if summary.accuracy is not None and summary.full_accuracy is not None:
        low, high = summary.interval(summary.accuracy)
        yield Finding(
            f"{percent(summary.accuracy)} are right, against {percent(summary.full_accuracy)} of the full model",
            f"On the same {sum(summary.leaving):,} samples; interval {interval(low, high, percent)}.",
        )


def _quality_section(summaries: Mapping[str, ExitSummary]) -> Section:
    curves = {name: summary.curve for name, summary in summaries.items()}
    at_depth, at_time = {}, {}
    for name, summary in summaries.items():
        if summary.calibration.certificate is not None:
            quality = summary.agreement if summary.accuracy is None else summary.accuracy
            at_depth[name], at_time[name] = (summary.depth, quality), (summary.predicted, quality)
    note = "Every threshold, from the strictest on the right to the loosest. Diamond: the policy that was certified."
    return Section(
        title="Quality against cost",
        figures=(
            figure(tradeoff(curves, "depth", points=at_depth), note),
            figure(tradeoff(curves, "time", points=at_time), "The same against the time a batch takes."),
        ),
    )


def _savings_section(name: str, summaries: Mapping[str, ExitSummary]) -> Section:
    summary, tag = summaries[name], f", {name}" if len(summaries) > 1 else ""
    note = "Blocks counted leave out what testing costs; points are measured in turn with the plain model."
    return Section(
        title=f"What it saves{tag}",
        figures=(
            figure(speedups(summary.curve), note, tag),
            figure(exit_depths(summary.leaving), "Of the held-out test set.", tag),
        ),
    )


def _numbers(curve: ExitCurve) -> Table:
    columns: dict[str, Sequence[Cell]] = {
        "Accuracy" if curve.accuracy is not None else "Agreement": cells(
            Estimate(curve.quality, *curve.interval()), percent, why="undefined"
        )
    }
    for title, shares, why in (
        ("Agreement ", curve.agreement, ""),
        ("Operations", curve.flops, ""),
        ("Time, predicted", curve.predicted, ""),
        ("Time, measured", curve.measured, "not measured there"),
    ):
        columns[title] = [cell(share, percent, why=why) for share in shares]
    return table([cell(depth, plain, why="") for depth in curve.depth], columns, "Mean depth")


def _origin(summary: ExitSummary) -> dict[str, object]:
    values = summary.as_plain()
    return {name: values[name] for name in ("model", "data", "policy", "calibration", "area")}
