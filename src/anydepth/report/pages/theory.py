"""Report section on the theory: figures, each with one sentence on what it shows for these data."""

from collections.abc import Iterator, Mapping

import altair as alt
import numpy as np

from anydepth.report import theory_sentences as words
from anydepth.report.charts import encodings as enc
from anydepth.report.charts.encodings import Chart, Names
from anydepth.report.formats import Unit, percent, plain
from anydepth.report.pages.sections import Figure, Section, figure
from anydepth.report.pages.tables import Cell, Table, cells, heads
from anydepth.report.pages.tables import table as side_by_side
from anydepth.report.rows import Row, with_ends
from anydepth.stats.means import Estimate
from anydepth.theory.findings import MEASURED, RANDOM_WEIGHTS, SHUFFLED_LABELS, UNCENTRED, Theory

_TITLES = {
    MEASURED: "measured",
    "random walk": "random walk",
    "shuffled": "updates shuffled",
    RANDOM_WEIGHTS: "random weights",
    SHUFFLED_LABELS: "labels shuffled",
}


def section(theory: Theory, names: Names, tag: str = "") -> Section:
    """Figures of everything the theory measures; `names` are those of the depths, `tag` ends each title."""
    figures = [*_path_figures(theory, names, tag)]
    if "final" in theory.closeness:
        figures.append(figure(_closeness_chart(theory, names), words.nearer(theory), tag))
    if MEASURED in theory.collapse:
        figures += _collapse_figures(theory, names, tag)
    if theory.updates:
        figures.append(figure(_update_chart(theory), words.updates(theory), tag))
    return Section(title=f"The theory, put to the test{tag}", figures=tuple(figures))


def _path_figures(theory: Theory, names: Names, tag: str) -> Iterator[Figure]:
    measured, uncentred = theory.geometry[MEASURED], theory.geometry[UNCENTRED]
    kinds = {_TITLES[name]: theory.geometry[name] for name in words.kinds_of_paths(theory.geometry)}
    cosines = {"measured": measured.cosine, "straight line": measured.predicted}
    cosines |= {name: path.cosine for name, path in kinds.items()}
    chart = curves(cosines, names, "Cosine with the last depth, and a straight line's", axis=enc.similarity_axis())
    yield figure(chart, words.line(theory), tag, shape="wide")
    violations = {name: path.violations for name, path in kinds.items()}
    chart = dots(violations, "Triples in which the far pair is more alike", percent)
    yield figure(chart, words.monotone(theory), tag, height=150)
    chart = dots({name: path.straightness for name, path in kinds.items()}, "Straightness: chord over path", percent)
    yield figure(chart, words.straight(theory), tag, height=150)
    turns = {name: path.turning for name, path in kinds.items()}
    chart = curves(turns, names, "Angle between successive updates, in degrees", start=1)
    yield figure(chart, words.turning(theory), tag)
    lengths = {"norm": uncentred.norm, "length of the update": uncentred.step}
    yield figure(curves(lengths, names, "Norm of the states, and of what each block adds"), words.growth(theory), tag)


def _closeness_chart(theory: Theory, names: Names) -> Chart:
    closeness = theory.closeness["final"]
    shares = {"where the state comes closer": closeness.closer, "where it moves away": closeness.farther}
    title = "The final class becomes more probable"
    return curves(shares, names, title, unit=percent, start=1, axis=enc.share_axis(), domain=(0.0, 1.0))


def _collapse_figures(theory: Theory, names: Names, tag: str) -> Iterator[Figure]:
    measured = theory.collapse[MEASURED]
    nc1 = {_TITLES[name]: Estimate.without_interval(collapse.nc1) for name, collapse in theory.collapse.items()}
    title = "NC1: spread within classes over that between"
    yield figure(curves(nc1, names, title, logarithmic=True), words.spread(theory), tag)
    others = {
        "lengths of class means (NC2)": measured.nc2_norm,
        "their angles (NC2)": measured.nc2_angle,
        "weights (NC3)": measured.nc3,
    }
    defined = {name: Estimate.without_interval(values) for name, values in others.items() if np.isfinite(values).any()}
    yield figure(curves(defined, names, "NC2 and NC3: distance from a simplex"), words.simplex(theory), tag)


# --- charts ----------------------------------------------------------------------------------------------------------


