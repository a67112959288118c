"""How well the similarity measures of a trace agree: in words, as a map, and as numbers."""

from collections.abc import Mapping

import altair as alt
import numpy as np

from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Chart
from anydepth.report.formats import measure_title, number, plain, with_interval
from anydepth.report.pages.sections import AgreementSummary, Figure, figure
from anydepth.report.pages.tables import Table, cell, heads
from anydepth.report.rows import Row
from anydepth.results.trace_data import TraceData
from anydepth.stats.agreement import Agreement

Agreements = Mapping[tuple[str, str], Agreement]

_PAPERS = {"cosine", "cka"}  # the two that the paper compares
_NOTE = (
    "Spearman's coefficient of every two measures over pairs of depths: whether they put the pairs in the same order. "
    "Intervals and Pearson's are under the pointer."
)
_BLANK = "too few pairs of depths, or one measure is the same for all"


def summary(trace: TraceData) -> AgreementSummary | None:
    """How well a trace's measures agree; None where there are fewer than two."""
    agreements = trace.measure_agreement()
    if not agreements:
        return None
    pair = next((pair for pair in agreements if set(pair) == _PAPERS), next(iter(agreements)))
    agreement = agreements[pair]
    return AgreementSummary(
        title=f"Do {_both(pair)} agree?",
        pearson=with_interval(*agreement.pearson, plain),
        spearman=with_interval(*agreement.spearman, plain),
        meaning=_meaning(pair, agreement) + _extremes(agreements),
        map=_figure(agreements) if len(agreements) > 1 else None,
    )


def _both(pair: tuple[str, str]) -> str:
    titles = [measure_title(name) for name in pair]
    short = [title.partition(",")[0] for title in titles]
    return " and ".join(short if short[0] != short[1] else titles)


def _meaning(pair: tuple[str, str], agreement: Agreement) -> str:
    value, low, _ = agreement.spearman
    if not np.isfinite(value):
        return f"Not defined here: {agreement.pairs} pairs of different depths have a value of both."
    return (
        f"Over the {agreement.pairs} pairs of different depths, {_both(pair)} {_verdict(value, low)}. Pearson asks "
        "whether one is a straight-line function of the other, Spearman only whether they order the pairs alike. The "
        "interval is a jackknife over depths: what another choice of depths would have given, not other samples. "
        "Agreement does not make either measure right."
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


def _extremes(agreements: Agreements) -> str:
    """Which two of several measures agree best, and which least."""
    known = {pair: agreement for pair, agreement in agreements.items() if np.isfinite(agreement.spearman[0])}
    if len(known) < 2:
        return ""
    order = sorted(known, key=lambda pair: known[pair].spearman[0])
    best, least = (
        f"{' and '.join(pair)} {how}, {with_interval(*known[pair].spearman, plain)}"
        for pair, how in ((order[-1], "agree best"), (order[0], "least"))
    )
    return f" Of all measures here, {best}; {least}."


def _figure(agreements: Agreements) -> Figure:
    names = list(dict.fromkeys(name for pair in agreements for name in pair))
    return figure(agreement_map(agreements, names), _NOTE, shape="map", table=_table(agreements, names))


def agreement_map(agreements: Agreements, names: list[str]) -> Chart:
    """Spearman's coefficient of every two measures as a map; a pair without one is dashed."""
    signed = any(agreement.spearman[0] < 0 for agreement in agreements.values())
    rows = [row for pair, agreement in agreements.items() for row in _two_rows(pair, agreement)]
    base = alt.Chart(enc.data(rows)).encode(
        x=alt.X("a:N", title=None, sort=names, axis=_axis(-45)),
        y=alt.Y("b:N", title=None, sort=names, axis=_axis(0)),
        tooltip=[alt.Tooltip("pair:N", title="measures"), "Spearman:N", "Pearson:N", "pairs:Q"],
    )
    colour = enc.similarity_colour((-1.0, 1.0) if signed else (0.0, 1.0))
    return enc.titled(
        enc.layered(*enc.blank_and_known(base, colour)),
        "Which measures agree",
        f"Map: Spearman's coefficient of every two of {len(names)} measures over pairs of depths.",
    )


def _axis(angle: int) -> alt.Axis:
    return alt.Axis(labelAngle=angle, grid=False, ticks=False, domain=False)


def _two_rows(pair: tuple[str, str], agreement: Agreement) -> list[Row]:
    """The two cells of a pair, above and below the diagonal."""
    values = {
        "value": number(agreement.spearman[0]),
        "pair": " and ".join(measure_title(name) for name in pair),
        "Spearman": with_interval(*agreement.spearman, plain),
        "Pearson": with_interval(*agreement.pearson, plain),
        "pairs": agreement.pairs,
    }
    return [{"a": a, "b": b} | values for a, b in (pair, pair[::-1])]


def _table(agreements: Agreements, names: list[str]) -> Table:
    """Spearman's coefficients below the diagonal, with their intervals."""
    rows = []
    for place, first in enumerate(heads(names)[1:], start=1):
        row = (agreements[other, names[place]].spearman for other in names[:place])
        rows.append((first, *(cell(value, plain, low, high, why=_BLANK) for value, low, high in row)))
    return Table(("Spearman", *names[:-1]), tuple(rows))
