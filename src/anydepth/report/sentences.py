"""Sentences on what a trace shows, each computed from its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anydepth.report.formats import Unit, estimate_text, measure_title, percent, plain
from anydepth.report.rows import Row, saturated_by, similarity_estimate, statistic
from anydepth.report.traces import provenance_name
from anydepth.results.trace_data import TraceData

_TOKENS = {
    "first": "at the first token",
    "last": "at the last token",
    "each": "at every token",
    "mean": "averaged over tokens",
}
_NEAR = 0.01  # one point of accuracy


def ends(values: Sequence[Row], unit: Unit) -> str:
    """First and last known value of a curve, for those who can't see it."""
    known = [(row["depth"], row["value"]) for row in values if row["value"] is not None]
    if not known:
        return "No value is defined."
    (first, a), (last, b) = known[0], known[-1]
    return f"From {unit(a)} at depth {first} to {unit(b)} at depth {last}."


def unit_of(trace: TraceData) -> str:
    """What one row of a trace is, in the plural: a sample, or a position where a sample has several."""
    provenance = trace.provenance
    counted = provenance.get("answers") or provenance.get("positions")  # without a readout, what was measured
    return "samples" if counted in (None, provenance.get("samples")) else "positions"


def reader(trace: TraceData) -> str:
    """The part of the model that reads a state, with the verb."""
    if trace.provenance.get("readout") == "raw":
        return "the model's classifier, with the final norm at the last depth only, reads"
    return "the model's own final norm and classifier read"


def what(trace: TraceData) -> str:
    """One sentence on what was traced, and one on its stages if it runs in several."""
    data, entry = provenance_name(trace, "data"), trace.provenance.get("data")
    split = entry.get("split") if isinstance(entry, Mapping) else None
    where = f" of {data}" + (f" ({split})" if split else "") if data else ""
    count = trace.provenance.get("samples")
    read = f"{count:,} samples{where}" if isinstance(count, int) else f"samples{where}"
    if unit_of(trace) == "positions" and isinstance(positions := trace.provenance.get("positions"), int):
        read += f" ({positions:,} positions)"
    if "model" not in trace.provenance:
        return f"{len(trace.names)} sets of states of {read}."
    tokens = _TOKENS.get(str(trace.provenance.get("tokens")), "")
    begin = [f"{name} at depth {first}" for name, first in trace.stages.items()]
    depths = f"from depth {next(reversed(trace.stages.values()))} on" if begin else "at every depth"
    how = "" if not trace.statistics else f", with a readout {depths}"
    stages = f" They run in {len(begin)} stages: {', '.join(begin)}." if begin else ""
    return f"The states of {trace.depth} blocks on {read}{', ' + tokens if tokens else ''}{how}.{stages}"


@dataclass(frozen=True)
class Finding:
    """One thing a trace shows: the claim, and the numbers it rests on."""

    claim: str
    detail: str


def findings(trace: TraceData) -> list[Finding]:
    """The two or three things to know first."""
    candidates: list[Finding | None] = []
    if "agreement" in trace.statistics and trace.saturation.sum():
        candidates.append(saturation(saturated_by(trace), unit_of(trace)))
    if "accuracy" in trace.statistics:
        candidates.append(accuracy(trace))
    candidates.append(turn(trace))
    if not trace.statistics:
        candidates.append(halfway(trace))
    return [finding for finding in candidates if finding is not None]


def saturation(shares: np.ndarray, counted: str) -> Finding:
    """By which depth half of the answers have saturated, from the (K,) `shares` of what is `counted`, in the plural."""
    last, half = len(shares) - 1, int(np.argmax(shares >= 0.5))
    before = f"{percent(shares[-2])} before the last block."
    if half == last:
        return Finding(f"Most of the {counted} saturate only at the last depth.", f"Saturated: {before}")
    return Finding(
        f"Half of the {counted} have saturated by depth {half} of {last}.",
        f"Saturated: {percent(shares[half])} by depth {half}, {before}",
    )


def accuracy(trace: TraceData) -> Finding | None:
    """From which depth on accuracy stays within one point of the last depth's."""
    accuracy, last = statistic(trace, "accuracy"), trace.depth
    value = accuracy.value
    if not np.isfinite(value[last]):
        return None
    far = np.flatnonzero(~(value >= value[last] - _NEAR - 1e-12))
    start = int(far[-1]) + 1 if len(far) else 0
    claim = (
        f"From depth {start} on, accuracy stays within one point of the last depth's."
        if start < last
        else "No depth before the last comes within one point of its accuracy."
    )
    depths = (start, last) if start < last else (max(last - 1, 0), last)
    detail = "; ".join(f"{estimate_text(accuracy[k], percent)} at depth {k}" for k in dict.fromkeys(depths))
    return Finding(claim, f"{detail}.")


def turn(trace: TraceData) -> Finding | None:
    """Between which neighbours the states change most."""
    measure = next((name for name in ("cosine", "cka") if name in trace.similarity), None)
    if measure is None:
        return None
    similarity = similarity_estimate(trace, measure)
    steps = similarity.value.diagonal(1)
    if not np.isfinite(steps).any():
        return None
    at = int(np.nanargmin(steps))
    return Finding(
        f"Of all neighbours, depths {trace.names[at]} and {trace.names[at + 1]} are least alike.",
        f"Their {measure_title(measure)} is {estimate_text(similarity[at, at + 1], plain)}; the median over neighbours "
        f"is {plain(float(np.nanmedian(steps)))}.",
    )


def halfway(trace: TraceData) -> Finding | None:
    """From which depth on the mean cosine with the last depth is at least one half."""
    if "cosine" not in trace.similarity:
        return None
    value = trace.similarity["cosine"][:, -1]
    below = [k for k in range(trace.depth) if not value[k] >= 0.5]
    start = below[-1] + 1 if below else 0
    if start == trace.depth:
        return Finding(
            "No depth before the last has a mean cosine of one half with it.",
            f"The one before the last has {plain(float(value[-2]))}.",
        )
    name = trace.names[start]
    return Finding(
        f"From depth {name} on, the mean cosine with the last depth is at least one half.",
        f"{plain(float(value[start]))} at depth {name}, {plain(float(value[-2]))} at the one before the last.",
    )
