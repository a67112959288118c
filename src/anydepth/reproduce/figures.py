"""The figure of a recipe: a grid of small panels, in each the curves of some variants, beside the paper's own."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import altair as alt
import numpy as np
from jaxtyping import Float64

from anydepth.report import theme
from anydepth.report.charts import encodings as enc
from anydepth.report.charts.files import save
from anydepth.report.formats import number
from anydepth.reproduce.recipe import Panel, Recipe
from anydepth.reproduce.results import RecipeResults

FIGURES = "figures"
SUFFIXES = (".png", ".svg")

_COLUMNS, _WIDTH, _HEIGHT, _GAP = 3, 250, 170, 34
_LETTER = 6.0  # pixels a letter of a legend or a subtitle takes, about
_SHAPES = ("circle", "square", "triangle-up", "diamond")


@dataclass(frozen=True)
class _Curve:
    """What is drawn of one variant in one panel: all of one length; a NaN is a gap."""

    label: str
    x: Float64[np.ndarray, " n"]
    value: Float64[np.ndarray, " n"]
    low: Float64[np.ndarray, " n"]
    high: Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class _Look:
    """The looks of variants: a label has one colour and one shape in the whole figure."""

    labels: tuple[str, ...]
    places: tuple[int, ...]

    @property
    def colours(self) -> list[str]:
        palette = theme.config()["range"]["category"]
        return [palette[place % len(palette)] for place in self.places]

    @property
    def shapes(self) -> list[str]:
        # where colours come round again, shapes tell apart
        size = len(theme.config()["range"]["category"])
        return [_SHAPES[place // size % len(_SHAPES)] for place in self.places]


def figure(recipe: Recipe, results: RecipeResults) -> alt.ConcatChart | None:
    """The figure of a recipe: by depth (or against another quantity) the means over seeds, with 95 % of Student's t.

    A variant has one colour in all panels. Where one panel shows all variants that there are, all share its legend.

    Returns:
        A chart to `save`; None of a recipe without panels, or where nothing was measured that they show.
    """
    drawn = [(panel, curves) for panel in recipe.panels(results) if (curves := _curves(panel, results))]
    if not drawn:
        return None
    sets = [tuple(curve.label for curve in curves) for _, curves in drawn]
    widest = max(sets, key=len)
    shared = all(set(labels) <= set(widest) for labels in sets)
    places = _places(sets)
    columns = 2 if len(drawn) in (2, 4) else min(_COLUMNS, len(drawn))
    lines = max(len(_subtitle(panel)) for panel, _ in drawn)
    charts = []
    for (panel, curves), labels in zip(drawn, sets, strict=True):
        in_legend = widest if shared else labels
        look = _Look(in_legend, tuple(places[label] for label in in_legend))
        room = _WIDTH * columns if shared else _WIDTH
        charts.append(_panel(panel, curves, look, _legend(in_legend, room), lines))
    title = alt.TitleParams(recipe.title, subtitle=_description(recipe, results, drawn, columns), offset=22)
    chart = alt.concat(*charts, columns=columns, spacing=_GAP, title=title, config=alt.Config(**theme.config()))
    return chart if shared else chart.resolve_scale(color="independent", shape="independent")


def figure_paths(recipe: Recipe, results: RecipeResults, out: Path) -> tuple[Path, ...]:
    """Where the pictures of a figure lie; those of a trial apart; nowhere if it has no panels."""
    folder = out / FIGURES if results.steps is None else out / "trial" / FIGURES
    name = recipe.name if results.scale == "cpu" else f"{recipe.name}-{results.scale}"
    return tuple(folder / f"{name}{suffix}" for suffix in SUFFIXES) if recipe.panels(results) else ()


def draw(recipe: Recipe, results: RecipeResults, out: Path) -> tuple[Path, ...]:
    """Draw a recipe's figure and save it, as PNG and as SVG.

    Args:
        recipe: what was run.
        results: what came of it.
        out: the folder of all recipes.

    Returns:
        Where it lies; nothing where there is nothing to draw.

    Raises:
        TraceFileError: it cannot be written.
    """
    chart = figure(recipe, results)
    if chart is None:
        return ()
    paths = figure_paths(recipe, results, out)
    for path in paths:
        save(chart, path)
    return paths


# --- what is drawn ----------------------------------------------------------------------------------------------------


def _curves(panel: Panel, results: RecipeResults) -> list[_Curve]:
    if panel.printed:
        return [_printed(panel, name, values) for name, values in panel.printed.items()]
    needed = [name for name in (panel.quantity, panel.against) if name is not None]
    names = [
        name
        for name in panel.variants or results.variants
        if results.seeds and all(results.has(name, quantity) for quantity in needed)
    ]
    return [_measured(panel, results, *named) for named in zip(names, _labels(names, panel.title), strict=True)]


def _measured(panel: Panel, results: RecipeResults, variant: str, label: str) -> _Curve:
    mean = results.mean(variant, panel.quantity)
    value, low, high = (np.atleast_1d(end).astype(np.float64) for end in (mean.value, mean.low, mean.high))
    if panel.against is not None:
        return _Curve(label, np.atleast_1d(results.mean(variant, panel.against).value), value, low, high)
    depths = np.arange(len(value), dtype=np.float64)
    drawn = slice(panel.start, None)
    return _Curve(label, depths[drawn], value[drawn], low[drawn], high[drawn])


def _printed(panel: Panel, label: str, values: Sequence[float]) -> _Curve:
    blank = np.full(len(values), np.nan)
    depths = np.arange(1, len(values) + 1, dtype=np.float64)  # the paper's count from the first block on
    return _Curve(label, depths, np.array(values, dtype=np.float64), blank, blank)


def _labels(names: Sequence[str], title: str) -> list[str]:
    """What variants are called in a panel: without what they share at the end, or in front if the title says it.

    Example:
        >>> _labels(["from scratch standard", "from scratch aligned"], "Accuracy, from scratch")
        ['standard', 'aligned']
        >>> _labels(["standard, texts", "aligned, texts"], "Coherence")
        ['standard', 'aligned']
        >>> _labels(["BERT 6", "BERT 12"], "Accuracy")
        ['BERT 6', 'BERT 12']
    """
    if len(names) == 1:
        return list(names)
    if len({name.partition(", ")[2] for name in names}) == 1:
        names = [name.partition(", ")[0] for name in names]
    words = [name.split() for name in names]
    shared = [first for first, *_ in takewhile(_all_same, zip(*(name[:-1] for name in words), strict=False))]
    while shared and not re.search(rf"\b{re.escape(' '.join(shared))}\b", title):
        shared.pop()
    return [" ".join(name[len(shared) :]) for name in words]


def _all_same(words: Sequence[str]) -> bool:
    return len(set(words)) == 1


def _places(sets: Sequence[Sequence[str]]) -> dict[str, int]:
    """A number for each label, the same in all panels: the first that no other label in its panels has.

    Example:
        >>> _places([("a", "b"), ("c",), ("c", "a")])
        {'a': 0, 'b': 1, 'c': 1}
    """
    places: dict[str, int] = {}
    for label in dict.fromkeys(name for labels in sets for name in labels):
        beside = {places[other] for labels in sets if label in labels for other in labels if other in places}
        places[label] = next(place for place in range(len(beside) + 1) if place not in beside)
    return places


# --- one panel --------------------------------------------------------------------------------------------------------


def _panel(panel: Panel, curves: Sequence[_Curve], look: _Look, legend: alt.Legend, lines: int) -> alt.LayerChart:
    domain = _domain(panel, curves)
    # beyond what can be, or what a logarithm has, no band goes; what else the axis has no room for is clipped
    limits = (-np.inf, np.inf) if panel.unit == "number" and not panel.log else domain
    rows = [row for curve in curves for row in _rows(curve, limits)]
    colour = alt.Color("variant:N", scale=alt.Scale(domain=list(look.labels), range=look.colours), legend=legend)
    shape = alt.Shape("variant:N", scale=alt.Scale(domain=list(look.labels), range=look.shapes), legend=legend)
    y = alt.Y("value:Q", title=None, axis=_axis(panel, domain), scale=_scale(panel, domain))
    base = alt.Chart(enc.data(rows)).encode(x=_x(panel, curves), color=colour)
    line = base.mark_line(strokeDash=[5, 4], strokeWidth=1.75) if panel.printed else base.mark_line(strokeWidth=2)
    layers = [line.encode(y=y, order="place:Q"), base.mark_point(size=24).encode(y=y, shape=shape)]
    if any(np.isfinite(curve.low).any() for curve in curves):
        layers.insert(0, base.mark_area(style="band", clip=True).encode(y=alt.Y("low:Q"), y2="high:Q"))
    below = _subtitle(panel)
    title = alt.TitleParams(
        _heading(panel),
        # all of one height, or the panels of a row would not stand on one line
        subtitle=[*below, *[" "] * (lines - len(below))],
        frame="group",
        fontSize=12.5,
        subtitleFontSize=11,
        subtitlePadding=3,
        offset=10,
    )
    return enc.layered(*layers).properties(width=_WIDTH, height=_HEIGHT, title=title)


def _heading(panel: Panel) -> list[str]:
    return textwrap.wrap(panel.title.partition(", ")[0], 38)


def _subtitle(panel: Panel) -> list[str]:
    return textwrap.wrap(panel.title.partition(", ")[2], 44)


def _rows(curve: _Curve, limits: tuple[float, float]) -> list[dict[str, object]]:
    low, high = curve.low.clip(*limits), curve.high.clip(*limits)
    return [
        {
            "variant": curve.label,
            "place": place,
            "x": number(float(curve.x[place])),
            "value": number(float(curve.value[place])),
            "low": number(float(low[place])),
            "high": number(float(high[place])),
        }
        for place in range(len(curve.x))
    ]


def _domain(panel: Panel, curves: Sequence[_Curve]) -> tuple[float, float]:
    """The values that the axis shows: of a number, those of the curves, and bands as far as they leave curves room."""
    values = np.concatenate([curve.value for curve in curves])
    ends = np.concatenate([*(curve.low for curve in curves), *(curve.high for curve in curves), values])
    values, ends = values[np.isfinite(values)], ends[np.isfinite(ends)]
    if not len(values):
        return 0.0, 1.0
    if panel.unit != "number" and not panel.log:
        low, high = float(np.floor(values.min() * 5) / 5), float(np.ceil(values.max() * 5) / 5)
        return (low if values.min() < -0.02 else 0.0), max(high, 1.0)
    if panel.log:
        above = values[values > 0]
        low, high = (float(above.min()), float(above.max())) if len(above) else (0.1, 1.0)
        room = (high / low) ** 0.25
        return max(low / room, float(ends[ends > 0].min())), min(high * room, float(ends.max()))
    low, high = float(values.min()), float(values.max())
    room = (high - low) / 2 or abs(high) / 10 or 1.0
    first = 0.0 if 0 <= low < room else max(low - room, float(ends.min()))
    return first, max(min(high + room, float(ends.max())), first + room)


def _scale(panel: Panel, domain: tuple[float, float]) -> alt.Scale:
    if panel.log:
        return alt.Scale(type="log", domain=list(domain), nice=False)
    return alt.Scale(zero=False, domain=list(domain), nice=panel.unit == "number")


def _axis(panel: Panel, domain: tuple[float, float]) -> alt.Axis:
    if panel.log:
        # a line for each digit of each decade would be most of the panel
        span = domain[1] / domain[0]
        steps = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8) if span < 10 else (1, 2, 5) if span < 1000 else (1,)
        decades = range(int(np.floor(np.log10(domain[0]))), int(np.ceil(np.log10(domain[1]))) + 1)
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        return alt.Axis(values=ticks, domain=False, ticks=False, labelOverlap=True)
    if panel.unit == "number":
        return alt.Axis(tickCount=5, domain=False, ticks=False, labelOverlap=True)
    return enc.share_axis() if panel.unit == "share" else enc.similarity_axis()


def _x(panel: Panel, curves: Sequence[_Curve]) -> alt.X:
    if panel.against is not None:
        axis = alt.Axis(tickCount=6, grid=False, labelOverlap=True)
        return alt.X("x:Q", title=panel.x_title, axis=axis, scale=alt.Scale(zero=False, nice=True))
    ends = [float(min(curve.x.min() for curve in curves)), float(max(curve.x.max() for curve in curves))]
    axis = alt.Axis(tickMinStep=1, tickCount=min(int(ends[1] - ends[0]), 12) or 1, format="d", grid=False)
    return alt.X("x:Q", title=panel.x_title, axis=axis, scale=alt.Scale(domain=ends, nice=False))


# --- words ------------------------------------------------------------------------------------------------------------


def _legend(labels: Sequence[str], room: int) -> alt.Legend:
    widest = max(len(label) for label in labels) * _LETTER + 30
    return alt.Legend(orient="bottom", title=None, columns=max(1, min(len(labels), int(room // widest))), offset=16)


def _description(
    recipe: Recipe, results: RecipeResults, drawn: Sequence[tuple[Panel, Sequence[_Curve]]], columns: int
) -> list[str]:
    """Below the title: on what, how often, and what is drawn how."""
    subjects = "; ".join(str(subject["title"]) for subject in results.settings["subjects"].values())
    how = [f"Means over {len(results.seeds)} seeds, bands: 95 % of Student's t over them."]
    if len(results.seeds) == 1:
        how = ["One seed." if recipe.seeded else "Nothing here is drawn: one seed is all."]
    if results.steps is not None:
        how.append(f"A trial of {results.steps} steps, no result.")
    if results.settings.get("as_printed"):
        how.append("Trained with the settings as the paper prints them.")
    if any(panel.printed for panel, _ in drawn):
        how.append("Dashed: as published.")
    letters = int((columns * (_WIDTH + 2 * _GAP)) / _LETTER)
    return [line for text in (subjects, " ".join(how)) for line in textwrap.wrap(text, letters)]
