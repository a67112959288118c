"""Data of a comparison of two models: differences at each depth, and similarity between their depths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from anydepth.errors import IncompatibleTraces
from anydepth.measures.permutation_test import Chance
from anydepth.results.tables import Column, Table, number
from anydepth.stats.paired import Differences
from anydepth.storage.files import plain

if TYPE_CHECKING:
    import pandas


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


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparisonData:
    """What differs between two models on the same samples: `anydepth.Comparison` without files and charts.

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
        provenance: of the two traces, by the names of the models.
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
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

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
            "provenance": plain(self.provenance),
        }


def difference_table(comparison: ComparisonData) -> Table:
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


def _difference_columns(comparison: ComparisonData, statistic: str) -> Iterator[Column]:
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


def _match(value: Float64[np.ndarray, " b"], ends: Float64[np.ndarray, "2 b"] | None) -> Match | None:
    if not np.isfinite(value).any():
        return None
    best = int(np.nanargmax(value))
    near = [] if ends is None else np.flatnonzero(ends[1] >= ends[0, best]).tolist()
    return Match(best, float(value[best]), tuple(depth for depth in near if depth != best))
