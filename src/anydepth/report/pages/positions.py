"""Report section on a language model: readout statistics by position, and by frequency of the token to come."""

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np
from jaxtyping import Int64

from anydepth.report import theme
from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Names
from anydepth.report.formats import Unit, estimate_text, number, percent, plain
from anydepth.report.pages.sections import Figure, Section, figure
from anydepth.report.pages.tables import cells, heads, table
from anydepth.report.rows import Row, with_ends
from anydepth.results.positions import BandedStatistics, by_frequency, by_position, tells_next_token
from anydepth.results.trace_data import TraceData
from anydepth.stats.means import Estimate

_ROW, _DOT, _AROUND = 34, 24, 110  # pixels of a row of a map, of one of dots, and of what is around them


@dataclass(frozen=True, kw_only=True)
class Banding:
    """Statistics by band, and the words for the bands.

    Attributes:
        statistics: by band.
        axis: title of an axis of these bands.
        short: name of a band on an axis that has other kinds too.
        within: name of a band in a sentence.
    """

    statistics: BandedStatistics
    axis: str
    short: str
    within: str


@dataclass(frozen=True)
class MapChoice:
    """The statistic that the maps show, and why.

    Attributes:
        name: of the statistic.
        reason: the rule, with the numbers that decided.
        depths: whose values the colours span; others may lie beyond, and then look like the end they lie at.
    """

    name: str
    reason: str
    depths: Int64[np.ndarray, " d"]

    @property
    def unit(self) -> Unit:
        """Format of the statistic."""
        return plain if self.name == "cross_entropy" else percent


def section(trace: TraceData, tag: str = "") -> Section | None:
    """Where in a sequence, and at which tokens, the depths differ; None for other than causal language models.

    Without labels there is no section either. `tag` ends each title.
    """
    if not tells_next_token(trace) or "accuracy" not in trace.statistics:
        return None
    bandings = (
        Banding(
            statistics=by_position(trace), axis="tokens of context", short="context {}", within="with a context of {}"
        ),
        Banding(
            statistics=by_frequency(trace),
            axis="rank of the token to come",
            short="rank {}",
            within="at tokens of rank {}",
        ),
    )
    choice = choose(trace)
    colour = _colour(choice, [banding.statistics.values[choice.name] for banding in bandings])
    about = (
        f"{choice.reason} The stronger the colour, the better, and one colour is one value in both maps. Intervals "
        "take texts, not positions, for independent.",
        "Ranks go by how often a token is the one to come in these data; 1 is the most frequent.",
    )
    maps = (
        _map(banding, trace.names, choice, colour, note, tag) for banding, note in zip(bandings, about, strict=True)
    )
    return Section(
        title=f"By position, and by token{tag}", figures=(*maps, _saturation_figure(bandings, trace.depth, tag))
    )


