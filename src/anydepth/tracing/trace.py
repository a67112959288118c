"""`Trace`: the numbers of a traced model at every depth, with save, load, merge, plot and report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from anydepth.errors import MeasureError, choose
from anydepth.results import frames
from anydepth.results.merging import merge
from anydepth.results.result import Result
from anydepth.results.tables import Table
from anydepth.results.trace_data import TraceData
from anydepth.results.trace_files import load, save
from anydepth.results.trace_tables import depth_table, sample_count, title_of
from anydepth.theory.findings import Theory, has_theory

if TYPE_CHECKING:
    import altair
    import pandas


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Trace(Result, TraceData):
    """Readout, similarity and saturation of a model at its K = L + 1 depths: 0 is the embedding, L the last block.

    Made by `anydepth.trace`, read back by `Trace.load`. All arrays are numpy, float64 unless they count.

    Example:
        >>> import numpy as np
        >>> from anydepth import trace_states
        >>> x = np.random.default_rng(0).normal(size=(50, 8))
        >>> trace = trace_states({"a": x, "b": 3 * x, "c": np.abs(x)})
        >>> trace.names, trace.depth, trace.statistics
        (('a', 'b', 'c'), 2, ())
        >>> trace.similarity["cka"][0].round(2).tolist()
        [1.0, 1.0, 0.01]
    """

    folder: Path | None = field(default=None, compare=False)
    """Where it was saved, or read."""
    theory: Theory | None = field(default=None, compare=False)
    """The findings on the paper's theory, if these were wanted."""

    def to_frame(self, what: str = "depths") -> pandas.DataFrame:
        """The numbers as a pandas frame.

        Args:
            what: "depths" for one row per depth; "similarity" for one row per measure and pair of depths; "answers"
                for one row per answer and depth.
        """
        makers = {"depths": frames.by_depth, "similarity": frames.by_pair, "answers": frames.by_answer}
        make = makers[choose(what, makers, "frame", MeasureError)]
        if what == "answers":
            self._require("confidence")
        return make(self)

    def save(self, folder: str | Path, *, report: bool = True, sums: bool = True) -> Path:
        """Write the trace to a folder, with its report; see `anydepth.results.trace_files`."""
        return save(self, Path(folder), report=self.report if report else None, sums=sums)

    @classmethod
    def load(cls, folder: str | Path) -> Trace:
        """Read a trace from a folder; `TraceFileError` if there is none, or it is corrupt or of a newer format."""
        theory = Theory.load(folder) if has_theory(Path(folder)) else None
        return replace(load(Path(folder), cls), folder=Path(folder), theory=theory)

    def merge(self, other: Trace) -> Trace:
        """Merge with a trace of the same model on other samples; see `anydepth.results.merging.merge`."""
        return merge(self, other)

    def plot(self, name: str = "overview") -> altair.TopLevelMixin:
        """One chart of this trace, for a notebook or, by `anydepth.report.charts.trace.save`, a file."""
        from anydepth.report.charts.trace import plot

        return plot(self, name)

    def line(self) -> str:
        """The model, the data, and the accuracy from the first to the last depth."""
        name = next((name for name in ("accuracy", "agreement") if name in self.statistics), None)
        quality = "" if name is None else f", {name} {getattr(self, name)[0]:.3f} to {getattr(self, name)[-1]:.3f}"
        measures = f", {', '.join(self.similarity)}" if self.similarity else ""
        return f"{title_of(self)}: {sample_count(self):,} samples, depths 0 to {self.depth}{quality}{measures}"

    def tables(self) -> tuple[Table, ...]:
        """One row for each depth."""
        return (depth_table(self),)

    def sentences(self) -> tuple[str, ...]:
        """The findings on the theory, if it was tested."""
        from anydepth.report.theory_sentences import sentences

        return () if self.theory is None else tuple(f"• {sentence}" for sentence in sentences(self.theory))

    def chart(self) -> str:
        """The overview as an image."""
        from anydepth.report.charts.files import picture

        return picture(self.plot("overview"), f"Charts of {self!r}")

    def report(self, path: str | Path) -> Path:
        """Write the report: one HTML file that works offline."""
        from anydepth.report.pages.trace import write

        return write([self], Path(path), theories=() if self.theory is None else (self.theory,))
