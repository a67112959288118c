"""Two traces of the same samples: what differs between their models, depth by depth, and which depths are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from anydepth.core.provenance import entry
from anydepth.errors import IncompatibleTraces, MeasureError
from anydepth.measures.engine.states import States, depth_slices, epsilons, locate, rows_per_chunk
from anydepth.measures.permutation_test import Chance, chance
from anydepth.measures.similarity import check_measures, similarities
from anydepth.progress import Progress
from anydepth.results.pairing import SamplePairs, common_states, pair_samples, require_alike
from anydepth.results.trace_data import TraceData, by_field
from anydepth.stats.paired import Differences, paired
from anydepth.storage.files import plain

if TYPE_CHECKING:
    import pandas

STATISTICS = ("accuracy", "confidence", "cross_entropy", "agreement", "settled", "cosine_to_last")
"""What has a difference at every depth. `settled`: the share whose answer is final from there on."""


@dataclass(frozen=True)
class Match:
    """The depth of the second model that is most like a depth of the first.

    Attributes:
        depth: of the second model.
        value: how alike they are.
        others: further depths whose interval reaches the best one's: they may be as much alike. Empty where the
            measure has no interval.
    """

    depth: int
    value: float
    others: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What differs between two models on the same samples.

    Attributes:
        names: what the two are called.
        samples: how many were in both traces.
        depths: the depths that are compared with each other, as (of the first, of the second); by their number where
            the models are equally deep, else by their share of L.
        differences: by statistic, the second less the first, at each of `depths`.
        values: by statistic, (2, P) the means themselves.
        similarity: by measure, (K_a, K_b), where states were kept.
        similarity_intervals: by measure, (2, K_a, K_b), of those that have them.
        notes: what was left out and why.
        chance: what CKA would be if the samples of the two had nothing to do with each other, if it was asked for.

    Example:
        >>> from anydepth import Trace, trace_states
        >>> a, b = (trace_states({"h0": np.eye(4), "h1": np.eye(4) * scale}) for scale in (1, 2))
        >>> a, b = (Trace(**{**vars(one), "ids": (0, 1, 2, 3)}) for one in (a, b))
        >>> compare(a, b).notes[-1]
        'the traces have no readout in common: nothing but similarity is compared'
    """

    names: tuple[str, str]
    samples: int
    depths: tuple[tuple[int, int], ...]
    differences: Mapping[str, Differences]
    values: Mapping[str, Float64[np.ndarray, "2 p"]]
    similarity: Mapping[str, Float64[np.ndarray, "a b"]]
    similarity_intervals: Mapping[str, Float64[np.ndarray, "2 a b"]]
    notes: tuple[str, ...]
    chance: Chance | None = None

    def matches(self, measure: str = "cka") -> tuple[Match | None, ...]:
        """For each depth of the first model the one of the second that is most alike; None where nothing is defined."""
        if measure not in self.similarity:
            have = ", ".join(self.similarity) or "none: the traces kept no states"
            raise IncompatibleTraces(f"there is no {measure!r} between the two; there is {have}")
        value, ends = self.similarity[measure], self.similarity_intervals.get(measure)
        return tuple(_match(row, None if ends is None else ends[:, depth]) for depth, row in enumerate(value))

    def to_frame(self) -> pandas.DataFrame:
        """One row for each statistic and compared depth."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "statistic": name,
                    "depth_a": one,
                    "depth_b": other,
                    "a": self.values[name][0, place],
                    "b": self.values[name][1, place],
                    "difference": found.value[place],
                    "low": found.low[place],
                    "high": found.high[place],
                    "low_all": found.low_all[place],
                    "high_all": found.high_all[place],
                    "verdict": found.verdicts[place],
                }
                for name, found in self.differences.items()
                for place, (one, other) in enumerate(self.depths)
            ]
        )

    def as_plain(self) -> dict[str, Any]:
        """Everything as values that JSON holds."""
        return {
            "names": self.names,
            "samples": self.samples,
            "depths": self.depths,
            "differences": plain(self.to_frame().to_dict("records")),
            "similarity": plain(self.similarity),
            "similarity_intervals": plain(self.similarity_intervals),
            "chance": plain(self.chance),
            "notes": self.notes,
        }


def compare(
    a: TraceData,
    b: TraceData,
    *,
    measures: Sequence[str] | None = None,
    despite: Sequence[str] = (),
    names: tuple[str, str] | None = None,
    confidence: float = 0.95,
    permutations: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two models by their traces of the same samples, joined by the samples' ids.

    Args:
        a: a trace.
        b: another, of another model or of the same one trained further.
        measures: similarities between their depths; None for CKA, and the cosine where widths agree, if both traces
            kept their states; () for none.
        despite: in what they may differ: "data", "tokens"; see `anydepth.results.pairing.CHECKS`.
        names: what to call the two; by default as their models are called.
        confidence: of the intervals.
        permutations: of the samples, to test whether CKA of the two is more than chance (`measures.chance`); 0 for no
            test.
        seed: of the draws behind the joint bands, and of the permutations.
        progress: called with rows done, rows in all, and what is being done.

    Raises:
        IncompatibleTraces: other data, positions, labels or no sample in common, or similarity without states.
        MeasureError: an unknown measure, or one that does not fit in memory.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from anydepth import trace
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        ...                    intermediate_size=32, num_channels=1, num_labels=5)
        >>> data = [{"pixel_values": torch.rand(20, 1, 8, 8), "labels": torch.arange(20) % 5}]
        >>> a, b = (trace(ViTForImageClassification(config), data, measures=["cka"]) for _ in range(2))
        >>> found = compare(a, b)
        >>> found.samples, found.depths, len(found.differences["accuracy"].verdicts)
        (20, ((0, 0), (1, 1), (2, 2), (3, 3)), 4)
    """
    require_alike(a, b, despite)
    if measures:
        check_measures(measures)
    wanted = _wanted(a, b, measures)
    if permutations and "cka" not in wanted:
        raise MeasureError(f"permutations are to test cka, and what is measured is {', '.join(wanted) or 'nothing'}")
    joined = pair_samples(a, b, despite)
    depths = _matched(a.depth, b.depth)
    differences, values = _differences(a, b, joined, depths, confidence, seed)
    notes = list(joined.notes)
    if a.depth != b.depth:
        notes.append(f"of {a.depth} and {b.depth} blocks: depths are compared by their share of L")
    if measures is None and not wanted:
        notes.append("similarity between the two needs their states: trace with keep_states=True (--keep-states)")
    across = _CrossSimilarity()
    if wanted:
        first, second = common_states(a, b)
        across = _across(first, second, wanted, permutations, confidence, seed, progress)
        close = _closeness(first, second, depths, confidence, seed)
        values["cosine_to_last"], differences["cosine_to_last"] = close
    if not differences:
        notes.append("the traces have no readout in common: nothing but similarity is compared")
    return Comparison(
        names=names or (_name(a), _name(b)),
        samples=joined.samples,
        depths=depths,
        differences=differences,
        values=values,
        similarity=across.similarity,
        similarity_intervals=across.intervals,
        notes=tuple(dict.fromkeys([*notes, *across.notes])),
        chance=across.chance,
    )


