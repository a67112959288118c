"""Compare two models by traces of the same samples: `compare`, and `Comparison` with its files, charts and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from anydepth.core.provenance import entry
from anydepth.errors import IncompatibleTraces, MeasureError, TraceFileError
from anydepth.measures.engine.states import States, depth_slices, epsilons, locate, rows_per_chunk
from anydepth.measures.permutation_test import Chance, chance
from anydepth.measures.similarity import check_measures, similarities
from anydepth.progress import Progress
from anydepth.results.comparison import ComparisonData, difference_table
from anydepth.results.pairing import SamplePairs, common_states, pair_samples, require_alike
from anydepth.results.result import Result
from anydepth.results.tables import Table
from anydepth.results.trace_data import TraceData, by_field
from anydepth.stats.paired import Differences, paired
from anydepth.storage.checksums import read_sealed
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import SETTINGS, OutputKind, settle

if TYPE_CHECKING:
    import altair

STATISTICS = ("accuracy", "confidence", "cross_entropy", "agreement", "settled", "cosine_to_last")
"""Statistics that are compared at every depth. `settled`: the share of answers that have saturated by then."""


FORMAT = 1
FILE, REPORT = "compare.json", "report.html"
COMPARE_OUTPUT = OutputKind(
    job="compare", mark=FILE, names=(REPORT, SETTINGS), alone="holds something else already", error=IncompatibleTraces
)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Comparison(Result, ComparisonData):
    """What differs between two models on the same samples.

    Made by `anydepth.compare`, read back by `Comparison.load`; its fields are described in
    `anydepth.results.comparison.ComparisonData`.

    Example:
        >>> from anydepth import Trace, trace_states
        >>> a, b = (trace_states({"h0": np.eye(4), "h1": np.eye(4) * scale}) for scale in (1, 2))
        >>> a, b = (Trace(**{**vars(trace), "ids": (0, 1, 2, 3)}) for trace in (a, b))
        >>> compare(a, b).notes[-1]
        'the traces have no readout in common: nothing but similarity is compared'
    """

    def line(self) -> str:
        """The models and what was compared."""
        first, second = self.names
        compared = ", ".join((*self.differences, *self.similarity)) or "nothing"
        return f"{second} against {first}: {self.samples:,} samples, {compared}"

    def tables(self) -> tuple[Table, ...]:
        """Differences by depth."""
        return (difference_table(self),)

    def plot(self, name: str | None = None) -> altair.TopLevelMixin:
        """One chart of this comparison, for a notebook or, by `anydepth.report.charts.save`, a file.

        Args:
            name: a statistic, for its differences by depth; a measure, for the map of similarity between the models'
                depths; None for the first there is.

        Raises:
            MeasureError: nothing of that name was compared.
        """
        from anydepth.report.pages.comparison import plot

        return plot(self, name)

    def report(self, path: str | Path) -> Path:
        """Write the report: one HTML file that works offline."""
        from anydepth.report.pages.comparison import write

        return write([self], Path(path))

    def save(self, folder: str | Path, *, report: bool = True) -> Path:
        """Write `compare.json` and the report to a folder, as `anydepth compare` does; returns the folder.

        Raises:
            IncompatibleTraces: the folder holds something else already.
            TraceFileError: it cannot be written.
        """
        with replacing_folder(Path(folder), COMPARE_OUTPUT) as beside:
            write_comparisons([self], beside)
            if report:
                self.report(beside / REPORT)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Read the comparison in a folder that `save` or `anydepth compare` wrote.

        Raises:
            TraceFileError: there is none, it is corrupt or of a newer format; or there are several, of three or more
                traces: `load_all` reads these.
        """
        comparisons = cls.load_all(folder)
        if len(comparisons) != 1:
            names = ", ".join(comparison.names[1] for comparison in comparisons)
            raise TraceFileError(f"{folder} holds {len(comparisons)} comparisons ({names}): use Comparison.load_all")
        return comparisons[0]

    @classmethod
    def load_all(cls, folder: str | Path) -> tuple[Comparison, ...]:
        """Read all comparisons in a folder, each with the same first model."""
        settle(Path(folder))
        path = Path(folder) / FILE
        content = read_sealed(path, known=FORMAT, again="compare again")
        try:
            return tuple(cls.from_plain(comparison) for comparison in content["comparisons"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as problem:
            raise TraceFileError(f"{path} is corrupt: {type(problem).__name__} at {problem}") from None

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Comparison:
        """The comparison from the values of `as_plain`."""
        by_statistic: dict[str, list[Mapping[str, Any]]] = {}
        for row in content["differences"]:
            by_statistic.setdefault(row["statistic"], []).append(row)

        def column(name: str, key: str) -> np.ndarray:
            return np.array([row[key] for row in by_statistic[name]], dtype=np.float64)  # None becomes NaN

        def matrices(key: str) -> dict[str, np.ndarray]:
            return {name: np.array(values, dtype=np.float64) for name, values in content[key].items()}

        ends, tested = ("low", "high", "low_all", "high_all"), content["chance"]
        return cls(
            names=(content["names"][0], content["names"][1]),
            samples=content["samples"],
            depths=tuple((a, b) for a, b in content["depths"]),
            differences={
                name: Differences(value=column(name, "difference"), **{end: column(name, end) for end in ends})
                for name in by_statistic
            },
            values={name: np.stack([column(name, "a"), column(name, "b")]) for name in by_statistic},
            similarity=matrices("similarity"),
            similarity_intervals=matrices("similarity_intervals"),
            notes=tuple(content["notes"]),
            chance=tested and Chance(**{**tested, **{end: np.array(tested[end], np.float64) for end in ("p", "high")}}),
            provenance=content.get("provenance", {}),  # not in folders of anydepth 0.1
        )


def write_comparisons(comparisons: Sequence[Comparison], folder: Path) -> None:
    """Write `compare.json`."""
    content = [comparison.as_plain() for comparison in comparisons]
    write_json(folder / FILE, {"format": FORMAT, "comparisons": content})


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
    """
    require_alike(a, b, despite)
    names = names or (model_name(a), model_name(b))
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
        names=names,
        samples=pairs.samples,
        depths=depths,
        differences=differences,
        values=values,
        similarity=similarity["similarity"],
        similarity_intervals=similarity["similarity_intervals"],
        notes=tuple(dict.fromkeys(notes)),
        chance=tested,
        provenance=dict(zip(names, (a.provenance, b.provenance), strict=True)),
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


def model_name(trace: TraceData) -> str:
    """The name of the model that was traced; "states" for a trace of arrays."""
    return str(entry(trace.provenance, "model", "name", default="states"))
