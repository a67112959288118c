"""The data of a trace: similarity between depths, readouts at each depth, and the statistics that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from anydepth.core.provenance import entry
from anydepth.core.windows import texts_of
from anydepth.errors import CertificateError, MeasureError, choose
from anydepth.measures import readout
from anydepth.measures.engine.moments import Moments
from anydepth.measures.engine.states import ArrayStates, sample_ids
from anydepth.measures.measure import Similarity
from anydepth.stats import intervals
from anydepth.stats.agreement import Agreement, agreements
from anydepth.stats.certificates import MinimalDepth, minimal_depth
from anydepth.storage.output_folder import SETTINGS, OutputKind
from anydepth.storage.rows import StoredStates

if TYPE_CHECKING:
    import pandas

TRACE, ARRAYS, SUMS, STATES, REPORT = "trace.json", "arrays.safetensors", "sums.safetensors", "states", "report.html"
TRACE_OUTPUT = OutputKind(
    job="trace", mark=TRACE, names=(ARRAYS, SUMS, f"{STATES}/states.npy", f"{STATES}/sample.npy", REPORT, SETTINGS)
)
STATISTICS = ("accuracy", "cross_entropy", "confidence", "entropy", "agreement", "stays_correct")
_SHARES = ("accuracy", "agreement", "stays_correct")
_NEED_LABELS = ("accuracy", "cross_entropy", "stays_correct")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Readouts of each answer of the model: one for each sample, or for each position of a sample."""

    sample: Int64[np.ndarray, " n"]
    """Index of the sample in `Trace.ids`."""
    position: NDArray[np.int32]
    """Index of the position in its sequence, padding left out; -100 where the model answers once per sample."""
    label: Int64[np.ndarray, " n"]
    """The true class; -100 where there is none."""
    prediction: NDArray[np.int32]
    """(n, K) top class at each depth."""
    cross_entropy: NDArray[np.float32]
    """(n, K) nats at the true class; NaN without labels."""
    confidence: NDArray[np.float32]
    """(n, K) probability of the top class."""
    entropy: NDArray[np.float32] | None = None
    """(n, K) entropy of all probabilities, in nats; None in older traces."""

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, without those that are None."""
        return {name: column for name, column in vars(self).items() if column is not None}


ROW_COLUMNS = tuple(column.name for column in fields(Rows))


@dataclass(frozen=True, kw_only=True, eq=False)
class TraceData:
    """The data and statistics of a trace: `anydepth.Trace` without files and charts.

    All arrays are numpy, float64 unless they count. K = L + 1 depths: 0 is the embedding, L the last block.
    """

    names: tuple[str, ...]
    """The name of each depth: "0".."L" for a model."""
    similarity: Mapping[str, Float64[np.ndarray, "k k"]]
    """The matrix of each measure; NaN where it is undefined, and then `notes` says why."""
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
    """Why values are missing; what was chosen by default."""
    moments: Moments | None = field(default=None, compare=False)
    """The sums that CKA was computed from, to merge with those of other samples."""
    states: StoredStates | ArrayStates | None = field(default=None, compare=False)
    """The states, if they were kept."""

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.names) - 1

    @property
    def stages(self) -> dict[str, int]:
        """The first depth of each stage of a model that runs in several, by its dotted name; empty of any other."""
        return dict(entry(self.provenance, "model", "stages", default={}))

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """The names in `STATISTICS` that this trace has."""
        if self.rows is None:
            return ()
        missing = () if (self.rows.label >= 0).all() else _NEED_LABELS
        missing = missing if self.rows.entropy is not None else (*missing, "entropy")
        return tuple(name for name in STATISTICS if name not in missing)

    @property
    def accuracy(self) -> Float64[np.ndarray, " k"]:
        """Accuracy at each depth (layer-wise accuracy)."""
        return self._mean("accuracy")

    @property
    def cross_entropy(self) -> Float64[np.ndarray, " k"]:
        """Mean cross-entropy at each depth, in nats; exp of it is the perplexity of a language model."""
        return self._mean("cross_entropy")

    @property
    def confidence(self) -> Float64[np.ndarray, " k"]:
        """Mean top probability at each depth."""
        return self._mean("confidence")

    @property
    def entropy(self) -> Float64[np.ndarray, " k"]:
        """Mean entropy of the probabilities at each depth, in nats."""
        return self._mean("entropy")

    @property
    def agreement(self) -> Float64[np.ndarray, " k"]:
        """Share of answers at each depth whose top class is that of the last depth."""
        return self._mean("agreement")

    @property
    def stays_correct(self) -> Float64[np.ndarray, " k"]:
        """Of the answers correct at a depth, the share correct at all later depths, too; NaN where none is correct."""
        self._require("stays_correct")
        return np.where(self.blank, np.nan, readout.stays_correct(self._correct | self.blank))

    @property
    def saturation(self) -> Int64[np.ndarray, " k"]:
        """How many answers saturate at each depth, the first from which on the top class is the final one.

        Entry 0 is 0: saturation depths are 1..L.
        """
        return readout.saturation_histogram(self.saturation_depth, self.depth)

    @cached_property
    def saturation_depth(self) -> Int64[np.ndarray, " n"]:
        """The saturation depth of each answer, 1..L."""
        self._require("agreement")
        assert self.rows is not None
        return readout.saturation_depth(self.rows.prediction, self.blank)

    @property
    def saturated(self) -> NDArray[np.bool_]:
        """(n, K) whether each answer has saturated by each depth."""
        return np.asarray(self.saturation_depth[:, None] <= np.arange(self.depth + 1))

    @cached_property
    def blank(self) -> NDArray[np.bool_]:
        """(K,) the depths where the readout of some answer is NaN: their statistics are NaN, too."""
        if self.rows is None:
            return np.zeros(len(self.names), dtype=bool)
        return np.asarray(np.isnan(self.rows.confidence).any(axis=0))

    def interval(self, name: str, confidence: float = 0.95) -> Float64[np.ndarray, "2 k"]:
        """Lower and upper bounds of a statistic at each depth.

        Shares of independent samples get Wilson's interval; those of positions that share a text the same, with the
        number of independent answers that has the same variance. Means get Student's t, over texts: samples, unless
        several windows of a text are samples (see `anydepth.core.windows`); it is clipped to the values a mean can
        have.

        Returns:
            Low and high; NaN at a blank depth, and of positions of a single text.

        Raises:
            MeasureError: this trace has no such statistic.
        """
        self._require(name)
        values, counted = self._values(name)
        groups = None if self._independent else self._text
        if name not in _SHARES:
            return intervals.t_interval(values, groups, confidence).clip(0, 1 if name == "confidence" else None)
        if groups is None:
            return intervals.wilson((values * counted).sum(0), counted.sum(0), confidence)
        sums, counts = (intervals.sums_and_sizes(rows, groups)[0] for rows in (values * counted, counted))
        return intervals.share_interval(sums, counts, confidence)

    def per_answer(self, name: str) -> Float64[np.ndarray, "n k"]:
        """A statistic of each answer at each depth; `accuracy` and `agreement` are 0 or 1.

        Raises:
            MeasureError: this trace has no such statistic.
        """
        self._require(name)
        return self._values(name)[0]

    def _values(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The value of a statistic in each row at each depth, and whether the row counts there."""
        assert self.rows is not None
        shape = self.rows.prediction.shape
        counted = np.ones(shape)
        match name:
            case "accuracy":
                values = self._correct.astype(float)
            case "agreement":
                values = (self.rows.prediction == self.rows.prediction[:, -1:]).astype(float)
            case "stays_correct":
                values = readout.correct_from_here(self._correct | self.blank).astype(float)
                counted = self._correct.astype(float)
            case _:
                values = getattr(self.rows, name).astype(float)
        values[:, self.blank] = np.nan
        return values, counted

    @cached_property
    def _text(self) -> Int64[np.ndarray, " n"]:
        """The text of each answer."""
        assert self.rows is not None
        return np.asarray(texts_of(self.ids)[self.rows.sample])

    @cached_property
    def _independent(self) -> bool:
        """Whether no two answers are of one text."""
        return len(np.unique(self._text)) == len(self._text)

    def _mean(self, name: str) -> Float64[np.ndarray, " k"]:
        self._require(name)
        return np.asarray(self._values(name)[0].mean(axis=0))

    @cached_property
    def _correct(self) -> NDArray[np.bool_]:
        assert self.rows is not None
        return np.asarray(self.rows.prediction == self.rows.label[:, None])

    def _require(self, name: str) -> None:
        choose(name, STATISTICS, "statistic", MeasureError)
        if name not in self.statistics:
            why = "traced before it was kept: trace again" if name == "entropy" else "no labels"
            if self.rows is None:
                why = "its model has no classifier, or was traced without readouts"
            available = ", ".join(self.statistics) or "none"
            raise MeasureError(f"this trace has no {name!r} ({why}); it has: {available}")

    def minimal_depth(
        self, tolerance: float = 0.01, confidence: float = 0.95, *, against: str = "model"
    ) -> MinimalDepth:
        """The shallowest depth that is certified to replace L; see `anydepth.stats.certificates.minimal_depth`.

        Samples of the same content count once.

        Raises:
            CertificateError: a level outside (0, 1), too few samples, or answers that are not independent.
            MeasureError: this trace has no readouts, or `against` is "labels" and it has none.
        """
        self._require("accuracy" if against == "labels" else "agreement")
        assert self.rows is not None
        if not self._independent:
            raise CertificateError(
                "answers at positions of one sequence are not independent, as the test takes them to be: it needs a "
                "model that answers once for each sample"
            )
        labels = self.rows.label if "accuracy" in self.statistics else None
        return minimal_depth(
            self.rows.prediction,
            labels,
            against=against,
            tolerance=tolerance,
            confidence=confidence,
            contents=self.digests[self.rows.sample] if len(self.digests) else None,
        )

    def effective_depth(self, epsilon: float = 0.03) -> int:
        """The paper's effective depth: the smallest in 1..L with an accuracy of at least 1 - epsilon, else L."""
        accurate = np.flatnonzero(self.accuracy[1:] >= 1 - epsilon)
        return int(accurate[0]) + 1 if len(accurate) else self.depth

    def measure_agreement(self, confidence: float = 0.95) -> dict[tuple[str, str], Agreement]:
        """Agreement of every two measures over pairs of different depths; see `anydepth.stats.agreement`.

        Returns:
            By the names of two measures, in the order of `similarity`: `result["cosine", "cka"].spearman` is (value,
            low, high). Empty where fewer than two were measured.
        """
        return agreements(self.similarity, confidence)

    def by_class(self) -> pandas.DataFrame:
        """A frame of class, count, depth, accuracy, and saturated: the share of answers saturated at that depth."""
        import pandas

        self._require("accuracy")
        assert self.rows is not None
        table = readout.by_class(self.rows.label, self.rows.prediction, self.blank)
        classes, depths = table.accuracy.shape
        return pandas.DataFrame(
            {
                "class": np.repeat([self.class_name(int(label)) for label in table.label], depths),
                "count": np.repeat(table.count, depths),
                "depth": np.tile(np.arange(depths), classes),
                "accuracy": table.accuracy.ravel(),
                "saturated": table.saturated.ravel(),
            }
        )

    def class_name(self, label: int) -> str:
        """What the model calls a class, or its number."""
        return str(entry(self.provenance, "model", "classes", str(label), default=label))


def row_samples(states: StoredStates | ArrayStates) -> Int64[np.ndarray, " n"]:
    """The sample that each row of the states belongs to."""
    return sample_ids(states.groups, 0, states.count)


def by_field(measured: Mapping[str, Similarity]) -> dict[str, Any]:
    """Similarities by measure, as the fields of a trace."""
    return {
        "similarity": {name: result.value for name, result in measured.items()},
        "similarity_intervals": {
            name: np.stack([result.low, result.high])
            for name, result in measured.items()
            if result.low is not None and result.high is not None
        },
        "quantiles": {name: result.quantiles for name, result in measured.items() if result.quantiles is not None},
        "moments": next((result.moments for result in measured.values() if result.moments is not None), None),
        "notes": tuple(dict.fromkeys(note for result in measured.values() for note in result.notes)),
    }