@dataclass(frozen=True)
class _CrossSimilarity:
    """How alike the depths of two models are."""

    similarity: Mapping[str, Float64[np.ndarray, "a b"]] = field(default_factory=dict)
    intervals: Mapping[str, Float64[np.ndarray, "2 a b"]] = field(default_factory=dict)
    chance: Chance | None = None
    notes: tuple[str, ...] = ()


def _wanted(a: TraceData, b: TraceData, measures: Sequence[str] | None) -> tuple[str, ...]:
    """What is asked for; if nobody said, what can be had."""
    if measures is not None:
        return tuple(measures)
    if a.states is None or b.states is None:
        return ()
    return ("cka", "cosine") if len({*a.states.widths, *b.states.widths}) == 1 else ("cka",)


def _across(
    first: States,
    second: States,
    measures: Sequence[str],
    permutations: int,
    confidence: float,
    seed: int,
    progress: Progress | None,
) -> _CrossSimilarity:
    fields = by_field(similarities(first, measures, other=second, seed=seed, progress=progress))
    tested, notes = None, list(fields["notes"])
    if permutations:
        tested = chance(first, second, permutations=permutations, seed=seed, progress=progress)
        notes.append(f"CKA is {tested.in_words(1 - confidence)}")
    return _CrossSimilarity(fields["similarity"], fields["similarity_intervals"], tested, tuple(notes))


def _matched(last_a: int, last_b: int) -> tuple[tuple[int, int], ...]:
    """Depths that stand at the same share of L; each of the deeper model's goes with the nearest of the other's."""
    if last_a >= last_b:
        return tuple((depth, round(depth * last_b / last_a) if last_a else 0) for depth in range(last_a + 1))
    return tuple((round(depth * last_a / last_b), depth) for depth in range(last_b + 1))


