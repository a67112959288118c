"""What early exit trades, as charts and as a page: quality against depth, operations and time."""

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
from anydepth.report.pages.tables import Cell, Table
from anydepth.report.rows import Row
from anydepth.report.sentences import Finding

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


@dataclass(frozen=True)
class Rival:
    """A model to compare with that has no exits: one trained shallow from the start.

    Attributes:
        name: of the kind; rivals of one name are one series.
        depth: its blocks.
        quality: its accuracy.
        low: of the 95 % interval.
        high: likewise.
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
        points: where the calibrated policy of a name stands: what it costs, and its quality.
        rivals: models without exits, against depth only.

    Raises:
        MeasureError: no such axis.
    """
    if against not in AXES:
        raise MeasureError(f"curves are drawn against {', '.join(AXES)}, not {against!r}")
    values = [row for name, curve in curves.items() for row in _rows(name, curve, against)]
    names = [*curves, *dict.fromkeys(rival.name for rival in rivals)]
    colour: dict[str, Any] = (
        {}
        if len(names) == 1
        else {"color": alt.Color("curve:N", sort=names, legend=alt.Legend(orient="bottom", title=None))}
    )
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
    marked = [
        {"curve": name, "cost": cost, "quality": quality, "text": f"certified: {percent(quality)}"}
        for name, (cost, quality) in (points or {}).items()
    ]
    if marked:
        where = alt.Chart(enc.data(marked)).encode(x=x, y=y, tooltip=tooltip, **colour)
        layers.append(where.mark_point(size=170, filled=True, shape="diamond", opacity=1))
    if rivals:
        layers += _rivals(rivals, x, y, colour)
    return enc.titled(
        enc.layered(*layers),
        f"{title} against {AXES[against].partition(',')[0]}",
        "",
        f"Line chart: {title.lower()} at every threshold against {AXES[against]}.",
    )


def _rivals(rivals: Sequence[Rival], x: alt.X, y: alt.Y, colour: dict[str, Any]) -> Iterator[alt.Chart]:
    rows = [
        {
            "curve": rival.name,
            "cost": rival.depth,
            "quality": rival.quality,
            "low": rival.low,
            "high": rival.high,
            "text": f"{percent(rival.quality)} ({interval(rival.low, rival.high, percent)})",
        }
        for rival in rivals
    ]
    base = alt.Chart(enc.data(rows)).encode(x=x, **colour)
    yield base.mark_rule(style="whisker").encode(y="low:Q", y2="high:Q")
    yield base.mark_point(size=70, filled=True, shape="square").encode(y=y, tooltip=["curve:N", "text:N"])


def _rows(name: str, curve: ExitCurve, against: str) -> list[Row]:
    cost = {"depth": curve.depth, "flops": curve.flops, "time": curve.predicted}[against]
    low, high = curve.interval()
    return [
        {
            "curve": name,
            "place": place,
            "cost": number(cost[place]),
            "quality": number(curve.quality[place]),
            "low": number(low[place]),
            "high": number(high[place]),
            "text": f"{percent(curve.quality[place])} ({interval(low[place], high[place], percent)})",
        }
        for place in range(len(cost))
    ]


def _axis(against: str) -> alt.Axis:
    if against == "depth":
        return alt.Axis(grid=False, format="d", tickMinStep=1)
    return alt.Axis(grid=False, format=".0%", tickCount=8)


def _range(low: Sequence[float], high: Sequence[float]) -> list[float]:
    """What an axis of shares spans: a little more than the values, in steps of five points."""
    return [max(0.0, float(np.floor(min(low) * 20) / 20)), min(1.0, float(np.ceil(max(high) * 20) / 20))]


def speedups(curve: ExitCurve) -> Chart:
    """How many times faster than the plain model: as blocks are counted, as costs predict, and by the clock."""
    found = {
        "paper_speedup": curve.paper_speedup,
        "flops": 1 / curve.flops,
        "predicted": 1 / curve.predicted,
        "measured": 1 / curve.measured,
    }
    values = [
        {"way": _WAYS[way], "depth": float(depth), "times": float(times), "text": f"{times:.2f} ×"}
        for way, all_times in found.items()
        for depth, times in zip(curve.depth, all_times, strict=True)
        if np.isfinite(times)
    ]
    base = alt.Chart(enc.data(values)).encode(
        x=alt.X("depth:Q", title="mean depth", scale=alt.Scale(zero=False, nice=False), axis=_axis("depth")),
        y=alt.Y("times:Q", title=None, axis=alt.Axis(format=".1f", domain=False, ticks=False)),
        color=alt.Color("way:N", sort=list(_WAYS.values()), legend=alt.Legend(orient="bottom", title=None)),
        tooltip=["way:N", alt.Tooltip("depth:Q", format=".2f"), "text:N"],
    )
    clock = f"datum.way === '{_WAYS['measured']}'"
    return enc.titled(
        enc.layered(
            base.transform_filter(f"!({clock})").mark_line(),
            base.transform_filter(clock).mark_point(size=60, filled=True, opacity=1),
        ),
        "Speed-up, counted and measured",
        "",
        "Line chart: speed-up against mean depth, as blocks, operations and measured costs tell it, and by the clock.",
    )


