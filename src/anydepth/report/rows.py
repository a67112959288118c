"""The rows behind each chart: plain dictionaries, with None where a value is undefined.

Every function is a change of shape only; no number is computed here but shares and cumulative shares of counts.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from anydepth.report.formats import Unit, interval, measure_title, number, percent, plain, with_interval
from anydepth.report.protocols import Source, Sources, reason, statistic

Row = dict[str, Any]  # int, float, str or None, by the name of its column

MOST_CLASSES = 30  # rows of the map by class that can still be read


def curve(traces: Sources, name: str) -> list[Row]:
    """One row per trace and depth: value, low and high of a readout statistic."""
    rows: list[Row] = []
    for label, trace in traces.items():
        if name not in trace.statistics:
            continue
        values, ends = statistic(trace, name), trace.interval(name)
        rows += [
            {"trace": label, "depth": k} | _with_interval(values[k], ends[:, k], unit_of(name))
            for k in range(trace.depth + 1)
        ]
    return rows


def unit_of(name: str) -> Unit:
    """How a readout statistic is written: shares in percent, cross-entropy in nats."""
    return plain if name == "cross_entropy" else percent


def _with_interval(value: float, ends: np.ndarray, unit: Unit) -> Row:
    low, high = ends
    text = with_interval(value, low, high, unit)
    return {"value": number(value), "low": number(low), "high": number(high), "text": text}


def columns(values: list[Row], names: tuple[str, ...], key: str | None, line: str) -> tuple[list[Row], tuple[str, ...]]:
    """The texts of a curve's rows side by side, one row per depth: what a pointer over that depth is told.

    Args:
        values: rows of depth and text.
        names: what the depths are called.
        key: the column that names the lines; None where there is one line.
        line: what the one line is called.

    Returns:
        The rows: name of the depth, what it reaches `from` and `to`, texts as s0, s1, ...; and the lines' names.
    """
    lines = tuple(dict.fromkeys(str(row[key]) for row in values)) if key else (line,)
    place = {one: f"s{i}" for i, one in enumerate(lines)}
    depths = sorted({row["depth"] for row in values})
    wide = {k: {"name": names[k], "from": max(k - 0.5, 0), "to": min(k + 0.5, depths[-1])} for k in depths}
    for row in values:
        wide[row["depth"]][place[str(row[key]) if key else line]] = row["text"]
    return [dict.fromkeys(place.values(), "–") | row for row in wide.values()], lines


def pairs(trace: Source, measure: str) -> list[Row]:
    """One row per ordered pair of depths: a similarity, its interval and the middle of its distribution."""
    values, ends = trace.similarity[measure], _ends(trace, measure)
    quantiles = trace.quantiles.get(measure)
    rows: list[Row] = []
    for a in range(trace.depth + 1):
        for b in range(trace.depth + 1):
            row: Row = {"a": a, "b": b, "pair": f"{trace.names[a]} and {trace.names[b]}"}
            row |= _with_interval(values[a, b], ends[:, a, b], plain)
            if row["value"] is None:
                row["why"] = reason(trace, a, b)
            if quantiles is not None:
                row["middle"] = interval(quantiles[1, a, b], quantiles[3, a, b], plain) or "not defined"
            rows.append(row)
    return rows


def to_last(traces: Sources, measures: Iterable[str]) -> list[Row]:
    """One row per trace, measure and depth: the similarity to depth L."""
    names, rows = tuple(measures), []
    for label, trace in traces.items():
        for name in names:
            if name not in trace.similarity:
                continue
            values, ends = trace.similarity[name][:, -1], _ends(trace, name)[:, :, -1]
            rows += [
                {"trace": label, "measure": measure_title(name), "depth": k}
                | _with_interval(values[k], ends[:, k], plain)
                for k in range(trace.depth + 1)
            ]
    return rows


def _ends(trace: Source, measure: str) -> np.ndarray:
    """(2, K, K) interval of a similarity, NaN where it has none."""
    ends = trace.similarity_intervals.get(measure)
    return np.full((2, *trace.similarity[measure].shape), np.nan) if ends is None else ends


def saturation(traces: Sources) -> list[Row]:
    """One row per trace and depth 1..L: how many samples settle there, their share and the share settled by then."""
    rows: list[Row] = []
    for label, trace in traces.items():
        if "agreement" not in trace.statistics:
            continue
        counts = statistic(trace, "saturation")
        total = int(counts.sum())
        by_then = np.cumsum(counts) / max(total, 1)
        rows += [
            {
                "trace": label,
                "depth": k,
                "count": int(counts[k]),
                "share": number(counts[k] / max(total, 1)),
                "cumulative": number(by_then[k]),
            }
            for k in range(1, trace.depth + 1)
        ]
    return rows


def spread(traces: Sources, measure: str, against: str) -> list[Row]:
    """One row per trace and depth: quantiles and mean of a similarity over samples.

    Args:
        traces: label → trace.
        measure: a measure that has quantiles.
        against: "last" pairs each depth below L with L; "next" pairs each depth with the one after it.
    """
    rows: list[Row] = []
    for label, trace in traces.items():
        if measure not in trace.quantiles:
            continue
        for k in range(trace.depth):
            other = trace.depth if against == "last" else k + 1
            low, first, median, third, high = (number(q) for q in trace.quantiles[measure][:, k, other])
            row: Row = {"trace": label, "depth": k, "pair": f"{trace.names[k]} → {trace.names[other]}"}
            row |= {"q05": low, "q25": first, "q50": median, "q75": third, "q95": high}
            rows.append(row | {"mean": number(trace.similarity[measure][k, other])})
    return rows


def classes(trace: Source, most: int = MOST_CLASSES) -> list[Row]:
    """One row per class and depth, the class that is right earliest first; of many classes the most frequent."""
    table = trace.by_class()
    rows: list[Row] = [
        {
            "class": str(name),
            "count": int(count),
            "depth": int(depth),
            "accuracy": number(accuracy),
            "saturated": number(saturated),
        }
        for name, count, depth, accuracy, saturated in zip(
            table["class"], table["count"], table["depth"], table["accuracy"], table["saturated"], strict=True
        )
    ]
    frequency = {str(row["class"]): row["count"] for row in rows}
    kept = sorted(frequency, key=lambda name: -frequency[name])[:most]
    total = {name: sum(row["accuracy"] or 0 for row in rows if row["class"] == name) for name in kept}
    order = {name: place for place, name in enumerate(sorted(kept, key=lambda name: -total[name]))}
    shown = [row | {"place": order[str(row["class"])]} for row in rows if row["class"] in order]
    return sorted(shown, key=lambda row: (row["place"], row["depth"]))
