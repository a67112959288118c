"""What differs between models, as charts and as a page: difference curves with bands, maps across models, the trend."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from anydepth.measures.permutation_test import Chance
from anydepth.report import html
from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Chart, Domain
from anydepth.report.formats import interval, measure_title, number, plain, sentence
from anydepth.report.pages.sections import Figure, Section, figure, flat
from anydepth.report.pages.tables import Cell, Table
from anydepth.report.protocols import Source
from anydepth.report.rows import Row
from anydepth.report.sentences import Finding
from anydepth.results.comparison import Comparison
from anydepth.stats.paired import Differences

_TITLES = {
    "accuracy": "Accuracy",
    "confidence": "Confidence",
    "cross_entropy": "Cross-entropy, in nats",
    "agreement": "Agreement with the own last depth",
    "settled": "Share of answers that are final",
    "cosine_to_last": "Cosine with the own last depth",
}


def difference(found: Sequence[Comparison], statistic: str) -> Chart:
    """The second model less the first, by depth, with the bands that hold for all depths together.

    Args:
        found: comparisons with one and the same first model.
        statistic: a key of `Comparison.differences`.
    """
    values = [row for one in found if statistic in one.differences for row in _rows(one, statistic)]
    colour: dict[str, Any] = {}
    if len(found) > 1:
        names = [one.names[1] for one in found]
        colour = {"color": alt.Color("model:N", sort=names, legend=alt.Legend(orient="bottom", title=None))}
    base = alt.Chart(enc.data(values)).encode(
        x=alt.X("depth:Q", title="depth", axis=alt.Axis(format="d", tickMinStep=1, grid=False)), **colour
    )
    y = alt.Y("value:Q", title=None, axis=alt.Axis(format="+.2f", domain=False, ticks=False))
    zero = alt.Chart(enc.data([{"value": 0}])).mark_rule(strokeDash=[4, 3]).encode(y="value:Q")
    tooltip = [alt.Tooltip("model:N"), alt.Tooltip("depths:N"), alt.Tooltip("text:N", title="difference"), "verdict:N"]
    title = _TITLES[statistic]
    return enc.titled(
        enc.layered(
            base.mark_area(style="band").encode(y=alt.Y("low:Q"), y2="high:Q"),
            zero,
            base.mark_line().encode(y=y),
            base.mark_point(size=34).encode(y=y, tooltip=tooltip),
        ),
        f"{title}: the difference",
        "",
        f"Line chart: difference in {title.lower()} by depth, with bands that hold for all depths together.",
    )


def _rows(one: Comparison, statistic: str) -> list[Row]:
    found = one.differences[statistic]
    deeper = max((0, 1), key=lambda side: max(pair[side] for pair in one.depths))
    return [
        {
            "model": one.names[1],
            "depth": pair[deeper],
            "depths": str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} and {pair[1]}",
            "value": number(found.value[place]),
            "low": number(found.low_all[place]),
            "high": number(found.high_all[place]),
            "text": _with_band(found, place),
            "verdict": found.verdicts[place],
        }
        for place, pair in enumerate(one.depths)
        if np.isfinite(found.value[place])
    ]


def _with_band(found: Differences, place: int) -> str:
    return f"{found.value[place]:+.3f} ({interval(found.low_all[place], found.high_all[place], plain)})"


def cross_map(one: Comparison, measure: str, domain: Domain) -> Chart:
    """The similarity of every depth of the one model with every depth of the other.

    Args:
        one: what was compared.
        measure: a key of its `similarity`.
        domain: the values the colours span.
    """
    value, title = one.similarity[measure], measure_title(measure)
    tested = one.chance if measure == "cka" else None
    values = [
        {
            "a": a,
            "b": b,
            "value": number(value[a, b]),
            "text": plain(value[a, b]) if np.isfinite(value[a, b]) else "undefined",
            "chance": "" if tested is None else _by_chance(tested, a, b),
        }
        for a in range(value.shape[0])
        for b in range(value.shape[1])
    ]
    tooltip = [alt.Tooltip("a:O", title=one.names[0]), alt.Tooltip("b:O", title=one.names[1]), alt.Tooltip("text:N")]
    if tested is not None:
        tooltip.append(alt.Tooltip("chance:N", title="by chance"))
    base = alt.Chart(enc.data(values)).encode(
        x=alt.X("a:O", title=f"depth of {one.names[0]}", axis=enc.band_axis()),
        y=alt.Y("b:O", title=f"depth of {one.names[1]}", sort="descending", axis=enc.band_axis()),
        tooltip=tooltip,
    )
    blank = base.transform_filter("datum.value === null").mark_rect(style="blank")
    known = base.transform_filter("datum.value !== null").mark_rect().encode(color=enc.similarity_colour(domain))
    return enc.titled(
        enc.layered(blank, known), sentence(title), "", f"Map: {title} of every depth of one model with every other."
    )


def _by_chance(tested: Chance, a: int, b: int) -> str:
    if not np.isfinite(tested.p[a, b]):
        return "undefined"
    return f"below {plain(tested.high[a, b])} in 95% of permutations; p = {plain(tested.p[a, b])} for all pairs"


def trend(traces: Mapping[str, Source], found: Sequence[Comparison]) -> Chart:
    """How a shallow, a middle and the last depth fare from one trace to the next, in the order they were given."""
    name = "accuracy" if all("accuracy" in trace.statistics for trace in traces.values()) else "agreement"
    values = []
    for place, (label, trace) in enumerate(traces.items()):
        shown = dict.fromkeys((max(1, trace.depth // 4), max(1, trace.depth // 2), trace.depth))
        for which, depth in zip(("a quarter of the way", "half-way", "last depth"), shown, strict=False):
            share = getattr(trace, name)[depth]
            values.append({"trace": label, "place": place, "depth": which, "value": number(share), "at": depth})
    base = alt.Chart(enc.data(values)).encode(
        x=alt.X("trace:N", title=None, sort=list(traces), axis=enc.band_axis()),
        y=alt.Y("value:Q", title=None, axis=enc.share_axis(), scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("depth:N", sort=None, legend=alt.Legend(orient="bottom", title=None)),
        tooltip=["trace:N", alt.Tooltip("at:O", title="depth"), alt.Tooltip("value:Q", format=".1%")],
    )
    return enc.titled(
        enc.layered(base.mark_line(), base.mark_point(size=40)),
        f"{sentence(name)} from trace to trace",
        "",
        f"Line chart: {name} of three depths over {len(traces)} traces.",
    )


# --- the page --------------------------------------------------------------------------------------------------------


def write(found: Sequence[Comparison], path: Path, traces: Mapping[str, Source]) -> Path:
    """Write the page of one comparison, or of several with the same first model.

    Args:
        found: what was compared.
        path: where to; an existing file is replaced at once or not at all.
        traces: by name, in their order: those that were compared.
    """
    content = html.page(
        eyebrow="Compared by depth",
        fine="Differences are the second model less the first, on the same samples; bands hold for all depths at once.",
        title=" and ".join(traces),
        shown={one.names[1]: (_what(one), list(_findings(one))) for one in found},
        sections=[section for section in (_differing(found), _alike(found), _over(traces, found)) if section],
        numbers={f"{one.names[1]} against {one.names[0]}": _numbers(one) for one in found if one.differences},
        notes_title="What was left out, and what was chosen",
        notes={one.names[1]: one.notes for one in found if one.notes},
        provenance={name: dict(flat(trace.provenance)) for name, trace in traces.items()},
    )
    return html.save(content, path)


def _what(one: Comparison) -> str:
    return f"{one.names[1]} against {one.names[0]}, on {one.samples:,} samples that both were traced on."


def _findings(one: Comparison) -> Iterator[Finding]:
    for name in ("accuracy", "settled", "cosine_to_last"):
        if name not in one.differences:
            continue
        found, title = one.differences[name], _TITLES[name].partition(",")[0]
        verdicts = np.array(found.verdicts)
        up, down = (np.flatnonzero(verdicts == which) for which in ("higher", "lower"))
        if not len(up) and not len(down):
            yield Finding(f"{title}: no difference shown", "At no depth does the joint band leave out zero.")
            continue
        parts = [f"{which} at {_few(one, at)}" for which, at in (("higher", up), ("lower", down)) if len(at)]
        most = int(np.nanargmax(np.abs(found.value)))
        yield Finding(
            f"{title}: {', '.join(parts)}", f"Largest at {_few(one, np.array([most]))}: {_with_band(found, most)}."
        )


def _few(one: Comparison, places: np.ndarray) -> str:
    named = [str(a) if a == b else f"{a}/{b}" for a, b in (one.depths[int(place)] for place in places)]
    shown = named if len(named) <= 4 else [*named[:2], "...", named[-1]]
    return f"{'depth' if len(named) == 1 else 'depths'} {', '.join(shown)}"


def _differing(found: Sequence[Comparison]) -> Section | None:
    names = [name for name in _TITLES if any(name in one.differences for one in found)]
    if not names:
        return None
    note = "Above zero the second model is higher. The band holds for all depths at once (95%)."
    return Section("What differs", tuple(figure(difference(found, name), note) for name in names))


def _alike(found: Sequence[Comparison]) -> Section | None:
    figures: list[Figure] = []
    for one in found:
        matrices = one.similarity.values()
        low = min((float(np.nanmin(m)) for m in matrices if np.isfinite(m).any()), default=0.0)
        tag = f", {one.names[1]}" if len(found) > 1 else ""
        for name in one.similarity:
            chart = cross_map(one, name, (-1.0, 1.0) if low < -0.02 else (0.0, 1.0))
            figures.append(figure(chart, _matched(one, name), tag, shape="map"))
    return Section("Which depths are alike", (), tuple(figures)) if figures else None


def _matched(one: Comparison, measure: str) -> str:
    found = [(depth, match) for depth, match in enumerate(one.matches(measure)) if match is not None]
    if not found:
        return "Nothing is defined between the two."
    told = ", ".join(f"{depth} → {match.depth}" for depth, match in found)
    said = f"Most alike, depth by depth of {one.names[0]}: {told}."
    return said if measure != "cka" or one.chance is None else f"{said} {sentence(one.chance.in_words())}."


def _over(traces: Mapping[str, Source], found: Sequence[Comparison]) -> Section | None:
    if len(traces) < 3 or not all("agreement" in trace.statistics for trace in traces.values()):
        return None
    return Section("From trace to trace", (figure(trend(traces, found), "In the order the traces were given."),))


def _numbers(one: Comparison) -> Table:
    columns = {
        _TITLES[name].partition(",")[0]: [
            Cell(f"{found.value[place]:+.3f}", float(found.value[place]), _band(found, place))
            if np.isfinite(found.value[place])
            else Cell("–", why="undefined at this depth")
            for place in range(len(one.depths))
        ]
        for name, found in one.differences.items()
    }
    first = [Cell(str(a) if a == b else f"{a} and {b}", float(a)) for a, b in one.depths]
    return Table(("Depth", *columns), tuple(zip(first, *columns.values(), strict=True)))


def _band(found: Differences, place: int) -> str:
    return interval(found.low_all[place], found.high_all[place], plain)
