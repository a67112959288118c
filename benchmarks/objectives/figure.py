"""Quality by depth, one panel a task: what the tables say, to be seen at a glance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from comparing import Finished
from settings import TASKS

from anydepth.report import theme
from anydepth.report.charts.files import save

NAME = "objectives"


def draw(tasks: dict[str, dict[str, Finished]], folder: Path) -> list[Path]:
    """Write the figure as PNG and SVG."""
    names = list(dict.fromkeys(name for found in tasks.values() for name in found))
    panels = [_panel(task, found, names) for task, found in tasks.items()]
    rows = [alt.hconcat(*panels[start : start + 2], spacing=44) for start in range(0, len(panels), 2)]
    chart = alt.vconcat(*rows, spacing=30).properties(
        title=alt.TitleParams(
            "What each depth is worth, by what was trained",
            subtitle="Held-out data; lines are means over the seeds, bands their 95 % intervals",
        ),
        description="Line charts: accuracy or perplexity by depth, a panel for each task, a line for each objective.",
    )
    chart.config = theme.config()
    return [save(chart, folder / f"{NAME}.{kind}") for kind in ("png", "svg")]


def _panel(task: str, found: dict[str, Finished], names: list[str]) -> alt.LayerChart:
    share = TASKS[task].score == "accuracy"
    depth = next(iter(found.values())).depth
    values = [row for one in found.values() for row in _rows(one)]
    axis = alt.Axis(format=".0%" if share else "d", tickCount=5, domain=False, ticks=False)
    scale = alt.Scale(type="linear", zero=False, nice=True) if share else alt.Scale(type="log", nice=False, padding=6)
    y = alt.Y("value:Q", title=None, axis=axis, scale=scale)
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X(
            "depth:Q",
            title="depth",
            axis=alt.Axis(tickMinStep=1, tickCount=depth, format="d", grid=False),
            scale=alt.Scale(domain=[1, depth], nice=False),
        ),
        color=alt.Color("objective:N", sort=names, legend=alt.Legend(orient="bottom", title=None)),
    )
    band = base.mark_area(style="band", clip=True).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    what = "accuracy" if share else "perplexity, lower is better"
    title = alt.TitleParams(TASKS[task].title, subtitle=what, fontSize=12, subtitleFontSize=11, offset=8)
    layers = alt.layer(band, base.mark_line().encode(y=y), base.mark_point().encode(y=y))
    return layers.properties(width=330, height=230, title=title)


def _rows(one: Finished) -> list[dict[str, Any]]:
    """One row a depth; the bounds are kept within what the axis can hold."""
    mean, low, high = one.quality()
    if one.score == "accuracy":
        low, high = np.maximum(low, 0), np.minimum(high, 1)
    return [
        {"objective": one.objective, "depth": depth, "value": value} | _bounds(low[depth - 1], high[depth - 1])
        for depth, value in enumerate(mean.tolist(), start=1)
    ]


def _bounds(low: float, high: float) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in (("low", low), ("high", high))}
