"""Compare two models by traces of the same samples: differences at each depth, and similarity between their depths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from anydepth.results.result import Result
from anydepth.results.tables import Column, Table, number
from anydepth.results.trace_data import TraceData, by_field
from anydepth.stats.paired import Differences, paired
from anydepth.storage.files import plain

if TYPE_CHECKING:
    import pandas

STATISTICS = ("accuracy", "confidence", "cross_entropy", "agreement", "settled", "cosine_to_last")
"""Statistics that are compared at every depth. `settled`: the share of answers that have saturated by then."""


@dataclass(frozen=True)
class Match:
    """The depth of the second model that is most similar to a depth of the first.

    Attributes:
        depth: of the second model.
        value: the similarity.
        others: further depths whose intervals overlap with the best one's: they may be as similar. Empty where the
            measure has no interval.
    """

    depth: int
    value: float
    others: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Comparison(Result):
    """What differs between two models on the same samples.

    Attributes:
        names: of the two models.
        samples: how many were in both traces.
        depths: the P pairs of depths that are compared, as (of the first, of the second): the same depths where the
            models are equally deep, else the same share of L.
        differences: by statistic, the second minus the first, at each of `depths`.
        values: by statistic, (2, P) the means themselves.
        similarity: by measure, (K_a, K_b), where states were kept.
        similarity_intervals: by measure, (2, K_a, K_b), of those that have them.
        notes: what was left out and why.
        chance: CKA under random pairings of the samples, if permutations were asked for.

    Example:
        >>> from anydepth import Trace, trace_states
        >>> a, b = (trace_states({"h0": np.eye(4), "h1": np.eye(4) * scale}) for scale in (1, 2))
        >>> a, b = (Trace(**{**vars(trace), "ids": (0, 1, 2, 3)}) for trace in (a, b))
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

    def line(self) -> str:
        """The models and what was compared."""
        first, second = self.names
        compared = ", ".join((*self.differences, *self.similarity)) or "nothing"
        return f"{second} against {first}: {self.samples:,} samples, {compared}"

    def tables(self) -> tuple[Table, ...]:
        """Differences by depth."""
        return (difference_table(self),)

    def matches(self, measure: str = "cka") -> tuple[Match | None, ...]:
        """For each depth of the first model the most similar one of the second; None where no similarity is defined."""
        if measure not in self.similarity:
            available = ", ".join(self.similarity) or "none: the traces kept no states"
            raise IncompatibleTraces(f"there is no {measure!r} between the two; there is {available}")
        value, ends = self.similarity[measure], self.similarity_intervals.get(measure)
        return tuple(_match(row, None if ends is None else ends[:, depth]) for depth, row in enumerate(value))

    def to_frame(self) -> pandas.DataFrame:
        """One row for each statistic and compared depth."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "statistic": name,
                    "depth_a": depth_a,
                    "depth_b": depth_b,
                    "a": self.values[name][0, place],
                    "b": self.values[name][1, place],
                    "difference": difference.value[place],
                    **{end: getattr(difference, end)[place] for end in ("low", "high", "low_all", "high_all")},
                    "verdict": difference.verdicts[place],
                }
                for name, difference in self.differences.items()
                for place, (depth_a, depth_b) in enumerate(self.depths)
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


def difference_table(comparison: Comparison) -> Table:
    """One row for each pair of depths: the difference and its simultaneous band, and the most similar depth."""
    first, second = comparison.names
    pairs = tuple(str(a) if a == b else f"{a} and {b}" for a, b in comparison.depths)
    columns = [Column(head="depth" if all(a == b for a, b in comparison.depths) else "depths", cells=pairs)]
    statistic = next((name for name in ("accuracy", "agreement") if name in comparison.differences), None)
    if statistic:
        columns += _difference_columns(comparison, statistic)
    if measure := next(iter(comparison.similarity), None):
        matches = [comparison.matches(measure)[depth] for depth, _ in comparison.depths]
        cells = tuple("" if match is None else f"{match.depth} ({match.value:.3f})" for match in matches)
        columns.append(Column(head=f"most alike by {measure}", cells=cells, rank=1 if statistic else 0))
    title = f"{second} minus {first}: {comparison.samples:,} samples, simultaneous 95 % bands"
    return Table(title=title, columns=tuple(columns))


def _difference_columns(comparison: Comparison, statistic: str) -> Iterator[Column]:
    difference = comparison.differences[statistic]
    for which, values in zip(("first", "second"), comparison.values[statistic], strict=True):
        yield Column(head=f"{statistic}, {which}", cells=tuple(map(number, values)), rank=4)
    yield Column(
        head="difference",
        cells=tuple(f"{value:+.3f}" for value in difference.value),
        details=tuple(
            f"{low:+.3f} to {high:+.3f}" for low, high in zip(difference.low_all, difference.high_all, strict=True)
        ),
    )
    yield Column(head="", cells=difference.verdicts, kind="text")


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
    """Compare two models by their traces of the same samples, paired by the samples' ids.

    Args:
        a: a trace.
        b: another, of another model or of the same one trained further.
        measures: similarities between their depths; None for CKA, and the cosine where widths agree, if both traces
            kept their states; () for none.
        despite: in what they may differ: "data", "tokens"; see `anydepth.results.pairing.CHECKS`.
        names: of the two; by default those of their models.
        confidence: of the intervals.
        permutations: of the samples, to test whether CKA is above chance (`measures.permutation_test`); 0 for no test.
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
        >>> comparison = compare(a, b)
        >>> comparison.samples, comparison.depths, len(comparison.differences["accuracy"].verdicts)
        (20, ((0, 0), (1, 1), (2, 2), (3, 3)), 4)
    """
    require_alike(a, b, despite)
    if measures:
        check_measures(measures)
    names_of_measures = _default_measures(a, b) if measures is None else tuple(measures)
    if permutations and "cka" not in names_of_measures:
        measured = ", ".join(names_of_measures) or "nothing"
        raise MeasureError(f"permutations are to test cka, and what is measured is {measured}")
    pairs = pair_samples(a, b, despite)
    depths = _matched_depths(a.depth, b.depth)
    differences, values = _differences(a, b, pairs, depths, confidence, seed)
    notes = list(pairs.notes)
    if a.depth != b.depth:
        notes.append(f"of {a.depth} and {b.depth} blocks: depths are compared by their share of L")
    if measures is None and not names_of_measures:
        notes.append("similarity between the two needs their states: trace with keep_states=True")
    similarity, tested = by_field({}), None
    if names_of_measures:
        first, second = common_states(a, b)
        similarity = by_field(similarities(first, names_of_measures, other=second, seed=seed, progress=progress))
        notes += similarity["notes"]
        values["cosine_to_last"], differences["cosine_to_last"] = _closeness(first, second, depths, confidence, seed)
    if permutations:
        tested = chance(first, second, permutations=permutations, seed=seed, progress=progress)
        notes.append(f"CKA is {tested.in_words(1 - confidence)}")
    if not differences:
        notes.append("the traces have no readout in common: nothing but similarity is compared")
    return Comparison(
        names=names or (model_name(a), model_name(b)),
        samples=pairs.samples,
        depths=depths,
        differences=differences,
        values=values,
        similarity=similarity["similarity"],
        similarity_intervals=similarity["similarity_intervals"],
        notes=tuple(dict.fromkeys(notes)),
        chance=tested,
    )


def _default_measures(a: TraceData, b: TraceData) -> tuple[str, ...]:
    """The measures that the kept states of both traces allow."""
    if a.states is None or b.states is None:
        return ()
    return ("cka", "cosine") if len({*a.states.widths, *b.states.widths}) == 1 else ("cka",)


def _matched_depths(last_a: int, last_b: int) -> tuple[tuple[int, int], ...]:
    """Pairs of depths at the same share of L: each depth of the deeper model with the nearest of the other."""
    if last_a >= last_b:
        return tuple((depth, round(depth * last_b / last_a) if last_a else 0) for depth in range(last_a + 1))
    return tuple((round(depth * last_a / last_b), depth) for depth in range(last_b + 1))


def _differences(
    a: TraceData, b: TraceData, pairs: SamplePairs, depths: tuple[tuple[int, int], ...], confidence: float, seed: int
) -> tuple[dict[str, Differences], dict[str, Float64[np.ndarray, "2 p"]]]:
    """Differences, and values, of the readout statistics that both traces have."""
    differences: dict[str, Differences] = {}
    values: dict[str, Float64[np.ndarray, "2 p"]] = {}
    if a.rows is None or b.rows is None or not len(pairs.first):
        return differences, values
    depths_a, depths_b = np.array(depths).T
    groups = None if len(np.unique(pairs.sample)) == len(pairs.sample) else pairs.sample
    for name in STATISTICS[:-1]:
        if not {"agreement" if name == "settled" else name} <= {*a.statistics} & {*b.statistics}:
            continue
        first = _per_answer(a, name)[pairs.first][:, depths_a]
        second = _per_answer(b, name)[pairs.second][:, depths_b]
        most = np.inf if name == "cross_entropy" else 1.0
        differences[name] = paired(second - first, groups, confidence, most=most, seed=seed)
        values[name] = np.stack([first.mean(0), second.mean(0)])
    return differences, values


def _per_answer(trace: TraceData, name: str) -> Float64[np.ndarray, "n k"]:
    return trace.saturated.astype(float) if name == "settled" else trace.per_answer(name)


def _closeness(
    first: States, second: States, depths: tuple[tuple[int, int], ...], confidence: float, seed: int
) -> tuple[Float64[np.ndarray, "2 p"], Differences]:
    """Cosine of each depth to its own model's last depth, as values and as paired differences of the two models."""
    depths_a, depths_b = np.array(depths).T
    one, other = _cosine_to_last(first)[:, depths_a], _cosine_to_last(second)[:, depths_b]
    # a constant depth has no cosine in any row; elsewhere only a row that equals the mean has none
    defined = ~(np.isnan(one).all(0) | np.isnan(other).all(0))
    known = np.isfinite(one[:, defined]).all(1) & np.isfinite(other[:, defined]).all(1)
    one, other = one[known], other[known]
    groups = None if first.groups is None else first.groups[known]
    difference = paired(np.where(defined, other - one, 0.0), groups, confidence, most=2.0, seed=seed)
    blank = {name: np.where(defined, getattr(difference, name), np.nan) for name in vars(difference)}
    return np.stack([one.mean(0), other.mean(0)]), Differences(**blank)


