"""Compare saved traces with the first of them: the job of `anydepth compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anydepth.errors import IncompatibleTraces
from anydepth.jobs.settings import CompareSettings
from anydepth.progress import Progress
from anydepth.results.comparison import Comparison, compare, difference_table, model_name
from anydepth.results.result import Result
from anydepth.results.tables import Table
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import SETTINGS, OutputKind, output
from anydepth.tracing.trace import Trace

RESULT = "compare.json"
REPORT = "report.html"
_OUTPUT = OutputKind(
    job="compare", mark=RESULT, names=(REPORT, SETTINGS), alone="holds something else already", error=IncompatibleTraces
)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class CompareResult(Result):
    """The comparison of each other trace with the first, and the folder of `compare.json` and the report."""

    folder: Path
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
        return tuple(difference_table(comparison) for comparison in self.comparisons)

    def as_plain(self) -> dict[str, Any]:
        """The comparisons, as values that JSON holds."""
        return {"comparisons": [comparison.as_plain() for comparison in self.comparisons]}


def run_compare(settings: CompareSettings, out: str | Path, *, progress: Progress | None = None) -> CompareResult:
    """Compare each trace with the first, and write `compare.json` and a report.

    Args:
        settings: the traces, and how to compare them.
        out: the folder; an earlier comparison there is replaced.
        progress: see `anydepth.jobs`.

    Raises:
        IncompatibleTraces: fewer than two traces, a folder that holds something else, or traces that do not compare.
        TraceFileError: a folder holds no trace.
    """
    from anydepth.report.pages.comparison import write

    folder = Path(out)
    if len(settings.traces) < 2:
        raise IncompatibleTraces(f"{len(settings.traces)} trace came, expected two or more: anydepth compare A B")
    with output(folder, _OUTPUT, inputs={f"trace {path}": path for path in settings.traces}):
        traces = [Trace.load(path) for path in settings.traces]
        names = _names(settings.traces, traces)
        comparisons = tuple(
            compare(
                traces[0],
                other,
                measures=settings.measures,
                despite=settings.despite,
                names=(names[0], name),
                permutations=settings.permutations,
                seed=settings.seed,
                progress=progress,
            )
            for other, name in zip(traces[1:], names[1:], strict=True)
        )
        result = CompareResult(folder=folder, comparisons=comparisons)
        with replacing_folder(folder, _OUTPUT) as beside:
            write_json(beside / RESULT, {"format": 1, **result.as_plain()})
            settings.save(beside)
            write(comparisons, beside / REPORT, dict(zip(names, traces, strict=True)))
    return result


def _names(folders: Sequence[str], traces: Sequence[Trace]) -> list[str]:
    """Names of the traces: those of their models, or of their folders where models have the same name."""
    models = [model_name(trace) for trace in traces]
    if len(set(models)) == len(models):
        return models
    short = [Path(folder).name for folder in folders]
    return short if len(set(short)) == len(short) else list(folders)
