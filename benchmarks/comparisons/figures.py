"""What was found, as figures."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
from commands import MEASURED, Matrix, compared, likeness, neighbours, trace_of
from models import ROOT
from parts import Pair, Part, label, levels

from anydepth.report import theme
from anydepth.report.charts import encodings
from anydepth.report.charts import trace as charts
from anydepth.report.formats import measure_title, number, plain, sentence
from anydepth.report.pages.comparison import cross_map, difference

FIGURES = ROOT / "docs" / "figures"
SIDE = 250


SUBTITLE = "Circles: the most alike depth. Bands: 95 %, those of differences for all depths together"
PALETTE = [*theme.config()["range"]["category"], "#1d2329", "#b3bac1", "#8fb8d6", "#8c5b3f"]


def draw(part: Part) -> None:
    """Write a part's figure as PNG and SVG."""
    curves = {label(name, part): trace_of(name) for name in part.models}
    one = label(part.models[0], part)
    third = (
        panel(_same_depth(part), "CKA with the frozen model", "at the same depth; frozen: its own depth beside")
        if part.tuned
        else panel(_best_by_depth(part), f"CKA with {one}", "the most alike depth of the other")
    )
    middle = (
        panel(charts.curve(curves, "accuracy"), "Accuracy", "of each model's own readout"),
        panel(charts.to_last(curves, ("cosine",)), "Cosine to the last depth", "of each model's own"),
        third,
    )
    less = f"{label(part.differences[0][1], part)} less {one}"
    below = (
        panel(difference([compared(*part.differences[0])], "accuracy"), "Accuracy: the difference", less),
        panel(
            difference([compared(*part.differences[0])], "cosine_to_last"), "Cosine to the last: the difference", less
        ),
        panel(_levels(part), f"How alike {one} is to others", "the most alike depths, mean over its own"),
    )
    rows = [
        alt.hconcat(*(_map(pair, part) for pair in part.maps), spacing=40),
        alt.hconcat(*middle, spacing=40).resolve_scale(color="shared"),
        alt.hconcat(*below, spacing=40).resolve_scale(color="independent"),
    ]
    chart = alt.vconcat(*rows, spacing=36).resolve_scale(color="independent")
    chart = chart.properties(
        title=alt.TitleParams(part.title, subtitle=SUBTITLE), description=f"{part.title}: maps and curves by depth."
    )
    chart.config = theme.config()
    for kind in ("png", "svg"):
        print(charts.save(chart, FIGURES / f"{part.name}.{kind}"))


def panel(chart: Any, title: str, subtitle: str) -> Any:
    heading = alt.TitleParams(title, subtitle=subtitle, fontSize=12, subtitleFontSize=11, offset=8)
    return chart.properties(width=SIDE, height=200, title=heading)


def _map(pair: Pair, part: Part) -> Any:
    found = compared(*pair)
    matched = [(depth, match) for depth, match in enumerate(found.matches("cka")) if match is not None]
    dots = alt.Chart(encodings.data([{"a": depth, "b": match.depth} for depth, match in matched])).mark_point(
        fill="white", stroke="#1d2329", strokeWidth=1, size=36
    )
    x, y = alt.X("a:O"), alt.Y("b:O", sort="descending")
    chart = alt.layer(cross_map(found, "cka", (0.0, 1.0)), dots.encode(x=x, y=y))
    return panel(chart, f"{label(pair[0], part)} × {label(pair[1], part)}", "CKA").properties(height=SIDE)


def _same_depth(part: Part) -> Any:
    frozen, *others = part.tuned
    own, own_ends, _ = neighbours(frozen)
    rows = _line(label(frozen, part), own, own_ends)
    for other in others:
        found = compared(frozen, other)
        ends = found.similarity_intervals["cka"]
        rows += _line(label(other, part), found.similarity["cka"].diagonal(), ends.diagonal(axis1=1, axis2=2))
    return _lines(part, rows)


def _best_by_depth(part: Part) -> Any:
    rows = []
    for other in part.models[1:]:
        found = likeness(part.models[0], other)["cka"]
        most = np.array([found.best(depth) for depth in range(len(found.value))])
        rows += _line(label(other, part), most[:, 0], most[:, 1:].T)
    return _lines(part, rows)


def _lines(part: Part, rows: list[dict[str, Any]]) -> Any:
    """One line a model, in the colours that they have in the curves beside."""
    y = alt.Y("value:Q", title=None, axis=encodings.similarity_axis(), scale=alt.Scale(domain=[0, 1]))
    names = [label(name, part) for name in part.models]
    split = {"color": alt.Color("trace:N", sort=names, legend=alt.Legend(orient="bottom", title=None))}
    return encodings.lines(rows, y, split, trace_of((part.tuned or part.models)[0]).names, "CKA")


def _line(name: str, value: Matrix, ends: Matrix) -> list[dict[str, Any]]:
    return [
        {
            "trace": name,
            "depth": depth,
            "value": number(one),
            "low": number(low),
            "high": number(high),
            "text": plain(one),
        }
        for depth, (one, low, high) in enumerate(zip(value, *ends, strict=True))
        if np.isfinite(one)
    ]


def _levels(part: Part) -> Any:
    found = levels(part)
    rows = [
        {"measure": sentence(measure_title(name)), "with": what, "value": by[name].best_over_depths()[0]}
        for what, by in found.items()
        for name in MEASURED
        if np.isfinite(by[name].value).any()
    ]
    titles = [sentence(measure_title(name)) for name in MEASURED]
    models = [label(name, part) for name in part.models]
    colours = dict(zip([*models, *(what for what in found if what not in models)], PALETTE, strict=False))
    scale = alt.Scale(domain=list(found), range=[colours[what] for what in found])
    base = alt.Chart(encodings.data(rows)).encode(
        x=alt.X("value:Q", title=None, axis=encodings.similarity_axis(), scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("measure:N", sort=titles, title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=180)),
        color=alt.Color("with:N", scale=scale, legend=alt.Legend(orient="bottom", title=None, columns=2)),
    )
    return alt.layer(base.mark_point(size=46))
