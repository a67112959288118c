"""How well the measures of a trace agree: in words, as a map, and as numbers."""

from collections.abc import Mapping

import altair as alt
import numpy as np

from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Chart
from anydepth.report.formats import interval, measure_title, number, plain, with_interval
from anydepth.report.pages.sections import Agreeing, Figure, figure
from anydepth.report.pages.tables import Cell, Table
from anydepth.report.protocols import Source
from anydepth.report.rows import Row
from anydepth.stats.agreement import Agreement

Found = Mapping[tuple[str, str], Agreement]

_PAPERS = {"cosine", "cka"}  # the two of which the paper says so
_NOTE = (
    "Spearman's coefficient of every two measures over pairs of depths: whether they put the pairs in the same order. "
    "Intervals and Pearson's are under the pointer."
)


def agreeing(trace: Source) -> Agreeing | None:
    """What the page says of how well a trace's measures agree; None where there are fewer than two."""
    found = trace.measure_agreement()
    if not found:
        return None
    pair = next((pair for pair in found if set(pair) == _PAPERS), next(iter(found)))
    one = found[pair]
    return Agreeing(
        title=f"Do {_both(pair)} agree?",
        pearson=with_interval(*one.pearson, plain),
        spearman=with_interval(*one.spearman, plain),
        meaning=_meaning(pair, one) + _extremes(found),
        map=_figure(found) if len(found) > 1 else None,
    )


def _both(pair: tuple[str, str]) -> str:
    titles = [measure_title(name) for name in pair]
    short = [title.partition(",")[0] for title in titles]
    return " and ".join(short if short[0] != short[1] else titles)


def _meaning(pair: tuple[str, str], one: Agreement) -> str:
    value, low, _ = one.spearman
    if not np.isfinite(value):
        return f"Not defined here: {one.pairs} pairs of different depths have a value of both."
    return (
        f"Over the {one.pairs} pairs of different depths, {_both(pair)} {_verdict(value, low)}. Pearson asks whether "
        "one is a straight-line function of the other, Spearman only whether they order the pairs alike. The interval "
        "is a jackknife over depths: what another choice of depths would have given, not other samples. Agreement does "
        "not make either measure right."
    )


def _verdict(spearman: float, low: float) -> str:
    """By the lower end of the interval, so that few pairs don't make a strong claim."""
    sure = low if np.isfinite(low) else spearman
    for least, verdict in (
        (0.9, "put the pairs in almost the same order"),
        (0.7, "put the pairs in much the same order"),
        (0.3, "agree in tendency on the order of the pairs"),
        (0.0, "agree weakly at best on the order of the pairs"),
    ):
        if sure >= least:
            return verdict
    return "do not clearly agree on the order of the pairs"


def _extremes(found: Found) -> str:
    """Which two of several measures agree best, and which least."""
    known = {pair: one for pair, one in found.items() if np.isfinite(one.spearman[0])}
    if len(known) < 2:
        return ""
    order = sorted(known, key=lambda pair: known[pair].spearman[0])
    best, least = (
        f"{' and '.join(pair)} {how}, {with_interval(*known[pair].spearman, plain)}"
        for pair, how in ((order[-1], "agree best"), (order[0], "least"))
    )
    return f" Of all measures here, {best}; {least}."


def _figure(found: Found) -> Figure:
    return figure(agreement_map(found), _NOTE, shape="map", table=_table(found))


def agreement_map(found: Found) -> Chart:
    """Spearman's coefficient of every two measures as a map; a pair without one is dashed."""
    names = _names(found)
    signed = any(one.spearman[0] < 0 for one in found.values())
    base = alt.Chart(enc.data([row for pair, one in found.items() for row in _rows(pair, one)])).encode(
        x=alt.X("a:N", title=None, sort=names, axis=_axis(-45)),
        y=alt.Y("b:N", title=None, sort=names, axis=_axis(0)),
        tooltip=[alt.Tooltip("pair:N", title="measures"), "Spearman:N", "Pearson:N", "pairs:Q"],
    )
    blank = base.transform_filter("datum.value === null").mark_rect(style="blank")
    known = base.transform_filter("datum.value !== null").mark_rect()
    colour = enc.similarity_colour((-1.0, 1.0) if signed else (0.0, 1.0))
    return enc.titled(
        enc.layered(blank, known.encode(color=colour)),
        "Which measures agree",
        "",
        f"Map: Spearman's coefficient of every two of {len(names)} measures over pairs of depths.",
    )


def _axis(angle: int) -> alt.Axis:
    return alt.Axis(labelAngle=angle, grid=False, ticks=False, domain=False)


def _rows(pair: tuple[str, str], one: Agreement) -> list[Row]:
    """A pair's two cells."""
    told = {
        "value": number(one.spearman[0]),
        "pair": " and ".join(measure_title(name) for name in pair),
        "Spearman": with_interval(*one.spearman, plain),
        "Pearson": with_interval(*one.pearson, plain),
        "pairs": one.pairs,
    }
    return [{"a": a, "b": b} | told for a, b in (pair, pair[::-1])]


def _table(found: Found) -> Table:
    """Spearman's coefficients below the diagonal, with their intervals."""
    names = _names(found)
    rows = [
        (Cell(name, float(place)), *(_cell(found[other, name]) for other in names[:place]))
        for place, name in enumerate(names)
        if place
    ]
    return Table(("Spearman", *names[:-1]), tuple(rows))


def _cell(one: Agreement) -> Cell:
    value, low, high = one.spearman
    if not np.isfinite(value):
        return Cell("–", why="too few pairs of depths, or one measure is the same for all")
    return Cell(plain(value), value, interval(low, high, plain))


def _names(found: Found) -> list[str]:
    return list(dict.fromkeys(name for pair in found for name in pair))
