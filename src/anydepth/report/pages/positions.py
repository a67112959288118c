"""The section of a report on a language model's answers: by position, and by how frequent the token to come is."""

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np
from jaxtyping import Int64

from anydepth.report import theme
from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Names
from anydepth.report.formats import Unit, interval, number, percent, plain, with_interval
from anydepth.report.pages.sections import Figure, Section, figure
from anydepth.report.pages.tables import Cell, Table
from anydepth.report.protocols import Source
from anydepth.report.rows import Row
from anydepth.results.positions import BandedStatistics, by_frequency, by_position, tells_next_token
from anydepth.results.trace_data import TraceData
from anydepth.stats.means import Estimate

_ROW, _DOT, _AROUND = 34, 24, 110  # pixels of a row of a map, of one of dots, and of what is around them


@dataclass(frozen=True)
class Kind:
    """Bands of one kind, and how they are spoken of.

    Attributes:
        found: the statistics by band.
        axis: what the bands are of.
        short: one of them, on an axis that has other kinds too.
        within: one of them, in a sentence.
    """

    found: BandedStatistics
    axis: str
    short: str
    within: str


@dataclass(frozen=True)
class Shown:
    """What the maps show, and why that.

    Attributes:
        name: of the statistic.
        reason: the rule, with the numbers that decided.
        depths: whose values the colours span; others may lie beyond, and then look like the end they lie at.
    """

    name: str
    reason: str
    depths: Int64[np.ndarray, " d"]


def section(trace: Source, tag: str = "") -> Section | None:
    """Where in a sequence, and at which tokens, the depths differ.

    Args:
        trace: of any model.
        tag: what tells its figures from those of another trace, if there is one.

    Returns:
        None for a trace that is not of a causal language model, or without labels.
    """
    if not isinstance(trace, TraceData) or not tells_next_token(trace) or "accuracy" not in trace.statistics:
        return None
    kinds = (
        Kind(by_position(trace), "tokens of context", "context {}", "with a context of {}"),
        Kind(by_frequency(trace), "rank of the token to come", "rank {}", "at tokens of rank {}"),
    )
    shown = choose(trace)
    colour = _colour(shown, [kind.found.values[shown.name] for kind in kinds])
    about = (
        f"{shown.reason} The stronger the colour, the better, and one colour is one value in both maps. Intervals take "
        "texts, not positions, for independent.",
        "Ranks go by how often a token is the one to come in these data; 1 is the most frequent.",
    )
    maps = (_map(kind, trace.names, shown, colour, note, tag) for kind, note in zip(kinds, about, strict=True))
    return Section(f"By position, and by token{tag}", (*maps, _settling(kinds, trace.depth, tag)))


def choose(trace: TraceData) -> Shown:
    """Cross-entropy where it means something at half of the depths or more, else accuracy.

    A classifier that was never trained to read a shallow state gives cross-entropies that say more of the scale of the
    logits than of what it knows. The mark is the entropy of the tokens' own frequencies: the cross-entropy of one who
    knows nothing but how often each comes in these data.
    """
    assert trace.rows is not None
    share = np.unique(trace.rows.label, return_counts=True)[1] / len(trace.rows)
    mark = float(-(share * np.log(share)).sum())
    depths = 1 + np.flatnonzero(trace.cross_entropy[1:] < mark)
    reason = (
        f"at {len(depths)} of the {trace.depth} depths above 0 it is below the {plain(mark)} nats of one who knows "
        "only how often each token comes"
    )
    if 2 * len(depths) < trace.depth:
        return Shown(
            "accuracy", f"Accuracy is shown, and not cross-entropy: only {reason}.", np.arange(trace.depth + 1)
        )
    return Shown("cross_entropy", f"Cross-entropy is shown: {reason}.", depths)


# --- maps ------------------------------------------------------------------------------------------------------------


def _map(kind: Kind, names: Names, shown: Shown, colour: alt.Color, about: str, tag: str) -> Figure:
    """A statistic by depth and band."""
    found, unit = kind.found, plain if shown.name == "cross_entropy" else percent
    value, called = found.values[shown.name], "cross-entropy" if unit is plain else "accuracy"
    title = f"{'Cross-entropy, in nats,' if unit is plain else 'Accuracy'} by depth and {kind.axis}"
    rows: list[Row] = [
        {
            "band": band.name,
            "depth": depth,
            "value": number(value.value[b, depth]),
            "text": _told(value, (b, depth), unit),
            "settled": number(found.values["settled"].value[b, depth]),
            "count": band.count,
        }
        for b, band in enumerate(found.bands)
        for depth in range(len(names))
    ]
    base = alt.Chart(enc.data(rows)).encode(
        x=enc.depth_band(names),
        y=alt.Y("band:N", title=kind.axis, sort=[band.name for band in found.bands], axis=enc.band_axis()),
        tooltip=[
            alt.Tooltip("band:N", title=kind.axis),
            alt.Tooltip("depth:O"),
            alt.Tooltip("text:N", title=called),
            alt.Tooltip("settled:Q", title="settled by here", format=".1%"),
            alt.Tooltip("count:Q", title="answers in the band", format=",d"),
        ],
    )
    blank = base.transform_filter("datum.value === null").mark_rect(style="blank")
    known = base.transform_filter("datum.value !== null").mark_rect().encode(color=colour)
    chart = enc.titled(enc.layered(blank, known), title, "", f"Map: {title}.")
    height, table = _ROW * len(found.bands) + _AROUND, _table(found, names, value, unit)
    return figure(chart, f"{_differ(kind, shown)} {about}", tag, shape="wide", height=height, table=table)


