"""What a trace found: similarity between depths, what the readout says at each, and where answers settle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from anydepth.certificates import MinimalDepth, minimal_depth
from anydepth.errors import CertificateError, MeasureError
from anydepth.measures import intervals, readout
from anydepth.measures.agreement import agreement
from anydepth.measures.moments import Moments
from anydepth.measures.similarity import Similarity
from anydepth.store import StoredStates

if TYPE_CHECKING:
    import altair
    import pandas

STATISTICS = ("accuracy", "cross_entropy", "confidence", "agreement", "stays_correct")
_NEED_LABELS = ("accuracy", "cross_entropy", "stays_correct")


@dataclass(frozen=True)
class Rows:
    """One short row for each answer of the model: for each sample, or, where it answers at each position, for each."""

    sample: Int64[np.ndarray, " n"]
    """Index of the sample in `Trace.ids`."""
    position: NDArray[np.int32]
    """Index of the position in its sequence; -100 where the model answers once per sample."""
    label: Int64[np.ndarray, " n"]
    """The true class; -100 where there is none."""
    prediction: NDArray[np.int32]
    """(n, K) top class at each depth."""
    cross_entropy: NDArray[np.float32]
    """(n, K) nats at the true class; NaN without labels."""
    confidence: NDArray[np.float32]
    """(n, K) probability of the top class."""

    def __len__(self) -> int:
        return len(self.sample)


ROW_COLUMNS = tuple(column.name for column in fields(Rows))


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What every depth of a model knows about some data. K = L + 1 depths: 0 is the embedding, L the last block.

    Made by `anydepth.trace`, read back by `Trace.load`. All arrays are numpy, float64 unless they count.

    Example:
        >>> from anydepth import trace_states
        >>> x = np.random.default_rng(0).normal(size=(50, 8))
        >>> found = trace_states({"a": x, "b": 3 * x, "c": np.abs(x)})
        >>> found.names, found.depth, found.statistics
        (('a', 'b', 'c'), 2, ())
        >>> found.similarity["cka"][0].round(2).tolist()
        [1.0, 1.0, 0.01]
    """

    names: tuple[str, ...]
    """What each depth is called: "0".."L" for a model."""
    similarity: Mapping[str, Float64[np.ndarray, "k k"]]
    """Each measure's matrix; NaN where it is undefined, and then `notes` says why."""
    similarity_intervals: Mapping[str, Float64[np.ndarray, "2 k k"]] = field(default_factory=dict)
    """Lower and upper 95 % bounds, for the measures that have them."""
    quantiles: Mapping[str, Float64[np.ndarray, "q k k"]] = field(default_factory=dict)
    """Quantiles (5, 25, 50, 75, 95 %) over samples, for the measures that are means over samples."""
    rows: Rows | None = None
    ids: tuple[Any, ...] = ()
    digests: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """64 bits of each sample's content."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What is blank, and why; what was chosen by default."""
    moments: Moments | None = None
    """The sums that CKA came from, to merge with those of other samples."""
    states: StoredStates | None = None
    """The states, if they were kept."""

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.names) - 1

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Which of accuracy, cross_entropy, confidence, agreement and stays_correct there are."""
        if self.rows is None:
            return ()
        labelled = bool((self.rows.label >= 0).all())
        return tuple(name for name in STATISTICS if labelled or name not in _NEED_LABELS)

    @property
    def accuracy(self) -> Float64[np.ndarray, " k"]:
        """Share of answers that are right at each depth."""
        return self._mean("accuracy")

    @property
    def cross_entropy(self) -> Float64[np.ndarray, " k"]:
        """Mean cross-entropy at each depth, in nats; exp of it is the perplexity of a language model."""
        return self._mean("cross_entropy")

    @property
    def confidence(self) -> Float64[np.ndarray, " k"]:
        """Mean probability of the top class at each depth."""
        return self._mean("confidence")

    @property
    def agreement(self) -> Float64[np.ndarray, " k"]:
        """Share of answers at each depth whose top class is that of the last depth."""
        return self._mean("agreement")

    @property
    def stays_correct(self) -> Float64[np.ndarray, " k"]:
        """Of the answers right at a depth, the share right at every later depth too; NaN where none is right."""
        self._require("stays_correct")
        return readout.stays_correct(self._correct)

    @property
    def saturation(self) -> Int64[np.ndarray, " k"]:
        """How many answers saturate at each depth: the first from which on the top class is the final one.

        Indexed by depth; entry 0 is 0, since the first block is the first depth that counts.
        """
        return readout.saturation_histogram(self.saturation_depth, self.depth)

    @cached_property
    def saturation_depth(self) -> Int64[np.ndarray, " n"]:
        """The saturation depth of each answer, 1..L."""
        self._require("agreement")
        assert self.rows is not None
        return readout.saturation_depth(self.rows.prediction)

    def interval(self, name: str, confidence: float = 0.95) -> Float64[np.ndarray, "2 k"]:
        """Lower and upper bounds of a statistic at each depth.

        Shares of independent samples get Wilson's interval; means, and everything about positions that share a
        sequence, Student's t over samples.

        Args:
            name: one of `statistics`.
            confidence: of the interval, in (0, 1).

        Raises:
            MeasureError: this trace has no such statistic.
        """
        self._require(name)
        assert self.rows is not None
        values, counted = self._values(name)
        if self._independent and name in ("accuracy", "agreement", "stays_correct"):
            return intervals.wilson((values * counted).sum(0), counted.sum(0), confidence)
        groups = None if self._independent else self.rows.sample
        if name != "stays_correct":
            return intervals.t_interval(values, groups, confidence)
        # another set of rows counts at each depth
        bounds = [
            intervals.t_interval(values[kept, depth], None if groups is None else groups[kept], confidence)
            for depth, kept in enumerate(counted.T > 0)
        ]
        return np.stack(bounds, axis=1)

    def per_answer(self, name: str) -> Float64[np.ndarray, "n k"]:
        """A statistic of each answer at each depth; `accuracy` and `agreement` are 0 or 1.

        Raises:
            MeasureError: this trace has no such statistic.
        """
        self._require(name)
        return self._values(name)[0]

    def _values(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A statistic's value in each row at each depth, and whether the row counts there."""
        assert self.rows is not None
        shape = self.rows.prediction.shape
        everywhere = np.ones(shape)
        match name:
            case "accuracy":
                return self._correct.astype(float), everywhere
            case "agreement":
                return (self.rows.prediction == self.rows.prediction[:, -1:]).astype(float), everywhere
            case "stays_correct":
                return readout.correct_from_here(self._correct).astype(float), self._correct.astype(float)
            case "cross_entropy":
                return self.rows.cross_entropy.astype(float), everywhere
            case _:
                return self.rows.confidence.astype(float), everywhere

    @cached_property
    def _independent(self) -> bool:
        """Whether every answer is of a sample of its own."""
        assert self.rows is not None
        return len(np.unique(self.rows.sample)) == len(self.rows)

    def _mean(self, name: str) -> Float64[np.ndarray, " k"]:
        self._require(name)
        return np.asarray(self._values(name)[0].mean(axis=0))

    @cached_property
    def _correct(self) -> NDArray[np.bool_]:
        assert self.rows is not None
        return np.asarray(self.rows.prediction == self.rows.label[:, None])

    def _require(self, name: str) -> None:
        if name not in STATISTICS:
            raise MeasureError(f"unknown statistic {name!r}, expected one of {', '.join(STATISTICS)}")
        if name not in self.statistics:
            why = "its model has no classifier, or was traced without readouts" if self.rows is None else "no labels"
            there = ", ".join(self.statistics) or "none"
            raise MeasureError(f"this trace has no {name!r} ({why}); it has: {there}")

    def minimal_depth(
        self, tolerance: float = 0.01, confidence: float = 0.95, *, against: str = "model"
    ) -> MinimalDepth:
        """The shallowest depth that can take the place of L, by a test on these samples.

        See `anydepth.certificates.minimal_depth`.

        Raises:
            CertificateError: a level outside (0, 1), too few samples, or answers that are not independent.
            MeasureError: this trace has no readouts, or no labels to hold them against.
        """
        self._require("accuracy" if against == "labels" else "agreement")
        assert self.rows is not None
        if not self._independent:
            raise CertificateError(
                "answers at positions of one sequence are not independent, as the test takes them to be: it needs a "
                "model that answers once for each sample"
            )
        labels = self.rows.label if "accuracy" in self.statistics else None
        return minimal_depth(self.rows.prediction, labels, against=against, tolerance=tolerance, confidence=confidence)

    def effective_depth(self, epsilon: float = 0.03) -> int:
        """The paper's: the smallest depth in 1..L whose accuracy is at least 1 - epsilon, else L. A point estimate."""
        good = np.flatnonzero(self.accuracy[1:] >= 1 - epsilon)
        return int(good[0]) + 1 if len(good) else self.depth

    def measure_agreement(self, confidence: float = 0.95) -> dict[str, Any]:
        """How well cosine and CKA agree over pairs of different depths; see `anydepth.measures.agreement`.

        Returns:
            {"pearson": (value, low, high), "spearman": (value, low, high), "pairs": number of pairs}.
        """
        for name in ("cosine", "cka"):
            if name not in self.similarity:
                raise MeasureError(f"agreement is between cosine and cka, and this trace has no {name!r}")
        return asdict(agreement(self.similarity["cosine"], self.similarity["cka"], confidence))

    def by_class(self) -> pandas.DataFrame:
        """Accuracy and saturation of each class at each depth.

        Returns:
            A frame with columns class, count, depth, accuracy, and saturated, the share whose answer is final by then.
        """
        import pandas

        self._require("accuracy")
        assert self.rows is not None
        table = readout.by_class(self.rows.label, self.rows.prediction)
        depths = table.accuracy.shape[1]
        return pandas.DataFrame(
            {
                "class": np.repeat([self.class_name(int(label)) for label in table.label], depths),
                "count": np.repeat(table.count, depths),
                "depth": np.tile(np.arange(depths), len(table.label)),
                "accuracy": table.accuracy.ravel(),
                "saturated": table.saturated.ravel(),
            }
        )

    def class_name(self, label: int) -> str:
        """What the model calls a class, or its number."""
        return str(self.provenance.get("model", {}).get("classes", {}).get(str(label), label))

    def to_frame(self, what: str = "depths") -> pandas.DataFrame:
        """The numbers as a pandas frame.

        Args:
            what: "depths" for one row per depth; "similarity" for one row per measure and pair of depths; "answers"
                for one row per answer and depth.
        """
        import pandas

        match what:
            case "depths":
                return self._depths_frame(pandas)
            case "similarity":
                return self._similarity_frame(pandas)
            case "answers":
                return self._answers_frame(pandas)
        raise MeasureError(f"unknown frame {what!r}, expected depths, similarity or answers")

    def _depths_frame(self, pandas: Any) -> pandas.DataFrame:
        columns: dict[str, Any] = {"depth": self.names}
        for name in self.statistics:
            columns[name] = getattr(self, name)
            columns[f"{name}_low"], columns[f"{name}_high"] = self.interval(name)
        if "agreement" in self.statistics:
            columns["saturated"] = self.saturation
        for name, matrix in self.similarity.items():
            columns[f"{name}_to_last"] = matrix[:, -1]
        return pandas.DataFrame(columns)

    def _similarity_frame(self, pandas: Any) -> pandas.DataFrame:
        a, b = (index.ravel() for index in np.indices((len(self.names),) * 2))
        frames = []
        for name, matrix in self.similarity.items():
            unknown = np.full((2, *matrix.shape), np.nan)
            low, high = self.similarity_intervals.get(name, unknown)
            frames.append(
                pandas.DataFrame(
                    {
                        "depth_a": np.array(self.names)[a],
                        "depth_b": np.array(self.names)[b],
                        "measure": name,
                        "value": matrix.ravel(),
                        "low": low.ravel(),
                        "high": high.ravel(),
                    }
                )
            )
        if not frames:
            return pandas.DataFrame(columns=["depth_a", "depth_b", "measure", "value", "low", "high"])
        return pandas.concat(frames, ignore_index=True)

    def _answers_frame(self, pandas: Any) -> pandas.DataFrame:
        self._require("confidence")
        rows = self.rows
        assert rows is not None
        depths = rows.prediction.shape[1]
        ids = np.array(self.ids, dtype=object)
        return pandas.DataFrame(
            {
                "id": np.repeat(ids[rows.sample], depths),
                "position": np.repeat(rows.position, depths),
                "label": np.repeat(rows.label, depths),
                "depth": np.tile(np.array(self.names), len(rows)),
                "prediction": rows.prediction.ravel(),
                "cross_entropy": rows.cross_entropy.ravel(),
                "confidence": rows.confidence.ravel(),
            }
        )

    def save(self, folder: str | Path, *, report: bool = True, sums: bool = True) -> Path:
        """Write the trace to a folder, with its report; see `anydepth.files`."""
        from anydepth.files import save

        return save(self, Path(folder), report=report, sums=sums)

    @classmethod
    def load(cls, folder: str | Path) -> Trace:
        """Read a trace back.

        Raises:
            TraceFileError: the folder holds no trace, or one that is corrupt, truncated, or of a newer format.
        """
        from anydepth.files import load

        return load(Path(folder))

    def merge(self, other: Trace) -> Trace:
        """This trace and one of the same model on other samples, as one; see `anydepth.merging.merge`."""
        from anydepth.merging import merge

        return merge(self, other)

    def plot(self, name: str = "overview") -> altair.TopLevelMixin:
        """One chart of this trace, for a notebook or, by `anydepth.report.charts.save`, a file."""
        from anydepth.report.charts import plot

        return plot(self, name)

    def report(self, path: str | Path) -> Path:
        """Write the report: one HTML file that works offline."""
        from anydepth.report.page import write

        return write([self], Path(path))


def by_field(found: Mapping[str, Similarity]) -> dict[str, Any]:
    """Measures, each with all it has, turned into the fields of a trace."""
    return {
        "similarity": {name: one.value for name, one in found.items()},
        "similarity_intervals": {
            name: np.stack([one.low, one.high])
            for name, one in found.items()
            if one.low is not None and one.high is not None
        },
        "quantiles": {name: one.quantiles for name, one in found.items() if one.quantiles is not None},
        "moments": next((one.moments for one in found.values() if one.moments is not None), None),
        "notes": tuple(dict.fromkeys(note for one in found.values() for note in one.notes)),
    }
