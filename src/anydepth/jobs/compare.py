"""Saved traces compared, from folders to a report: what `anydepth compare` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anydepth.core.provenance import entry
from anydepth.errors import IncompatibleTraces
from anydepth.progress import Progress
from anydepth.results.comparison import Comparison, compare
from anydepth.storage.files import replacing_folder, write_json
from anydepth.storage.output_folder import OutputKind, output
from anydepth.tracing.trace import Trace

RESULT = "compare.json"
REPORT = "report.html"
_OUTPUT = OutputKind(
    job="compare", mark=RESULT, names=(REPORT,), alone="holds something else already", error=IncompatibleTraces
)


def compare_folders(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    measures: Sequence[str] | None = None,
    despite: Sequence[str] = (),
    permutations: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Compare each of several saved traces with the first, and write `compare.json` and a report.

    Args:
        folders: of two traces or more; in the order of training, for checkpoints of one model.
        out: where to write; an earlier comparison there is replaced.
        measures: see `anydepth.results.comparison.compare`.
        despite: likewise.
        permutations: likewise.
        seed: likewise.
        progress: likewise.

    Raises:
        IncompatibleTraces: fewer than two traces, a folder that holds something else, or traces that do not compare.
        TraceFileError: a folder holds no trace.
    """
    from anydepth.report.pages.comparison import write

    place = Path(out)
    if len(folders) < 2:
        raise IncompatibleTraces(f"{len(folders)} trace came, expected two or more: anydepth compare A B")
    with output(place, _OUTPUT, inputs={f"trace {folder}": folder for folder in folders}):
        traces = [Trace.load(folder) for folder in folders]
        names = _names(folders, traces)
        found = [
            compare(
                traces[0],
                other,
                measures=measures,
                despite=despite,
                names=(names[0], name),
                permutations=permutations,
                seed=seed,
                progress=progress,
            )
            for other, name in zip(traces[1:], names[1:], strict=True)
        ]
        with replacing_folder(place, _OUTPUT) as beside:
            write_json(beside / RESULT, {"format": 1, "comparisons": [one.as_plain() for one in found]})
            write(found, beside / REPORT, dict(zip(names, traces, strict=True)))
    return found


def _names(folders: Sequence[str | Path], traces: Sequence[Trace]) -> list[str]:
    """What to call the traces: as their models are called, or as their folders where these are called alike."""
    models = [str(entry(trace.provenance, "model", "name", default="states")) for trace in traces]
    if len(set(models)) == len(models):
        return models
    short = [Path(folder).name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]
