"""Compare saved traces with the first of them: the job of `anydepth compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.errors import IncompatibleTraces
from anydepth.jobs.keywords import takes
from anydepth.jobs.settings import CompareSettings
from anydepth.results.result import Result
from anydepth.results.tables import Table
from anydepth.results.trace_data import TraceData
from anydepth.storage.files import replacing_folder
from anydepth.storage.output_folder import output
from anydepth.tracing.comparison import COMPARE_OUTPUT, REPORT, Comparison, model_name, write_comparisons
from anydepth.tracing.comparison import compare as compare_two
from anydepth.tracing.trace import Trace


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class CompareResult(Result):
    """The comparison of each other trace with the first, and the folder of `compare.json` and the report."""

    folder: Path | None
    comparisons: tuple[Comparison, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all comparisons, each once."""
        return tuple(dict.fromkeys(note for comparison in self.comparisons for note in comparison.notes))

    def line(self) -> str:
        """The models that were compared."""
        first = self.comparisons[0].names[0]
        return f"{', '.join(comparison.names[1] for comparison in self.comparisons)} against {first}"

    def tables(self) -> tuple[Table, ...]:
        """A table of differences for each comparison."""
        return tuple(table for comparison in self.comparisons for table in comparison.tables())

    def as_plain(self) -> dict[str, Any]:
        """The comparisons, as values that JSON holds."""
        return {"comparisons": [comparison.as_plain() for comparison in self.comparisons]}


@takes(CompareSettings, without="traces")
def compare(
    a: TraceData | str | Path | None = None,
    b: TraceData | str | Path | None = None,
    *others: TraceData | str | Path,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
    out: str | Path | None = None,
    progress: Any = None,
    **settings: Any,
) -> Any:
    """Compare models by their traces of the same samples, paired by the samples' ids: what `anydepth compare` does.

    Args:
        a: a trace, or the folder of one.
        b: another, of another model or of the same one trained further.
        *others: more to compare with the first.
        names: of all; by default those of their models, or of their folders where models have the same name.
        confidence: of the intervals.
        out: a folder for `compare.json` and a report; an earlier comparison there is replaced.
        progress: True for bars, False for none, by default bars in a notebook and at a terminal; or a function that is
            called with what is done, how much there is, and what it is.
        **settings: as `CompareSettings` has them.

    Returns:
        A `Comparison`; of more than two traces, or with `out`, a `CompareResult` that holds one for each but the first.

    Raises:
        IncompatibleTraces: fewer than two traces; other data, positions, labels or no sample in common; similarity
            without states; or a folder that holds something else.
        TraceFileError: a folder holds no trace.
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
    wanted = CompareSettings(traces=tuple(entry for entry in (a, b, *others) if entry is not None), **settings)
    if len(wanted.traces) < 2:
        raise IncompatibleTraces(f"{len(wanted.traces)} trace came, expected two or more: anydepth compare A B")
    folders = {f"trace {entry}": entry for entry in wanted.traces if isinstance(entry, str)}
    with nullcontext() if out is None else output(out, COMPARE_OUTPUT, inputs=folders):
        traces = [Trace.load(entry) if isinstance(entry, str) else entry for entry in wanted.traces]
        called = _names(traces) if names is None else list(names)
        if len(called) != len(traces):
            raise IncompatibleTraces(f"{len(called)} names came for {len(traces)} traces, expected one for each")
        comparisons = tuple(
            compare_two(
                traces[0],
                other,
                measures=wanted.measures,
                despite=wanted.despite,
                names=(called[0], name),
                confidence=confidence,
                permutations=wanted.permutations,
                seed=wanted.seed,
                progress=progress,
            )
            for other, name in zip(traces[1:], called[1:], strict=True)
        )
        if out is None:
            return comparisons[0] if not others else CompareResult(folder=None, comparisons=comparisons)
        result = CompareResult(folder=Path(out), comparisons=comparisons)
        _write(Path(out), wanted, result, dict(zip(called, traces, strict=True)))
    return result


def _write(folder: Path, settings: CompareSettings, result: CompareResult, traces: Mapping[str, TraceData]) -> None:
    from anydepth.report.pages.comparison import write

    with replacing_folder(folder, COMPARE_OUTPUT) as beside:
        write_comparisons(result.comparisons, beside)
        settings.save(beside)
        write(result.comparisons, beside / REPORT, traces)


def _names(traces: Sequence[TraceData]) -> list[str]:
    """Names of the traces: those of their models, or of their folders where models have the same name."""
    models = [model_name(trace) for trace in traces]
    folders: list[Any] = [getattr(trace, "folder", None) for trace in traces]
    if len(set(models)) == len(models) or None in folders:
        return models
    short = [folder.name for folder in folders]
    return short if len(set(short)) == len(short) else list(map(str, folders))