def curves(
    lines: Mapping[str, Estimate],
    names: Names,
    title: str,
    *,
    unit: Unit = plain,
    start: int | None = None,
    axis: alt.Axis | None = None,
    domain: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> Chart:
    """Lines by depth with bands, of unequal length where some are of depths and some of blocks.

    `start` is the depth of a line's first value; by default its last is at the last depth. `axis` and `domain` are of
    the values; on a `logarithmic` axis those that are not positive are left out.
    """
    rows: list[Row] = []
    for name, line in lines.items():
        first = len(names) - len(line.value) if start is None else start
        for depth, estimate in enumerate(line, first):
            row = {"kind": name, "depth": depth} | with_ends(estimate, unit)
            if logarithmic and not estimate.value > 0:
                row["value"] = None
            for end in ("low", "high"):  # without an interval, a band without width
                row[end] = row["value"] if row[end] is None else row[end]
            rows.append(row)
    scale = alt.Scale(type="log") if logarithmic else alt.Scale(domain=domain) if domain else alt.Scale(zero=True)
    y = alt.Y("value:Q", title=None, axis=axis or enc.value_axis(), scale=scale)
    chart = enc.lines(rows, y, {"color": enc.category("kind", list(lines))}, names, title)
    return enc.titled(chart, title, f"Line chart: {title} by depth: {', '.join(lines)}.")


def dots(values: Mapping[str, Estimate], title: str, unit: Unit) -> Chart:
    """A value with its interval for each kind of path."""
    rows: list[Row] = [{"kind": name} | with_ends(estimate, unit) for name, estimate in values.items()]
    base = alt.Chart(enc.data(rows)).encode(
        y=alt.Y("kind:N", title=None, sort=list(values), axis=enc.band_axis()),
        color=alt.Color("kind:N", sort=list(values), legend=None),
    )
    x = alt.X("value:Q", title=None, axis=enc.share_axis(), scale=alt.Scale(zero=True))
    whiskers = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    points = base.mark_point(size=70).encode(x=x, tooltip=["kind:N", "text:N"])
    return enc.titled(enc.layered(whiskers, points), title, f"Dot chart: {title}: {', '.join(values)}.")


def _update_chart(theory: Theory) -> Chart:
    updates = theory.updates.get("final") or theory.updates["true"]
    parts = {
        "along the own weight": updates.own,
        "along other weights": updates.others,
        "past all weights": updates.outside,
    }
    rows: list[Row] = [
        {"depth": depth, "part": name, "order": order, "share": float(share), "text": percent(float(share))}
        for order, (name, estimate) in enumerate(parts.items())
        for depth, share in enumerate(estimate.value, start=1)
        if np.isfinite(share)
    ]
    bars = (
        alt.Chart(enc.data(rows))
        .mark_bar()
        .encode(
            x=alt.X("depth:O", title="block", axis=enc.band_axis()),
            y=alt.Y("share:Q", title=None, axis=enc.share_axis(), scale=alt.Scale(domain=[0, 1]), stack=True),
            color=enc.category("part", list(parts)),
            order="order:Q",
            tooltip=["depth:O", "part:N", "text:N"],
        )
    )
    title = "Where blocks write, as the classifier sees it"
    return enc.titled(enc.layered(bars), title, f"Bar chart: {title}: {', '.join(parts)}.")


# --- the table -------------------------------------------------------------------------------------------------------


def table(theory: Theory, names: Names) -> Table:
    """Everything that has a depth, one row each."""
    paths, raw = theory.geometry[MEASURED], theory.geometry[UNCENTRED]
    columns: dict[str, tuple[Estimate, Unit]] = {
        "Cosine to last": (paths.cosine, plain),
        "A line's": (paths.predicted, plain),
        "A random walk's": (theory.geometry["random walk"].cosine, plain),
        "Along the chord": (paths.progress, percent),
        "Beside it": (paths.residual, percent),
        "Turn": (paths.turning.map(lambda between: np.pad(between, 1, constant_values=np.nan)), words.degrees),
        "Norm": (raw.norm, plain),
        "Update": (raw.step, plain),
    }
    if (final := theory.closeness.get("final")) is not None:
        columns |= {"Closer: more probable": (final.closer, percent), "Away: more probable": (final.farther, percent)}
    if (true := theory.closeness.get("true")) is not None:
        columns |= {"Closer: true class more probable": (true.closer, percent)}
    if (collapsed := theory.collapse.get(MEASURED)) is not None:
        values = {"NC1": collapsed.nc1, "NC2 lengths": collapsed.nc2_norm, "NC2 angles": collapsed.nc2_angle}
        values |= {"NC3": collapsed.nc3}
        columns |= {name: (Estimate.without_interval(value), _four_digits) for name, value in values.items()}
    for name, part in theory.updates.items():
        columns |= {f"Along the {name} class": (part.own, percent), f"Towards the {name}": (part.towards, percent)}
        columns |= {"Past all weights": (part.outside, percent)}
    body = {name: _column(estimate, unit, len(names)) for name, (estimate, unit) in columns.items()}
    return side_by_side(heads(names), body)


def _column(estimate: Estimate, unit: Unit, depths: int) -> list[Cell]:
    """One cell for each depth; the value of a block stands at the depth it leads to."""
    why = "undefined here"
    blank = [Cell(text="–", why=why)] * (depths - len(estimate.value))
    return blank + cells(estimate, unit, why)


def _four_digits(value: float) -> str:
    return f"{value:.4g}"
