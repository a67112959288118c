"""Traces by label, as charts and pages take them, and what their provenance and notes say."""

import re
from collections.abc import Mapping
from pathlib import PurePath

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
