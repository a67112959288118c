"""Data rows of the charts: plain dictionaries, with None where a value is undefined.

Every function only reshapes; no number is computed here but shares and cumulative shares of counts.
"""

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np

from anydepth.report.formats import Unit, estimate_text, interval, measure_title, number, percent, plain
from anydepth.report.traces import Traces, blank_reason
from anydepth.results.trace_data import TraceData
from anydepth.stats.means import Estimate

Row = dict[str, Any]  # int, float, str or None, by the name of its column

MOST_CLASSES = 30  # rows of the map by class that can still be read


def curve(traces: Traces, name: str) -> list[Row]:
    """One row per trace and depth: value, low and high of a readout statistic."""
    rows: list[Row] = []
    for label, trace in traces.items():
        if name in trace.statistics:
            rows += _by_depth({"trace": label}, statistic(trace, name), unit_of(name))
    return rows


def _by_depth(labels: Row, estimate: Estimate, unit: Unit) -> list[Row]:
    return [labels | {"depth": k} | with_ends(at_depth, unit) for k, at_depth in enumerate(estimate)]


def statistic(trace: TraceData, name: str) -> Estimate:
    """(K,) values of a readout statistic, with their intervals."""
    return Estimate(getattr(trace, name), *trace.interval(name))


def unit_of(name: str) -> Unit:
    """Format of a readout statistic: shares in percent, cross-entropy in nats."""
    return plain if name == "cross_entropy" else percent


def with_ends(estimate: Estimate, unit: Unit) -> Row:
    """Columns of a single value and its interval: value, low, high and text."""
    ends = {end: number(getattr(estimate, end)) for end in ("value", "low", "high")}
    return ends | {"text": estimate_text(estimate, unit)}


def columns(values: list[Row], names: tuple[str, ...], key: str | None, line: str) -> tuple[list[Row], tuple[str, ...]]:
    """Texts of a curve's rows side by side, one row per depth, for the tooltip of that depth.

    Args:
        values: rows of depth and text.
        names: of the depths.
        key: the column that names the lines; None where there is one line.
        line: name of the one line.

    Returns:
        The rows: name of the depth, its span `from` and `to` on the axis, texts as s0, s1, ...; and the lines' names.
    """
    lines = tuple(dict.fromkeys(str(row[key]) for row in values)) if key else (line,)
    place = {name: f"s{i}" for i, name in enumerate(lines)}
    depths = sorted({row["depth"] for row in values})
    wide = {k: {"name": names[k], "from": max(k - 0.5, 0), "to": min(k + 0.5, depths[-1])} for k in depths}
    for row in values:
        wide[row["depth"]][place[str(row[key]) if key else line]] = row["text"]
    return [dict.fromkeys(place.values(), "–") | row for row in wide.values()], lines


def pairs(trace: TraceData, measure: str) -> list[Row]:
    """One row per ordered pair of depths: a similarity, its interval and the middle of its distribution."""
    similarity = similarity_estimate(trace, measure)
    quantiles = trace.quantiles.get(measure)
    rows: list[Row] = []
    for a, b in product(range(trace.depth + 1), repeat=2):
        row: Row = {"a": a, "b": b, "pair": f"{trace.names[a]} and {trace.names[b]}"}
        row |= with_ends(similarity[a, b], plain)
        if row["value"] is None:
            row["why"] = blank_reason(trace, a, b)
        if quantiles is not None:
            row["middle"] = interval(quantiles[1, a, b], quantiles[3, a, b], plain) or "not defined"
        rows.append(row)
    return rows


def to_last(traces: Traces, measures: Iterable[str]) -> list[Row]:
    """One row per trace, measure and depth: the similarity to depth L."""
    names, rows = tuple(measures), []
    for label, trace in traces.items():
        for name in (name for name in names if name in trace.similarity):
            rows += _by_depth({"trace": label, "measure": measure_title(name)}, last_column(trace, name), plain)
    return rows


def similarity_estimate(trace: TraceData, measure: str) -> Estimate:
    """(K, K) similarity with its interval, NaN where it has none."""
    value, ends = trace.similarity[measure], trace.similarity_intervals.get(measure)
    return Estimate.without_interval(value) if ends is None else Estimate(value, *ends)


def last_column(trace: TraceData, measure: str) -> Estimate:
    """(K,) similarity of each depth to the last, with its interval."""
    return similarity_estimate(trace, measure)[:, -1]


def saturated_by(trace: TraceData) -> np.ndarray:
    """(K,) share of the answers that have saturated by each depth."""
    counts = trace.saturation
    return np.asarray(np.cumsum(counts) / max(int(counts.sum()), 1))


def saturation(traces: Traces) -> list[Row]:
    """One row per trace and depth 1..L: how many samples saturate there, their share and the share by then."""
    rows: list[Row] = []
    for label, trace in traces.items():
        if "agreement" not in trace.statistics:
            continue
        counts, by_then = trace.saturation, saturated_by(trace)
        rows += [
            {
                "trace": label,
                "depth": k,
                "count": int(counts[k]),
                "share": number(counts[k] / max(int(counts.sum()), 1)),
                "cumulative": number(by_then[k]),
            }
            for k in range(1, trace.depth + 1)
        ]
    return rows


def spread(traces: Traces, measure: str, against: str) -> list[Row]:
    """One row per trace and depth: quantiles and mean of a similarity over samples.

    Against "last", each depth below L is paired with L; against "next", with the one after it.
    """
    rows: list[Row] = []
    for label, trace in traces.items():
        if measure not in trace.quantiles:
            continue
        for k in range(trace.depth):
            other = trace.depth if against == "last" else k + 1
            quantiles = (number(q) for q in trace.quantiles[measure][:, k, other])
            row: Row = {"trace": label, "depth": k, "pair": f"{trace.names[k]} → {trace.names[other]}"}
            row |= dict(zip(("q05", "q25", "q50", "q75", "q95"), quantiles, strict=True))
            rows.append(row | {"mean": number(trace.similarity[measure][k, other])})
    return rows


def classes(trace: TraceData, most: int = MOST_CLASSES) -> list[Row]:
    """One row per class and depth, the class that is right earliest first; of many classes the most frequent."""
    rows: list[Row] = [
        {
            "class": str(row["class"]),
            "count": int(row["count"]),
            "depth": int(row["depth"]),
            "accuracy": number(row["accuracy"]),
            "saturated": number(row["saturated"]),
        }
        for row in trace.by_class().to_dict("records")
    ]
    frequency = {row["class"]: row["count"] for row in rows}
    kept = sorted(frequency, key=lambda name: -frequency[name])[:most]
    total = {name: sum(row["accuracy"] or 0 for row in rows if row["class"] == name) for name in kept}
    order = {name: place for place, name in enumerate(sorted(kept, key=lambda name: -total[name]))}
    shown = [row | {"place": order[row["class"]]} for row in rows if row["class"] in order]
    return sorted(shown, key=lambda row: (row["place"], row["depth"]))
