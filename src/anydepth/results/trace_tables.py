"""Tables by depth of one trace, and of several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from anydepth.core.provenance import entry
from anydepth.results.tables import Column, Table, bounds, number

if TYPE_CHECKING:
    from anydepth.results.trace_data import TraceData

# What a column is called, and how soon it is left out.
_HEADS = {
    "accuracy": ("accuracy", 0),
    "cross_entropy": ("cross-entropy", 5),
    "confidence": ("top probability", 6),
    "agreement": ("agrees with last", 4),
}


def depth_table(trace: TraceData) -> Table:
    """One row for each depth: readout statistics, saturation, similarity to the last."""
    names = [name for name in _HEADS if name in trace.statistics]
    columns = [_depths(trace), *_stages(trace), *(_statistic(trace, name, *_HEADS[name]) for name in names)]
    if "agreement" in trace.statistics:
        columns.append(_saturation(trace, "saturate here", 1))
    similar = [name for name in ("cka", "cosine") if name in trace.similarity] or list(trace.similarity)[:2]
    columns += [
        _to_last(trace, name, f"{name} to last", rank if names else place)
        for place, (name, rank) in enumerate(zip(similar, (2, 4), strict=False))
    ]
    return Table(title=f"{title_of(trace)}: {sample_count(trace):,} samples", columns=tuple(columns))


def side_by_side(traces: Mapping[str, TraceData]) -> Table:
    """One row for each depth of traces of one data set: accuracy, saturation, similarity to the last, of each trace."""
    first = next(iter(traces.values()))
    columns = [_depths(first)]
    columns += [_statistic(trace, "accuracy", f"{name} accuracy", 0) for name, trace in traces.items()]
    columns += [_saturation(trace, f"{name} saturate here", 1) for name, trace in traces.items()]
    columns += [_to_last(trace, "cka", f"{name} cka to last", 4) for name, trace in traces.items()]
    data = entry(first.provenance, "data", "name", default="states")
    return Table(title=f"{data}: {sample_count(first):,} samples", columns=tuple(columns))


def title_of(trace: TraceData) -> str:
    """The model and the data of a trace."""
    model = entry(trace.provenance, "model", "name", default="states")
    data = entry(trace.provenance, "data", "name", default="")
    return f"{model} on {data}" if data else str(model)


def sample_count(trace: TraceData) -> int:
    """How many samples were traced."""
    return int(entry(trace.provenance, "samples", default=len(trace.ids)))


def _depths(trace: TraceData) -> Column:
    return Column(head="depth", cells=trace.names)


def _stages(trace: TraceData) -> Iterator[Column]:
    """The stages, where they begin, of a model that runs in several."""
    begin = dict(zip(trace.stages.values(), _without_common_ends(list(trace.stages)), strict=True))
    if begin:
        cells = tuple(begin.get(depth, "") for depth in range(len(trace.names)))
        yield Column(head="stage", cells=cells, kind="text", rank=1)


def _without_common_ends(names: Sequence[str]) -> list[str]:
    """Dotted names without the parts in front and at the end that all share: "layers.0.blocks" is "0"."""
    parts = [name.split(".") for name in names]
    for end in (0, -1):
        while parts and len({part[end] for part in parts}) == 1 < min(map(len, parts)):
            for part in parts:
                part.pop(end)
    return [".".join(part) for part in parts]


def _statistic(trace: TraceData, name: str, head: str, rank: int) -> Column:
    details = tuple(map(bounds, *trace.interval(name))) if name == "accuracy" else ()
    cells = tuple(map(number, getattr(trace, name)))
    return Column(head=head, cells=cells, details=details if any(details) else (), rank=rank, details_rank=3)


def _saturation(trace: TraceData, head: str, rank: int) -> Column:
    return Column(head=head, cells=("", *(f"{count:,}" for count in trace.saturation[1:])), rank=rank)


def _to_last(trace: TraceData, name: str, head: str, rank: int) -> Column:
    return Column(head=head, cells=tuple(map(number, trace.similarity[name][:, -1])), rank=rank)