def _colour(shown: Shown, values: Sequence[Estimate]) -> alt.Color:
    """Strong is good: high accuracy, low cross-entropy."""
    known = np.concatenate([one.value[:, shown.depths].ravel() for one in values])
    accuracy = shown.name == "accuracy"
    worst, best = (0.0, max(known.max(), 0.01)) if accuracy else (known.max(), known.min())
    stops = [float(worst + stop * (best - worst)) for stop in theme.HEAT_STOPS]
    scale = alt.Scale(domain=stops, range="heatmap", interpolate="lab", clamp=True)
    form = ".0%" if accuracy else ".1f"
    legend = alt.Legend(orient="bottom", title=None, gradientLength=220, gradientThickness=8, tickCount=4, format=form)
    return alt.Color("value:Q", scale=scale, legend=legend)


def _table(found: BandedStatistics, names: Names, value: Estimate, unit: Unit) -> Table:
    body = [
        (Cell(name, float(k)), *(_cell(value, (b, k), unit) for b in range(len(found.bands))))
        for k, name in enumerate(names)
    ]
    return Table(("Depth", *(band.name for band in found.bands)), tuple(body))


def _cell(value: Estimate, place: tuple[int, int], unit: Unit) -> Cell:
    middle, low, high = _at(value, place)
    return Cell(unit(middle), middle, interval(low, high, unit)) if np.isfinite(middle) else Cell("–", why="infinite")


def _differ(kind: Kind, shown: Shown) -> str:
    """What the first band and the last say, at depth L and half way."""
    found, last = kind.found, kind.found.values["settled"].value.shape[1] - 1
    accuracy = shown.name == "accuracy"
    value, unit = (found.values["accuracy"], percent) if accuracy else (found.perplexity, _perplexity)
    name, half = "accuracy" if accuracy else "perplexity", max(last // 2, 1)
    told = f"At depth {last}, {name} is {_of_ends(kind, value, last, unit)}"
    return told + (f"; at depth {half}, it is {_of_ends(kind, value, half, unit)}." if half < last else ".")


def _of_ends(kind: Kind, value: Estimate, depth: int, unit: Unit) -> str:
    return " and ".join(f"{_told(value, (b, depth), unit)} {text}" for b, text in _ends(kind))


def _ends(kind: Kind) -> list[tuple[int, str]]:
    """The first band and the last, in a sentence."""
    bands = kind.found.bands
    return [(b, kind.within.format(bands[b].name)) for b in sorted({0, len(bands) - 1})]


def _told(value: Estimate, place: tuple[int, ...], unit: Unit) -> str:
    middle, low, high = _at(value, place)
    return with_interval(middle, low, high, unit)


def _at(value: Estimate, place: tuple[int, ...]) -> tuple[float, float, float]:
    return float(value.value[place]), float(value.low[place]), float(value.high[place])


def _perplexity(value: float) -> str:
    return f"{value:,.1f}"


# --- saturation ------------------------------------------------------------------------------------------------------


def _settling(kinds: Sequence[Kind], last: int, tag: str) -> Figure:
    """The mean saturation depth of every band."""
    rows: list[Row] = []
    for kind in kinds:
        for b, band in enumerate(kind.found.bands):
            middle, low, high = (number(one) for one in _at(kind.found.saturation, (b,)))
            row: Row = {"kind": kind.axis, "band": kind.short.format(band.name), "value": middle, "count": band.count}
            rows.append(row | {"low": low, "high": high, "text": _told(kind.found.saturation, (b,), _depth)})
    base = alt.Chart(enc.data(rows)).encode(
        y=alt.Y("band:N", title=None, sort=[row["band"] for row in rows], axis=enc.band_axis()),
        color=alt.Color("kind:N", sort=[kind.axis for kind in kinds], legend=alt.Legend(orient="bottom", title=None)),
    )
    # an interval that goes beyond the depths there are ends at the frame
    scale = alt.Scale(domain=[1, max(last, 2)], clamp=True)
    axis = alt.Axis(tickMinStep=1, format="d", ticks=False, domain=False)
    tooltip = [
        alt.Tooltip("band:N"),
        alt.Tooltip("text:N", title="mean saturation depth"),
        alt.Tooltip("count:Q", title="answers in the band", format=",d"),
    ]
    whiskers = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    points = base.mark_point(size=70).encode(x=alt.X("value:Q", title="depth", axis=axis, scale=scale), tooltip=tooltip)
    title = "Where answers settle, by band"
    what = f"Dot chart: mean saturation depth by {' and by '.join(kind.axis for kind in kinds)}."
    chart = enc.titled(enc.layered(whiskers, points), title, "", what)
    told = [f"{_told(kind.found.saturation, (b,), _depth)} {text}" for kind in kinds for b, text in _ends(kind)]
    note = (
        f"The mean saturation depth is {', '.join(told)}. An answer settles at the first depth from which its top "
        "token never changes again, right or wrong."
    )
    return figure(chart, note, tag, shape="wide", height=_DOT * len(rows) + _AROUND)


def _depth(value: float) -> str:
    return f"{value:.2f}"
