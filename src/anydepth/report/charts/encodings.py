"""Parts of charts: data, axes, colours, and the layers of a curve or a map."""

import json
from collections.abc import Sequence
from typing import Any, cast

import altair as alt

from anydepth.report import rows, theme
from anydepth.report.traces import Traces

Chart = alt.LayerChart
Domain = tuple[float, float]
Names = tuple[str, ...]  # of the depths, from 0 on


def data(values: list[rows.Row]) -> alt.Data:
    """Rows as inline data; not as a frame, of which Altair refuses more than 5,000 rows."""
    return alt.Data(values=values)  # type: ignore[no-untyped-call]


def layered(*layers: alt.Chart) -> Chart:
    """Charts on top of each other, the first at the bottom."""
    return cast(alt.LayerChart, alt.layer(*layers))  # a facet only where a layer is one


def titled(chart: Chart, title: str, description: str, subtitle: str = "") -> Chart:
    """A chart with its heading, and the description that a screen reader reads."""
    return chart.properties(title=alt.TitleParams(title, subtitle=subtitle), description=description)


def standalone(chart: Chart, width: int, height: int) -> Chart:
    """A chart of that size in the colours of the reports, to be shown by itself."""
    chart = chart.properties(width=width, height=height)
    chart.config = theme.config()
    return chart


def by_trace(traces: Traces, *, side_by_side: bool = False) -> dict[str, Any]:
    """The channels that tell traces apart; none where there is one."""
    if len(traces) == 1:
        return {}
    names = list(traces)
    colour = {"color": category("trace", names)}
    return colour | ({"xOffset": alt.XOffset("trace:N", sort=names)} if side_by_side else {})


def category(field: str, order: Sequence[str] | None = None) -> alt.Color:
    """A colour for each value of a column, by default in the order of the rows, with a legend below the chart."""
    return alt.Color(f"{field}:N", sort=order, legend=alt.Legend(orient="bottom", title=None))


def value_axis() -> alt.Axis:
    """A value axis with light grid lines and no frame."""
    return alt.Axis(tickCount=5, domain=False, ticks=False)


def share_axis() -> alt.Axis:
    """A value axis in percent."""
    return alt.Axis(format=".0%", tickCount=5, domain=False, ticks=False)


def similarity_axis() -> alt.Axis:
    """A value axis of a similarity."""
    return alt.Axis(format=".1f", tickCount=5, domain=False, ticks=False)


def band_axis() -> alt.Axis:
    """An axis of bands (depths, classes) without lines."""
    return alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=3, grid=False, ticks=False, domain=False)


def depth_band(names: Names, field: str = "depth", *, downwards: bool = False) -> dict[str, Any]:
    """One band per depth, for `x`; with `downwards` for `y`, so that depth grows upwards."""
    sort = {"sort": "descending"} if downwards else {}
    axis = _named(band_axis(), names)
    return {"field": field, "type": "ordinal", "title": "depth", "axis": axis, **sort}


def _named(axis: alt.Axis, names: Names) -> alt.Axis:
    """An axis of depths that shows their names where these are not the numbers."""
    if names != tuple(map(str, range(len(names)))):
        axis.labelExpr = f"{json.dumps(names)}[datum.value]"
    return axis


def similarity_colour(domain: Domain) -> alt.Color:
    """The colour of a similarity. Stops and colours come in pairs, so a value has one colour whatever the domain."""
    signed = domain[0] < 0
    legend = _gradient([-1.0, -0.5, 0.0, 0.5, 1.0] if signed else [0.0, 0.5, 1.0], ".1f")
    stops = theme.COLD_STOPS + theme.HEAT_STOPS if signed else theme.HEAT_STOPS
    scale = alt.Scale(domain=stops, range="diverging" if signed else "heatmap", interpolate="lab", clamp=True)
    return alt.Color("value:Q", scale=scale, legend=legend)


def accuracy_colour() -> alt.Color:
    """The colour of an accuracy, 0 to 1."""
    scale = alt.Scale(domain=theme.HEAT_STOPS, range="heatmap", interpolate="lab", clamp=True)
    return alt.Color("accuracy:Q", scale=scale, legend=_gradient([0.0, 0.5, 1.0], ".0%"))


def _gradient(values: list[float], form: str) -> alt.Legend:
    return alt.Legend(orient="bottom", title=None, gradientLength=220, gradientThickness=8, values=values, format=form)


def blank_and_known(base: alt.Chart, colour: alt.Color, field: str = "value") -> tuple[alt.Chart, alt.Chart]:
    """The two layers of a map: its undefined cells, dashed, and the others in their colour."""
    blank = base.transform_filter(f"datum.{field} === null").mark_rect(style="blank")
    known = base.transform_filter(f"datum.{field} !== null").mark_rect().encode(color=colour)
    return blank, known


def lines(values: list[rows.Row], y: alt.Y, split: dict[str, Any], names: Names, line: str) -> Chart:
    """Band, line and points by depth; at every depth one tooltip with the values of all lines.

    Args:
        values: rows of depth, value, low, high, text, and what `split` names.
        y: the channel of the value.
        split: the colour that tells lines apart, if there are several.
        names: of the depths.
        line: name of a single line.
    """
    depth = len(names) - 1
    ticks = _named(alt.Axis(tickMinStep=1, tickCount=min(depth, 12), format="d", grid=False), names)
    scale = alt.Scale(domain=[0, depth], nice=False)
    base = alt.Chart(data(values)).encode(x=alt.X("depth:Q", title="depth", axis=ticks, scale=scale), **split)
    band = base.mark_area(style="band").encode(y=alt.Y("low:Q"), y2="high:Q")
    points = base.mark_point(size=34 if depth <= 40 else 10).encode(y=y)
    key = split["color"].shorthand.removesuffix(":N") if split else None
    wide, labels = rows.columns(values, names, key, line)
    tooltip = [alt.Tooltip("name:N", title="depth"), *(alt.Tooltip(f"s{i}:N", title=t) for i, t in enumerate(labels))]
    # Unseen, over the whole height: the style sheet of the page lights it up under the pointer by this name.
    hits = alt.Chart(data(wide), name="hits").mark_rect(opacity=0, aria=False)
    return layered(band, base.mark_line().encode(y=y), points, hits.encode(x="from:Q", x2="to:Q", tooltip=tooltip))
