"""Protocols of traces and lenses that reports read, and the checks of what a chart needs."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np

from anydepth.errors import MeasureError
from anydepth.stats.agreement import Agreement


class Result(Protocol):
    """Attributes that traces and lenses share."""

    @property
    def depth(self) -> int:
        """L, the number of blocks."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is blank and why, and what else a reader should know."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the numbers come from."""


@runtime_checkable
class Source(Result, Protocol):
    """The part of `anydepth.Trace` that charts and pages read; K = L + 1 depths, NaN where a value is undefined.

    Attributes that a trace may lack are no part of it: the statistics named in `statistics` and, with "agreement" among
    them, the counts `saturation`. They are read by `statistic`.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each depth: "0".."L" for a model, the names of the arrays where there is none."""

    @property
    def similarity(self) -> Mapping[str, np.ndarray]:
        """Measure → (K, K)."""

    @property
    def similarity_intervals(self) -> Mapping[str, np.ndarray]:
        """Measure → (2, K, K): lower and upper end. A measure without an interval is absent."""

    @property
    def quantiles(self) -> Mapping[str, np.ndarray]:
        """Measure → (5, K, K): the quantiles .05, .25, .5, .75, .95 over samples."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """The readout statistics that were measured, each an attribute of shape (K,)."""

    def interval(self, name: str, confidence: float = 0.95) -> np.ndarray:
        """(2, K): lower and upper end for a statistic."""

    def by_class(self) -> Any:
        """Data frame of class, count, depth, accuracy, saturated."""

    def measure_agreement(self) -> Mapping[tuple[str, str], Agreement]:
        """Names of two measures → how well they agree over the pairs of different depths."""


class LensSource(Result, Protocol):
    """The part of `anydepth.Lens` that its page reads: T positions of a text, K = L + 1 depths."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """(T) as text."""

    @property
    def targets(self) -> tuple[str | None, ...]:
        """(T) the token each position is to give; None where there is none."""

    @property
    def top(self) -> tuple[tuple[str, ...], ...]:
        """(K)(T) the most probable token."""

    @property
    def top_id(self) -> np.ndarray:
        """(K, T) its index."""

    @property
    def probability(self) -> np.ndarray:
        """(K, T) of the top token."""

    @property
    def entropy(self) -> np.ndarray:
        """(K, T) in nats."""

    @property
    def target_id(self) -> np.ndarray:
        """(T,) index of the target."""

    @property
    def target_probability(self) -> np.ndarray:
        """(K, T) of the target."""

    @property
    def target_rank(self) -> np.ndarray:
        """(K, T) from 1."""

    @property
    def next_token(self) -> bool:
        """Whether targets are the tokens that follow."""

    @property
    def saturation(self) -> np.ndarray:
        """(T,) depth of each position from which on the top token is the final one."""

    @property
    def perplexity(self) -> np.ndarray:
        """(K,) of the targets at each depth."""


Sources = Mapping[str, Source]  # label → trace, in the order they are shown


def provenance_name(trace: Source, key: str, default: str = "") -> str:
    """Name of the model or data set of a trace; of an absolute path, its last part.

    Args:
        trace: whose provenance is read.
        key: "model" or "data".
        default: returned where the provenance has no name.
    """
    entry = trace.provenance.get(key)
    if isinstance(entry, Mapping):
        entry = next((entry[k] for k in ("name", "id", "path") if entry.get(k)), None)
    if entry is None:
        return default
    return PurePath(str(entry)).name if PurePath(str(entry)).is_absolute() else str(entry)


def statistic(trace: Source, name: str) -> np.ndarray:
    """(K,) values of one of `trace.statistics`, or of "saturation"."""
    return np.asarray(getattr(trace, name))


def blank_reason(trace: Source, *depths: int) -> str:
    """Why the value at these depths is blank: the first note that names one of them."""
    for depth in depths:
        for note in trace.notes:
            if re.search(rf"\bdepths?\b[\d\s,and–-]*\b{depth}\b", note):
                return note
    return "undefined for these states"


def require_statistic(trace: Source, name: str, chart: str) -> None:
    """Raise `MeasureError` unless a readout statistic was measured."""
    if name not in trace.statistics:
        have = ", ".join(trace.statistics) or "none: the model has no classifier, or the readout was left out"
        raise MeasureError(
            f"the chart {chart!r} needs {name}, which this trace lacks (its readout statistics: {have}); "
            "trace a model with a classifier on labelled data"
        )


def require_similarity(trace: Source, names: tuple[str, ...], chart: str) -> tuple[str, ...]:
    """Those of the similarities `names` that were measured; `MeasureError` where none was."""
    measured = tuple(name for name in names if name in trace.similarity)
    if not measured:
        have = ", ".join(trace.similarity) or "none"
        raise MeasureError(
            f"the chart {chart!r} needs {' or '.join(names)}, which this trace lacks "
            f"(its similarities: {have}); trace again with that measure"
        )
    return measured
