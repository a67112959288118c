"""What a trace shows, in plain sentences: every one computed from the numbers, none saying more than they do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from anydepth.report.formats import Unit, measure_title, percent, plain, with_interval
from anydepth.report.protocols import Source, named, statistic
from anydepth.report.rows import Row

_POLICIES = {
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


def unit_of(trace: Source) -> str:
    """What one row is: a sample, or a position where a sample has several."""
    found = trace.provenance
    counted = found.get("answers") or found.get("positions")  # what was read out; without a readout, what was measured
    return "samples" if counted in (None, found.get("samples")) else "positions"


def reader(trace: Source) -> str:
    """Who reads a state, with the verb."""
    if trace.provenance.get("readout") == "raw":
        return "the model's classifier, with the final norm at the last depth only, reads"
    return "the model's own final norm and classifier read"


def what(trace: Source) -> str:
    """One sentence on what was traced."""
    data, split = named(trace, "data"), _entry(trace, "data", "split")
    where = f" of {data}" + (f" ({split})" if split else "") if data else ""
    count = trace.provenance.get("samples")
    read = f"{count:,} samples{where}" if isinstance(count, int) else f"samples{where}"
    if unit_of(trace) == "positions" and isinstance(positions := trace.provenance.get("positions"), int):
        read += f" ({positions:,} positions)"
    if "model" not in trace.provenance:
        return f"{len(trace.names)} sets of states of {read}."
    policy = _POLICIES.get(str(trace.provenance.get("tokens")), "")
    how = "" if not trace.statistics else ", with a readout at every depth"
    return f"The states of {trace.depth} blocks on {read}{', ' + policy if policy else ''}{how}."


def _entry(trace: Source, key: str, inner: str) -> str:
    entry = trace.provenance.get(key)
    return str(entry.get(inner) or "") if isinstance(entry, Mapping) else ""


@dataclass(frozen=True)
class Finding:
    """One thing a trace shows: the claim, and the numbers it rests on."""

    claim: str
    detail: str


def findings(trace: Source) -> list[Finding]:
    """The two or three things to know first."""
    found: list[Finding | None] = []
    if "agreement" in trace.statistics:
        found.append(settling(trace))
    if "accuracy" in trace.statistics:
        found.append(accuracy(trace))
    found.append(turn(trace))
    if not trace.statistics:
        found.append(halfway(trace))
    return [finding for finding in found if finding is not None]


def settling(trace: Source) -> Finding | None:
    """By which depth half of the samples have their final answer."""
    settled = np.cumsum(statistic(trace, "saturation"))
    total = int(settled[-1])
    if total == 0:
        return None
    half, unit = int(np.argmax(2 * settled >= total)), unit_of(trace)
    before = f"{percent(settled[-2] / total)} before the last block."
    if half == trace.depth:
        return Finding(f"Most {unit} get their final answer only at the last depth.", f"It is settled for {before}")
    return Finding(
        f"Half of the {unit} have their final answer by depth {half} of {trace.depth}.",
        f"It is settled for {percent(settled[half] / total)} by depth {half}, for {before}",
    )


def accuracy(trace: Source) -> Finding | None:
    """From which depth on accuracy stays within one point of the last depth's."""
    value, (low, high) = statistic(trace, "accuracy"), trace.interval("accuracy")
    last = trace.depth
    if not np.isfinite(value[last]):
        return None
    near = value >= value[last] - _NEAR - 1e-12
    start = last
    while start > 0 and near[start - 1]:
        start -= 1
    claim = (
        f"From depth {start} on, accuracy stays within one point of the last depth's."
        if start < last
        else "No depth before the last comes within one point of its accuracy."
    )
    shown = (start, last) if start < last else (max(last - 1, 0), last)
    detail = "; ".join(
        f"{with_interval(value[k], low[k], high[k], percent)} at depth {k}" for k in dict.fromkeys(shown)
    )
    return Finding(claim, f"{detail}.")


def turn(trace: Source) -> Finding | None:
    """Between which neighbours the states change most."""
    measure = next((name for name in ("cosine", "cka") if name in trace.similarity), None)
    if measure is None:
        return None
    value = trace.similarity[measure]
    steps = np.array([value[a, b] for a, b in pairwise(range(trace.depth + 1))])
    if not np.isfinite(steps).any():
        return None
    at = int(np.nanargmin(steps))
    low, high = trace.similarity_intervals.get(measure, np.full((2, *value.shape), np.nan))[:, at, at + 1]
    least, median = with_interval(steps[at], low, high, plain), plain(float(np.nanmedian(steps)))
    return Finding(
        f"Of all neighbours, depths {trace.names[at]} and {trace.names[at + 1]} are least alike.",
        f"Their {measure_title(measure)} is {least}; the median over neighbours is {median}.",
    )


def halfway(trace: Source) -> Finding | None:
    """From which depth on states are more like the last than half."""
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
