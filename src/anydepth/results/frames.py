"""A trace as pandas data frames: by depth, by pair of depths and by answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

    from anydepth.results.trace_data import TraceData


def by_depth(trace: TraceData) -> pandas.DataFrame:
    """One row for each depth: stage, if there are several, readout statistics, saturation, similarity to the last."""
    import pandas

    columns: dict[str, Any] = {"depth": trace.names}
    if firsts := trace.stages:
        begun = np.searchsorted(list(firsts.values()), np.arange(len(trace.names)), side="right")
        columns["stage"] = np.array(list(firsts))[begun - 1]
    for name in trace.statistics:
        columns[name] = getattr(trace, name)
        columns[f"{name}_low"], columns[f"{name}_high"] = trace.interval(name)
    if "agreement" in trace.statistics:
        columns["saturated"] = trace.saturation
    for name, matrix in trace.similarity.items():
        columns[f"{name}_to_last"] = matrix[:, -1]
    return pandas.DataFrame(columns)


def by_pair(trace: TraceData) -> pandas.DataFrame:
    """One row for each measure and ordered pair of depths: value, low and high."""
    import pandas

    names = np.array(trace.names)
    a, b = (names[index.ravel()] for index in np.indices((len(names),) * 2))
    frames = []
    for name, matrix in trace.similarity.items():
        low, high = trace.similarity_intervals.get(name, np.full((2, *matrix.shape), np.nan))
        columns = {"value": matrix.ravel(), "low": low.ravel(), "high": high.ravel()}
        frames.append(pandas.DataFrame({"depth_a": a, "depth_b": b, "measure": name, **columns}))
    if not frames:
        return pandas.DataFrame(columns=["depth_a", "depth_b", "measure", "value", "low", "high"])
    return pandas.concat(frames, ignore_index=True)


def by_answer(trace: TraceData) -> pandas.DataFrame:
    """One row for each answer and depth; the trace must have readouts. Without entropy in older traces."""
    import pandas

    rows = trace.rows
    assert rows is not None
    depths = rows.prediction.shape[1]
    frame = pandas.DataFrame(
        {
            "id": np.repeat(np.array(trace.ids, dtype=object)[rows.sample], depths),
            "position": np.repeat(rows.position, depths),
            "label": np.repeat(rows.label, depths),
            "depth": np.tile(np.array(trace.names), len(rows)),
            "prediction": rows.prediction.ravel(),
            "cross_entropy": rows.cross_entropy.ravel(),
            "confidence": rows.confidence.ravel(),
        }
    )
    return frame if rows.entropy is None else frame.assign(entropy=rows.entropy.ravel())