def leaving(counts: Sequence[int]) -> Chart:
    """The share of samples that leave at each depth.

    Args:
        counts: (L,) of depth 1 on.
    """
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
    return enc.titled(enc.layered(bars), "Where samples leave", "", "Bar chart: share of samples leaving at a depth.")


# --- the page --------------------------------------------------------------------------------------------------------


def write(found: Mapping[str, ExitSummary], path: Path) -> Path:
    """Write the page of one calibration, or of several side by side.

    Args:
        found: by name.
        path: where to; an existing file is replaced at once or not at all.
    """
    content = html.page(
        eyebrow="Calibrated to stop early",
        fine="Depth l is the raw output of block l. Charts and shares are of samples that had no say in the policy.",
        title=" and ".join(found),
        shown={name: (_what(one), list(_findings(one))) for name, one in found.items()},
        sections=[_traded(found), *(_where(name, one, many=len(found) > 1) for name, one in found.items())],
        numbers={f"Thresholds of {name}": _numbers(one.curve) for name, one in found.items()},
        notes_title="What was chosen, and what it costs here",
        notes={name: one.notes for name, one in found.items() if one.notes},
        provenance={name: dict(flat(_origin(one))) for name, one in found.items()},
    )
    return html.save(content, path)


def _what(one: ExitSummary) -> str:
    return f"{one.model} on {one.data}: {one.last} blocks; {sum(one.calibration.samples):,} samples."


def _findings(one: ExitSummary) -> Iterator[Finding]:
    certificate = one.calibration.certificate
    if certificate is None:
        yield Finding("Nothing could be certified", "Every sample goes to the last depth, so nothing is saved.")
        return
    yield Finding(
        f"A mean depth of {one.depth:.2f} instead of {one.last}",
        f"By the clock {1 / one.measured:.2f} times as fast as the plain model, in batches of {one.curve.batch}; "
        f"measured costs predict {1 / one.predicted:.2f}, blocks counted alone {one.last / one.depth:.2f}.",
    )
    yield Finding(f"{percent(one.agreement)} of the answers are the full model's", _proved(one))
    if one.accuracy is not None and one.full_accuracy is not None:
        low, high = one.interval(one.accuracy)
        yield Finding(
            f"{percent(one.accuracy)} are right, against {percent(one.full_accuracy)} of the full model",
            f"On the same {sum(one.leaving):,} samples; interval {interval(low, high, percent)}.",
        )


def _proved(one: ExitSummary) -> str:
    text = str(one.calibration)
    return f"{text[0].upper()}{text[1:]}."


def _traded(found: Mapping[str, ExitSummary]) -> Section:
    curves = {name: one.curve for name, one in found.items()}
    certified = {name: one for name, one in found.items() if one.calibration.certificate is not None}

    def at(cost: str) -> dict[str, tuple[float, float]]:
        quality = {name: one.agreement if one.accuracy is None else one.accuracy for name, one in certified.items()}
        costs = {name: one.depth if cost == "depth" else one.predicted for name, one in certified.items()}
        return {name: (costs[name], quality[name]) for name in certified}

    note = "Every threshold, from the strictest on the right to the loosest. Diamond: the policy that was certified."
    return Section(
        "What is traded",
        (
            figure(tradeoff(curves, "depth", points=at("depth")), note),
            figure(tradeoff(curves, "time", points=at("time")), "The same against the time a batch takes."),
        ),
    )


def _where(name: str, one: ExitSummary, *, many: bool) -> Section:
    tag = f", {name}" if many else ""
    return Section(
        f"What it saves{tag}",
        (
            figure(
                speedups(one.curve),
                "Blocks counted leave out what testing costs; points are measured in turn with the plain model.",
                tag,
            ),
            figure(leaving(one.leaving), "Of the samples that prove the policy.", tag),
        ),
    )


def _numbers(curve: ExitCurve) -> Table:
    low, high = curve.interval()
    columns: dict[str, list[Cell]] = {
        "Accuracy" if curve.accuracy is not None else "Agreement": [
            Cell(percent(value), float(value), interval(a, b, percent))
            for value, a, b in zip(curve.quality, low, high, strict=True)
        ],
        "Agreement ": [Cell(percent(value), float(value)) for value in curve.agreement],
        "Operations": [Cell(percent(value), float(value)) for value in curve.flops],
        "Time, predicted": [Cell(percent(value), float(value)) for value in curve.predicted],
        "Time, measured": [
            Cell(percent(value), float(value)) if np.isfinite(value) else Cell("–", why="not measured there")
            for value in curve.measured
        ],
    }
    first = [Cell(plain(depth), float(depth)) for depth in curve.depth]
    return Table(("Mean depth", *columns), tuple(zip(first, *columns.values(), strict=True)))


def _origin(one: ExitSummary) -> dict[str, object]:
    plain_values = one.as_plain()
    return {name: plain_values[name] for name in ("model", "data", "policy", "calibration", "area")}
