"""Traces by label, as charts and pages take them, and what their provenance and notes say."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from anydepth.errors import MeasureError
from anydepth.results.trace_data import TraceData

Traces = Mapping[str, TraceData]  # by label, in the order they are shown


def provenance_name(trace: TraceData, key: str, default: str = "") -> str:
    """Name of the "model" or the "data" of a trace, by its provenance; of an absolute path, its last part."""
    entry = trace.provenance.get(key)
    if isinstance(entry, Mapping):
        entry = next((entry[k] for k in ("name", "id", "path") if entry.get(k)), None)
    if entry is None:
        return default
    return PurePath(str(entry)).name if PurePath(str(entry)).is_absolute() else str(entry)


def blank_reason(trace: TraceData, *depths: int) -> str:
    """Why the value at these depths is blank: the first note that names one of them."""
    for depth in depths:
        for note in trace.notes:
            if re.search(rf"\bdepths?\b[\d\s,and–-]*\b{depth}\b", note):
                return note
    return "undefined for these states"


def label(traces: Sequence[TraceData], labels: Sequence[str] | None = None) -> dict[str, TraceData]:
    """Traces by names that differ."""
    if not traces:
        raise MeasureError("no trace came; give at least one")
    names = list(labels) if labels is not None else [provenance_name(trace, "model", "states") for trace in traces]
    if len(names) != len(traces) or (labels is not None and len(set(names)) < len(names)):
        raise MeasureError(f"{len(traces)} traces came with the labels {names}; give each one of its own")
    unique: dict[str, TraceData] = {}
    for name, trace in zip(names, traces, strict=True):
        again = sum(known == name or known.startswith(f"{name} (") for known in unique)
        unique[f"{name} ({again + 1})" if name in unique else name] = trace
    return unique