def _differences(
    a: TraceData, b: TraceData, joined: SamplePairs, depths: tuple[tuple[int, int], ...], confidence: float, seed: int
) -> tuple[dict[str, Differences], dict[str, Float64[np.ndarray, "2 p"]]]:
    """The statistics of the readout that both traces have."""
    differences: dict[str, Differences] = {}
    values: dict[str, Float64[np.ndarray, "2 p"]] = {}
    if a.rows is None or b.rows is None or not len(joined.first):
        return differences, values
    places_a, places_b = (np.array(one) for one in zip(*depths, strict=True))
    groups = None if len(np.unique(joined.sample)) == len(joined.sample) else joined.sample
    for name in STATISTICS[:-1]:
        if not (_has(a, name) and _has(b, name)):
            continue
        one = _rows(a, name)[joined.first][:, places_a]
        other = _rows(b, name)[joined.second][:, places_b]
        most = np.inf if name == "cross_entropy" else 1.0
        differences[name] = paired(other - one, groups, confidence, most=most, seed=seed)
        values[name] = np.stack([one.mean(0), other.mean(0)])
    return differences, values


def _has(trace: TraceData, name: str) -> bool:
    return ("agreement" if name == "settled" else name) in trace.statistics


def _rows(trace: TraceData, name: str) -> Float64[np.ndarray, "n k"]:
    """The statistic of each answer at each depth."""
    if name == "settled":
        return np.asarray(trace.saturation_depth[:, None] <= np.arange(trace.depth + 1)[None], dtype=float)
    return trace.per_answer(name)


def _closeness(
    first: States, second: States, depths: tuple[tuple[int, int], ...], confidence: float, seed: int
) -> tuple[Float64[np.ndarray, "2 p"], Differences]:
    """How alike each depth is to its own model's last: the centred cosine of each row, paired over the two models."""
    places_a, places_b = (np.array(one) for one in zip(*depths, strict=True))
    one, other = _to_last(first)[:, places_a], _to_last(second)[:, places_b]
    # a depth that is constant has no cosine in any row; elsewhere a row that is the mean itself has none
    defined = ~(np.isnan(one).all(0) | np.isnan(other).all(0))
    known = np.isfinite(one[:, defined]).all(1) & np.isfinite(other[:, defined]).all(1)
    one, other = one[known], other[known]
    groups = None if first.groups is None else first.groups[known]
    found = paired(np.where(defined, other - one, 0.0), groups, confidence, most=2.0, seed=seed)
    blank = {name: np.where(defined, getattr(found, name), np.nan) for name in found.__dataclass_fields__}
    return np.stack([one.mean(0), other.mean(0)]), Differences(**blank)


def _to_last(states: States) -> Float64[np.ndarray, "n k"]:
    """The cosine of each row's state with its last one, each depth centred on its mean; NaN at a blank depth."""
    size = rows_per_chunk(states.widths, megabytes=8)
    location, slices = locate(states.chunks(size), states.widths, epsilons(states)), depth_slices(states.widths)
    found = []
    for rows in states.chunks(size):
        centred = rows.double() - location.mean
        last = centred[:, slices[-1]]
        columns = [
            (centred[:, own] * last).sum(1) / (centred[:, own].norm(dim=1) * last.norm(dim=1))
            if centred[:, own].shape == last.shape
            else last.new_full((len(last),), np.nan)
            for own in slices
        ]
        found.append(np.stack([column.numpy() for column in columns], 1))
    cosines = np.concatenate(found)
    cosines[:, -1] = np.where(np.isnan(cosines[:, -1]), np.nan, 1.0)  # but for rounding, which is no difference
    cosines[:, list(location.blank)] = np.nan
    return cosines


def _match(value: Float64[np.ndarray, " b"], ends: Float64[np.ndarray, "2 b"] | None) -> Match | None:
    if not np.isfinite(value).any():
        return None
    best = int(np.nanargmax(value))
    if ends is None:
        return Match(best, float(value[best]), ())
    near = np.flatnonzero(ends[1] >= ends[0, best])
    return Match(best, float(value[best]), tuple(int(one) for one in near if one != best))


def _name(trace: TraceData) -> str:
    return str(entry(trace.provenance, "model", "name", default="states"))
