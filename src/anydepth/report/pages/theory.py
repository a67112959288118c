"""The section of a report on the theory: its figures, each with one sentence of what it shows on these data."""

from collections.abc import Iterator, Mapping
from typing import Any

import altair as alt
import numpy as np

from anydepth.report import theory_sentences as words
from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Chart, Names
from anydepth.report.formats import Unit, interval, number, percent, plain, with_interval
from anydepth.report.pages.sections import Figure, Section, figure
from anydepth.report.pages.tables import Cell, Table
from anydepth.report.rows import Row
from anydepth.stats.means import Estimate
from anydepth.theory.findings import MEASURED, RANDOM_WEIGHTS, SHUFFLED_LABELS, UNCENTRED, Theory

_CALLED = {
    MEASURED: "measured",
    "random walk": "random walk",
    "shuffled": "updates shuffled",
    RANDOM_WEIGHTS: "random weights",
    SHUFFLED_LABELS: "labels shuffled",
}


def section(theory: Theory, names: Names, tag: str = "") -> Section:
    """Everything the theory has on these data.

    Args:
        theory: of a model.
        names: of its depths.
        tag: what tells its figures from those of another model, if there is one.
    """
    figures = [*_of_paths(theory, names, tag)]
    if "final" in theory.closeness:
        figures.append(figure(_nearer(theory, names), words.nearer(theory), tag))
    if MEASURED in theory.collapse:
        figures += _of_collapse(theory, names, tag)
    if theory.updates:
        figures.append(figure(_written(theory), words.written(theory), tag))
    return Section(f"The theory, put to the test{tag}", tuple(figures))


def _of_paths(theory: Theory, names: Names, tag: str) -> Iterator[Figure]:
    kinds = {_CALLED[name]: theory.geometry[name] for name in words.beside(theory.geometry)}
    cosines = {"measured": theory.geometry[MEASURED].cosine, "straight line": theory.geometry[MEASURED].predicted}
    cosines |= {name: one.cosine for name, one in kinds.items()}
    chart = curves(cosines, names, "Cosine with the last depth, and a straight line's", axis=enc.similarity_axis())
    yield figure(chart, words.line(theory), tag, shape="wide")
    far = {name: one.violations for name, one in kinds.items()}
    chart = dots(far, "Triples in which the far pair is more alike", percent)
    yield figure(chart, words.monotone(theory), tag, height=150)
    chart = dots({name: one.straightness for name, one in kinds.items()}, "Straightness: chord over path", percent)
    yield figure(chart, words.straight(theory), tag, height=150)
    turns = {name: one.turning for name, one in kinds.items()}
    yield figure(
        curves(turns, names, "Angle between successive updates, in degrees", start=1), words.turning(theory), tag
    )
    lengths = {"norm": theory.geometry[UNCENTRED].norm, "length of the update": theory.geometry[UNCENTRED].step}
    yield figure(curves(lengths, names, "Norm of the states, and of what each block adds"), words.growth(theory), tag)


def _nearer(theory: Theory, names: Names) -> Chart:
    found = theory.closeness["final"]
    shares = {"where the state comes closer": found.closer, "where it moves away": found.farther}
    title = "The final class becomes more probable"
    return curves(shares, names, title, unit=percent, start=1, axis=enc.share_axis(), domain=(0.0, 1.0))


def _of_collapse(theory: Theory, names: Names, tag: str) -> Iterator[Figure]:
    found = theory.collapse[MEASURED]
    nc1 = {_CALLED[name]: _bare(one.nc1) for name, one in theory.collapse.items()}
    title = "NC1: spread within classes over that between"
    yield figure(curves(nc1, names, title, logarithmic=True), words.spread(theory), tag)
    rest = {
        "lengths of class means (NC2)": found.nc2_norm,
        "their angles (NC2)": found.nc2_angle,
        "weights (NC3)": found.nc3,
    }
    shown = {name: _bare(values) for name, values in rest.items() if np.isfinite(values).any()}
    yield figure(curves(shown, names, "NC2 and NC3: distance from a simplex"), words.simplex(theory), tag)


def _bare(values: np.ndarray) -> Estimate:
    unknown = np.full(values.shape, np.nan)
    return Estimate(values, unknown, unknown)


# --- charts ----------------------------------------------------------------------------------------------------------


