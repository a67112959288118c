"""Charts and page of a comparison of models: differences with bands, similarity between their depths, the trend."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from anydepth.measures.permutation_test import Chance
from anydepth.report import html
from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Chart, Domain
from anydepth.report.formats import interval, measure_title, number, plain
from anydepth.report.pages.sections import Figure, Section, figure, flat
from anydepth.report.pages.tables import Cell, Table, table
from anydepth.report.rows import Row
from anydepth.report.sentences import Finding
from anydepth.report.traces import Traces
from anydepth.results.comparison import Comparison
from anydepth.results.tables import sentence
from anydepth.stats.paired import Differences

_TITLES = {
    "accuracy": "Accuracy",
    "confidence": "Confidence",
    "cross_entropy": "Cross-entropy, in nats",
    "agreement": "Agreement with the own last depth",
    "settled": "Share of answers that have saturated",
    "cosine_to_last": "Cosine with the own last depth",
}


def difference(comparisons: Sequence[Comparison], statistic: str) -> Chart:
    """The second model minus the first, by depth, with simultaneous 95 % bands; the first is the same in all."""
    values = [row for comparison in comparisons for row in _rows(comparison, statistic)]
    names = [comparison.names[1] for comparison in comparisons]
    colour: dict[str, Any] = {"color": enc.category("model", names)} if len(names) > 1 else {}
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
        f"Line chart: difference in {title.lower()} by depth, with simultaneous 95 % bands.",
    )


def _rows(comparison: Comparison, statistic: str) -> list[Row]:
    differences = comparison.differences.get(statistic)
    if differences is None:
        return []
    deeper = max((0, 1), key=lambda side: max(pair[side] for pair in comparison.depths))
    return [
        {
            "model": comparison.names[1],
            "depth": pair[deeper],
            "depths": _pair(pair, " and "),
            "value": number(differences.value[place]),
            "low": number(differences.low_all[place]),
            "high": number(differences.high_all[place]),
            "text": _with_band(differences, place),
            "verdict": differences.verdicts[place],
        }
        for place, pair in enumerate(comparison.depths)
        if np.isfinite(differences.value[place])
    ]


def _pair(depths: tuple[int, int], between: str) -> str:
    """Depths of two models that are compared: one number where they are the same."""
    return between.join(map(str, dict.fromkeys(depths)))


def _band(differences: Differences, place: int) -> str:
    return interval(differences.low_all[place], differences.high_all[place], plain)


def _with_band(differences: Differences, place: int) -> str:
    return f"{differences.value[place]:+.3f} ({_band(differences, place)})"


def cross_map(comparison: Comparison, measure: str, domain: Domain) -> Chart:
    """The similarity of every depth of the one model with every depth of the other, in colours that span `domain`."""
    value, title = comparison.similarity[measure], measure_title(measure)
    first, second = comparison.names
    tested = comparison.chance if measure == "cka" else None
    values = [
        {
            "a": a,
            "b": b,
            "value": number(value[a, b]),
            "text": plain(value[a, b]) if np.isfinite(value[a, b]) else "undefined",
            "chance": "" if tested is None else _by_chance(tested, a, b),
        }
        for a, b in product(*map(range, value.shape))
    ]
    tooltip = [alt.Tooltip("a:O", title=first), alt.Tooltip("b:O", title=second), alt.Tooltip("text:N")]
    if tested is not None:
        tooltip.append(alt.Tooltip("chance:N", title="by chance"))
    base = alt.Chart(enc.data(values)).encode(
        x=alt.X("a:O", title=f"depth of {first}", axis=enc.band_axis()),
        y=alt.Y("b:O", title=f"depth of {second}", sort="descending", axis=enc.band_axis()),
        tooltip=tooltip,
    )
    chart = enc.layered(*enc.blank_and_known(base, enc.similarity_colour(domain)))
    return enc.titled(chart, sentence(title), f"Map: {title} of every depth of one model with every other.")


def _by_chance(tested: Chance, a: int, b: int) -> str:
    if not np.isfinite(tested.p[a, b]):
        return "undefined"
    return f"below {plain(tested.high[a, b])} in 95% of permutations; p = {plain(tested.p[a, b])} for all pairs"


def trend(traces: Traces) -> Chart:
    """Accuracy (or agreement) of a shallow, a middle and the last depth, from one trace to the next in their order."""
    name = "accuracy" if all("accuracy" in trace.statistics for trace in traces.values()) else "agreement"
    values = []
    for place, (label, trace) in enumerate(traces.items()):
        depths = dict.fromkeys((max(1, trace.depth // 4), max(1, trace.depth // 2), trace.depth))
        for which, depth in zip(("a quarter of the way", "half-way", "last depth"), depths, strict=False):
            share = number(getattr(trace, name)[depth])
            values.append({"trace": label, "place": place, "depth": which, "value": share, "at": depth})
    base = alt.Chart(enc.data(values)).encode(
        x=alt.X("trace:N", title=None, sort=list(traces), axis=enc.band_axis()),
        y=alt.Y("value:Q", title=None, axis=enc.share_axis(), scale=alt.Scale(domain=[0, 1])),
        color=enc.category("depth"),
        tooltip=["trace:N", alt.Tooltip("at:O", title="depth"), alt.Tooltip("value:Q", format=".1%")],
    )
    return enc.titled(
        enc.layered(base.mark_line(), base.mark_point(size=40)),
        f"{sentence(name)} from trace to trace",
        f"Line chart: {name} of three depths over {len(traces)} traces.",
    )


# --- the page --------------------------------------------------------------------------------------------------------


def write(comparisons: Sequence[Comparison], path: Path, traces: Traces) -> Path:
    """Write the page of one comparison, or of several with the same first model, and return its path.

    An existing file is replaced at once or not at all. `traces` are those that were compared, in their order.
    """
    sections = (_difference_section(comparisons), _similarity_section(comparisons), _trend_section(traces))
    content = html.page(
        eyebrow="Compared by depth",
        fine="Differences are the second model minus the first, on the same samples, with simultaneous 95 % bands.",
        title=" and ".join(traces),
        shown={comparison.names[1]: (_what(comparison), list(_findings(comparison))) for comparison in comparisons},
        sections=[section for section in sections if section],
        numbers={" against ".join(c.names[::-1]): _numbers(c) for c in comparisons if c.differences},
        notes_title="What was left out, and what was chosen",
        notes={comparison.names[1]: comparison.notes for comparison in comparisons if comparison.notes},
        provenance={name: dict(flat(trace.provenance)) for name, trace in traces.items()},
    )
    return html.save(content, path)


def _what(comparison: Comparison) -> str:
    first, second = comparison.names
    return f"{second} against {first}, on {comparison.samples:,} samples that both were traced on."


def _findings(comparison: Comparison) -> Iterator[Finding]:
    for name in ("accuracy", "settled", "cosine_to_last"):
        if name not in comparison.differences:
            continue
        differences, title = comparison.differences[name], _TITLES[name].partition(",")[0]
        verdicts = np.array(differences.verdicts)
        places = {which: np.flatnonzero(verdicts == which) for which in ("higher", "lower")}
        parts = [f"{which} at {_ranges(comparison, at)}" for which, at in places.items() if len(at)]
        if not parts:
            yield Finding(f"{title}: not significant", "At no depth does the simultaneous 95 % band exclude zero.")
            continue
        most = int(np.nanargmax(np.abs(differences.value)))
        largest = f"Largest at {_ranges(comparison, np.array([most]))}: {_with_band(differences, most)}."
        yield Finding(f"{title}: {', '.join(parts)}", largest)


def _ranges(comparison: Comparison, places: np.ndarray) -> str:
    """Depths with ranges of successive ones: "depths 1–5, 8"; of unequal models "depths 2/1–4/2"."""
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    ends = (dict.fromkeys((int(run[0]), int(run[-1]))) for run in runs)
    named = ["–".join(_pair(comparison.depths[place], "/") for place in run) for run in ends]
    return f"{'depth' if len(places) == 1 else 'depths'} {', '.join(named)}"


def _difference_section(comparisons: Sequence[Comparison]) -> Section | None:
    names = [name for name in _TITLES if any(name in comparison.differences for comparison in comparisons)]
    if not names:
        return None
    note = "Above zero the second model is higher. The band is simultaneous: it holds for all depths at once (95 %)."
    figures = tuple(figure(difference(comparisons, name), note) for name in names)
    return Section(title="What differs", figures=figures)


def _similarity_section(comparisons: Sequence[Comparison]) -> Section | None:
    figures: list[Figure] = []
    for comparison in comparisons:
        matrices = comparison.similarity.values()
        low = min((float(np.nanmin(m)) for m in matrices if np.isfinite(m).any()), default=0.0)
        tag = f", {comparison.names[1]}" if len(comparisons) > 1 else ""
        for name in comparison.similarity:
            chart = cross_map(comparison, name, (-1.0, 1.0) if low < -0.02 else (0.0, 1.0))
            figures.append(figure(chart, _matches(comparison, name), tag, shape="map"))
    return Section(title="Which depths are alike", maps=tuple(figures)) if figures else None


def _matches(comparison: Comparison, measure: str) -> str:
    """The most similar depth of the second model for each depth of the first."""
    matches = [(depth, match) for depth, match in enumerate(comparison.matches(measure)) if match is not None]
    if not matches:
        return "Nothing is defined between the two."
    pairs = ", ".join(f"{depth} → {match.depth}" for depth, match in matches)
    note = f"Most alike, depth by depth of {comparison.names[0]}: {pairs}."
    if measure != "cka" or comparison.chance is None:
        return note
    return f"{note} {sentence(comparison.chance.in_words())}."


def _trend_section(traces: Traces) -> Section | None:
    if len(traces) < 3 or not all("agreement" in trace.statistics for trace in traces.values()):
        return None
    return Section(title="From trace to trace", figures=(figure(trend(traces), "In the order the traces were given."),))


def _numbers(comparison: Comparison) -> Table:
    columns = {
        _TITLES[name].partition(",")[0]: [
            Cell(text=f"{value:+.3f}", value=float(value), interval=_band(differences, place))
            if np.isfinite(value)
            else Cell(text="–", why="undefined at this depth")
            for place, value in enumerate(differences.value)
        ]
        for name, differences in comparison.differences.items()
    }
    return table([Cell(text=_pair(pair, " and "), value=float(pair[0])) for pair in comparison.depths], columns)