def choose(trace: TraceData) -> MapChoice:
    """Cross-entropy where it means something at half of the depths or more, else accuracy.

    A classifier that was never trained to read a shallow state gives cross-entropies that say more of the scale of the
    logits than of what it knows. The mark is the entropy of the tokens' own frequencies: the cross-entropy of a unigram
    model of these data.
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
        reason = f"Accuracy is shown, and not cross-entropy: only {reason}."
        return MapChoice("accuracy", reason, np.arange(trace.depth + 1))
    return MapChoice("cross_entropy", f"Cross-entropy is shown: {reason}.", depths)


# --- maps ------------------------------------------------------------------------------------------------------------


def _map(banding: Banding, names: Names, choice: MapChoice, colour: alt.Color, about: str, tag: str) -> Figure:
    """A statistic by depth and band."""
    statistics, estimate = banding.statistics, banding.statistics.values[choice.name]
    called = "cross-entropy" if choice.name == "cross_entropy" else "accuracy"
    title = f"{'Cross-entropy, in nats,' if called != 'accuracy' else 'Accuracy'} by depth and {banding.axis}"
    rows: list[Row] = [
        {
            "band": band.name,
            "depth": depth,
            "value": number(estimate.value[b, depth]),
            "text": estimate_text(estimate[b, depth], choice.unit),
            "settled": number(statistics.values["settled"].value[b, depth]),
            "count": band.count,
        }
        for b, band in enumerate(statistics.bands)
        for depth in range(len(names))
    ]
    base = alt.Chart(enc.data(rows)).encode(
        x=enc.depth_band(names),
        y=alt.Y("band:N", title=banding.axis, sort=[band.name for band in statistics.bands], axis=enc.band_axis()),
        tooltip=[
            alt.Tooltip("band:N", title=banding.axis),
            alt.Tooltip("depth:O"),
            alt.Tooltip("text:N", title=called),
            alt.Tooltip("settled:Q", title="saturated by here", format=".1%"),
            alt.Tooltip("count:Q", title="answers in the band", format=",d"),
        ],
    )
    chart = enc.titled(enc.layered(*enc.blank_and_known(base, colour)), title, f"Map: {title}.")
    columns = {band.name: cells(estimate[b], choice.unit, "infinite") for b, band in enumerate(statistics.bands)}
    height, content = _ROW * len(statistics.bands) + _AROUND, table(heads(names), columns)
    return figure(chart, f"{_contrast(banding, choice)} {about}", tag, shape="wide", height=height, table=content)


def _colour(choice: MapChoice, values: Sequence[Estimate]) -> alt.Color:
    """Strong is good: high accuracy, low cross-entropy."""
    known = np.concatenate([estimate.value[:, choice.depths].ravel() for estimate in values])
    accuracy = choice.name == "accuracy"
    worst, best = (0.0, max(known.max(), 0.01)) if accuracy else (known.max(), known.min())
    stops = [float(worst + stop * (best - worst)) for stop in theme.HEAT_STOPS]
    scale = alt.Scale(domain=stops, range="heatmap", interpolate="lab", clamp=True)
    form = ".0%" if accuracy else ".1f"
    legend = alt.Legend(orient="bottom", title=None, gradientLength=220, gradientThickness=8, tickCount=4, format=form)
    return alt.Color("value:Q", scale=scale, legend=legend)


def _contrast(banding: Banding, choice: MapChoice) -> str:
    """Sentence on the first band and the last, at depth L and half way."""
    statistics = banding.statistics
    last = statistics.values["settled"].value.shape[1] - 1
    accuracy = choice.name == "accuracy"
    estimate, unit = (statistics.values["accuracy"], percent) if accuracy else (statistics.perplexity, _perplexity)
    name, half = "accuracy" if accuracy else "perplexity", max(last // 2, 1)

    def ends(depth: int) -> str:
        return " and ".join(
            f"{estimate_text(estimate[b, depth], unit)} {words}" for b, words in _first_and_last(banding)
        )

    text = f"At depth {last}, {name} is {ends(last)}"
    return text + (f"; at depth {half}, it is {ends(half)}." if half < last else ".")


def _first_and_last(banding: Banding) -> list[tuple[int, str]]:
    """The first band and the last, by number and in words."""
    bands = banding.statistics.bands
    return [(b, banding.within.format(bands[b].name)) for b in sorted({0, len(bands) - 1})]


def _perplexity(value: float) -> str:
    return f"{value:,.1f}"


# --- saturation ------------------------------------------------------------------------------------------------------


def _saturation_figure(bandings: Sequence[Banding], last: int, tag: str) -> Figure:
    """The mean saturation depth of every band."""
    rows: list[Row] = []
    for banding in bandings:
        saturation = banding.statistics.saturation
        for b, band in enumerate(banding.statistics.bands):
            row: Row = {"kind": banding.axis, "band": banding.short.format(band.name), "count": band.count}
            rows.append(row | with_ends(saturation[b], _depth))
    base = alt.Chart(enc.data(rows)).encode(
        y=alt.Y("band:N", title=None, sort=[row["band"] for row in rows], axis=enc.band_axis()),
        color=enc.category("kind", [banding.axis for banding in bandings]),
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
    description = f"Dot chart: mean saturation depth by {' and by '.join(banding.axis for banding in bandings)}."
    chart = enc.titled(enc.layered(whiskers, points), "Mean saturation depth, by band", description)
    means = [
        f"{estimate_text(banding.statistics.saturation[b], _depth)} {words}"
        for banding in bandings
        for b, words in _first_and_last(banding)
    ]
    note = (
        f"The mean saturation depth is {', '.join(means)}. An answer saturates at the first depth from which its top "
        "token never changes again, right or wrong."
    )
    return figure(chart, note, tag, shape="wide", height=_DOT * len(rows) + _AROUND)


def _depth(value: float) -> str:
    return f"{value:.2f}"