def curves(
    lines: Mapping[str, Estimate],
    names: Names,
    title: str,
    *,
    unit: Unit = plain,
    start: int | None = None,
    axis: alt.Axis | None = None,
    domain: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> Chart:
    """Lines by depth with bands.

    Args:
        lines: by name; of unequal length where some are of depths and some of blocks.
        names: of the depths.
        title: of the chart.
        unit: how values are written.
        start: the depth of a line's first value; by default such that its last is at the last depth.
        axis: of the values.
        domain: what it spans.
        logarithmic: scale it so; what is not positive is left out.
    """
    rows: list[Row] = []
    for name, line in lines.items():
        first = len(names) - len(line.value) if start is None else start
        for place, (value, low, high) in enumerate(zip(line.value, line.low, line.high, strict=True)):
            shown = value if value > 0 or not logarithmic else np.nan
            text = with_interval(value, low, high, unit)
            low, high = (end if np.isfinite(end) else shown for end in (low, high))  # a band without width
            ends = {"value": number(shown), "low": number(low), "high": number(high), "text": text}
            rows.append({"kind": name, "depth": first + place} | ends)
    scale = alt.Scale(type="log") if logarithmic else alt.Scale(domain=domain) if domain else alt.Scale(zero=True)
    y = alt.Y("value:Q", title=None, axis=axis or alt.Axis(tickCount=5, domain=False, ticks=False), scale=scale)
    colour = alt.Color("kind:N", sort=list(lines), legend=alt.Legend(orient="bottom", title=None))
    chart = enc.lines(rows, y, {"color": colour}, names, title)
    return enc.titled(chart, title, "", f"Line chart: {title} by depth: {', '.join(lines)}.")


def dots(values: Mapping[str, Estimate], title: str, unit: Unit) -> Chart:
    """A value with its interval for each kind of path."""
    rows: list[Row] = [
        {
            "kind": name,
            "value": number(float(one.value)),
            "low": number(float(one.low)),
            "high": number(float(one.high)),
            "text": with_interval(float(one.value), float(one.low), float(one.high), unit),
        }
        for name, one in values.items()
    ]
    base = alt.Chart(enc.data(rows)).encode(
        y=alt.Y("kind:N", title=None, sort=list(values), axis=enc.band_axis()),
        color=alt.Color("kind:N", sort=list(values), legend=None),
    )
    x = alt.X("value:Q", title=None, axis=enc.share_axis(), scale=alt.Scale(zero=True))
    whiskers = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    points = base.mark_point(size=70).encode(x=x, tooltip=["kind:N", "text:N"])
    return enc.titled(enc.layered(whiskers, points), title, "", f"Dot chart: {title}: {', '.join(values)}.")


def _written(theory: Theory) -> Chart:
    found = theory.updates.get("final") or theory.updates["true"]
    parts = {"along the own weight": found.own, "along other weights": found.others, "past all weights": found.outside}
    rows: list[Row] = [
        {"depth": depth, "part": name, "order": order, "share": number(float(value)), "text": percent(float(value))}
        for order, (name, one) in enumerate(parts.items())
        for depth, value in enumerate(one.value, start=1)
        if np.isfinite(value)
    ]
    bars = (
        alt.Chart(enc.data(rows))
        .mark_bar()
        .encode(
            x=alt.X("depth:O", title="block", axis=enc.band_axis()),
            y=alt.Y("share:Q", title=None, axis=enc.share_axis(), scale=alt.Scale(domain=[0, 1]), stack=True),
            color=alt.Color("part:N", sort=list(parts), legend=alt.Legend(orient="bottom", title=None)),
            order="order:Q",
            tooltip=["depth:O", "part:N", "text:N"],
        )
    )
    title = "Where blocks write, as the classifier sees it"
    return enc.titled(enc.layered(bars), title, "", f"Bar chart: {title}: {', '.join(parts)}.")


# --- the table -------------------------------------------------------------------------------------------------------


def table(theory: Theory, names: Names) -> Table:
    """Everything that has a depth, one row each."""
    paths, raw = theory.geometry[MEASURED], theory.geometry[UNCENTRED]
    walk = theory.geometry["random walk"]
    columns: dict[str, tuple[Estimate, Unit]] = {
        "Cosine to last": (paths.cosine, plain),
        "A line's": (paths.predicted, plain),
        "A random walk's": (walk.cosine, plain),
        "Along the chord": (paths.progress, percent),
        "Beside it": (paths.residual, percent),
        "Turn": (_padded(paths.turning), _degrees),
        "Norm": (raw.norm, plain),
        "Update": (raw.step, plain),
    }
    if (found := theory.closeness.get("final")) is not None:
        columns |= {"Closer: more probable": (found.closer, percent), "Away: more probable": (found.farther, percent)}
    if (found := theory.closeness.get("true")) is not None:
        columns |= {"Closer: true class more probable": (found.closer, percent)}
    if (collapsed := theory.collapse.get(MEASURED)) is not None:
        values = {"NC1": collapsed.nc1, "NC2 lengths": collapsed.nc2_norm, "NC2 angles": collapsed.nc2_angle}
        columns |= {name: (_bare(one), _four) for name, one in {**values, "NC3": collapsed.nc3}.items()}
    for name, part in theory.updates.items():
        columns |= {f"Along the {name} class": (part.own, percent), f"Towards the {name}": (part.towards, percent)}
        columns |= {"Past all weights": (part.outside, percent)}
    body = [_cells(*one, len(names)) for one in columns.values()]
    depths = [Cell(name, float(k)) for k, name in enumerate(names)]
    return Table(("Depth", *columns), tuple(zip(depths, *body, strict=True)))


def _padded(one: Estimate) -> Estimate:
    """Of the depths between the ends, to stand at all depths."""
    return Estimate(*(np.concatenate([[np.nan], values, [np.nan]]) for values in (one.value, one.low, one.high)))


def _cells(one: Estimate, unit: Unit, depths: int) -> list[Cell]:
    """One for each depth; what belongs to a block stands at the depth it leads to."""
    blank: list[Any] = [Cell("–", why="undefined here")] * (depths - len(one.value))
    return blank + [
        Cell(unit(float(value)), float(value), interval(low, high, unit))
        if np.isfinite(value)
        else Cell("–", why="undefined here")
        for value, low, high in zip(one.value, one.low, one.high, strict=True)
    ]


def _degrees(value: float) -> str:
    return f"{value:.0f}°"


def _four(value: float) -> str:
    return f"{value:.4g}"
