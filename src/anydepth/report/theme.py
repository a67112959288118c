"""Colours and type of the charts, light and dark: a Vega-Lite config each.

Charts name roles ("heatmap", "category", the styles "band", "blank", ...) and the config gives the roles their look, so
one specification serves both schemes. The similarity colours run through OKLab in steps of equal size, from a neutral
at 0 to the strongest at 1; lightness alone tells the order, and blue against orange tells the sign.
"""

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# Values that the colours of HEAT stand for: 0 to 1, and with COLD before them -1 to 1.
HEAT_STOPS = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
COLD_STOPS = [-1.0, -0.75, -0.5, -0.25]

_LIGHT = {
    "heat": ["#f2f5f5", "#bbe4e2", "#82d0d1", "#58b5c6", "#3299bc", "#277aac", "#285c9a", "#294179", "#222858"],
    "cold": ["#863c21", "#ba5f2d", "#d99159", "#eac59e"],
    "category": ["#2474a8", "#c8641b", "#3b8a5a", "#a4508b", "#6b6f76", "#937609"],
    "ink": "#1d2329", "muted": "#59626c", "line": "#e4e8eb", "page": "#ffffff",
}  # fmt: skip
_DARK = {
    "heat": ["#22252b", "#2b3855", "#354c7f", "#34699f", "#2c87b5", "#31a6c0", "#56c3c9", "#85ded5", "#b3f9e5"],
    "cold": ["#eca760", "#cc7433", "#9c4f26", "#653623"],
    "category": ["#56b4e0", "#f0924a", "#6cc291", "#d98cc4", "#a9b0b8", "#d9bc4a"],
    "ink": "#e8ebee", "muted": "#9aa4ae", "line": "#2b3138", "page": "#14171b",
}  # fmt: skip


def config(*, dark: bool = False) -> dict[str, Any]:
    """The Vega-Lite config of a scheme.

    Example:
        >>> config()["background"], config(dark=True)["background"]
        ('#ffffff', '#14171b')
    """
    colours: dict[str, Any] = _DARK if dark else _LIGHT
    first = colours["category"][0]
    text = {"labelColor": colours["muted"], "titleColor": colours["muted"], "titleFontWeight": "normal"}
    return {
        "background": colours["page"],
        "font": FONT,
        "range": {
            "heatmap": colours["heat"],
            "diverging": colours["cold"] + colours["heat"],
            "category": colours["category"],
        },
        "view": {"stroke": None},
        "axis": text
        | {
            "domainColor": colours["line"],
            "gridColor": colours["line"],
            "tickColor": colours["line"],
            "labelFontSize": 11,
            "titleFontSize": 11,
            "labelPadding": 5,
            "titlePadding": 7,
            "labelLimit": 130,
            "labelFlush": False,
        },
        "legend": text | {"labelFontSize": 11, "titleFontSize": 11, "symbolStrokeWidth": 2.5, "labelLimit": 260},
        "title": {
            "color": colours["ink"],
            "subtitleColor": colours["muted"],
            "fontSize": 15,
            "fontWeight": 600,
            "subtitleFontSize": 12,
            "anchor": "start",
            "offset": 14,
            "subtitlePadding": 5,
        },
        "mark": {"color": first},
        "line": {"strokeWidth": 2.25, "strokeJoin": "round", "strokeCap": "round"},
        "point": {"filled": True, "size": 34, "opacity": 1},
        "style": {
            "band": {"opacity": 0.17, "color": first},
            "blank": {"color": colours["page"], "stroke": colours["muted"], "strokeDash": [2, 3], "strokeOpacity": 0.5},
            "bars": {"opacity": 0.55, "color": first},
            "whisker": {"strokeWidth": 1.5, "opacity": 0.75, "color": first},
            "box": {"opacity": 0.38},
            "median": {"opacity": 1},
        },
    }