def _cosine_to_last(states: States) -> Float64[np.ndarray, "n k"]:
    """The cosine of each row's state with its last one, each depth centred on its mean; NaN at a blank depth."""
    size = rows_per_chunk(states.widths, megabytes=8)
    location, slices = locate(states.chunks(size), states.widths, epsilons(states)), depth_slices(states.widths)
    parts = []
    for rows in states.chunks(size):
        centred = rows.double() - location.mean
        last = centred[:, slices[-1]]
        columns = [
            (centred[:, own] * last).sum(1) / (centred[:, own].norm(dim=1) * last.norm(dim=1))
            if centred[:, own].shape == last.shape
            else last.new_full((len(last),), np.nan)
            for own in slices
        ]
        parts.append(np.stack([column.numpy() for column in columns], 1))
    cosines = np.concatenate(parts)
    cosines[:, -1] = np.where(np.isnan(cosines[:, -1]), np.nan, 1.0)  # it is 1 up to rounding
    cosines[:, list(location.blank)] = np.nan
    return cosines


def _match(value: Float64[np.ndarray, " b"], ends: Float64[np.ndarray, "2 b"] | None) -> Match | None:
    if not np.isfinite(value).any():
        return None
    best = int(np.nanargmax(value))
    near = [] if ends is None else np.flatnonzero(ends[1] >= ends[0, best]).tolist()
    return Match(best, float(value[best]), tuple(depth for depth in near if depth != best))


def model_name(trace: TraceData) -> str:
    """The name of the model that was traced; "states" for a trace of arrays."""
    return str(entry(trace.provenance, "model", "name", default="states"))
